#!/usr/bin/env python3
"""Make, check and describe the files in results/community: one JSON file for each run that somebody sends.

    python benchmarks/community.py make results/mine --by NAME        a finished folder of `foveate bench`
    python benchmarks/community.py make LOG... --card "NVIDIA H100"   folders that lmms-eval wrote (--output_path):
                                                                      dense, and one for each spec
    python benchmarks/community.py check [FILE...]                    one line for each thing that is wrong
    python benchmarks/community.py schema [--check]                   write results/community/schema.json, or compare it

Run `make` where you have measured: of lmms-eval's logs, versions are those that are installed here. Needs the extra
`foveate[train]`, for pydantic.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import math
import re
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import Field

from foveate.bench.finished import is_finished, read_finished
from foveate.costmodel import published_sizes, read_model
from foveate.errors import FoveateError
from foveate.files import files_in, is_file, is_folder, read_json, read_text, shown_path, write_text
from foveate.lmms_plugin.arguments import read_spec
from foveate.quotes import pieces
from foveate.schedule import count_tokens, schedule
from foveate.spec import parse
from foveate.train.settings import DENSE, Count, Number, Settings

FOLDER: Final = Path(__file__).parents[1] / "results" / "community"
SCHEMA: Final = "schema.json"
EMBEDDED: Final = "embedded"
"""The name of the model that comes with foveate."""
ROUNDED: Final = 1e-4
"""The most by which two figures may differ that say the same."""
VERSIONS: Final = ("foveate", "torch", "transformers")
UNIMPORTANT: Final = ("by", "finished", "command")
"""Fields that don't tell one run from another."""


class Tokens(Settings):
    """Visual tokens per image, means over images."""

    place = "tokens"

    before: Number
    """Of the dense model."""
    after: Number
    """After the last step."""
    over_layers: Number
    """Averaged over the decoder's layers."""


class Difference(Settings):
    """A paired difference to the dense model's score, with its 95 % interval."""

    place = "difference"

    value: Number
    low: Number | None
    high: Number | None


class Row(Settings):
    """What one configuration scored."""

    place = "a row"

    spec: str
    """As `foveate` writes it, or `dense`."""
    scores: dict[str, dict[str, Number]]
    """By task, by metric; as the program printed them."""
    tokens: Tokens | None = None
    """None of a dense row that didn't count them."""
    loyalty: Number | None = None
    """The share of answers equal to the dense model's."""
    difference: Difference | None = None
    """Of the first metric of the only task; `foveate bench` has it."""


class Run(Settings):
    """One run that somebody sends."""

    place = "the file"

    format: Literal[1]
    program: Literal["foveate bench", "lmms-eval"]
    command: str
    """That made it, or the program's arguments."""
    model: str
    """Its name on the hub, "organisation/name", or "embedded"."""
    revision: str | None
    """Its commit, if it was named."""
    questions: dict[str, Count]
    """How many were asked, by task."""
    device: str
    """Such as cuda:0, mps or cpu."""
    card: str | None
    """The GPU's name; needed where the device is one."""
    dtype: str
    quantize: Literal["4bit", "8bit"] | None
    batch: Count | None
    versions: dict[str, str]
    """Of the packages that decide results: foveate, torch, transformers; lmms-eval if it asked."""
    finished: str
    """When, as 2026-11-29T12:00:00Z."""
    by: str | None = Field(None, max_length=80)
    """Whom to name."""
    rows: tuple[Row, ...] = Field(strict=False)


# Checks


def problems(run: Run) -> list[str]:
    """Return what is wrong with a run, a line for each thing."""
    return [*_where(run), *_rows(run), *(line for row in run.rows for line in _row(run, row))]


