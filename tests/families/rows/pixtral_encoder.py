"""What comes out of a Pixtral encoder, and what tiny models with one share: breaks, which are text, between rows."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad

from foveate.layout import Layout, Segment, Structural
from rows.row import DECODER, ENCODER, Row, enlarged, picture

PIXTRAL_VISION = {**ENCODER, "head_dim": 8, "image_size": 168, "patch_size": 14}

MISTRAL_TEXT = {**DECODER, "head_dim": 16, "sliding_window": None}


def with_breaks(rows: int, columns: int) -> Layout:
    breaks = []
    place = 0
    for row in range(rows - 1):
        place += columns
        breaks.append(Structural(place, row * columns, (row + 1) * columns, is_text=True, between=True))
        place += 1
    return Layout((Segment(1, rows, columns),), tuple(breaks))


PICTURES = {"A": with_breaks(4, 6), "B": with_breaks(5, 3), "C": with_breaks(3, 3)}


def pixtral_picture(letter: str, merge: int) -> Tensor:
    (segment,) = PICTURES[letter].segments
    return picture(letter, 3, segment.h * 14 * merge, segment.w * 14 * merge)


def pixtral_pixels(merge: int, letters: str) -> dict[str, Tensor]:
    """Pictures padded to one size, and the size of each."""
    images = [pixtral_picture(letter, merge) for letter in letters]
    sizes = [list(image.shape[1:]) for image in images]
    height, width = (max(side) for side in zip(*sizes))
    padded = [pad(image, (0, width - image.shape[2], 0, height - image.shape[1])) for image in images]
    return {"pixel_values": torch.stack(padded), "image_sizes": torch.tensor(sizes)}


def tokens_of(merge: int, patches: Tensor, inputs: dict[str, Tensor]) -> list[list[Tensor]]:
    """What the patches of each visual token have, by image and token. Written with loops."""
    images: list[list[Tensor]] = []
    begin = 0
    for height, width in inputs["image_sizes"].tolist():
        rows, columns = height // 14, width // 14
        tokens = []
        for row in range(0, rows, merge):
            for column in range(0, columns, merge):
                block = [(down, right) for down in range(merge) for right in range(merge)]
                places = [begin + (row + down) * columns + column + right for down, right in block]
                tokens.append(patches[places])
        images.append(tokens)
        begin += rows * columns
    return images


def attention_of_patches(merge: int, maps: list[Tensor], inputs: dict[str, Tensor]) -> list[Tensor]:
    """Columns of the map over all images, summed; then the patches of a token, as a share of the image's attention."""
    received = maps[0].mean(1).sum(1)[0]
    images = tokens_of(merge, received, inputs)
    return [torch.stack([token.sum() for token in tokens]) / (merge**2 * len(tokens)) for tokens in images]


def keys_of_patches(merge: int, attention: Any, hidden: Tensor, inputs: dict[str, Tensor]) -> list[Tensor]:
    """Before rotary embedding, averaged over the patches of a token."""
    images = tokens_of(merge, attention.k_proj(hidden)[0].unflatten(-1, (4, 8)), inputs)
    return [torch.stack([token.mean(0) for token in tokens]) for tokens in images]


def pixtral_smaller(merge: int, letter: str, rows: int, columns: int) -> dict[str, Tensor]:
    size = rows * 14 * merge, columns * 14 * merge
    small = interpolate(pixtral_picture(letter, merge)[None], size=size, mode="area")
    return {"pixel_values": small, "image_sizes": torch.tensor([size])}


def pixtral_exact(merge: int, model: Any, letter: str, rows: int, columns: int) -> Tensor:
    """The model given a smaller picture."""
    inputs = pixtral_smaller(merge, letter, rows, columns)
    return model.model.get_image_features(**inputs, return_dict=True).pooler_output[0]


def pixtral_enlarged(merge: int, model: Any, letter: str, rows: int, columns: int) -> Tensor:
    image = pixtral_picture(letter, merge)
    pixels = enlarged(pixtral_smaller(merge, letter, rows, columns)["pixel_values"], *image.shape[1:])
    sizes = torch.tensor([list(image.shape[1:])])
    return model.model.get_image_features(pixel_values=pixels, image_sizes=sizes, return_dict=True).pooler_output[0]


MISTRAL_WORDS = {"<unk>": 0, "<s>": 1, "</s>": 2, "<pad>": 3, "[IMG]": 5, "[IMG_BREAK]": 6, "[IMG_END]": 7}

MISTRAL_CHAT = (
    "{% for turn in messages %}{{ turn.role }} : {% for part in turn.content %}"
    "{% if part.type == 'image' %}[IMG]{% else %}{{ part.text }} {% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}assistant : {% endif %}"
)


def pixtral_processor(tokenizer: Any, config: Any, backend: str) -> Any:
    from transformers import PixtralImageProcessor, PixtralProcessor
    from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil

    patch = config.vision_config.patch_size
    sizes: Any = {
        "patch_size": {"height": patch, "width": patch},
        "size": {"longest_edge": config.vision_config.image_size},
    }
    images: Any = (PixtralImageProcessor if backend == "torchvision" else PixtralImageProcessorPil)(**sizes)
    return PixtralProcessor(
        images,
        tokenizer,
        patch_size=patch,
        spatial_merge_size=getattr(config, "spatial_merge_size", 1),
        chat_template=MISTRAL_CHAT,
    )


def pixtral_row(name: str, make: Callable[[], nn.Module], merge: int) -> Row:
    """The row of a model of which `merge` x `merge` patches are a visual token."""
    return Row(
        name,
        make,
        image_token=5,
        pictures=PICTURES,
        pixels=partial(pixtral_pixels, merge),
        token_types=False,
        attention=partial(attention_of_patches, merge),
        keys=partial(keys_of_patches, merge),
        resized={"exact": partial(pixtral_exact, merge), "enlarge": partial(pixtral_enlarged, merge)},
        smaller=partial(pixtral_smaller, merge),
        break_token=6,
        words=MISTRAL_WORDS,
        processor=pixtral_processor,
    )
