"""`python -m foveate`: the command `foveate`, for where scripts aren't on the path."""

from foveate.cli import main

if __name__ == "__main__":
    main()
