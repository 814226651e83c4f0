"""The command line: each command reads its options, calls the library and prints the result.

>>> from typer.testing import CliRunner
>>> print(CliRunner().invoke(app, ["--version"]).stdout)
foveate 0...
"""

from foveate.commands.program import app, main

__all__ = ["app", "main"]
