"""Gemma 3, tiny: each token is the mean of 2 x 2 patches, and the tokens of an image see each other."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from foveate.layout import Layout
from rows.clip import llava_pixels
from rows.row import DECODER, ENCODER, INSTALLED, Row, enlarged, grid, picture
from rows.siglip import received, siglip_keys

IMAGE, BEGIN, END = 5, 6, 7
SIDE = 6


def make_gemma3(window: int = 512) -> nn.Module:
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration, Gemma3TextConfig, SiglipVisionConfig

    model = Gemma3ForConditionalGeneration(
        Gemma3Config(
            vision_config=SiglipVisionConfig(**ENCODER, image_size=84, patch_size=7, vision_use_head=False),
            text_config=Gemma3TextConfig(
                **DECODER,
                head_dim=16,
                sliding_window=window,
                layer_types=["sliding_attention", "sliding_attention", "full_attention"],
            ),
            mm_tokens_per_image=SIDE**2,
            image_token_id=IMAGE,
            boi_token_id=BEGIN,
            eoi_token_id=END,
            tie_word_embeddings=False,
        )
    )
    with torch.no_grad():
        model.model.multi_modal_projector.mm_input_projection_weight.normal_(std=0.3)  # it starts at zero
    return model


def between_marks(layout: Layout) -> list[int]:
    return [BEGIN, *[IMAGE] * layout.total, END]


def of_tokens(patches: Tensor, side: int = SIDE) -> Tensor:
    """What patches `(images, patches, ...)` have, by visual token: `(images, tokens, 4, ...)`. Written with loops."""
    tokens = []
    for row in range(0, 2 * side, 2):
        for column in range(0, 2 * side, 2):
            places = [(row + down) * 2 * side + column + right for down in (0, 1) for right in (0, 1)]
            tokens.append(patches[:, places])
    return torch.stack(tokens, dim=1)


def attention_of_tokens(maps: list[Tensor], inputs: dict[str, Tensor]) -> list[Tensor]:
    return list(of_tokens(torch.stack(received(maps, inputs))).sum(2))


def keys_of_tokens(attention: Any, hidden: Tensor, inputs: dict[str, Tensor]) -> list[Tensor]:
    return list(of_tokens(torch.stack(siglip_keys(attention, hidden, inputs))).mean(2))


def interpolated(model: Any, letter: str, rows: int, columns: int) -> Tensor:
    """SigLIP given a smaller picture, its position embeddings interpolated; then the projector by hand."""
    small = interpolate(picture(letter, 3, 84, 84)[None], size=(rows * 14, columns * 14), mode="area")
    patches = model.model.vision_tower(small, interpolate_pos_encoding=True).last_hidden_state
    means = patches.unflatten(1, (rows, 2, columns, 2)).mean((2, 4)).flatten(1, 2)
    projector = model.model.multi_modal_projector
    return (projector.mm_soft_emb_norm(means) @ projector.mm_input_projection_weight)[0]


def enlarged_again(model: Any, letter: str, rows: int, columns: int) -> Tensor:
    small = interpolate(picture(letter, 3, 84, 84)[None], size=(rows * 14, columns * 14), mode="area")
    return model.model.get_image_features(enlarged(small, 84, 84), return_dict=True).pooler_output[0]


CHAT = (
    "{% for turn in messages %}{{ turn.role }} : {% for part in turn.content %}"
    "{% if part.type == 'image' %}<start_of_image>{% else %} {{ part.text }} {% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}assistant : {% endif %}"
)


def gemma3_processor(tokenizer: Any, config: Any, backend: str) -> Any:
    from transformers import Gemma3ImageProcessor, Gemma3Processor
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

    make: Any = Gemma3ImageProcessor if backend == "torchvision" else Gemma3ImageProcessorPil
    special = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    tokenizer._set_model_specific_special_tokens(special)
    images = make(size={"height": 84, "width": 84})
    return Gemma3Processor(images, tokenizer, image_seq_length=SIDE**2, chat_template=CHAT)


ROW = Row(
    "gemma3",
    make_gemma3,
    image_token=IMAGE,
    pictures={letter: grid(SIDE, SIDE) for letter in "ABC"},
    pixels=llava_pixels,
    token_types=False,
    types=("token_type_ids", 1),
    blocks_after_cache=INSTALLED >= (5, 23),
    attention=attention_of_tokens,
    keys=keys_of_tokens,
    resized={"interpolate": interpolated, "enlarge": enlarged_again},
    written=between_marks,
    words={
        "<pad>": 0,
        "<s>": 1,
        "</s>": 2,
        "<unk>": 3,
        "<image_soft_token>": IMAGE,
        "<start_of_image>": BEGIN,
        "<end_of_image>": END,
    },
    processor=gemma3_processor,
)
