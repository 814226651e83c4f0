"""`foveate count`: how many visual tokens an image makes."""

from __future__ import annotations

from foveate.commands.options import (
    ImageArgument,
    JsonOption,
    ModelOption,
    RevisionOption,
    SpecsOption,
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


def count(
    image: ImageArgument,
    model: ModelOption = None,
    revision: RevisionOption = None,
    spec: SpecsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Count the visual tokens of an image, dense and compressed.

    Nothing is run, and the model's weights are not needed.

    Example: foveate count photo.jpg --spec cluster:64 --spec prumerge:auto
    """
    from foveate.images import open_image

    with spinner("Counting"):
        from foveate.families.prompt_check import layout_of_prompt
        from foveate.loading import commit_of, family_without_weights, load_processor
        from foveate.prompts import question_inputs
        from foveate.schedule import tokens_between, tokens_per_layer
        from foveate.spec import as_spec

        specs = [as_spec(text) for text in spec or ()]
        opened = open_image(image)
        silence_transformers()
    with finding(model):
        commit = commit_of(model, revision)
        processor, family = load_processor(model, revision=commit), family_without_weights(model, revision=commit)
        layout = layout_of_prompt(family, question_inputs(processor, opened, "?"))
        counts = [
            (str(spec), *tokens_between(spec, family, layout), tokens_per_layer(spec, family, layout)) for spec in specs
        ]
    grids = [(segment.t, segment.h, segment.w) for segment in layout.segments]
    if as_json:
        print_json(
            {
                "image": str(image),
                "width": opened.width,
                "height": opened.height,
                "model": model_title(model),
                "revision": commit,
                "grids": [list(grid) for grid in grids],
                "content": layout.content,
                "structural": len(layout.structural),
                "total": layout.total,
                "after": [
                    {
                        "spec": name,
                        "fewest": fewest,
                        "tokens": most,
                        "share": most / layout.total,
                        "mean_over_layers": sum(layers) / len(layers),
                        "layers": list(layers),
                    }
                    for name, fewest, most, layers in counts
                ],
            }
        )
        return
    grid = " + ".join(f"{h} x {w}" if t == 1 else f"{t} x {h} x {w}" for t, h, w in grids)
    tokens = f"{layout.content} tokens of content"
    if layout.structural:
        tokens += f" and {len(layout.structural)} structural ones"
    screen = console()
    screen.print(f"{image}: {opened.width} x {opened.height} pixels", soft_wrap=True)
    screen.print(f"In {model_title(model, revision)}: a grid of {grid}, {tokens}", soft_wrap=True)
    shown = table("spec")
    add_number_columns(shown, "visual tokens", "of dense", "mean over layers")
    shown.add_row("dense", f"{layout.total}", "100.0%", f"{layout.total:.1f}")
    for name, fewest, most, layers in counts:
        # Where the content decides, only a run of the encoder gives the number between the two.
        ends = dict.fromkeys((fewest, most))
        shares = " to ".join(f"{tokens / layout.total:.1%}" for tokens in ends)
        mean = f"{sum(layers) / len(layers):.1f}"
        shown.add_row(name, " to ".join(map(str, ends)), shares, mean if len(ends) == 1 else f"at most {mean}")
    screen.print(shown)
    screen.print(JSON_HINT, style="dim")