def _where(run: Run) -> Iterator[str]:
    """Yield what is wrong with how the run was made."""
    gpu = run.device.startswith("cuda")
    if gpu and not (run.card and run.card.strip()):
        yield f'device is {run.device} and card is empty; name the GPU, such as "NVIDIA H100 80GB HBM3"'
    if not gpu and run.card:
        yield f'card is "{run.card}" and device is {run.device}; a card goes with cuda'
    if run.model != EMBEDDED and not re.fullmatch(r"[\w.-]+/[\w.-]+", run.model):
        yield f'model is "{run.model}"; write its name on the hub, "organisation/name", or "{EMBEDDED}"'
    wanted = (*VERSIONS, "lmms-eval") if run.program == "lmms-eval" else VERSIONS
    if missing := [name for name in wanted if not run.versions.get(name)]:
        yield f"versions lacks {', '.join(missing)}"
    if not re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ?", run.finished):
        yield f'finished is "{run.finished}"; write it as 2026-11-29T12:00:00Z'
    if not run.questions:
        yield "questions names no task"
    if found := re.search(r"(/home/|/Users/|[A-Z]:\\Users\\)[\w.-]+", run.command):
        yield f"command names the folder {found[0]}; write a path without your name"


def _rows(run: Run) -> Iterator[str]:
    """Yield what is wrong with the rows together."""
    names = [row.spec for row in run.rows]
    if names.count(DENSE) == 0:
        yield "there is no dense row; results count beside the dense model's in the same run"
    if len(set(names)) < 2:
        yield "there is one configuration; send at least one beside dense"
    yield from (
        f"{name} has {names.count(name)} rows; keep one" for name in dict.fromkeys(names) if names.count(name) > 1
    )
    before = {row.tokens.before for row in run.rows if row.tokens is not None}
    if before and max(before) - min(before) > ROUNDED * max(before):
        yield f"tokens before compression are {min(before):g} in one row and {max(before):g} in another"


def _row(run: Run, row: Row) -> Iterator[str]:
    """Yield what is wrong with one row."""
    if row.scores.keys() != run.questions.keys():
        yield f"{row.spec} has scores of {_listed(row.scores)}, and questions are of {_listed(run.questions)}"
    if empty := [task for task, scores in row.scores.items() if not scores]:
        yield f"{row.spec} has no score of {', '.join(empty)}"
    if row.loyalty is not None and not 0 <= row.loyalty <= 1:
        yield f"{row.spec} has the loyalty {row.loyalty:g}; it is a share of 1"
    try:
        spec = None if row.spec == DENSE else parse(without_weights(row.spec))
    except FoveateError as error:
        yield f'the spec "{row.spec}" can\'t be read: {str(error).splitlines()[-1].lstrip(" ^")}'
        return
    if row.tokens is None:
        if spec is not None:
            yield f"{row.spec} doesn't say how many tokens were left"
        return
    yield from _tokens(run, row.spec, spec, row.tokens)
    yield from _difference(run, row)


def _tokens(run: Run, name: str, spec: Any, tokens: Tokens) -> Iterator[str]:
    """Yield what is wrong with a row's counts: with each other, and with the spec on a model whose layout is known."""
    least, most = min(tokens.after, tokens.over_layers), max(tokens.after, tokens.over_layers)
    if least < 0 or most > tokens.before * (1 + ROUNDED) or tokens.over_layers < tokens.after * (1 - ROUNDED):
        yield (
            f"{name} has {tokens.after:g} tokens after compression, {tokens.over_layers:g} over layers, "
            f"{tokens.before:g} before"
        )
    if spec is None:
        if least < tokens.before * (1 - ROUNDED):
            yield f"dense has {least:g} of {tokens.before:g} tokens; it keeps all"
        return
    if (family := family_with_one_layout(run.model)) is None:
        return
    layout = family.image_layout(336, 336)
    if abs(tokens.before - layout.total) > ROUNDED * layout.total:
        yield f"{name} has {tokens.before:g} tokens before compression; {run.model} has {layout.total}"
        return
    if "adapter=" in name:
        return
    try:
        counted = count_tokens(schedule(spec, family), family, layout).layers
    except FoveateError as error:
        yield f"{run.model} doesn't take {name}: {str(error).splitlines()[0]}"
        return
    fewest, many = counted[-1]
    if not fewest * (1 - ROUNDED) <= tokens.after <= many * (1 + ROUNDED):
        between = f"{many}" if fewest == many else f"{fewest} to {many}"
        yield f"{name} has {tokens.after:g} tokens after compression; on {run.model} it leaves {between}"
    fewest, many = (sum(layer[end] for layer in counted) / len(counted) for end in (0, 1))
    if not fewest * (1 - ROUNDED) <= tokens.over_layers <= many * (1 + ROUNDED):
        between = f"{many:g}" if fewest == many else f"{fewest:g} to {many:g}"
        yield f"{name} has {tokens.over_layers:g} tokens over layers; on {run.model} it has {between}"


