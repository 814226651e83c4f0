"""What Qwen-VL models have in common in vLLM: grids of any shape, clips, and position ids with three axes.

Steps act at `@input`. Positions are known before the encoder runs: of tokens that are numbered anew, and of those that
stay at places that the layout tells.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from vllm.config import VllmConfig

from foveate.families import Capture
from foveate.families.qwen import QwenVL
from foveate.layout import Layout
from foveate.serving import ServedModel, ServedSpec, compress_each
from foveate.vllm_plugin.checks import check_engine
from foveate.vllm_plugin.processing import PIXELS, SERVER, SpecInfo, SpecProcessor
from foveate.vllm_plugin.spec_rows import FIELDS, read_row


def served_qwen(config: Any) -> ServedModel:
    """Return what vLLM can do with a Qwen-VL."""
    return ServedModel(config, server=SERVER, places=("input",), moves_positions=True, signals=False)


def grid_layout(served: ServedModel, modality: str, grid: Tensor, seconds: Tensor | None = None) -> Layout:
    """Return the layout of an image or clip.

    Args:
        served: the model.
        modality: "image" or "video".
        grid: frames, rows and columns of patches, `(3,)` int64.
        seconds: of a clip, from one of its frames to the next; None if the model takes no times.
    """
    family = served.family
    assert isinstance(family, QwenVL)
    name = f"{modality}_grid_thw"
    inputs: dict[str, Any] = {name: grid.reshape(1, 3)}
    if modality == "image":
        return family.layouts(inputs)[0]
    if seconds is not None:
        inputs["second_per_grid_ts"] = seconds
    return family.clip_layouts(inputs)[0]


class QwenSpecInfo(SpecInfo):
    """Reads layouts from grids of patches."""

    def served_model(self) -> ServedModel:
        """Return what foveate knows of the model."""
        return served_qwen(self.get_hf_config())  # type: ignore[attr-defined]

    def layout_of(self, modality: str, number: int, items: Any, outputs: Any) -> Layout:
        """Return the layout of one image or clip from what the processor made of it."""
        return layout_of_item(self.served, modality, outputs[modality][number])


def layout_of_item(served: ServedModel, modality: str, item: Mapping[str, Any]) -> Layout:
    """Return the layout of an image or clip from its processed fields."""
    seconds = item.get("second_per_grid_ts") if modality == "video" else None
    return grid_layout(served, modality, item[f"{modality}_grid_thw"].data, None if seconds is None else seconds.data)


class QwenSpecProcessor(SpecProcessor):
    """Counts images and clips by their grids; their patches are in one tensor."""

    def counts(self, data: Mapping[str, Any]) -> dict[str, int]:
        """Return how many images and clips with pixels a processor's output holds, by modality."""
        return {modality: len(data[f"{modality}_grid_thw"]) for modality, name in PIXELS.items() if name in data}


class QwenSpecModel:
    """Compresses each image and clip by the spec of its request; comes before vLLM's class among base classes."""

    config: Any

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)  # type: ignore[call-arg]
        check_engine(vllm_config, reads_encoder=False)
        self.served = served_qwen(self.config)

    def get_encoder_cudagraph_config(self) -> Any:
        """Return vLLM's, for no modality: captured encoders would go past `embed_multimodal`."""
        return dataclasses.replace(super().get_encoder_cudagraph_config(), modalities=[])  # type: ignore[misc]

    def embed_multimodal(self, **kwargs: Any) -> Any:
        """Return the features of each image and clip: what its spec leaves of them."""
        rows = {modality: kwargs.pop(name, None) for modality, name in FIELDS.items()}
        seconds = kwargs.get("second_per_grid_ts")
        features = super().embed_multimodal(**kwargs)  # type: ignore[misc]
        specs: list[ServedSpec] = []
        layouts: list[Layout] = []
        # vLLM encodes one modality after the other, in the order of the arguments.
        for modality in [each for name in kwargs for each, pixels in PIXELS.items() if name == pixels]:
            grids, given = kwargs[f"{modality}_grid_thw"], rows[modality]
            assert given is not None
            for number, (row, grid) in enumerate(zip(given, grids, strict=True)):
                clip = None if modality == "image" or seconds is None else torch.as_tensor(seconds[number])
                specs.append(self.served.spec(read_row(row)))
                layouts.append(grid_layout(self.served, modality, grid, clip))
        if all(spec.is_dense for spec in specs) or len(specs) != len(features):
            return features
        capture = Capture(tuple(layouts), tuple(layouts), projected=torch.cat(tuple(features)))
        return tuple(image.features for image in compress_each(specs, capture))

    def get_mrope_input_positions(self, input_tokens: list[int], mm_features: Sequence[Any]) -> tuple[Tensor, int]:
        """Return the position ids of a prompt `(3, S)`, and by how much those of the answer are moved.

        They are right from the beginning: what a spec leaves of an image has positions that its layout tells.
        """
        specs = [self._spec_of(feature) for feature in mm_features]
        if all(spec is None or spec.is_dense for spec in specs):
            return super().get_mrope_input_positions(input_tokens, mm_features)  # type: ignore[misc]
        parts: list[Tensor] = []
        end = column = 0
        for feature, spec in sorted(zip(mm_features, specs), key=lambda each: each[0].mm_position.offset):
            layout = layout_of_item(self.served, feature.modality, feature.data)
            positions, (span,) = (spec or self.served.spec("dense")).positions(layout)
            text = feature.mm_position.offset - column
            parts += [torch.arange(text).expand(3, -1) + end, positions + end + text]
            end, column = end + text + span, feature.mm_position.offset + positions.shape[1]
        parts.append(torch.arange(len(input_tokens) - column).expand(3, -1) + end)
        positions = torch.cat(parts, dim=1)
        return positions, int(positions.max()) + 1 - len(input_tokens)

    def _spec_of(self, feature: Any) -> ServedSpec | None:
        """Return the spec of an image or clip; None of one that came as features."""
        row = feature.data.get(FIELDS[feature.modality])
        return None if row is None else self.served.spec(read_row(row.data))
