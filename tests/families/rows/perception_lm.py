"""PerceptionLM, tiny: the whole of a picture and then its tiles, in one run; the encoder is timm's."""

from typing import Any

import torch
from torch import Tensor, nn

from foveate.layout import Layout, Segment
from rows.internvl import counts
from rows.row import DECODER, Row, enlarged
from rows.tiles import CUTS, EDGE, SIDE, of_pictures, of_tokens, smaller, tiles_of

IMAGE, BEGIN, END, VIDEO = 5, 6, 7, 8


def make_perception_lm() -> nn.Module:
    from transformers import LlamaConfig, PerceptionLMConfig, PerceptionLMForConditionalGeneration, TimmWrapperConfig

    return PerceptionLMForConditionalGeneration(
        PerceptionLMConfig(
            vision_config=TimmWrapperConfig(
                architecture="vit_pe_core_large_patch14_336",
                model_args={
                    **{"embed_dim": 32, "depth": 3, "num_heads": 4, "mlp_ratio": 2.0, "img_size": [EDGE, EDGE]},
                    **{"global_pool": "", "use_post_transformer_norm": False, "init_values": 1.0},
                    "ref_feat_shape": [EDGE // 14, EDGE // 14],
                },
            ),
            text_config=LlamaConfig(**DECODER),
            image_token_id=IMAGE,
            video_token_id=VIDEO,
            projector_pooling_ratio=2,
        )
    )


def layout(cut: tuple[int, int]) -> Layout:
    rows, columns = cut
    tiles = [Segment(1, SIDE, SIDE, part=(row, column, *cut)) for row in range(rows) for column in range(columns)]
    return Layout((Segment(1, SIDE, SIDE), *tiles))


def whole_first(tiles: Tensor) -> Tensor:
    return torch.cat([tiles[-1:], tiles[:-1]])


def tiles(letters: str) -> dict[str, Tensor]:
    """The tiles of all pictures, which differ in their number, as those of one."""
    return {"pixel_values": torch.cat([whole_first(tiles_of(letter)) for letter in letters])[None]}


def between_words(layout: Layout) -> list[int]:
    return [BEGIN, *[IMAGE] * layout.total, END]


def attention_in_tiles(maps: list[Tensor], inputs: dict[str, Tensor]) -> list[Tensor]:
    """The row of [CLS] in each tile, without [CLS] itself; four patches to a token."""
    return of_pictures(of_tokens(maps[0].mean(1)[:, 0, 1:]).sum(2), counts(inputs))


def keys_in_tiles(attention: Any, hidden: Tensor, inputs: dict[str, Tensor]) -> list[Tensor]:
    keys = attention.qkv(hidden)[:, 1:, 32:64]
    return of_pictures(of_tokens(keys.unflatten(-1, (4, 8))).mean(2), counts(inputs))


def enlarged_again(model: Any, letter: str, rows: int, columns: int) -> Tensor:
    pixels = enlarged(whole_first(smaller(letter, min(rows, columns))), EDGE, EDGE)
    return model.model.get_image_features(pixels[None], return_dict=True).pooler_output.flatten(0, 1)


WORDS = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "<|image|>": IMAGE, "<video>": VIDEO}

CHAT = (
    "{% for turn in messages %}{{ turn.role }} : {% for part in turn.content %}"
    "{% if part.type == 'image' %}<|image|>{% else %} {{ part.text }} {% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}assistant : {% endif %}"
)


def perception_lm_processor(tokenizer: Any, config: Any, backend: str) -> Any:
    from transformers import PerceptionLMProcessor
    from transformers.models.perception_lm.image_processing_perception_lm import PerceptionLMImageProcessor
    from transformers.models.perception_lm.video_processing_perception_lm import PerceptionLMVideoProcessor

    # Kept in the tokenizer's own files.
    tokenizer._set_model_specific_special_tokens({"image_token": "<|image|>", "video_token": "<video>"})
    return PerceptionLMProcessor(
        PerceptionLMVideoProcessor(size={"height": EDGE, "width": EDGE}),
        PerceptionLMImageProcessor(tile_size=EDGE),
        tokenizer,
        patch_size=14,
        pooling_ratio=2,
        chat_template=CHAT,
    )


ROW = Row(
    "perception_lm",
    make_perception_lm,
    image_token=IMAGE,
    pictures={letter: layout(cut) for letter, cut in CUTS.items()},
    pixels=tiles,
    token_types=False,
    attention=attention_in_tiles,
    keys=keys_in_tiles,
    resized={"enlarge": enlarged_again},
    written=between_words,
    needs=("timm", "torchvision"),
    unanswerable=(VIDEO,),
    offloads=False,  # its encoder takes pixels to where its weights lie
    chunks=False,  # the output of its encoder can't be made of features alone
    joins=False,
    words=WORDS,
    processor=perception_lm_processor,
)
