"""docs/faster.md and its picture, from docs/measured/speed-*.json and the cost model."""

from __future__ import annotations

import json
import re
import textwrap
from dataclasses import dataclass
from functools import cache
from typing import Any

from foveate import plots
from foveate.costmodel import Cost, Device, Model, check, cost_of_layouts, device, read_model
from foveate.errors import KeepError
from foveate.tokens import Layout, Segment
from generators.benchmarks import benchmark
from generators.folders import MEASURED, PICTURES
from generators.markdown import machine

every = benchmark("every_method").every
random_models = benchmark("random_models")

KEEP = 0.111
SIDES = (4, 8, 12, 16, 24, 32, 48, 64, 128)
"""Visual tokens along one side of the pictures that are predicted."""
DEVICES = ("h100", "l4", "orin")
BATCHES = (1, 16)
TEXT, NEW = 60, 64
WORTH = 0.01
"""The share of the time that must be saved for a method to pay."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """One cell of a measurement: one model, picture and batch; rows by spec."""

    told: dict[str, Any]
    environment: dict[str, Any]

    @property
    def rows(self) -> dict[str, Row]:
        """Rows by spec."""
        return {row["spec"]: row for row in self.told["rows"]}

    @property
    def dense(self) -> Row:
        """The row of the untouched model."""
        return self.rows["dense"]

    def __getattr__(self, name: str) -> Any:
        return self.told[name]


@cache
def cells() -> tuple[Cell, ...]:
    """All that was measured: docs/measured/speed-*.json."""
    found = []
    for path in sorted(MEASURED.glob("speed-*.json")):
        held = json.loads(path.read_text(encoding="utf-8"))
        found += [Cell(cell, held["environment"]) for cell in held["cells"] if cell["rows"]]
    return tuple(found)


@cache
def here() -> Device:
    """The machine on which was measured."""
    return check.read(MEASURED / "calibration-bfloat16.json")[0]


@cache
def shapes(name: str) -> Model:
    """A model's shapes; those of the benchmarks' own models, too."""
    return read_model(random_models.configuration(name, random_models.Pictures(1, 576)))


@cache
def told(name: str, spec: str | None, side: int, pictures: int, text: int, new: int, batch: int, on: Device) -> Cost:
    """Return what the cost model computes for square images."""
    model = shapes(name)
    shown = [Layout((Segment(1, side, side),))] * pictures
    return cost_of_layouts(model, spec, shown, text, new, batch, on, "bfloat16")


def saved(name: str, spec: str, side: int, batch: int, on: Device, whole: bool) -> float:
    """The share of the time that a spec saves: of the whole call, or to the first token."""
    dense, short = (told(name, each, side, 1, TEXT, NEW, batch, on) for each in (None, spec))
    return 1 - (short.seconds / dense.seconds if whole else short.first_token / dense.first_token)


def pays_from(name: str, spec: str, batch: int, on: Device, whole: bool) -> int | None:
    """The fewest tokens of those tried from which on a spec saves something worth the name; None if there are none."""
    found: int | None = None
    for side in reversed(SIDES):
        try:
            if saved(name, spec, side, batch, on, whole) < WORTH:
                break
        except KeepError:
            break
        found = side * side
    return found


# The page


def pages() -> dict[str, str]:
    """Return the page."""
    return {"faster.md": page()}


def page() -> str:
    """Return the text of docs/faster.md."""
    parts = (
        _short_answer,
        lambda: SOURCES,
        _methods,
        _growth,
        _encoder,
        _batches,
        _layouts,
        _published,
        _predicted,
        _no,
        _targets,
    )
    return "\n".join([HEAD, *filter(None, (part() for part in parts))])


HEAD = """\
# Is it really faster?

