"""InternVL in vLLM: an image in tiles and then as a whole, a clip in frames of one tile each.

Steps act at `@features` and `@input`. How tiles lie is seen from their pixels, as in `foveate.families`. It is seen
once, where placeholders are counted, and sent to the workers: with another arithmetic they might see it otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.model_executor.models.interns1 import (
    InternS1DummyInputsBuilder,
    InternS1ForConditionalGeneration,
    InternS1MultiModalProcessor,
    InternS1ProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.inputs import MultiModalFieldConfig

from foveate.errors import FoveateError
from foveate.families import Capture
from foveate.families.tiling import TileGrid
from foveate.layout import Layout
from foveate.serving import ServedModel, compress_each
from foveate.vllm_plugin.checks import check_engine
from foveate.vllm_plugin.processing import SpecInfo, SpecProcessor
from foveate.vllm_plugin.recording import recorded
from foveate.vllm_plugin.served import served_internvl
from foveate.vllm_plugin.spec_rows import FIELDS, PIXELS, read_row

TILES = {"image": "image_num_patches", "video": "video_num_patches"}
"""The outputs of a processor with the number of tiles of each image, and of frames of each clip."""
SHAPES = "foveate_tiles"
"""The field with rows and columns of tiles of each image; zeros if it is one tile, or each tile is an image."""


def layouts_of(served: ServedModel, tiles: int, shape: Sequence[int] = (0, 0)) -> tuple[Layout, ...]:
    """Return the layouts of an image or clip.

    Args:
        served: the model.
        tiles: of the image, or frames of the clip.
        shape: rows and columns of its tiles; zeros if each is an image.
    """
    family: Any = served.family
    rows, columns = shape
    grids = [TileGrid(tiles, rows, columns)] if rows else [TileGrid()] * tiles
    return tuple(family.tiled(grid, family.tile_side) for grid in grids)


class InternVLSpecInfo(SpecInfo, InternS1ProcessingInfo):
    """Layouts follow from how tiles lie."""

    def served_model(self) -> ServedModel:
        """Return what foveate knows of the model."""
        return served_internvl(self.get_hf_config())

    def get_mm_max_tokens_per_item(self, seq_len: int, mm_counts: Mapping[str, int]) -> Mapping[str, int]:
        """Return the tokens of a dense image and clip, which any request may ask for, whatever the server's spec."""
        frames = self.get_num_frames_with_most_features(seq_len, mm_counts)
        return {"image": self.get_max_image_tokens(), "video": frames * self.get_hf_processor().image_seq_length}

    def layouts_of(self, modality: str, item: Mapping[str, Any]) -> tuple[Layout, ...]:
        """Return the layout of an image, or of each frame of a clip."""
        shape = item[SHAPES].data.flatten().tolist() if modality == "image" else (0, 0)
        return layouts_of(self.served, int(item[TILES[modality]].data), shape)

    def tile_shape(self, tiles: Tensor) -> tuple[int, int]:
        """Return rows and columns of the tiles `(n, 3, H, W)` of an image; (0, 0) if each is an image."""
        family: Any = self.served.family
        count, tokens = len(tiles), family.tile_side**2
        ids = torch.full((1, count * tokens), family.image_token)
        grid, *others = family.tile_grids(ids, [tokens] * count, range(count), family.previews({"pixel_values": tiles}))
        return (0, 0) if others else (grid.rows, grid.columns)


class InternVLSpecProcessor(SpecProcessor, InternS1MultiModalProcessor):
    """InternVL's processor with a spec."""

    info: InternVLSpecInfo

    def count(self, data: Mapping[str, Any], modality: str) -> int:
        """Return how many images or clips a processor's output holds."""
        return len(data[TILES[modality]])

    def _postprocess_hf_mm_data(self, mm_inputs: Any, hf_processor_mm_kwargs: Any, processed_data: Any) -> Any:
        data = super()._postprocess_hf_mm_data(mm_inputs, hf_processor_mm_kwargs, processed_data)
        if FIELDS["image"] in data:
            images = data[PIXELS["image"]].split(data[TILES["image"]].tolist())
            data[SHAPES] = torch.tensor([self.info.tile_shape(tiles) for tiles in images])
        return data

    def _get_mm_fields_config(self, hf_inputs: Any, hf_processor_mm_kwargs: Any) -> Any:
        fields = super()._get_mm_fields_config(hf_inputs, hf_processor_mm_kwargs)
        return {**fields, SHAPES: MultiModalFieldConfig.batched("image", keep_on_cpu=True)}


