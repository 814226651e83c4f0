"""`python -m foveate.train`: the old name of `python -m foveate train`."""

import sys

if __name__ == "__main__":
    print("foveate.train is no longer a command; give the same options to: python -m foveate train", file=sys.stderr)
    sys.exit(2)