def _difference(run: Run, row: Row) -> Iterator[str]:
    """Yield what is wrong with a difference: it is that of two rows' scores, inside its interval."""
    dense = next((each for each in run.rows if each.spec == DENSE), None)
    if row.difference is None or dense is None or len(row.scores) != 1:
        return
    ours, base = (next(iter(next(iter(each.scores.values())).values()), math.nan) for each in (row, dense))
    if not abs(ours - base - row.difference.value) <= ROUNDED:
        yield f"{row.spec} differs from dense by {ours - base:g}, and difference says {row.difference.value:g}"
    low, high = row.difference.low, row.difference.high
    if low is not None and high is not None and not low <= row.difference.value <= high:
        yield f"{row.spec} has a difference outside its interval"


def without_weights(spec: str) -> str:
    """Return a spec without options that name weights, which only the sender has.

    The mean that such an option allows goes with it.

    >>> without_weights('stride:0.5+atp:mean=144:adapter="my runs/a"')
    'stride:0.5+atp'
    """
    steps = []
    for _, step in pieces(spec, "+"):
        (_, body), *places = pieces(step, "@")
        words = [word.strip() for _, word in pieces(body, ":")]
        if any(word.startswith("adapter=") for word in words):
            words = [word for word in words if not re.fullmatch(r"adapter=.*|mean=[0-9]{1,9}", word)]
        steps.append("@".join([":".join(words), *(place for _, place in places)]))
    return "+".join(steps)


def family_with_one_layout(model: str) -> Any:
    """Return the family of a model whose images all have the same number of tokens; None if it isn't known to be so."""
    sizes = None if model == EMBEDDED else published_sizes(model)
    if model != EMBEDDED and sizes is None:
        return None
    family = read_model(sizes).family
    same = family.image_layout(336, 336) == family.image_layout(1000, 300)
    return family if same else None


def digest(run: Run) -> str:
    """Return what tells one run from others, whoever sends it."""
    data = {name: value for name, value in run.model_dump(mode="json").items() if name not in UNIMPORTANT}
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:8]


def name_of(run: Run) -> str:
    """Return the name of a run's file."""
    tasks = "-".join(run.questions) if len(run.questions) < 4 else f"{len(run.questions)}-tasks"
    words = re.sub(r"[^A-Za-z0-9._-]+", "-", f"{run.model.rpartition('/')[2]}-{tasks}")
    return f"{words}-{digest(run)}.json"


def read_run(path: Path) -> Run:
    """Read a file of a run.

    Raises:
        FoveateError: it can't be read, or has other fields.
    """
    found = read_json(path)
    if not isinstance(found, dict):
        raise FoveateError("it holds no JSON object")
    return Run.model_validate(found)


def check_files(paths: Sequence[Path]) -> tuple[list[Run], list[str]]:
    """Return the runs of all files without a problem, and a line for each problem."""
    runs: dict[str, Run] = {}
    first: dict[str, Path] = {}
    wrong: list[str] = []
    for path in paths:
        try:
            run = read_run(path)
        except FoveateError as error:
            line = " ".join(str(error).split())
            # Errors of reading name the file.
            wrong.append(line if line.startswith(shown_path(path)) else f"{shown_path(path)}: {line}")
            continue
        found = problems(run)
        known = digest(run)
        if known in first:
            found.append(f"the same run as {first[known].name}; keep one")
        elif path.name != name_of(run):
            found.append(f"its name must be {name_of(run)}, which follows from what it holds")
        first.setdefault(known, path)
        wrong += [f"{shown_path(path)}: {line}" for line in found]
        if not found:
            runs[known] = run
    return list(runs.values()), wrong


def community_files(folder: Path = FOLDER) -> list[Path]:
    """Return all files of runs, by name."""
    return [path for path in files_in(folder, "*.json") if path.name != SCHEMA]


def schema_text() -> str:
    """Return the JSON schema of a run."""
    return json.dumps(Run.model_json_schema(), indent=1) + "\n"


# Make


