"""Check that a prompt and its images fit a model, before the model runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from foveate.errors import FoveateError
from foveate.families.family import Family
from foveate.layout import Layout

if TYPE_CHECKING:
    from torch import Tensor


def prompt_layouts(family: Family, inputs: Mapping[str, Any]) -> tuple[Layout, ...]:
    """Return the layouts of a prompt's images or clips, and check that the prompt's ids fit them and the model.

    Of a prompt with both, images come first.

    Args:
        family: of the model; that of `loading.family_without_weights` is enough.
        inputs: what the processor returned, with `input_ids` `(B, S)` on the CPU.

    Raises:
        FoveateError: placeholders and visual tokens differ in number, or an id is not in the model's vocabulary.
    """
    clips = family.clip_layouts(inputs) if inputs.get(family.video_inputs[0]) is not None else ()
    layouts = (*family.layouts(inputs), *clips) if not clips or inputs.get("pixel_values") is not None else clips
    ids: Tensor = inputs["input_ids"]
    images = family.placeholders(ids)
    written, wanted = int(images.sum()), sum(layout.placeholders for layout in layouts)
    if written != wanted:
        noun = "clip" if len(clips) == len(layouts) else "image"
        images_given = f"{len(layouts)} {noun}{'' if len(layouts) == 1 else 's'}"
        raise FoveateError(
            f"the processor writes {written} tokens for {images_given}, and the encoder makes {wanted}; processor and "
            "model don't belong together"
        )
    vocabulary = getattr(family.config.get_text_config(), "vocab_size", None)
    words = ids[~images]
    if isinstance(vocabulary, int) and words.numel() and int(words.max()) >= vocabulary:
        raise FoveateError(
            f"the tokenizer writes token {int(words.max())}, and the model's vocabulary has {vocabulary} tokens; "
            "tokenizer and model don't belong together"
        )
    return layouts


def layout_of_prompt(family: Family, inputs: Mapping[str, Any]) -> Layout:
    """Return the layout of a prompt's one image, checked as by `prompt_layouts`.

    Args:
        family: of the model; that of `loading.family_without_weights` is enough.
        inputs: from `prompts.question_inputs`.

    Raises:
        FoveateError: prompt and model don't belong together, or the model has no family of its own, and its image comes
            in several parts.
    """
    layouts = prompt_layouts(family, inputs)
    if len(layouts) != 1:
        raise FoveateError(
            f"this image makes {len(layouts)} runs of visual tokens in {family.title}, which has no family of "
            "its own; commands take models with one run per image, foveate.apply takes this one too"
        )
    return layouts[0]
