"""Images and clips: which of them a call brings, in which order they stand in a prompt, and what the model takes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from jaxtyping import Bool, Int64
from torch import Tensor

from foveate.engine.prompt import CompressedImage
from foveate.errors import FoveateError
from foveate.families import Family
from foveate.families.family import no_clips
from foveate.tokens import Layout

IMAGE = "image"
CLIP = "video"
MODALITIES = (IMAGE, CLIP)
"""The names under which `mm_encoder_outputs` holds the features of images and of clips."""

Item = tuple[str, int]
"""One image or clip: its modality, and its number among those of its modality."""


def modality_of(layout: Layout) -> str:
    """Return the modality of what has this layout."""
    return CLIP if layout.is_clip else IMAGE


def pixels_of(family: Family, modality: str) -> str:
    """Return the name of the input that holds the pixels of a modality."""
    return family.video_inputs[0] if modality == CLIP else "pixel_values"


def brought(family: Family, inputs: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the modalities of which a call brings pixels."""
    return tuple(name for name in MODALITIES if inputs.get(pixels_of(family, name)) is not None)


def visual_inputs(family: Family) -> tuple[str, ...]:
    """Return the inputs that describe images and clips, which go when their features are computed."""
    return (*family.pixel_inputs, *family.video_inputs) if family.clip_places else family.pixel_inputs


def placeholders_of(family: Family, modality: str, input_ids: Int64[Tensor, "B S"]) -> Bool[Tensor, "B S"]:
    """Mark the placeholders of one modality in prompts."""
    return input_ids == (family.video_token if modality == CLIP else family.image_token)


def run_encoder(family: Family, modality: str, inputs: Mapping[str, Any]) -> Any:
    """Run the model's encoder and projector on its images or clips, and return the model's own container."""
    return family.encode_clips(inputs) if modality == CLIP else family.encode(inputs)


def check_clips(family: Family, inputs: Mapping[str, Any]) -> None:
    """Refuse clips for a family that takes none: they would pass at full length without the report showing it.

    Raises:
        FoveateError: there is a clip among the inputs.
    """
    if not family.clip_places and brings_clips(family, inputs):
        raise FoveateError(no_clips(family))


def refuse_clips(what: str, family: Family, inputs: Mapping[str, Any]) -> None:
    """Refuse clips where only images can be used.

    Args:
        what: is done with the images, such as "VoCo memories".
        family: knows the inputs of clips.
        inputs: of a call.

    Raises:
        FoveateError: there is a clip among the inputs.
    """
    if brings_clips(family, inputs):
        raise FoveateError(f"video is not supported yet for {what}; pass images, for instance frames of the clip")


def brings_clips(family: Family, inputs: Mapping[str, Any]) -> bool:
    """Return whether a call brings clips, as pixels or as features."""
    encoded = inputs.get("mm_encoder_outputs") or {}
    return any(inputs.get(name) is not None for name in family.video_inputs) or encoded.get(CLIP) is not None


def prompt_order(
    family: Family, input_ids: Int64[Tensor, "B S"] | None, layouts: Mapping[str, Sequence[Layout]]
) -> list[Item]:
    """Return the images and clips of a prompt in the order in which they stand there.

    Args:
        family: knows the placeholders.
        input_ids: of the prompts; None if they aren't known.
        layouts: of each modality, in prompt order among themselves.

    Raises:
        FoveateError: the ids aren't known and there are both, or placeholders of both are mixed up.
    """
    if len(layouts) == 1:
        ((name, own),) = layouts.items()
        return [(name, number) for number in range(len(own))]
    if input_ids is None:
        raise FoveateError("images and clips came without input_ids, which tell their order; pass them, too")
    visual = input_ids[family.placeholders(input_ids)]
    is_clip = placeholders_of(family, CLIP, visual).tolist()
    items: list[Item] = []
    came = dict.fromkeys(layouts, 0)
    place = 0
    while place < len(is_clip):
        name = CLIP if is_clip[place] else IMAGE
        number = came[name]
        if number == len(layouts[name]):
            break
        count = layouts[name][number].placeholders
        if any(each != is_clip[place] for each in is_clip[place : place + count]):
            raise FoveateError(
                f"{name} {number} (counted from 0) has {count} visual tokens, and placeholders of another image or "
                "clip stand among its own; pass what the processor returned, unchanged"
            )
        items.append((name, number))
        came[name] += 1
        place += max(1, count)
    # Where they don't fit, checking the prompt says so.
    return items + [(name, number) for name, own in layouts.items() for number in range(came[name], len(own))]


def containers(
    make: Callable[..., dict[str, Any]],
    images: Iterable[CompressedImage],
    stacked: frozenset[str] = frozenset(),
    row_tokens: Mapping[str, Sequence[int]] | None = None,
) -> dict[str, Any]:
    """Make what the model takes as `mm_encoder_outputs`, new for each call, since `generate` changes it in place.

    Args:
        make: the family's `container`.
        images: images and clips, in prompt order.
        stacked: the modalities of which the model takes one tensor.
        row_tokens: per modality its visual tokens in each row of the prompt; `generate` needs them for beams.
    """
    images = list(images)
    names = [name for name in MODALITIES if any(modality_of(image.layout) == name for image in images)]
    made: dict[str, Any] = {}
    for name in names or [IMAGE]:
        own = [image for image in images if modality_of(image.layout) == name]
        features, companions = [image.features for image in own], [image.companions for image in own]
        made[name] = make(features, companions, name in stacked, (row_tokens or {}).get(name, ()))[IMAGE]
    return made