def run_of_bench(folder: Path, model: str | None, by: str | None) -> Run:
    """Return a finished folder of `foveate bench` as a run.

    Raises:
        FoveateError: the folder isn't finished, or the model's name isn't known.
    """
    found = read_finished(folder)
    config, metrics = found.config, found.metrics
    command = command_of(folder)
    words = shlex.split(command)
    if model is None:
        given = [words[n + 1] for n, word in enumerate(words[:-1]) if word == "--model"]
        model = given[-1] if given else EMBEDDED
    task, metric = metrics["task"], metrics.get("scoring", {}).get("name", "words")
    rows = [
        {
            "spec": row["spec"],
            "scores": {task: {metric: row["accuracy"]["value"], **(row.get("figures") or {})}},
            "tokens": {
                "before": row["tokens"]["before"],
                "after": row["tokens"]["after"],
                "over_layers": row["tokens"]["mean_over_layers"],
            },
            "loyalty": row["loyalty"],
            "difference": None
            if row["difference"] is None
            else {end: row["difference"][end] for end in ("value", "low", "high")},
        }
        for row in metrics["configurations"]
    ]
    return Run.model_validate(
        {
            "format": 1,
            "program": "foveate bench",
            "command": command,
            "model": model,
            "revision": config["revision"],
            "questions": {task: metrics["questions"]},
            **{name: config[name] for name in ("device", "card", "dtype", "quantize", "batch")},
            "versions": {name: config["versions"][name] for name in VERSIONS},
            "finished": str(found.environment.get("finished")),
            "by": by,
            "rows": rows,
        }
    )


def command_of(folder: Path) -> str:
    """Return the command that made a finished folder of `foveate bench`; "" if its table doesn't say."""
    return read_text(folder / "table.md").partition("\nMade by\n\n")[2].strip("`\n")


def run_of_lmms(folders: Sequence[Path], model: str | None, by: str | None, card: str | None) -> Run:
    """Return logs of lmms-eval, one for each configuration, as a run.

    Raises:
        FoveateError: a log is missing or of another model or other tasks.
    """
    rows: list[dict[str, Any]] = []
    shared: dict[str, Any] = {}
    commands: list[str] = []
    for folder in folders:
        found = read_json(_log(folder), strict=False)
        given = arguments(found["config"]["model_args"])
        spec = read_spec(str(given.get("spec", DENSE)))
        tasks = [task for task in found["n-samples"] if task in found["results"]]
        own = {
            "model": model or str(given.get("pretrained")),
            "revision": given.get("revision"),
            "questions": {task: found["n-samples"][task]["effective"] for task in tasks},
            "device": given.get("device") or ("cuda" if card else "cpu"),
            "dtype": str(given.get("dtype", "auto")),
            "quantize": given.get("quantize"),
            "batch": int(found["config"]["batch_size"]),
        }
        if given.get("voco"):
            raise FoveateError(
                f"{shown_path(folder)}: a run with VoCo tokens has no spec, and these files are of specs"
            )
        for name, value in own.items():
            if shared.setdefault(name, value) != value:
                raise FoveateError(f"{shown_path(folder)}: {name} is {value}, and of the first log {shared[name]}")
        date = re.fullmatch(r"(\d{4})(\d\d)(\d\d)_(\d\d)(\d\d)(\d\d)", str(found["date"]))
        if date is None:
            raise FoveateError(f"{shown_path(folder)}: the date {found['date']} isn't one of lmms-eval 0.7")
        shared["finished"] = "{}-{}-{}T{}:{}:{}".format(*date.groups())
        counted = found.get("throughput", {})
        names = {"before": "visual_tokens_dense", "after": "visual_tokens", "over_layers": "visual_tokens_over_layers"}
        tokens = {name: counted.get(f"avg_{key}") for name, key in names.items()}
        rows.append(
            {
                "spec": DENSE if spec is None else str(spec),
                "scores": {task: dict(_numbers(found["results"][task])) for task in tasks},
                "tokens": tokens if None not in tokens.values() else None,
                "loyalty": counted.get("avg_loyalty"),
            }
        )
        commands.append(f"lmms_eval --model foveate --model_args {shlex.quote(_text(found['config']['model_args']))}")
    finished = shared.pop("finished")
    versions = {name: importlib.metadata.version(name) for name in (*VERSIONS, "lmms-eval")}
    head = {"format": 1, "program": "lmms-eval", "command": "; ".join(commands), "card": card}
    return Run.model_validate({**head, **shared, "versions": versions, "finished": finished, "by": by, "rows": rows})


