"""docs/claims.md: what papers claim, and what of it holds here; from claims.toml, real_runs.toml and docs/measured."""

from __future__ import annotations

import json
import shlex
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any, Final

from foveate.bench.formatting import markdown_cell, points_text
from foveate.files import read_json, write_text
from generators.benchmarks import benchmark
from generators.claim_measures import (
    AGREES,
    DISAGREES,
    ENOUGH,
    MARGIN,
    MEASURES,
    NOT_SHOWN,
    VERDICTS,
    WIDE,
    Found,
    measured,
)
from generators.folders import MEASURED
from generators.markdown import fill, machine, packages, table
from generators.measurements import measurements

HERE: Final = Path(__file__).parent
SOURCES: Final = {
    "survey": "a survey, arXiv 2507.20198, Table 2",
    "second-hand": "second-hand accounts of the paper",
    "summary": "a summary of the paper",
}
"""What sources that aren't a place in the paper are called."""
SHOWN_ROWS: Final = 12
"""Rows of one run that the table of others' results has at most."""

HEAD: Final = """\
# What holds here of what papers claim

Each headline of four papers, and of the methods whose code we compare with, beside what was measured on the embedded
model: a LLaVA of 8 million weights that answers questions about generated scenes. It shows whether a claim survives on
another model, not whether the papers' numbers are right: for those, ask [the real model](#reproduce-on-the-real-model).
"""

REAL: Final = """\
## Reproduce on the real model

None of these has been run by this project yet: they need a GPU. Each command asks LLaVA-1.5-7B what a paper reports,
through [lmms-eval](lmms-eval.md), and the table has the published scores. A spec with commas stands in two kinds of
quotes, of which a shell takes the outer ones.

Read scores with care: papers report POPE's F1, MME's perception, SEED-Bench's images; VQAv2's test-dev, which only
its server scores, where `vqav2_val` is another split. `mmbench_en_dev` and `mmvet` ask a GPT, and need its key. Of
each task this metric of lmms-eval 0.7.3 is meant: METRICS.
"""

COMMUNITY: Final = """\
## What others have measured

"""
NOBODY: Final = "Nobody has sent a run yet. What stands here was made by the project itself, on the embedded model."

SEND: Final = """\
## Send yours

A run counts if dense and at least one spec were asked in it. From a clone of the repository, with `pip install
".[train]"`:

1. Measure: `foveate bench --model llava-hf/llava-1.5-7b-hf --data gqa --spec cluster:64 --out results/mine`, or the
   `lmms_eval` commands above with `--output_path`, dense and each spec in a folder of its own.
2. Make the file: `python benchmarks/community.py make results/mine --by "your name"`. For lmms-eval, name the
   folders, and the GPU, which its logs don't have:
   `python benchmarks/community.py make logs/dense logs/cluster --card "NVIDIA H100"`.
3. Check it: `python benchmarks/community.py check`. It refuses, with a line each, unknown fields, specs that can't be
   read, counts of tokens that the spec doesn't leave on that model, a GPU without its name, and runs that are there
   already.
4. Make this page anew, `python docs/make.py claims`, and send both as a pull request.

[schema.json](../results/community/schema.json) describes the file. Scores are taken as they are; nobody repeats your
run.
"""


@dataclass(frozen=True)
class Claim:
    """A claim with what was measured of it."""

    short: str
    text: str
    published: str
    source: str
    found: Found
    why: str


def pages() -> dict[str, str]:
    """Return the page."""
    return {"claims.md": page()}


def take(results: Path, name: str) -> None:
    """Copy what the page needs of a results folder of `foveate bench` to docs/measured/claims.json.

    Args:
        results: the folder.
        name: "bench".
    """
    assert name == "bench", f"--take of claims has one name, bench, not {name}"
    metrics, environment = (read_json(results / f"{part}.json", strict=False) for part in ("metrics", "environment"))
    command = benchmark("community").command_of(results)
    for row in metrics["configurations"]:
        del row["skills"], row["against"]
    text = json.dumps({"command": command, "metrics": metrics, "environment": environment}, indent=None)
    write_text(MEASURED / "claims.json", text + "\n")


def page() -> str:
    """Return the text of docs/claims.md."""
    papers = {paper["name"]: (paper, claims_of(paper)) for paper in read("claims.toml")["paper"]}
    made = list(dict.fromkeys(file for _, claims in papers.values() for each in claims for file in _files(each)))
    parts = [HEAD, _in_short(papers), _rules()]
    parts += [_paper(paper, claims, made) for paper, claims in papers.values()]
    parts += [_commands(made), _real(), *map(_real_table, read("real_runs.toml")["tables"])]
    parts += [_community(), SEND]
    return "\n".join(parts)