Often, but by less than the number of tokens suggests. This page shows for every method from how many visual tokens on,
at which batch size and on which device it pays off, and where it doesn't.
"""

SOURCES = """\
**Sources.** *Measured* tables are process times of one CPU thread. *Predicted* tables come from the [cost
model](cost.md) and name the device. Nothing was measured on a GPU: GPU times are lower bounds from data sheets, with
5 us assumed per kernel. All models have random weights, since speed doesn't depend on their values. `python
benchmarks/speed.py` measures (each section shows its command), and `python docs/make.py faster` makes this page.
"""


def _short_answer() -> str:
    cell = _main()
    dense, model, h100 = cell.dense, "llava-1.5-7b", device("h100")
    best = min(cell.rows[f"{name}:{KEEP}"]["first_token"] for name in ("stride", "pool2d", "cls"))
    shrunk = cell.rows[f"resize:{KEEP}"]["first_token"]
    whole, short = (told(model, spec, 24, 1, TEXT, NEW, 1, h100) for spec in (None, f"stride:{KEEP}"))
    made = [(each.model, each.maps["prefill"] / each.dense["prefill"]) for each in cells() if each.told.get("maps")]
    most, least = max(made, key=lambda each: each[1]), min(made, key=lambda each: each[1])
    maps = f"{least[1]:.1f} ({least[0]}) to {most[1]:.1f} ({most[0]})"
    return _list(
        f"**The first token comes sooner.** With 64 of 576 tokens of one image, {cell.model} on this CPU takes "
        f"{best:,.0f} ms instead of {dense['first_token']:,.0f}: {1 - best / dense['first_token']:.0%} less.",
        f"**Then the encoder dominates.** Its share of the time to the first token grows from "
        f"{dense['encoder'] / dense['first_token']:.0%} to {dense['encoder'] / best:.0%}. Only methods before or "
        f"inside the encoder save more: with `resize` the same call takes {shrunk:,.0f} ms.",
        "**Later tokens take almost as long as before** at batch 1, because reading the weights takes the time. "
        f"LLaVA-1.5-7B on an H100 takes {whole.per_token * 1e3:.2f} ms per token dense and "
        f"{short.per_token * 1e3:.2f} ms with 64 visual tokens (predicted). Large batches gain, because the cache is "
        "read too, and more requests fit into memory.",
        "**Small images on fast devices gain nothing**, because kernels take as long to start as to run. The predicted "
        "tables show where the gain begins.",
        f"**Attention maps are expensive**: returning them makes the dense prefill take {maps} times as long "
        "(measured). No method here needs them from the model.",
    )


def _main() -> Cell:
    """The cell in which every method was measured."""
    return max(cells(), key=lambda cell: (len(cell.rows), -abs(cell.tokens - 576)))


def _possible(cell: Cell, spec: str) -> float:
    """How many times sooner the first token could come by the cost model, if the compressor took nothing."""
    shown = random_models.Pictures.read(cell.pictures)
    rest = (shown.side, shown.count, cell.text_tokens, cell.new_tokens, cell.batch, here())
    dense, short = told(cell.model, None, *rest), told(cell.model, spec, *rest)
    return dense.first_token / (short.first_token - short.part("compressor").seconds)


def _reached(cell: Cell, spec: str) -> float:
    """How much of that was measured."""
    return cell.dense["first_token"] / cell.rows[spec]["first_token"] / _possible(cell, spec)


def _part_of_saved(cell: Cell, spec: str) -> float:
    """The compressor's time beside the prefill that is saved."""
    return cell.rows[spec]["compressor"] / (cell.dense["prefill"] - cell.rows[spec]["prefill"])


def _texts(cell: Cell, spec: str) -> dict[str, str]:
    """Every column that a table may have of a row."""
    row, short = cell.rows[spec], spec != "dense"
    times = {f"{name}, ms": f"{row[name.replace(' ', '_')]:,.0f}" for name in ("encoder", "prefill", "per token")}
    return times | {
        "model": cell.model,
        "visual tokens": f"{cell.tokens:,}",
        "batch": f"{cell.batch}",
        "text tokens": f"{cell.text_tokens}",
        "spec": f"`{spec}`",
        "kept": f"{row['kept']:,}",
        "mean over layers": f"{row['mean_over_layers']:,.0f}",
        "compressor, ms": f"{row['compressor']:,.1f}" if short else "",
        "of the saved": f"{_part_of_saved(cell, spec):.1%}" if short else "",
        "by hand": f"{row['ideal_prefill']:,.0f}" if "ideal_prefill" in row else "",
        "first token, ms": f"{row['first_token']:,.0f}",
        "sooner": f"{1 - row['first_token'] / cell.dense['first_token']:.0%}" if short else "",
        "of what is possible": f"{_reached(cell, spec):.2f}" if short else "",
        "cache, MB": f"{row['kv_bytes'] / 1e6:,.1f}",
        "peak, MB": f"{row['peak_bytes'] / 1e6:,.0f}",
    }


def _methods() -> str:
    cell = _main()
    columns = ["spec", "kept", "mean over layers", "compressor, ms", "of the saved", "prefill, ms", "by hand"]
    columns += ["first token, ms", "sooner", "of what is possible", "cache, MB", "peak, MB"]
    same = [row["encoder"] for spec, row in cell.rows.items() if not spec.startswith("resize")]
    noise = (
        f"The encoder does the same work in every row except `resize`, and took between {min(same):,.0f} and "
        f"{max(same):,.0f} ms. Differences of that size are noise."
    )
    return f"""\
## Measured: every method, one image of 576 tokens

{_filled(_where([cell]))}

Each method leaves about a ninth of the tokens in the last layer. "By hand" is the prefill of the same decoder when it
is given that many tokens directly. "Sooner" is the time saved until the first token, as a share. "Of what is possible"
is the measured speed-up divided by the cost model's speed-up for this machine with a compressor that takes no time. "Of
the saved" is the compressor's time divided by the prefill time that it saves. Peak memory excludes the weights.

{_filled(noise)}

{_commands([cell], "every")}
{_table(columns, [_texts(cell, spec) for spec in cell.rows])}"""


def _growth() -> str:
    mine = _curve()
    specs = list(mine[0].rows)

    def row(cell: Cell, value: Any) -> dict[str, str]:
        return {"visual tokens": f"{cell.tokens:,}"} | {f"`{spec}`": value(cell.rows[spec]) for spec in specs}

    def first(row: Row) -> str:
        return f"{row['first_token']:,.0f} ({row['encoder'] / row['first_token']:.0%})"

    columns = ["visual tokens", *(f"`{spec}`" for spec in specs)]
    where = _where(mine) + " Up to 576 tokens are one image; more are several images of 576, as frames or tiles are."
    return f"""\
## How time grows with the number of tokens

{_filled(where)}

![Time to the first token and the encoder's share, over visual tokens](pictures/faster.png)

Lines are predictions from the shortest times of the calibration. Points are medians on a machine that did other work
too, so they lie higher, dense and compressed alike.

{_commands(mine)}
Time to the first token in ms; in brackets the encoder's share of it:

{_table(columns, [row(cell, first) for cell in mine])}
The compressor's time, in ms:

{_table(columns, [row(cell, lambda each: f"{each['compressor']:.1f}") for cell in mine])}"""


def _encoder() -> str:
    found = [cell for cell in cells() if any("@encoder" in spec for spec in cell.rows)]
    if not found:
        return ""
    columns = ["spec", "kept", "encoder, ms", "compressor, ms", "prefill, ms", "by hand", "first token, ms", "sooner"]
    columns += ["of what is possible", "peak, MB"]
    return f"""\
## Measured: fewer patches in the encoder

{_filled(_where(found))}

Once the decoder sees only 64 tokens, the encoder takes most of the time. Two things shorten it: a smaller image
(`resize`, at `@pixels`) and patches merged between the encoder's layers (`tome@encoder`, whose time is included in the
encoder's). [Accuracy](accuracy.md) shows what they cost.

{_commands(found)}
{_table(columns, [_texts(cell, spec) for cell in found for spec in cell.rows])}"""


def _curve() -> list[Cell]:
    """The cells of one set of specs over numbers of tokens, fewest first."""
    ways: dict[tuple[Any, ...], list[Cell]] = {}
    for cell in cells():
        ways.setdefault((cell.model, cell.batch, cell.text_tokens, *cell.rows), []).append(cell)
    return sorted(max(ways.values(), key=len), key=lambda cell: cell.tokens)


def _batches() -> str:
    found = [cell for cell in cells() if cell.model == _main().model and (cell.batch > 1 or cell.text_tokens != TEXT)]
    if not found:
        return ""
    alike = [cell for cell in _curve() if cell.tokens == found[0].tokens]
    columns = ["batch", "text tokens", "spec", "compressor, ms", "of the saved", "prefill, ms", "by hand"]
    columns += ["first token, ms", "sooner", "per token, ms", "cache, MB", "peak, MB"]
    specs = set.union(*(set(cell.rows) for cell in found))
    rows = [
        _texts(cell, spec)
        for cell in sorted([*alike, *found], key=lambda cell: (cell.text_tokens, cell.batch))
        for spec in cell.rows
        if spec in specs
    ]
    return f"""\
## Measured: batches and longer texts

{_filled(f"{_where(found)} One image of {found[0].tokens} tokens per prompt.")}

{_commands(found)}
{_table(columns, rows)}"""


def _layouts() -> str:
    found = [cell for cell in cells() if cell.model != _main().model]
    if not found:
        return ""
    text = "Dimensions of released models, random weights, " + _where(found).partition(", ")[2]
    if any(cell.told.get("shared_weights") for cell in found):
        text += (
            " To fit into a small machine, all layers share one layer's weights. One layer is larger than the "
            "processor's caches, so it is still read from memory each time."
        )
    columns = ["model", "visual tokens", "batch", "spec", "kept", "encoder, ms", "compressor, ms", "of the saved"]
    columns += ["prefill, ms", "by hand", "first token, ms", "sooner", "per token, ms", "cache, MB"]
    return f"""\
## Measured: layouts of released models

{_filled(text)}

{_commands(found)}
{_table(columns, [_texts(cell, spec) for cell in found for spec in cell.rows])}"""


def _published() -> str:
    maps = []
    for cell in (*_curve(), *(each for each in cells() if each.model != _main().model)):
        if cell.told.get("maps"):
            made = cell.maps
            maps.append(
                {
                    "model": cell.model,
                    "visual tokens": f"{cell.tokens:,}",
                    "encoder": f"{cell.dense['encoder']:,.0f}",
                    "encoder with maps": f"{made['encoder']:,.0f}",
                    "prefill": f"{cell.dense['prefill']:,.0f}",
                    "prefill with maps": f"{made['prefill']:,.0f}",
                    "maps of the decoder, MB": f"{made['bytes'] / 1e6:,.0f}",
                }
            )
    plans = json.loads((MEASURED / "plans.json").read_text(encoding="utf-8"))["rows"]
    width = min(row["width"] for row in plans)
    loops = [
        {
            "method": f"`{row['method']}`",
            "tokens": f"{row['tokens']:,}",
            "ours": f"{row['ms']:,.1f}",
            "as published": f"{row['structured_ms']:,.1f}",
            "times": f"{row['structured_ms'] / row['ms']:.1f}",
        }
        for row in plans
        if "structured_ms" in row and row["width"] == width
    ]
    return f"""\
## Against the published structure

Published code of methods that read attention runs the model with eager attention that returns its maps. What that costs
before any token is dropped, dense, in the same runs, in ms:

{_table(list(maps[0]), maps)}
foveate recomputes one layer's queries and keys from its input instead, and only the rows that a method reads. Methods
whose published code loops over tokens or clusters, beside ours ([all methods](speed.md)), in ms:

{_table(list(loops[0]), loops)}"""


def _entry(model: str, spec: str, batch: int, on: Device, whole: bool) -> str:
    start = pays_from(model, spec, batch, on, whole)
    return "no" if start is None else f"from {start:,}; {saved(model, spec, 24, batch, on, whole):.0%}"


def _predicted() -> str:
    model = "llava-1.5-7b"
    places = {name: device(name) for name in DEVICES} | {"CPU": here()}
    tables = []
    for whole, batch in ((False, 1), (True, BATCHES[-1])):
        title = (
            f"The whole call with {NEW} new tokens, batch {batch}"
            if whole
            else f"Time to the first token, batch {batch}"
        )
        rows = [
            {"method": f"`{spec}`"} | {name: _entry(model, spec, batch, on, whole) for name, on in places.items()}
            for spec in every(32, KEEP)
        ]
        tables.append(f"{title}:\n\n{_table(['method', *places], rows)}")
    sizes = ", ".join(f"{side * side:,}" for side in SIDES)
    intro = (
        f"LLaVA-1.5-7B's shapes in bfloat16, one square image, {TEXT} text tokens, a ninth of the tokens kept. Each "
        f"entry: from how many visual tokens on at least {WORTH:.0%} of the time is saved, at that and every larger "
        f'size, and how much is saved at 576. "no" means at no size. Sizes tried: {sizes}. "CPU" is the measured '
        "machine, as calibrated. Times of the other devices are lower bounds: real kernels run longer, which favours "
        "fewer tokens, and take longer to start, which favours neither."
    )
    return "## Predicted: from how many tokens on, at which batch size, on which device\n\n" + "\n".join(
        [_filled(intro) + "\n", *tables, _others()]
    )


def _stand_ins() -> list[str]:
    """Methods that stand for the cheap, the dear, and those inside the decoder."""
    return [f"stride:{KEEP}", f"cluster:{KEEP}", f"tome:{KEEP}", f"fastv:{KEEP}@2"]


def _others() -> str:
    """More layouts."""
    places = [(name, batch) for name in DEVICES for batch in BATCHES]
    rows = [
        {"model": model, "spec": f"`{spec}`"}
        | {f"{name}, batch {batch}": _entry(model, spec, batch, device(name), False) for name, batch in places}
        for model in ("qwen2.5-vl-7b", "qwen3-vl-8b", "0.5B")
        for spec in _stand_ins()
    ]
    return f"Other layouts, time to the first token:\n\n{_table(list(rows[0]), rows)}"


def _no() -> str:
    lines = []
    for model, specs in (("llava-1.5-7b", every(32, KEEP)), ("0.5B", _stand_ins())):
        for name in DEVICES:
            for batch in BATCHES:
                on = device(name)
                starts = {spec: pays_from(model, spec, batch, on, False) for spec in specs}
                late = [spec for spec, start in starts.items() if start is None or start > 576]
                first = min((start for start in starts.values() if start is not None), default=None)
                where = f"{model} on {on.title}, batch {batch} (predicted): "
                if first is None:
                    lines.append(where + "nothing pays off at any size.")
                elif first > SIDES[0] ** 2 or late:
                    named = (
                        "nothing" if len(late) == len(specs) else ", ".join(f"`{re.split('[:@]', s)[0]}`" for s in late)
                    )
                    below = (
                        f"nothing pays off below {first:,} tokens"
                        if first > SIDES[0] ** 2
                        else "some methods pay off at every size"
                    )
                    lines.append(where + below + (f", and {named} not yet at 576." if late and first <= 576 else "."))
    small = _curve()[0]
    gains = {spec: 1 - row["first_token"] / small.dense["first_token"] for spec, row in small.rows.items()}
    low = min((spec for spec in gains if spec != "dense"), key=lambda spec: gains[spec])
    return "## Where the answer is no\n\n" + _list(
        *lines,
        f"Small images: at {small.tokens} tokens `{low}` saves {gains[low]:.0%} of the time to the first token "
        "(measured).",
        "Long answers at batch 1: each token of the answer takes as long as before. Time is saved only once, before "
        "the first token.",
        "Many questions about one image: a method that reads the question has to run again for each; with one that "
        "doesn't, the compressed image's features and cache can be reused.",
        "Where the encoder takes most of the time, dropping tokens after it helps little: see the encoder's share.",
        "A step at decoder layer k saves less than the same step before the decoder: layers 0 to k-1 still compute and "
        'cache all tokens ("mean over layers").',
    )


def _targets() -> str:
    cell = _main()
    specs = [spec for spec in cell.rows if spec != "dense"]
    parts = {spec: _part_of_saved(cell, spec) for spec in specs}
    beyond = [f"`{spec}` {part:.1%}" for spec, part in parts.items() if part > 0.01]
    hand = {spec: row["prefill"] / row["ideal_prefill"] for spec, row in cell.rows.items() if "ideal_prefill" in row}
    worst = max(hand, key=lambda spec: hand[spec])
    reached = {spec: _reached(cell, spec) for spec in specs}
    low = min(reached, key=lambda spec: reached[spec])
    under = [f"`{spec}`" for spec, value in reached.items() if value < 0.9]
    return "## Targets and results\n\n" + _list(
        "Target: on a CPU, the compressor takes at most 1 % of the prefill time that it saves. "
        + (f"Missed here, in {cell.dtype}, by {', '.join(beyond)}." if beyond else f"All meet it, in {cell.dtype}.")
        + " bfloat16 makes this processor's prefill several times faster than float32 but plans no faster; for "
        "float32 see [the time of a plan](speed.md).",
        "Target: the prefill takes at most 5 % longer than with the same tokens given by hand. The worst is "
        f"`{worst}`, {hand[worst] - 1:+.1%}; the median is {sorted(hand.values())[len(hand) // 2] - 1:+.1%}.",
        "Target: the speed-up to the first token is at least 0.9 of what the cost model says is possible. The lowest "
        f"is {reached[low]:.2f} (`{low}`)" + (f"; below 0.9: {', '.join(under)}." if under else "."),
    )


def _table(columns: list[str], rows: list[dict[str, str]]) -> str:
    words = {"model", "spec", "method"}
    rule = "".join("---|" if column in words else "---:|" for column in columns)
    lines = [f"| {' | '.join(columns)} |", f"|{rule}"]
    lines += [f"| {' | '.join(row[column] for column in columns)} |" for row in rows]
    return "\n".join(lines) + "\n"


def _list(*items: str) -> str:
    return "\n".join(_filled(item, "* ") for item in items) + "\n"


def _filled(text: str, first: str = "") -> str:
    later = " " * len(first)
    return textwrap.fill(text, 120, initial_indent=first, subsequent_indent=later, break_on_hyphens=False)


def _where(found: list[Cell]) -> str:
    cell = found[0]
    title = {"0.5B": "A LLaVA of Qwen2-0.5B's size behind CLIP-L/14"}.get(cell.model, cell.model)
    threads = f"{cell.threads} thread{'s' if cell.threads > 1 else ''}"
    fewest, most = (pick(each.rounds for each in found) for pick in (min, max))
    rounds = f"of {fewest} round{'s' if fewest > 1 else ''}" if fewest == most else f"of {fewest} to {most} rounds"
    return f"{title}, {cell.dtype}, on {machine(cell.environment)}, {threads}; medians {rounds}."


def _commands(found: list[Cell], specs: str | None = None) -> str:
    """The commands by which these cells are measured; those that differ in their pictures alone are one."""
    usual = [spec for spec in _curve()[0].rows if spec != "dense"]
    pictures: dict[str, list[str]] = {}
    for cell in found:
        mine = [spec for spec in cell.rows if spec != "dense"]
        words = [f"--models {cell.model}"]
        words += [f"--batch {cell.batch}"] if cell.batch > 1 else []
        words += [f"--text-tokens {cell.text_tokens}"] if cell.text_tokens != TEXT else []
        words += [f"--specs {specs}"] if specs else [] if mine == usual else [f'--specs "{" ".join(mine)}"']
        words += ["--share"] if cell.told.get("shared_weights") else []
        words += ["--threads 1 --clock cpu"] if cell.environment["clock"] == "cpu" else ["--device cuda"]
        pictures.setdefault(" ".join([*words, f"--dtype {cell.dtype}"]), []).append(cell.pictures)
    lines = [f"python benchmarks/speed.py --tokens {','.join(each)} {words}" for words, each in pictures.items()]
    return "\n".join(["```text", *lines, "```", ""])


# The picture


def draw() -> None:
    """Draw the time to the first token and the encoder's share of it, over visual tokens."""
    from matplotlib.ticker import FuncFormatter

    mine = _curve()
    wanted = [None, *(spec for spec in mine[0].rows if spec.startswith(("cluster", "fastv", "resize")))]
    colours = (plots.DENSE, *plots.COLOURS)
    with plots.style():
        figure = plots.figure(10, 4.6)
        left, right = figure.subplots(1, 2)
        for spec, colour in zip(wanted, colours, strict=False):
            predicted = []
            for pictures in (
                random_models.Pictures(1, 64),
                random_models.Pictures(1, 256),
                *(random_models.Pictures(n, 576) for n in (1, 2, 4, 8, 16, 28)),
            ):
                known = told(mine[0].model, spec, pictures.side, pictures.count, TEXT, mine[0].new_tokens, 1, here())
                eyes = known.part("encoder").seconds
                predicted.append((pictures.total, known.first_token, eyes / known.first_token))
            x, seconds, share = zip(*predicted, strict=True)
            rows = [(cell.tokens, cell.rows[spec or "dense"]) for cell in mine]
            left.plot(x, seconds, color=colour, linewidth=1.6)
            left.plot(
                [n for n, _ in rows],
                [row["first_token"] / 1e3 for _, row in rows],
                "o",
                color=colour,
                label=spec or "dense",
            )
            right.plot(x, share, color=colour, linewidth=1.6)
            right.plot(
                [n for n, _ in rows], [row["encoder"] / row["first_token"] for _, row in rows], "o", color=colour
            )
        left.set_xscale("log", base=2)
        left.set_yscale("log")
        left.set_ylabel("time to the first token, s")
        left.legend(frameon=False, title="points measured, lines predicted", alignment="left")
        left.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        right.set_xscale("log", base=2)
        right.set_ylim(0, 1)
        right.set_ylabel("the encoder's share of it")
        for axes in (left, right):
            axes.set_xlabel("visual tokens of the prompt (logarithmic)")
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
            plots.plain(axes, grid=True)
        figure.tight_layout()
        plots.save(figure, PICTURES / "faster.png")
