"""What a page shows, as plain text: in a link, as Python, and as a command."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from typing import Any, Final
from urllib.parse import parse_qsl, urlencode

from foveate.errors import FoveateError
from foveate.numbers import read_whole
from foveate.play.costs import Call
from foveate.play.pictures import UPLOAD

__all__ = ["MOST_SPECS", "TABS", "PageState", "as_command", "as_python", "link_of", "state_of"]

MOST_SPECS: Final = 3
TABS: Final = ("ask", "see", "cost", "compare", "share")
_LONGEST: Final = 2_000
"""Characters of a text that a link may hold."""


@dataclass(frozen=True)
class PageState:
    """Everything that a visitor has chosen.

    Attributes:
        source: of the picture: kind and seed of the generator, or "file".
        question: what is asked.
        specs: as typed; "" is an empty place.
        shown: which of them the pictures show, from 0.
        layer: of the decoder, whose tokens they show; -1 is the last.
        saliency: the attention that they show instead: "" for none, "encoder" or "decoder", in that layer.
        call: whose cost is predicted.
        tab: that is open.
    """

    source: str = "shapes-3"
    question: str = ""
    specs: tuple[str, ...] = ("cluster:64", "cls:64", "")
    shown: int = 0
    layer: int = -1
    saliency: str = ""
    call: Call = field(default_factory=Call)
    tab: str = "ask"


_CALL: Final = {"model": "model", "device": "device", "text_tokens": "text", "new_tokens": "new", "batch": "batch"}
"""Per field of a call, its name in a link; width and height are one."""


def link_of(state: PageState) -> str:
    """Return the query of a link that opens a page in this state; what is at its default is left out.

    >>> link_of(PageState(question="is there a star ?", specs=("cluster:16", "", "")))
    'q=is+there+a+star+%3F&spec=cluster%3A16'
    """
    usual = PageState()
    pairs: list[tuple[str, Any]] = []
    if state.source not in (usual.source, UPLOAD):
        pairs.append(("picture", state.source))
    if state.question:
        pairs.append(("q", state.question))
    if state.specs != usual.specs:
        pairs += [("spec", spec) for spec in state.specs if spec.strip()] or [("spec", "")]
    pairs += [
        (name, getattr(state, name))
        for name in ("shown", "layer", "saliency", "tab")
        if getattr(state, name) != getattr(usual, name)
    ]
    pairs += [
        (short, getattr(state.call, name))
        for name, short in _CALL.items()
        if getattr(state.call, name) != getattr(usual.call, name)
    ]
    if (state.call.width, state.call.height) != (usual.call.width, usual.call.height):
        pairs.append(("size", f"{state.call.width}x{state.call.height}"))
    return urlencode(pairs)


def state_of(query: str | Iterable[tuple[str, str]]) -> PageState:
    """Read a link's query; what it doesn't say, or says in a way that can't be read, is at its default.

    >>> state_of("q=is+there+a+star+%3F&spec=cluster:16&layer=3&size=640x480").call.height
    480
    >>> state_of(link_of(PageState(layer=2, tab="see"))) == PageState(layer=2, tab="see")
    True
    """
    pairs = parse_qsl(query, keep_blank_values=True) if isinstance(query, str) else list(query)
    said: dict[str, str] = {}
    specs: list[str] = []
    for name, value in pairs:
        value = value[:_LONGEST]
        if name == "spec":
            specs.append(value)
        else:
            said[name] = value
    usual = PageState()
    call: dict[str, Any] = {}
    for each in fields(Call):
        if (value := said.get(_CALL.get(each.name, ""))) is None:
            continue
        default = getattr(usual.call, each.name)
        call[each.name] = _whole(value, default) if isinstance(default, int) else value
    width, _, height = said.get("size", "").partition("x")
    if height:
        call |= {"width": _whole(width, usual.call.width), "height": _whole(height, usual.call.height)}
    filled = tuple(specs[:MOST_SPECS])
    return PageState(
        source=said.get("picture", usual.source),
        question=said.get("q", ""),
        specs=(*filled, *[""] * (MOST_SPECS - len(filled))) if filled else usual.specs,
        shown=min(_whole(said.get("shown", ""), 0), MOST_SPECS - 1),
        layer=_whole(said.get("layer", ""), usual.layer),
        saliency=said["saliency"] if said.get("saliency") in ("encoder", "decoder") else "",
        call=replace(usual.call, **call),
        tab=said["tab"] if said.get("tab") in TABS else usual.tab,
    )


def _whole(text: str, otherwise: int) -> int:
    try:
        return max(-1, min(read_whole(text), 1_000_000))
    except (FoveateError, ValueError):
        return otherwise


def as_command(state: PageState, model: str | None = None, file: str = "photo.jpg") -> str:
    """Return the command that asks the same.

    Args:
        state: of the page.
        model: that was loaded; None is the embedded one.
        file: what the picture is called.

    >>> as_command(PageState(question="is there a star ?", specs=("cluster:64", "", "")), file="scene.png")
    "foveate ask scene.png 'is there a star ?' --spec cluster:64"
    """
    words = ["foveate", "ask", file, state.question]
    for spec in state.specs:
        if spec.strip():
            words += ["--spec", spec.strip()]
    if model is not None:
        words += ["--model", model]
    return shlex.join(words)


def as_python(state: PageState, model: str | None = None, file: str = "photo.jpg") -> str:
    """Return Python that asks the same, with the first spec.

    The picture is drawn again where it is a generated scene; else it is opened from a file.
    """
    spec = next((each.strip() for each in state.specs if each.strip()), None)
    loaded = "foveate.reference()" if model is None else f'foveate.load({model!r}, device="auto")'
    clip = state.source.startswith("clip-")
    lines = ["import foveate"]
    if state.source == UPLOAD:
        opened = f'open_image("{file}")'
        lines += ["from foveate.images import open_image"]
    else:
        kind, _, seed = state.source.removeprefix("clip-").rpartition("-")
        chosen = "" if kind == "test" else f', kind="{kind}"'
        name = "clip" if clip else "scene"
        lines += [f"from foveate.scenes import {name}"]
        frames = ", frames=8" if clip else ""
        opened = f'{name}({seed}, split="test"{frames}{chosen})' + (".frames" if clip else ".image")
    lines += ["", f"model, processor = {loaded}", f"shown = {opened}"]
    content = '{"type": "video"}' if clip else '{"type": "image"}'
    if clip and model is None:
        lines[0:1] = ["import foveate", "from foveate.embedded.clips import clip_reference"]
        lines = [line.replace(loaded, "clip_reference()") for line in lines]
    lines += [
        f'question = {{"type": "text", "text": {state.question!r}}}',
        f'chat = [{{"role": "user", "content": [{content}, question]}}]',
        "prompt = processor.apply_chat_template(chat, add_generation_prompt=True)",
        f'inputs = processor({"videos" if clip else "images"}=[shown], text=prompt, return_tensors="pt")',
    ]
    if model is not None:
        lines[-1] += ".to(model.device)"
    generate = "ids = model.generate(**inputs, max_new_tokens=16)"
    if spec is None:
        lines += [generate]
    else:
        lines += [f"with foveate.apply(model, {spec!r}) as run:", f"    {generate}", "print(run.report())"]
    lines += [
        'answer = ids[0, inputs["input_ids"].shape[1] :]',
        "print(processor.decode(answer, skip_special_tokens=True))",
    ]
    return "\n".join(lines) + "\n"