@cache
def read(name: str) -> dict[str, Any]:
    """Return a data file beside this one."""
    return tomllib.loads((HERE / name).read_text(encoding="utf-8"))


# Claims


def claims_of(paper: Mapping[str, Any]) -> list[Claim]:
    """Return the claims of a paper with what was measured of each."""
    return [_claim(given) for given in paper["claims"]]


def _claim(given: Mapping[str, Any]) -> Claim:
    numbers = dict(given.get("given", {}))
    if given["measure"] == "kept_of_run":
        numbers |= published_share(numbers["run"])
    found = MEASURES[given["measure"]](**numbers)
    published = given["published"].format(**{**numbers, **given.get("numbers", {})})
    why = given.get("note" if found.verdict == AGREES else "why", "")
    source = SOURCES.get(given["source"], given["source"])
    return Claim(given["short"], given["claim"], published, source, found, why)


def published_share(spec: str) -> dict[str, Any]:
    """Return the mean over tasks of a method's published scores as shares of the dense ones, and how many tasks."""
    runs = {run["spec"]: run["scores"] for run in read("real_runs.toml")["tables"][-1]["runs"]}
    shares = [score / runs["dense"][task] for task, score in runs[spec].items()]
    return {"share": fmean(shares), "count": len(shares)}


def _in_short(papers: Mapping[str, tuple[Mapping[str, Any], list[Claim]]]) -> str:
    rows = []
    for name, (_, claims) in papers.items():
        cells = [[f"• {each.short}" for each in claims if each.found.verdict == verdict] for verdict in VERDICTS]
        rows.append([f"[{name}](#{anchor(papers[name][0]['title'])})", *("<br>".join(cell) for cell in cells)])
    every = [each for _, claims in papers.values() for each in claims]
    counts = {verdict: sum(each.found.verdict == verdict for each in every) for verdict in VERDICTS}
    text = (
        f"Of {len(every)} claims, {counts[AGREES]} agree with what we measured, {counts[DISAGREES]} do not, and "
        f"{counts[NOT_SHOWN]} are not shown here: not measured, or too close to tell."
    )
    return f"## In short\n\n{fill(text)}\n\n{table(['', *VERDICTS], rows, 'llll')}"


def _rules() -> str:
    text = (
        "**The rules**, the same for all rows. An order agrees if the 95 % interval of the paired difference is on "
        "that side of zero, and is not shown if zero is inside. No loss agrees if the interval holds zero and ends "
        f"above -{100 * MARGIN:.0f} points. A published share of the dense score agrees if our interval reaches it and "
        f"begins at most {100 * WIDE:.0f} points below it. A saving agrees if ours is at least {100 * ENOUGH:.0f} % of "
        "the published one. Many rows are many comparisons: two or three of a hundred orders agree by chance. Tokens "
        "are those of a 24 x 24 grid, as LLaVA-1.5's; layers are scaled, 32 to 12."
    )
    environment = measured("claims.json")["environment"]
    metrics = measured("claims.json")["metrics"]
    where = (
        f"Accuracy is that of {metrics['questions']} questions about {metrics['images']} images where nothing else is "
        f"said, measured on {machine(environment)}; {packages(environment)}."
    )
    return f"{fill(text)}\n\n{fill(where)}\n"


def _paper(paper: Mapping[str, Any], claims: Sequence[Claim], made: Sequence[str]) -> str:
    about = f"[arXiv {paper['arxiv']}](https://arxiv.org/abs/{paper['arxiv']}); " if "arxiv" in paper else ""
    rows = []
    for each in claims:
        mark = {AGREES: "**agrees**", DISAGREES: "**does not agree**", NOT_SHOWN: NOT_SHOWN}[each.found.verdict]
        by = ", ".join(f"[{made.index(file) + 1}](#commands)" for file in _files(each))
        rows.append([each.text, f"{each.published} ({each.source})", each.found.text, mark, each.why, by])
    columns = ["claim", "published", "here", "", "why, or what to know", "by"]
    return f"## {paper['title']}\n\n{about}more on [{paper['page']}]({paper['page']}).\n\n" + table(
        columns, rows, "llllll"
    )


def _files(claim: Claim) -> list[str]:
    """Return what a claim's numbers come from."""
    return [each for each in (claim.found.made_by, claim.found.beside) if each]


def _commands(made: Sequence[str]) -> str:
    lines = [f"{number}. `{command_of(each)}`" for number, each in enumerate(made, start=1)]
    return "## Commands\n\n" + "\n".join(lines) + "\n"


def command_of(made_by: str) -> str:
    """Return the command that made a file of docs/measured, or the command itself."""
    if made_by == "claims.json":
        return measured("claims.json")["command"]
    commands = next((each.commands for each in measurements() if each.file == made_by), (made_by,))
    return "`, then `".join(command.replace("{work}", "runs") for command in commands)


