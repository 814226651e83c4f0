"""What Qwen-VL models have in common in vLLM: grids of any shape, and position ids with three axes.

Steps act at `@input`, on images; clips are served whole. Positions are known before the encoder runs: of tokens that
are numbered anew, and of those that stay at places that the layout tells.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from vllm.config import VllmConfig

from foveate.families import Capture
from foveate.layout import Layout
from foveate.serving import DENSE, ServedModel, ServedSpec, compress_each
from foveate.vllm_plugin.checks import check_engine
from foveate.vllm_plugin.processing import PIXELS, SpecInfo, SpecProcessor
from foveate.vllm_plugin.served import served_qwen
from foveate.vllm_plugin.spec_rows import FIELD, read_row

GRIDS = "image_grid_thw"
"""The output of a processor with frames, rows and columns of patches of each image."""


def layouts_of(served: ServedModel, grids: Tensor) -> tuple[Layout, ...]:
    """Return the layouts of images from their grids of patches, `(images, 3)` int64."""
    return served.family.layouts({GRIDS: grids})


class QwenSpecInfo(SpecInfo):
    """Reads layouts from grids of patches."""

    def served_model(self) -> ServedModel:
        """Return what foveate knows of the model."""
        return served_qwen(self.get_hf_config())  # type: ignore[attr-defined]

    def dense_tokens(self, width: int, height: int, options: Mapping[str, Any]) -> int:
        """Return how many tokens an image has whole."""
        info: Any = self
        return info.get_num_image_tokens(
            image_width=width,
            image_height=height,
            image_processor=info.get_image_processor(**options),
            mm_kwargs=options,
        )

    def layout_of(self, number: int, items: Any, outputs: Any) -> Layout:
        """Return the layout of one image from what the processor made of it."""
        (layout,) = layouts_of(self.served, outputs["image"][number][GRIDS].data.reshape(1, 3))
        return layout


class QwenSpecProcessor(SpecProcessor):
    """Counts images by their grids, since their patches are in one tensor."""

    def count(self, data: Mapping[str, Any]) -> int:
        """Return how many images a processor's output holds."""
        return len(data[GRIDS])


class QwenSpecModel:
    """Compresses each image by the spec of its request; comes before vLLM's class among base classes."""

    config: Any

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)  # type: ignore[call-arg]
        check_engine(vllm_config, reads_encoder=False)
        self.served = served_qwen(self.config)

    def get_encoder_cudagraph_config(self) -> Any:
        """Return vLLM's, for no modality: captured encoders would go past `embed_multimodal`."""
        return dataclasses.replace(super().get_encoder_cudagraph_config(), modalities=[])  # type: ignore[misc]

    def embed_multimodal(self, **kwargs: Any) -> Any:
        """Return the features of each image and clip: what the spec of an image leaves of it.

        With DeepStack, each row holds the features and behind them those that deeper layers add.
        """
        rows = kwargs.pop(FIELD, None)
        features = super().embed_multimodal(**kwargs)  # type: ignore[misc]
        specs = [] if rows is None else [self.served.spec(read_row(row)) for row in rows]
        # vLLM encodes images and clips in calls of their own.
        if kwargs.get(PIXELS) is None or all(spec.is_dense for spec in specs):
            return features
        layouts = layouts_of(self.served, kwargs[GRIDS])
        first, *others = torch.cat(tuple(features)).split(self.config.text_config.hidden_size, dim=1)
        capture = Capture(layouts, layouts, projected=first, companions=tuple(others))
        images = compress_each(specs, capture)
        return tuple(torch.cat([image.features, *image.companions], dim=1) for image in images)

    def get_mrope_input_positions(self, input_tokens: list[int], mm_features: Sequence[Any]) -> tuple[Tensor, int]:
        """Return the position ids of a prompt `(3, S)`, and by how much those of the answer are moved.

        They are right from the beginning: what a spec leaves of an image has positions that its layout tells.
        """
        specs = [self._spec_of(feature) for feature in mm_features]
        if all(spec.is_dense for spec in specs):
            return super().get_mrope_input_positions(input_tokens, mm_features)  # type: ignore[misc]
        parts: list[Tensor] = []
        end = column = 0
        for feature, spec in sorted(zip(mm_features, specs), key=lambda each: each[0].mm_position.offset):
            (layout,) = layouts_of(self.served, feature.data[GRIDS].data.reshape(1, 3))
            positions, (span,) = spec.positions(layout)
            text = feature.mm_position.offset - column
            parts += [torch.arange(text).expand(3, -1) + end, positions + end + text]
            end, column = end + text + span, feature.mm_position.offset + positions.shape[1]
        parts.append(torch.arange(len(input_tokens) - column).expand(3, -1) + end)
        positions = torch.cat(parts, dim=1)
        return positions, int(positions.max()) + 1 - len(input_tokens)

    def _spec_of(self, feature: Any) -> ServedSpec:
        """Return the spec of an image; a clip, or an image that came as features, is dense."""
        row = feature.data.get(FIELD)
        return self.served.spec(DENSE if row is None else read_row(row.data))
