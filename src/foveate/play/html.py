"""The parts of a page as HTML: data in, text out. Whatever a visitor or a model writes is escaped."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, FileSystemLoader
from PIL import Image

from foveate import plots
from foveate.errors import FoveateError
from foveate.files import read_text
from foveate.play.controls import Controls
from foveate.play.costs import Bars, Row
from foveate.play.figures import Figure, Kept, data_uri
from foveate.play.pictures import EXAMPLES, Picture, generated
from foveate.play.player import Loyalty, Reply
from foveate.play.results import Failure, Point, Results
from foveate.play.state import PageState, link_of

__all__ = [
    "LETTERS",
    "Answer",
    "answers_html",
    "bars_html",
    "controls_html",
    "error_html",
    "examples_html",
    "failures_html",
    "figures_html",
    "head",
    "kept_html",
    "layers_html",
    "picture_html",
    "plot_html",
    "questions_html",
    "script",
    "stylesheet",
]

LETTERS: Final = "ABC"
_HERE: Final = Path(__file__).parent
_WIDTH, _HEIGHT = 860, 430
_BESIDE = 9
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 700, 18, 372


def _milliseconds(value: float) -> str:
    """Write a time.

    >>> _milliseconds(0.812), _milliseconds(35.4), _milliseconds(1250.0)
    ('0.8 ms', '35 ms', '1.25 s')
    """
    if value >= 1000:
        return f"{value / 1000:.2f} s"
    return f"{value:.0f} ms" if value >= 10 else f"{value:.1f} ms"


def _bytes(value: float) -> str:
    """Write a size.

    >>> _bytes(921_600), _bytes(106_143_744)
    ('0.9 MB', '106 MB')
    """
    millions = value / 1e6
    return f"{millions / 1000:.1f} GB" if millions >= 1000 else f"{millions:.{0 if millions >= 10 else 1}f} MB"


@lru_cache(1)
def _templates() -> Environment:
    made = Environment(
        loader=FileSystemLoader(_HERE / "templates"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    made.filters |= {"ms": _milliseconds, "bytes": _bytes}
    return made


def _html(template: str, **data: Any) -> str:
    return _templates().get_template(template).render(**data)


def stylesheet() -> str:
    """Return the CSS of the page's own parts."""
    return read_text(_HERE / "page.css")


def head() -> str:
    """Return what is added to the head of the page: the CSS of what is around its parts."""
    return f"<style>{read_text(_HERE / 'frame.css')}</style>"


def script() -> str:
    """Return the JavaScript that turns clicks, keys and sliders inside a part of the page into its events."""
    return read_text(_HERE / "page.js")


def error_html(error: object) -> str:
    """Return an error as a page shows it: foveate's own line."""
    return _html("notice.html", error=str(error))