def anchor(title: str) -> str:
    """Return the anchor of a heading.

    >>> anchor("LLaVolta, Visual Context Compressor")
    'llavolta-visual-context-compressor'
    """
    kept = "".join(each for each in title.lower() if each.isalnum() or each in " -")
    return "-".join(kept.split())


# Commands for the real model


def _real() -> str:
    metrics = ", ".join(f"`{task}` {metric}" for task, metric in read("real_runs.toml")["tasks"].items())
    parts = REAL.replace("METRICS", metrics).split("\n\n")
    return "\n\n".join(part.strip() if part.startswith("#") else fill(" ".join(part.split())) for part in parts) + "\n"


def _real_table(given: Mapping[str, Any]) -> str:
    runs = given["runs"]
    tasks = given.get("tasks") or list(dict.fromkeys(task for run in runs for task in run["scores"]))
    rows = [[_named(run), *(str(run.get("scores", {}).get(task, "")) for task in tasks)] for run in runs]
    scores = table(["asked", *(f"`{task}`" for task in tasks)], rows, "l" + "r" * len(tasks)) + "\n"
    if not any(run.get("scores") for run in runs):
        scores = ""
    commands = "\n".join(real_command(run, given.get("tasks") or list(run["scores"])) for run in runs)
    published = f"Published: {given['source']}."
    return (
        f"### {given['title']}: commands\n\n{fill(given['text'])}\n\n{fill(published)}\n\n{scores}"
        f"```bash\n{commands}\n```\n"
    )


def _named(run: Mapping[str, Any]) -> str:
    if "voco" in run:
        return f"`{run['model']}`, {run['tokens']} VoCo token{'s' * (run['tokens'] != 1)}"
    return f"`{run['spec']}`" if run["spec"] != "dense" else "dense"


def real_command(run: Mapping[str, Any], tasks: Sequence[str]) -> str:
    """Return the command of lmms-eval that asks a model under a spec, or after VoCo tokens."""
    if "voco" in run:
        given = f"voco={run['voco']},voco_tokens={run['tokens']}"
    else:
        given = f'spec="{run["spec"]}"' if "," in run["spec"] else f"spec={run['spec']}"
    arguments = shlex.quote(f"pretrained={run['model']},{given},dtype=bfloat16")
    return f"lmms_eval --model foveate --model_args {arguments} --tasks {','.join(tasks)} --batch_size 8"


# Others' results


def _community() -> str:
    script = benchmark("community")
    runs, wrong = script.check_files(script.community_files())
    assert not wrong, "\n".join(wrong)
    sent = [run for run in runs if run.model != script.EMBEDDED]
    note = "" if sent else f"{fill(NOBODY)}\n\n"
    return f"{COMMUNITY}{note}" + "\n".join(_run(run) for run in sorted(runs, key=lambda run: run.model))


def _run(run: Any) -> str:
    """Return the table of one run."""
    heads = ["spec", "tokens", "over layers", *(_score(*name) for name in _metrics(run)), "less dense"]
    rows = list(_run_rows(run))
    more = f" {len(rows) - SHOWN_ROWS} more rows are in the file." if len(rows) > SHOWN_ROWS else ""
    asked = ", ".join(f"{count:,} questions of {task}" for task, count in run.questions.items())
    where = run.card or run.device
    by = f", sent by {markdown_cell(run.by)}" if run.by else ""
    text = (
        f"**{markdown_cell(run.model)}** by {run.program}, {asked}, {markdown_cell(where)}, {run.dtype}, "
        f"foveate {markdown_cell(run.versions['foveate'])}{by}.{more}"
    )
    return f"{fill(text)}\n\n{table(heads, rows[:SHOWN_ROWS], 'l' + 'r' * (len(heads) - 1))}"


def _metrics(run: Any) -> list[tuple[str, str]]:
    return list(dict.fromkeys((task, metric) for row in run.rows for task, own in row.scores.items() for metric in own))


def _score(task: str, metric: str) -> str:
    return f"{markdown_cell(task)}: {markdown_cell(metric)}"


def _run_rows(run: Any) -> Iterator[list[str]]:
    for row in run.rows:
        tokens = ["", ""] if row.tokens is None else [f"{row.tokens.after:.4g}", f"{row.tokens.over_layers:.4g}"]
        scores = (row.scores.get(task, {}).get(metric) for task, metric in _metrics(run))
        cells = ["" if score is None else f"{score:.4g}" for score in scores]
        less = "" if row.difference is None else points_text(row.difference.model_dump(), unit="")
        yield [f"`{markdown_cell(row.spec)}`", *tokens, *cells, less]
