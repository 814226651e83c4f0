"""Idefics3, tiny: a picture in tiles with their rows and columns before them, then the whole picture."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from foveate.layout import Layout
from rows.row import DECODER, ENCODER, Row, enlarged
from rows.tiles import CUTS, EDGE, SIDE, of_pictures, of_tokens, smaller, tiled, tiles_of

IMAGE, MARK, WHOLE, BREAK, BREAKS = 5, 6, 7, 8, 9
LABELS = {(row, column): 10 + 4 * row + column for row in range(4) for column in range(4)}


def maker(name: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import transformers

        vision = getattr(transformers, f"{name}VisionConfig")(
            **ENCODER,
            image_size=EDGE,
            patch_size=14,
        )
        text = transformers.LlamaConfig(
            **DECODER,
            head_dim=16,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
        )
        config = getattr(transformers, f"{name}Config")(
            vision_config=vision, text_config=text, image_token_id=IMAGE, scale_factor=2
        )
        return getattr(transformers, f"{name}ForConditionalGeneration")(config)

    return make


PICTURES = {letter: tiled(cut, runs=True) for letter, cut in CUTS.items()}


def labelled(layout: Layout) -> list[int]:
    """Token ids of a picture as the processor writes them: marks, labels, line breaks between rows of tiles."""
    ids: list[int] = []
    for tile in layout.segments:
        if tile.part:
            row, column, _, columns = tile.part
            ids += [MARK, LABELS[row, column], *[IMAGE] * tile.count]
            if column == columns - 1:
                ids.append(BREAK)
        else:
            ids += [MARK, WHOLE, *[IMAGE] * tile.count, MARK]
    # The tokenizer has one token for two line breaks.
    if BREAK in ids:
        ids[len(ids) - 1 - ids[::-1].index(BREAK)] = BREAKS
    return ids


def padded_tiles(letters: str) -> dict[str, Tensor]:
    """A row of tiles for each picture, filled up with tiles of zeros."""
    tiles = [tiles_of(letter) for letter in letters]
    most = max(map(len, tiles))
    filled = torch.stack([pad(each, (0, 0, 0, 0, 0, 0, 0, most - len(each))) for each in tiles])
    return {"pixel_values": filled, "pixel_attention_mask": torch.ones(len(tiles), most, EDGE, EDGE, dtype=torch.int64)}


def counts(inputs: dict[str, Tensor]) -> list[int]:
    return [sum(bool(tile.any()) for tile in row) for row in inputs["pixel_values"]]


def attention_in_tiles(maps: list[Tensor], inputs: dict[str, Tensor]) -> list[Tensor]:
    """Columns of each tile's map, summed; then four patches to a token, as a share of the tile's attention."""
    received = maps[0].mean(1).sum(1)
    return of_pictures(of_tokens(received).sum(2) / received.shape[1], counts(inputs))


def keys_in_tiles(attention: Any, hidden: Tensor, inputs: dict[str, Tensor]) -> list[Tensor]:
    return of_pictures(of_tokens(attention.k_proj(hidden).unflatten(-1, (4, 8))).mean(2), counts(inputs))


def interpolated(model: Any, letter: str, rows: int, columns: int) -> Tensor:
    return model.model.get_image_features(smaller(letter, min(rows, columns))[None], return_dict=True).pooler_output[0]


def enlarged_again(model: Any, letter: str, rows: int, columns: int) -> Tensor:
    pixels = enlarged(smaller(letter, min(rows, columns)), EDGE, EDGE)[None]
    return model.model.get_image_features(pixels, return_dict=True).pooler_output[0]


WORDS = {
    "<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "<end_of_utterance>": 4, "<image>": IMAGE,
    "<fake_token_around_image>": MARK, "<global-img>": WHOLE, "\n": BREAK, "\n\n": BREAKS,
    **{f"<row_{row + 1}_col_{column + 1}>": label for (row, column), label in LABELS.items()},
}  # fmt: skip

CHAT = (
    "{% for turn in messages %}{{ turn.role }} : {% for part in turn.content %}"
    "{% if part.type == 'image' %}<image>{% else %} {{ part.text }} {% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}assistant : {% endif %}"
)


def image_options(config: Any) -> dict[str, Any]:
    edge = config.vision_config.image_size
    return {"size": {"longest_edge": 4 * edge}, "max_image_size": {"longest_edge": edge}}


def processor(tokenizer: Any, config: Any, backend: str) -> Any:
    from transformers import Idefics3ImageProcessor, Idefics3Processor
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    make: Any = Idefics3ImageProcessor if backend == "torchvision" else Idefics3ImageProcessorPil
    images = make(**image_options(config))
    return Idefics3Processor(images, tokenizer, image_seq_len=SIDE * SIDE, chat_template=CHAT)


def row(name: str, kind: str, processor: Callable[[Any, Any, str], Any], **words: int) -> Row:
    return Row(
        kind,
        maker(name),
        image_token=IMAGE,
        pictures=PICTURES,
        pixels=padded_tiles,
        token_types=False,
        attention=attention_in_tiles,
        keys=keys_in_tiles,
        resized={"interpolate": interpolated, "enlarge": enlarged_again},
        written=labelled,
        words=WORDS | words,
        offloads=name == "SmolVLM",  # Idefics3 puts embeddings on the device where its weights lie
        processor=processor,
    )


ROW = row("Idefics3", "idefics3", processor)
