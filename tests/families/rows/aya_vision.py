"""Aya Vision, tiny: a picture in tiles and then the whole of it, the name of each before it."""

from typing import Any

from torch import Tensor, nn

from foveate.layout import Layout
from rows.cohere2_vision import CHAT, PICTURES, RESIZED, counts, maker, tiles
from rows.row import Row
from rows.tiles import EDGE, of_pictures, of_tokens

IMAGE, BEGIN, END, WHOLE = 5, 6, 7, 8
NAMES = range(10, 23)


def named(layout: Layout) -> list[int]:
    names = iter(NAMES)
    ids = [token for tile in layout.segments for token in [next(names) if tile.part else WHOLE] + [IMAGE] * tile.count]
    return [BEGIN, *ids, END]


def attention_in_tiles(maps: list[Tensor], inputs: dict[str, Tensor]) -> list[Tensor]:
    received = maps[0].mean(1).sum(1)
    return of_pictures(of_tokens(received).sum(2) / received.shape[1], counts(inputs, BEGIN, END))


def keys_in_tiles(attention: Any, hidden: Tensor, inputs: dict[str, Tensor]) -> list[Tensor]:
    keys = of_tokens(attention.k_proj(hidden).unflatten(-1, (4, 8))).mean(2)
    return of_pictures(keys, counts(inputs, BEGIN, END))


WORDS = {
    "<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "<image>": 4, "<|IMG_PATCH|>": IMAGE, "<|START_OF_IMG|>": BEGIN,
    "<|END_OF_IMG|>": END, "TILE_GLOBAL": WHOLE, "TILE": 9,
    **{f"TILE_{number}": token for number, token in enumerate(NAMES, start=1)},
}  # fmt: skip


def processor(tokenizer: Any, config: Any, backend: str) -> Any:
    from transformers import AyaVisionProcessor, GotOcr2ImageProcessor
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

    make: Any = GotOcr2ImageProcessor if backend == "torchvision" else GotOcr2ImageProcessorPil
    images = make(size={"height": EDGE, "width": EDGE})
    return AyaVisionProcessor(images, tokenizer, patch_size=14, img_size=EDGE, downsample_factor=2, chat_template=CHAT)


def make_aya_vision(window: int = 512) -> nn.Module:
    return maker("AyaVision", window, image_token_index=IMAGE, tie_word_embeddings=False)()


ROW = Row(
    "aya_vision",
    make_aya_vision,
    image_token=IMAGE,
    pictures=PICTURES,
    pixels=tiles,
    token_types=False,
    attention=attention_in_tiles,
    keys=keys_in_tiles,
    resized=RESIZED,
    written=named,
    words=WORDS,
    processor=processor,
)
