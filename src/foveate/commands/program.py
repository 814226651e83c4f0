"""The program `foveate`: its commands, and how errors and interruptions end one."""

from __future__ import annotations

import shutil
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

# Modules of commands import torch and transformers inside their functions, so that --help is quick.
from foveate import __version__
from foveate.commands.ask import ask
from foveate.commands.bench import bench
from foveate.commands.bulk import bulk
from foveate.commands.calibrate import calibrate
from foveate.commands.compare import compare
from foveate.commands.cost import cost
from foveate.commands.count import count
from foveate.commands.families import families
from foveate.commands.find_layer import find_layer
from foveate.commands.load import load
from foveate.commands.methods import methods
from foveate.commands.output import print_error, print_line, print_note, silence_imports
from foveate.commands.play import play
from foveate.commands.report import report
from foveate.commands.saliency import saliency
from foveate.commands.serve import serve
from foveate.commands.streams import prepare_streams, writing
from foveate.commands.train import train
from foveate.commands.tune import tune
from foveate.errors import FoveateError, FoveateWarning, first_line

_HELP = {"help_option_names": ["-h", "--help"]}

_INTERRUPTED = {
    "bench": "interrupted; run the same command again to continue",
    "bulk": "interrupted; run the same command again to continue",
    "tune": "interrupted; run the same command again to continue",
    "train": "interrupted; the same command with --resume continues from the last checkpoint, or starts anew",
}
"""What to print when Ctrl-C stops a command that can continue later."""


_OUT_OF_MEMORY = (
    "the GPU has too little memory ({}); try a smaller --batch, --dtype bfloat16, --quantize 4bit or --device-map auto"
)


_PANELS = 70
"""The least width in characters at which help stands in panels."""

_CTRL_C = 128 + signal.SIGINT
"""The exit code of an interruption, as shells and typer have it."""

_UsageError: type[Exception] = typer.BadParameter.__bases__[0]
"""What typer raises for options and arguments that it can't read."""


class _Interrupted(Exception):
    """Says what becomes of a command that Ctrl-C stopped."""


@contextmanager
def _one_line(context: Any) -> Iterator[None]:
    """End a command on errors that users can fix with one line on stderr and exit code 2, and on Ctrl-C with its own.

    Raises:
        _Interrupted: on Ctrl-C.
    """
    try:
        _check_current_folder()
        yield
    except FoveateError as error:
        print_error(str(error))
        raise typer.Exit(2) from None
    except RuntimeError as error:
        # torch is imported only by commands that need it.
        if type(error).__name__ != "OutOfMemoryError":
            raise
        print_error(_OUT_OF_MEMORY.format(first_line(error)))
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        raise _Interrupted(_interrupted(context.invoked_subcommand or context.command.name)) from None


def _check_current_folder() -> None:
    """Check that the current folder still exists; without one, torch's libraries end the process.

    Raises:
        FoveateError: it was removed.
    """
    try:
        Path.cwd()
    except OSError:
        raise FoveateError("the current folder was removed; change to another one (cd)") from None


def _interrupted(command: str | None) -> str:
    return _INTERRUPTED.get(command or "", "interrupted; no partial files were left behind")


def _usage(error: Any) -> str:
    """Return one line for what typer refuses.

    >>> _usage(typer.BadParameter("'x' is not a number.", param_hint="'--keep'"))
    "invalid value for '--keep': 'x' is not a number"
    """
    said = " ".join(error.format_message().split()).rstrip(".")
    said = said[:1].lower() + said[1:]
    context = getattr(error, "ctx", None)
    return said if context is None else f"{said}  ({context.command_path} --help says what there is)"


def _end_as_by_ctrl_c() -> None:
    """Let SIGTERM end the program as Ctrl-C does, so that temporary files are removed and locks are freed."""
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, signal.default_int_handler)


class _Main:
    """How a program of typer begins and ends: what typer and the streams refuse is one line, too."""

    def main(self, *arguments: Any, standalone_mode: bool = True, **options: Any) -> Any:
        """Run the program, and end the process."""
        run: Any = super().main  # pyright: ignore[reportAttributeAccessIssue]
        if not standalone_mode:
            return run(*arguments, standalone_mode=False, **options)
        prepare_streams()
        silence_imports()
        _end_as_by_ctrl_c()
        try:
            code = run(*arguments, standalone_mode=False, **options)
            if code == _CTRL_C:
                raise _Interrupted(_interrupted(None))
            with writing():
                sys.stdout.flush()
        except _UsageError as error:
            print_error(_usage(error))
            code = 2
        except FoveateError as error:
            print_error(str(error))
            code = 2
        except (_Interrupted, KeyboardInterrupt) as stopped:
            print_error(str(stopped) or _interrupted(None))
            code = _CTRL_C
        except typer.Exit as end:
            code = end.exit_code
        sys.exit(code if isinstance(code, int) else 0)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help; without panels where they would cut the names of options."""
        mine: Any = self
        width = shutil.get_terminal_size().columns
        if width < _PANELS:
            formatter.width, mine.rich_markup_mode = max(width - 2, 16), None
        super().format_help(ctx, formatter)  # pyright: ignore[reportAttributeAccessIssue]

    def make_context(self, *arguments: Any, **options: Any) -> Any:
        """Read the words of the command line; --help and --version print here."""
        read: Any = super().make_context  # pyright: ignore[reportAttributeAccessIssue]
        with writing():
            try:
                return read(*arguments, **options)
            except SystemExit:
                # rich, which typer prints help with, ends so where the reader of stdout has left.
                raise typer.Exit(0) from None


class _Program(_Main, TyperGroup):
    """Several commands."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was named."""
        with _one_line(ctx):
            return super().invoke(ctx)


class _Part(_Main, TyperCommand):
    """One of several commands."""


class _Command(_Main, TyperCommand):
    """A command that is a program of its own."""

    def invoke(self, ctx: Any) -> Any:
        """Run it."""
        with _one_line(ctx):
            return super().invoke(ctx)


app = typer.Typer(
    cls=_Program,
    name="foveate",
    help="Give vision-language models fewer visual tokens, and measure what that saves and costs.",
    epilog="Without --model, commands use the small model that comes with foveate.",
    invoke_without_command=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings=_HELP,
)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"foveate {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        print_line(context.get_help())


for _panel, _commands in {
    "Try methods": (ask, play, count, saliency, methods, families),
    "Measure and predict": (bench, compare, report, tune, find_layer, cost, calibrate),
    "Work through many images": (bulk,),
    "Serve": (serve, load),
    "Train": (train,),
}.items():
    for _command in _commands:
        app.command(cls=_Part, rich_help_panel=_panel)(_command)


def _show_warning(message: Warning | str, category: type[Warning], *place: Any, **options: Any) -> None:
    """Print a warning of ours as one line, and others as Python does."""
    if issubclass(category, FoveateWarning):
        print_note(f"warning: {message}")
    else:
        _PYTHON_SHOWS(message, category, *place, **options)


_PYTHON_SHOWS = warnings.showwarning


def main() -> None:
    """Run the program with the words of the command line."""
    warnings.showwarning = _show_warning
    app()


def run_training(command: Callable[..., None], name: str) -> None:
    """Run a function that trains as a program of its own; its errors and interruptions end as those of `foveate train`.

    Args:
        command: a function whose arguments typer reads, `--resume` among them.
        name: how the program is started, for its help.
    """
    program = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")
    program.command("train", cls=_Command, context_settings=_HELP)(command)
    program(prog_name=name)