def _log(folder: Path) -> Path:
    """Return the file of results in a folder of lmms-eval."""
    if not is_folder(folder):
        raise FoveateError(f"{shown_path(folder)} is no folder; name one that foveate bench or lmms-eval has written")
    logs = sorted(folder.rglob("*_results.json"))
    if len(logs) != 1:
        raise FoveateError(
            f"{shown_path(folder)} is no finished folder of foveate bench, and has {len(logs)} files *_results.json of "
            "lmms-eval; name the folder of one run"
        )
    return logs[0]


def arguments(model_args: str | Mapping[str, Any]) -> dict[str, Any]:
    """Read lmms-eval's --model_args.

    >>> arguments('pretrained=a/b,spec="fastv:0.5@2,8",dtype=bfloat16')
    {'pretrained': 'a/b', 'spec': '"fastv:0.5@2,8"', 'dtype': 'bfloat16'}
    """
    if not isinstance(model_args, str):
        return dict(model_args)
    return {key.strip(): value for key, _, value in (part.partition("=") for _, part in pieces(model_args, ","))}


def _text(model_args: str | Mapping[str, Any]) -> str:
    if isinstance(model_args, str):
        return model_args
    return ",".join(f"{key}={value}" for key, value in model_args.items())


def _numbers(results: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield the scores of a task by metric, without their errors."""
    for name, value in results.items():
        metric = name.partition(",")[0]
        if isinstance(value, int | float) and not isinstance(value, bool) and "_stderr" not in metric:
            yield metric, value


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "nothing"


def make(arguments: argparse.Namespace) -> int:
    """Write the file of a run, unless something is wrong with it."""
    folders: list[Path] = arguments.results
    if is_finished(folders[0]):
        if len(folders) > 1:
            raise FoveateError("a folder of foveate bench has all configurations of its run; name one")
        if arguments.card:
            raise FoveateError("foveate bench has written the card's name itself; leave --card out")
        run = run_of_bench(folders[0], arguments.model, arguments.by)
    else:
        run = run_of_lmms(folders, arguments.model, arguments.by, arguments.card)
    if wrong := problems(run):
        print("\n".join(wrong), file=sys.stderr)
        return 1
    path = arguments.out / name_of(run)
    write_text(path, json.dumps(run.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n")
    print(shown_path(path))
    return 0


def check(arguments: argparse.Namespace) -> int:
    """Check files, with those that are there already."""
    paths = arguments.files or community_files(arguments.folder)
    runs, wrong = check_files(paths)
    print("\n".join(wrong) if wrong else f"{len(runs)} files, nothing wrong", file=sys.stderr if wrong else sys.stdout)
    return int(bool(wrong))


def schema(arguments: argparse.Namespace) -> int:
    """Write the schema, or compare it."""
    path = arguments.folder / SCHEMA
    if not arguments.check:
        write_text(path, schema_text())
        return 0
    if is_file(path) and read_text(path) == schema_text():
        return 0
    print(f"{shown_path(path)} is out of date: run: python benchmarks/community.py schema", file=sys.stderr)
    return 1


def main() -> int:
    """Do what the command line asks for; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.set_defaults(folder=FOLDER)
    parts = parser.add_subparsers(required=True, metavar="make | check | schema")
    part = parts.add_parser("make", help="write the file of a run")
    part.add_argument("results", nargs="+", type=Path, help="a folder of foveate bench, or several of lmms-eval")
    part.add_argument("--model", help="the model's name on the hub, if the run was given a folder")
    part.add_argument("--by", help="whom to name")
    part.add_argument("--card", help="the GPU's name; foveate bench knows it")
    part.add_argument("--out", type=Path, default=FOLDER, help="where to write")
    part.set_defaults(do=make)
    part = parts.add_parser("check", help="say what is wrong with files")
    part.add_argument("files", nargs="*", type=Path, help="all of results/community by default")
    part.set_defaults(do=check)
    part = parts.add_parser("schema", help="write the JSON schema of a file")
    part.add_argument("--check", action="store_true", help="compare, write nothing")
    part.set_defaults(do=schema)
    arguments = parser.parse_args()
    try:
        return arguments.do(arguments)
    except FoveateError as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
