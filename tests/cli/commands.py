"""Runs commands in the process of the tests, and returns what they print."""

import json
from pathlib import Path

from typer.testing import CliRunner

from foveate.commands import app

EXAMPLES = Path(__file__).parents[2] / "examples"


def _refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")


class Commands:
    """Runs commands in this process, with the reference model loaded once."""

    def __init__(self) -> None:
        self.runner = CliRunner()

    def __call__(self, *words: object, code: int = 0) -> str:
        """Return what a command prints on stdout."""
        result = self.runner.invoke(app, [str(word) for word in words])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == code, result.output
        return result.stdout

    def json(self, *words: object):
        return json.loads(self(*words, "--json"), parse_constant=_refuse)

    def refused(self, *words: object, code: int = 2) -> str:
        """Return the error of a command that must exit with this code and print nothing on stdout."""
        result = self.runner.invoke(app, [str(word) for word in words])
        assert isinstance(result.exception, SystemExit), repr(result.exception)
        assert result.exit_code == code
        assert result.stdout == ""
        assert "Traceback" not in result.stderr
        return result.stderr.strip()
