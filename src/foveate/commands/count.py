"""`foveate count`: how many visual tokens an image or a clip makes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from foveate.commands.options import (
    FpsOption,
    FramesOption,
    ImageArgument,
    JsonOption,
    ModelOption,
    RevisionOption,
    SpecsOption,
    model_for,
    model_title,
)
from foveate.commands.output import (
    JSON_HINT,
    add_number_columns,
    console,
    finding,
    print_json,
    silence_transformers,
    spinner,
    table,
)
from foveate.commands.visuals import clip_json, clip_line, open_visual
from foveate.deferred import defer_torch
from foveate.embedded import PATH
from foveate.embedded.clips import CLIP_PATH

if TYPE_CHECKING:
    from PIL import Image

    from foveate.clips import Clip
    from foveate.families import Family
    from foveate.layout import Layout
    from foveate.spec import Spec
    from foveate.visual_prompts import Way


def count(
    image: ImageArgument,
    model: ModelOption = None,
    revision: RevisionOption = None,
    spec: SpecsOption = None,
    frames: FramesOption = None,
    fps: FpsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Count the visual tokens of an image or a clip, dense and compressed.

    Nothing is run, and the model's weights are not needed.

    Example: foveate count photo.jpg --spec cluster:64 --spec prumerge:auto
    """
    with spinner("Counting"):
        defer_torch()
        from foveate.clips import Clip
        from foveate.loading import commit_of, embedded_family, family_without_weights
        from foveate.spec import as_spec
        from foveate.visual_prompts import expected_layouts

        specs = [as_spec(text) for text in spec or ()]
        opened = open_visual(image, frames, fps)
        embedded = model is None
        model = model_for(model, clips=isinstance(opened, Clip))
    with finding(model):
        commit = commit_of(model, revision)
        if embedded:
            family = embedded_family(PATH if model is None else CLIP_PATH)
            layouts, way = expected_layouts(family, opened)
        else:
            family = family_without_weights(model, revision=commit)
            layouts, way = _layouts(family, model, commit, opened)
        counts = [(str(spec), *_totals(spec, family, layouts)) for spec in specs]
    grids = [(segment.t, segment.h, segment.w) for layout in layouts for segment in layout.segments]
    content, total = (sum(getattr(layout, name) for layout in layouts) for name in ("content", "total"))
    width, height = opened.size
    if as_json:
        print_json(
            {
                "image": str(image),
                "width": width,
                "height": height,
                **clip_json(opened, way),
                "model": model_title(model),
                "revision": commit,
                "grids": [list(grid) for grid in grids],
                "content": content,
                "structural": total - content,
                "total": total,
                "after": [
                    {
                        "spec": name,
                        "fewest": fewest,
                        "tokens": most,
                        "share": most / total,
                        "mean_over_layers": sum(layers) / len(layers),
                        "layers": list(layers),
                    }
                    for name, fewest, most, layers in counts
                ],
            }
        )
        return
    repeated = way is not None and len(layouts) > 1 and len(set(layouts)) == 1
    named = grids[: len(grids) // len(layouts)] if repeated else grids
    grid = " + ".join(f"{h} x {w}" if t == 1 else f"{t} x {h} x {w}" for t, h, w in named)
    grid = f"{len(layouts)} times a grid of {grid}" if repeated else f"a grid of {grid}"
    tokens = f"{content} tokens of content"
    if total > content:
        tokens += f" and {total - content} structural ones"
    screen = console()
    screen.print(f"{image}: {width} x {height} pixels", soft_wrap=True)
    screen.print(f"In {model_title(model, revision)}: {grid}, {tokens}", soft_wrap=True)
    shown = table("spec")
    add_number_columns(shown, "visual tokens", "of dense", "mean over layers")
    shown.add_row("dense", f"{total}", "100.0%", f"{total:.1f}")
    for name, fewest, most, layers in counts:
        # Where the content decides, only a run of the encoder gives the number between the two.
        ends = dict.fromkeys((fewest, most))
        shares = " to ".join(f"{tokens / total:.1%}" for tokens in ends)
        mean = f"{sum(layers) / len(layers):.1f}"
        shown.add_row(name, " to ".join(map(str, ends)), shares, mean if len(ends) == 1 else f"at most {mean}")
    screen.print(shown)
    if isinstance(opened, Clip) and way is not None:
        screen.print(clip_line(image, opened, way, family.title), soft_wrap=True)
    screen.print(JSON_HINT, style="dim")


def _layouts(
    family: Family, model: str | None, commit: str | None, opened: Image.Image | Clip
) -> tuple[tuple[Layout, ...], Way | None]:
    """Return the layouts that a model's own processor makes, and how the model takes a clip."""
    silence_transformers()
    from foveate.loading import load_processor
    from foveate.visual_prompts import visual_prompt

    found = visual_prompt(family, load_processor(model, revision=commit), opened, "?")
    return found.layouts, found.way


def _totals(spec: Spec, family: Family, layouts: Sequence[Layout]) -> tuple[int, int, list[int]]:
    """Return the fewest and the most visual tokens of some images after a spec, and the most in each layer."""
    from foveate.schedule import tokens_between, tokens_per_layer

    between = {layout: tokens_between(spec, family, layout) for layout in layouts}
    layers = {layout: tokens_per_layer(spec, family, layout) for layout in layouts}
    fewest, most = (sum(between[layout][end] for layout in layouts) for end in (0, 1))
    return fewest, most, [sum(numbers) for numbers in zip(*(layers[layout] for layout in layouts), strict=True)]
