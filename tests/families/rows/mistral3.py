"""Mistral 3, tiny: a break, which is text, after each row of an image but the last."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad

from foveate.layout import Layout, Segment, Structural
from rows.row import Row, enlarged, picture


def make_mistral3() -> nn.Module:
    from transformers import Mistral3Config, Mistral3ForConditionalGeneration, MistralConfig, PixtralVisionConfig

    return Mistral3ForConditionalGeneration(
        Mistral3Config(
            vision_config=PixtralVisionConfig(
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=3,
                num_attention_heads=4,
                head_dim=8,
                image_size=168,
                patch_size=14,
            ),
            text_config=MistralConfig(
                vocab_size=128,
                hidden_size=64,
                intermediate_size=96,
                num_hidden_layers=3,
                num_attention_heads=4,
                num_key_value_heads=2,
                head_dim=16,
                max_position_embeddings=512,
                sliding_window=None,
            ),
            image_token_index=5,
            tie_word_embeddings=False,
        )
    )


def with_breaks(rows: int, columns: int) -> Layout:
    breaks = []
    place = 0
    for row in range(rows - 1):
        place += columns
        breaks.append(Structural(place, row * columns, (row + 1) * columns, is_text=True, between=True))
        place += 1
    return Layout((Segment(1, rows, columns),), tuple(breaks))


PICTURES = {"A": with_breaks(4, 6), "B": with_breaks(5, 3), "C": with_breaks(3, 3)}


def mistral_picture(letter: str) -> Tensor:
    (segment,) = PICTURES[letter].segments
    return picture(letter, 3, segment.h * 28, segment.w * 28)


def mistral_pixels(letters: str) -> dict[str, Tensor]:
    """Pictures padded to one size, and the size of each."""
    images = [mistral_picture(letter) for letter in letters]
    sizes = [list(image.shape[1:]) for image in images]
    height, width = (max(side) for side in zip(*sizes))
    padded = [pad(image, (0, width - image.shape[2], 0, height - image.shape[1])) for image in images]
    return {"pixel_values": torch.stack(padded), "image_sizes": torch.tensor(sizes)}


def tokens_of(patches: Tensor, inputs: dict[str, Tensor]) -> list[list[Tensor]]:
    """What the patches of each visual token have, by image and token. Written with loops."""
    images: list[list[Tensor]] = []
    begin = 0
    for height, width in inputs["image_sizes"].tolist():
        rows, columns = height // 14, width // 14
        tokens = []
        for row in range(0, rows, 2):
            for column in range(0, columns, 2):
                places = [begin + (row + down) * columns + column + right for down in (0, 1) for right in (0, 1)]
                tokens.append(patches[places])
        images.append(tokens)
        begin += rows * columns
    return images


def attention_of_patches(maps: list[Tensor], inputs: dict[str, Tensor]) -> list[Tensor]:
    """Columns of the map over all images, summed; then four patches to a token, as a share of the image's attention."""
    received = maps[0].mean(1).sum(1)[0]
    images = tokens_of(received, inputs)
    return [torch.stack([token.sum() for token in tokens]) / (4 * len(tokens)) for tokens in images]


def keys_of_patches(attention: Any, hidden: Tensor, inputs: dict[str, Tensor]) -> list[Tensor]:
    """Before rotary embedding, averaged over the four patches of a token."""
    images = tokens_of(attention.k_proj(hidden)[0].unflatten(-1, (4, 8)), inputs)
    return [torch.stack([token.mean(0) for token in tokens]) for tokens in images]


def mistral_smaller(letter: str, rows: int, columns: int) -> dict[str, Tensor]:
    small = interpolate(mistral_picture(letter)[None], size=(rows * 28, columns * 28), mode="area")
    return {"pixel_values": small, "image_sizes": torch.tensor([[rows * 28, columns * 28]])}


def mistral_exact(model: Any, letter: str, rows: int, columns: int) -> Tensor:
    """The model given a smaller picture."""
    return model.model.get_image_features(**mistral_smaller(letter, rows, columns), return_dict=True).pooler_output[0]


def mistral_enlarged(model: Any, letter: str, rows: int, columns: int) -> Tensor:
    image = mistral_picture(letter)
    pixels = enlarged(mistral_smaller(letter, rows, columns)["pixel_values"], *image.shape[1:])
    sizes = torch.tensor([list(image.shape[1:])])
    return model.model.get_image_features(pixels, sizes, return_dict=True).pooler_output[0]


MISTRAL_WORDS = {"<unk>": 0, "<s>": 1, "</s>": 2, "<pad>": 3, "[IMG]": 5, "[IMG_BREAK]": 6, "[IMG_END]": 7}

MISTRAL_CHAT = (
    "{% for turn in messages %}{{ turn.role }} : {% for part in turn.content %}"
    "{% if part.type == 'image' %}[IMG]{% else %}{{ part.text }} {% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}assistant : {% endif %}"
)


def mistral_processor(tokenizer: Any, config: Any, backend: str) -> Any:
    from transformers import PixtralImageProcessor, PixtralProcessor
    from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil

    patch = config.vision_config.patch_size
    sizes: Any = {
        "patch_size": {"height": patch, "width": patch},
        "size": {"longest_edge": config.vision_config.image_size},
    }
    images: Any = (PixtralImageProcessor if backend == "torchvision" else PixtralImageProcessorPil)(**sizes)
    return PixtralProcessor(
        images, tokenizer, patch_size=patch, spatial_merge_size=config.spatial_merge_size, chat_template=MISTRAL_CHAT
    )


ROW = Row(
    "mistral3",
    make_mistral3,
    image_token=5,
    pictures=PICTURES,
    pixels=mistral_pixels,
    token_types=False,
    attention=attention_of_patches,
    keys=keys_of_patches,
    resized={"exact": mistral_exact, "enlarge": mistral_enlarged},
    smaller=mistral_smaller,
    break_token=6,
    words=MISTRAL_WORDS,
    processor=mistral_processor,
)
