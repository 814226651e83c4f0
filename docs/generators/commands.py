"""The site's page of commands, from the program's own help. It is made when the site is built and is not committed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from generators.markdown import table

HEAD = """\
# Commands

Every command prints its own help with `foveate COMMAND --help`. Without `--model`, commands use the embedded model.

"""


def reference() -> str:
    """Return the page."""
    import typer

    from foveate.commands import app

    program = typer.main.get_command(app)
    commands = list(_commands("foveate", program))
    overview = [(f"[`{name}`](#{_anchor(name)})", _first(command.help)) for name, command in commands]
    return HEAD + "\n".join([table(("command", "what it does"), overview), *(_section(*each) for each in commands)])


def _commands(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    """Yield every command below one, by its whole name."""
    inner = getattr(command, "commands", None)
    if inner is None:
        yield name, command
        return
    for word, each in sorted(inner.items()):
        yield from _commands(f"{name} {word}", each)


def _section(name: str, command: Any) -> str:
    context = command.make_context(name, [], resilient_parsing=True)
    usage = " ".join([name, *filter(None, command.collect_usage_pieces(context))])
    rows = []
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None:
            rows.append((f"`{record[0].strip()}`", _cell(record[1])))
    title = f"## {name}\n\n{_help(command.help)}\n\n"
    return f"{title}```text\n{usage}\n```\n\n{table(('option', 'meaning'), rows)}"


def _help(text: str | None) -> str:
    return re.sub(r"\n{3,}", "\n\n", (text or "").replace("\b", "").replace("\f", "").strip())


def _first(text: str | None) -> str:
    return _cell(_help(text).split("\n\n")[0])


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _anchor(name: str) -> str:
    return name.replace(" ", "-")
