"""InternVL, tiny: a picture in tiles and then the whole of it, in one run."""

from typing import Any

import torch
from torch import Tensor, nn

from foveate.layout import Layout
from rows.row import DECODER, ENCODER, Row, enlarged
from rows.tiles import CUTS, EDGE, SIDE, of_pictures, of_tokens, smaller, tiled, tiles_of

IMAGE, BEGIN, END = 5, 6, 7


def make_internvl() -> nn.Module:
    from transformers import InternVLConfig, InternVLForConditionalGeneration, InternVLVisionConfig, Qwen2Config

    model = InternVLForConditionalGeneration(
        InternVLConfig(
            vision_config=InternVLVisionConfig(
                **ENCODER,
                image_size=[EDGE, EDGE],
                patch_size=[14, 14],
                use_qk_norm=True,
                layer_scale_init_value=1.0,
            ),
            text_config=Qwen2Config(
                **DECODER,
            ),
            image_token_id=IMAGE,
            tie_word_embeddings=False,
        )
    )
    embeddings: Any = model.model.vision_tower.embeddings
    with torch.no_grad():
        for weight in (embeddings.cls_token, embeddings.position_embeddings):
            weight.normal_(std=0.5)  # they start at zero
    return model


def between_marks(layout: Layout) -> list[int]:
    return [BEGIN, *[IMAGE] * layout.total, END]


def tiles(letters: str) -> dict[str, Tensor]:
    return {"pixel_values": torch.cat([tiles_of(letter) for letter in letters])}


def counts(inputs: dict[str, Tensor]) -> list[int]:
    """Tiles of each run of placeholders."""
    found, run = [], 0
    for token in inputs["input_ids"].flatten().tolist():
        if token == IMAGE:
            run += 1
        elif run:
            found.append(run // SIDE**2)
            run = 0
    return found


def attention_in_tiles(maps: list[Tensor], inputs: dict[str, Tensor]) -> list[Tensor]:
    """The row of [CLS] in each tile, without [CLS] itself; four patches to a token."""
    return of_pictures(of_tokens(maps[0].mean(1)[:, 0, 1:]).sum(2), counts(inputs))


def keys_in_tiles(attention: Any, hidden: Tensor, inputs: dict[str, Tensor]) -> list[Tensor]:
    keys = attention.k_norm(attention.k_proj(hidden))[:, 1:]
    return of_pictures(of_tokens(keys.unflatten(-1, (4, 8))).mean(2), counts(inputs))


def interpolated(model: Any, letter: str, rows: int, columns: int) -> Tensor:
    pixels = smaller(letter, min(rows, columns))
    return model.model.get_image_features(pixels, return_dict=True).pooler_output.flatten(0, 1)


def enlarged_again(model: Any, letter: str, rows: int, columns: int) -> Tensor:
    pixels = enlarged(smaller(letter, min(rows, columns)), EDGE, EDGE)
    return model.model.get_image_features(pixels, return_dict=True).pooler_output.flatten(0, 1)


WORDS = {
    "<pad>": 0,
    "<s>": 1,
    "</s>": 2,
    "<unk>": 3,
    "<IMG_CONTEXT>": IMAGE,
    "<img>": BEGIN,
    "</img>": END,
    "<video>": 8,
}

CHAT = (
    "{% for turn in messages %}{{ turn.role }} : {% for part in turn.content %}"
    "{% if part.type == 'image' %}<IMG_CONTEXT>{% elif part.type == 'video' %}<video>{% else %} {{ part.text }} "
    "{% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}assistant : {% endif %}"
)


def internvl_processor(tokenizer: Any, config: Any, backend: str) -> Any:
    from transformers import GotOcr2ImageProcessor, InternVLProcessor, InternVLVideoProcessor
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

    size = {"height": EDGE, "width": EDGE}
    images: Any = (GotOcr2ImageProcessor if backend == "torchvision" else GotOcr2ImageProcessorPil)(size=size)
    special = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>"}
    # Kept in the tokenizer's own files.
    tokenizer._set_model_specific_special_tokens(special | {"video_token": "<video>"})
    videos: Any = InternVLVideoProcessor(size=size)
    return InternVLProcessor(images, tokenizer, videos, image_seq_length=SIDE * SIDE, chat_template=CHAT)


ROW = Row(
    "internvl",
    make_internvl,
    image_token=IMAGE,
    pictures={letter: tiled(cut) for letter, cut in CUTS.items()},
    pixels=tiles,
    token_types=False,
    attention=attention_in_tiles,
    keys=keys_in_tiles,
    resized={"interpolate": interpolated, "enlarge": enlarged_again},
    written=between_marks,
    words=WORDS,
    processor=internvl_processor,
)
