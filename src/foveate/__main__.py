"""`python -m foveate`: the program `foveate`, where scripts are not on the path."""

from foveate.commands import main

if __name__ == "__main__":
    main()
