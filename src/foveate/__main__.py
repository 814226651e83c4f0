"""The program `foveate`, also as `python -m foveate`, where scripts are not on the path."""

import sys


def main() -> None:
    """Run the program; Ctrl-C ends it with one line even while modules are imported."""
    try:
        from foveate.commands import main as run

        run()
    except KeyboardInterrupt:
        print("interrupted; nothing was done yet", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