@MULTIMODAL_REGISTRY.register_processor(
    InternVLSpecProcessor, info=InternVLSpecInfo, dummy_inputs=InternS1DummyInputsBuilder
)
class ServedInternVL(InternS1ForConditionalGeneration):
    """InternVL that compresses each image, and each frame of a clip, by the spec of its request."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        check_engine(vllm_config, reads_encoder=True)
        self.served: ServedModel | None = None
        try:
            self.served = served_internvl(self.config)
        except FoveateError:
            return  # no image comes with a spec: `SpecInfo` refuses them
        core = nn.Module()
        core.vision_tower, core.multi_modal_projector = self.vision_tower, self.multi_modal_projector
        self.served.bind(core)

    def embed_multimodal(self, **kwargs: Any) -> Any:
        """Return the features of each image or clip: what its spec leaves of it."""
        rows = {modality: kwargs.pop(name, None) for modality, name in FIELDS.items()}
        shapes = kwargs.pop(SHAPES, None)
        given = [name for name, pixels in PIXELS.items() if rows[name] is not None and kwargs.get(pixels) is not None]
        if self.served is None or not given:
            return super().embed_multimodal(**kwargs)
        # vLLM encodes images and clips in calls of their own.
        (modality,) = given
        specs = [self.served.spec(read_row(row)) for row in rows[modality]]
        if all(spec.is_dense for spec in specs):
            return super().embed_multimodal(**kwargs)
        self._parse_and_validate_multimodal_inputs(**kwargs)
        tiles = [int(count) for count in kwargs[TILES[modality]]]
        cuts = [(0, 0)] * len(tiles) if modality == "video" else [tuple(map(int, shape)) for shape in shapes]
        parts = [layouts_of(self.served, count, cut) for count, cut in zip(tiles, cuts, strict=True)]
        layouts = tuple(layout for part in parts for layout in part)
        each = [spec for spec, part in zip(specs, parts, strict=True) for _ in part]
        images = compress_each(each, self._captured(kwargs[PIXELS[modality]], layouts, each))
        ends = list(accumulate(map(len, parts)))
        return tuple(
            torch.cat([image.features for image in images[end - len(part) : end]]) for end, part in zip(ends, parts)
        )

    def _captured(self, pixels: Tensor, layouts: tuple[Layout, ...], specs: Sequence[Any]) -> Capture:
        """Run encoder and projector on tiles `(n, 3, H, W)`, and record what specs look at."""
        layers = self.vision_tower.encoder.layer
        numbers = {signal.layer % len(layers) for spec in specs for signal in spec.schedule.encoder_signals}
        modules = {number: _projections(layers[number].attention) for number in numbers}
        read: list[Tensor] = []
        handle = self.multi_modal_projector.register_forward_pre_hook(lambda _, args: read.append(args[0]))
        try:
            with recorded(modules) as attention:
                projected = self.extract_feature(pixels)
        finally:
            handle.remove()
        ends = accumulate(len(layout.segments) for layout in layouts)
        own = [tuple(range(end - len(layout.segments), end)) for layout, end in zip(layouts, ends)]
        (features,) = read
        return Capture(
            layouts, layouts, extra={"tiles": own}, attention=attention, features=features, projected=projected
        )


def _projections(attention: Any) -> dict[str, nn.Module]:
    """Return what makes the queries and keys of an encoder layer, of all heads: no rank has only some of them."""
    if attention.qk_normalization:
        return {"queries": attention.q_norm, "keys": attention.k_norm}
    return {"queries": attention.q_proj, "keys": attention.k_proj}
