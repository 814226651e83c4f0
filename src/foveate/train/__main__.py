"""`accelerate launch -m foveate.train RECIPE`: what `foveate train RECIPE` does, in several processes."""

import sys

import typer

from foveate.errors import FoveateError
from foveate.train.command import train


def main() -> None:
    """The entry point of `python -m foveate.train`."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")
    app.command(context_settings={"help_option_names": ["-h", "--help"]})(train)
    try:
        app(prog_name="python -m foveate.train")
    except FoveateError as error:
        typer.echo(str(error), err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        typer.echo("interrupted; the same command with --resume goes on at the last checkpoint", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