@lru_cache(1)
def _examples() -> tuple[Mapping[str, str], ...]:
    made = []
    for name, source in EXAMPLES.items():
        picture = generated(source)
        small = picture.frames[len(picture.frames) // 2].resize((96, 96), Image.Resampling.LANCZOS)
        made.append({"name": name, "source": source, "title": picture.title, "image": data_uri(small)})
    return tuple(made)


def examples_html(chosen: str) -> str:
    """Return the examples as buttons; `chosen` is the source of the picture that is shown."""
    return _html("examples.html", examples=_examples(), chosen=chosen)


def picture_html(picture: Picture, facts: str) -> str:
    """Return the picture, or the frames of a clip in a row."""
    images = []
    for frame in picture.frames:
        small = frame.copy()
        small.thumbnail((560, 560) if len(picture.frames) == 1 else (300, 300))
        images.append(data_uri(small))
    return _html("picture.html", images=images, title=picture.title, facts=facts)


def questions_html(picture: Picture, asked: str, most: int = 8) -> str:
    """Return questions to choose from."""
    return _html("questions.html", questions=picture.questions[:most], asked=asked)


def controls_html(controls: Controls, letter: str, open_: bool = False) -> str:
    """Return the controls of one spec."""
    return _html("controls.html", controls=controls, letter=letter, open=open_)


@dataclass(frozen=True, eq=False)
class Answer:
    """One answer for the page.

    Attributes:
        letter: "" for dense.
        spec: as typed.
        reply: None if the spec was refused.
        error: why it was.
        image: what is kept.
        loyalty: over all questions, if these were asked.
    """

    letter: str
    spec: str
    reply: Reply | None = None
    error: str = ""
    image: Image.Image | None = None
    loyalty: Loyalty | None = None


def answers_html(answers: Sequence[Answer], right: str | None, where: str) -> str:
    """Return answers side by side, dense first.

    Args:
        answers: dense first.
        right: the right answer, if it is known.
        where: the device and the dtype.
    """
    dense = answers[0].reply
    cards = []
    for each in answers:
        card: dict[str, Any] = vars(each) | {"title": each.spec or "dense", "image": None}
        reply = each.reply
        if reply is not None:
            parts = (("encoder", reply.encoder), ("compressor", reply.compressor))
            card |= {
                "title": reply.spec,
                "same": None if not each.letter or dense is None else reply.text == dense.text,
                "dense": "" if dense is None else dense.text,
                "right": None if right is None else reply.text == right,
                "row": Row("", 0, (*parts, ("prefill", reply.prefill), ("decode", reply.decode))),
                "inside": len(set(reply.layers)) > 1,
                "image": None if each.image is None else data_uri(each.image),
            }
        cards.append(card)
    longest = max((card["row"].total for card in cards if "row" in card), default=1.0)
    runs = dense.encodings if dense is not None else 0
    newest = max((each.reply.encodings for each in answers if each.reply is not None), default=runs)
    return _html(
        "answers.html",
        cards=cards,
        longest=longest,
        where=where,
        encodings="once" if newest == 1 else f"{newest} times",
        truth="" if right is None else f'The right answer is "{right}".',
    )


def kept_html(kept: Kept, title: str, layer: int) -> str:
    """Return what is kept over its picture; places answer to the pointer and to arrow keys."""
    how = "after the last step" if layer < 0 else f"in decoder layer {layer}"
    if kept.kept == kept.tokens:
        lead = f"keeps all {kept.tokens:,} tokens {how}"
    else:
        lead = f"keeps {kept.kept:,} of {kept.tokens:,} tokens {how}"
        lead += (
            "; a colour is a group that flows into its outlined token." if kept.merges else "; dim ones are dropped."
        )
    hint = "Point at a token, or use arrow keys, to see where it went" + (
        " and which others it holds." if kept.merges else "."
    )
    return _html(
        "kept.html",
        into=json.dumps(kept.into, separators=(",", ":")),
        merges=kept.merges,
        title=title,
        lead=lead,
        hint=hint,
        figures=[_figure(each, f"{title}: {each.title}") for each in kept.figures],
    )


def figures_html(figures: Sequence[Figure], title: str, lead: str) -> str:
    """Return pictures that have no tokens to point at, such as saliency."""
    return _html(
        "kept.html",
        into="[]",
        merges=False,
        title=title,
        lead=lead,
        hint="",
        figures=[_figure(e, lead) for e in figures],
    )


def _figure(figure: Figure, alt: str) -> Mapping[str, Any]:
    tokens = "" if figure.tokens is None else json.dumps(figure.tokens.tolist(), separators=(",", ":"))
    return {"image": data_uri(figure.picture), "title": figure.title, "tokens": tokens, "alt": alt}


def layers_html(layers: Sequence[float], layer: int) -> str:
    """Return the tokens of each decoder layer as bars."""
    same = len(set(layers)) == 1
    note = (
        f"{layers[0]:,.0f} tokens in all {len(layers)} decoder layers."
        if same
        else (
            f"{layers[0]:,.0f} tokens in the first decoder layer, {layers[-1]:,.0f} in the last; mean "
            f"{sum(layers) / len(layers):,.1f}."
        )
    )
    return _html("layers.html", layers=layers, most=max(layers), layer=layer, note=note)


def bars_html(bars: Bars, heading: str) -> str:
    """Return costs as bars."""
    return _html("bars.html", bars=bars, heading=heading)


# Results of a benchmark


def plot_html(results: Results, chosen: str = "") -> str:
    """Return accuracy over tokens, with the front; each point can be chosen."""
    points = results.points
    tokens = [point.tokens for point in points]
    low, high = math.log2(min(tokens)), math.log2(max(tokens))
    values = [value for point in points for value in (point.low, point.high, point.accuracy) if value is not None]
    bottom, top = max(0.0, min(values) - 0.02), min(1.0, max(values) + 0.02)
    if results.floor is not None:
        bottom = min(bottom, max(0.0, results.floor - 0.02))

    def x(count: float) -> float:
        return round(_LEFT + 14 + (math.log2(count) - low) / ((high - low) or 1) * (_RIGHT - _LEFT - 28), 1)

    # Points of one budget stand side by side, so that each can be pointed at.
    def beside(point: Point) -> float:
        number = names.index(point.line) if point.line in names else (len(names) - 1) / 2
        return round(x(point.tokens) + (number - (len(names) - 1) / 2) * _BESIDE, 1)

    def y(share: float) -> float:
        return round(_BOTTOM - (share - bottom) / ((top - bottom) or 1) * (_BOTTOM - _TOP), 1)

    lines: dict[str, list[Any]] = {}
    for point in points[1:]:
        lines.setdefault(point.line, []).append(point)
    names = list(lines)
    hues = {name: plots.COLOURS[number % len(plots.COLOURS)] for number, name in enumerate(lines)}
    ends = sorted((y(max(own, key=lambda each: each.tokens).accuracy), name) for name, own in lines.items())
    for at in range(1, len(ends)):
        ends[at] = (max(ends[at][0], ends[at - 1][0] + 15), ends[at][1])
    places = {name: at for at, name in ends}
    best = sorted((point for point in points if point.best), key=lambda each: each.tokens)
    marks = [2**power for power in range(math.floor(low), math.ceil(high) + 1) if low <= power <= high]
    steps = [share / 20 for share in range(21) if bottom <= share / 20 <= top]
    rules = [{"at": y(points[0].accuracy), "text": f"dense: {points[0].accuracy:.1%}"}]
    if results.floor is not None:
        rules.append({"at": y(results.floor), "text": f"question only, no image: {results.floor:.1%}"})
    plot = {
        "width": _WIDTH,
        "height": _HEIGHT,
        "left": _LEFT,
        "right": _RIGHT,
        "top": _TOP,
        "bottom": _BOTTOM,
        "across": [{"at": x(mark), "text": f"{mark:,}"} for mark in marks],
        "up": [{"at": y(share), "text": f"{share:.0%}"} for share in (steps if len(steps) <= 9 else steps[::2])],
        "rules": rules,
        "front": " ".join(f"{beside(point)},{y(point.accuracy)}" for point in best),
        "lines": [
            {
                "name": name if len(name) <= 20 else f"{name[:19]}…",
                "hue": hues[name],
                "baseline": own[0].baseline,
                "at": places[name],
                "points": " ".join(
                    f"{beside(each)},{y(each.accuracy)}" for each in sorted(own, key=lambda each: each.tokens)
                ),
            }
            for name, own in lines.items()
        ],
        "dots": [
            {
                "spec": point.spec,
                "x": beside(point),
                "y": y(point.accuracy),
                "low": None if point.low is None else y(point.low),
                "high": None if point.high is None else y(point.high),
                "hue": hues.get(point.line, "var(--fv-ink)"),
                "best": point.best,
                "label": f"{point.spec}: {point.accuracy:.1%} with {point.tokens:,.0f} tokens, {point.loyalty:.0%} as "
                f"dense{'' if point.time is None else f', time x {point.time:.2f}'}",
            }
            for point in points
        ],
    }
    return _html("plot.html", results=results, plot=plot, chosen=chosen)


def failures_html(rows: Sequence[Failure], count: int, chosen: str) -> str:
    """Return wrong answers; those about generated pictures lead to the page that asks again."""
    shown = []
    for number, row in enumerate(rows):
        made: dict[str, Any] = vars(row) | {"link": "", "image_uri": ""}
        if row.source:
            state = PageState(
                source=row.source, question=row.question, specs=("" if chosen == "dense" else chosen, "", "")
            )
            made["link"] = link_of(state)
            if number < 24:
                try:
                    made["image_uri"] = data_uri(generated(row.source).frames[0].resize((112, 112)))
                except FoveateError:
                    made["link"] = ""
        shown.append(made)
    return _html("failures.html", rows=shown, count=count, chosen=chosen)
