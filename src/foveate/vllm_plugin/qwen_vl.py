"""What Qwen-VL models have in common in vLLM: grids of any shape, clips, and position ids with three axes.

Steps act at `@input`, on images and on clips. Positions are known before the encoder runs: of tokens that are numbered
anew, and of those that stay at places that the layout tells. Text after a clip of more frames than rows and columns
comes after its last frame, as vLLM has it without any spec; transformers goes on after its rows and columns.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from vllm.config import VllmConfig

from foveate.engine import CompressedImage
from foveate.families import Capture
from foveate.layout import Layout
from foveate.serving import DENSE, ServedModel, ServedSpec, compress_each
from foveate.vllm_plugin.checks import check_engine
from foveate.vllm_plugin.processing import SpecInfo, SpecProcessor
from foveate.vllm_plugin.recording import embedded_texts
from foveate.vllm_plugin.served import per_question, served_qwen
from foveate.vllm_plugin.spec_rows import FIELDS, PIXELS, TEXTS, read_row

GRIDS = {"image": "image_grid_thw", "video": "video_grid_thw"}
"""The outputs of a processor with frames, rows and columns of patches of each image, and of each clip."""
SECONDS = "second_per_grid_ts"
"""The output with the seconds between two frames of each clip, of models whose positions tell them."""


def layouts_of(served: ServedModel, modality: str, grids: Tensor, seconds: Any = None) -> tuple[Layout, ...]:
    """Return the layouts of images or clips.

    Args:
        served: the model.
        modality: "image" or "video".
        grids: of patches, `(items, 3)` int64.
        seconds: of clips, a number for each; None if positions don't tell them.
    """
    if modality == "image":
        return served.family.layouts({GRIDS[modality]: grids})
    inputs = {GRIDS[modality]: grids}
    return served.family.clip_layouts(inputs if seconds is None else {**inputs, SECONDS: seconds})


def layout_of_item(served: ServedModel, modality: str, item: Mapping[str, Any]) -> Layout:
    """Return the layout of one image or clip from what the processor made of it."""
    seconds = item.get(SECONDS)
    grid = item[GRIDS[modality]].data.reshape(1, 3)
    (layout,) = layouts_of(served, modality, grid, None if seconds is None else seconds.data)
    return layout


class QwenSpecInfo(SpecInfo):
    """Reads layouts from grids of patches."""

    def served_model(self) -> ServedModel:
        """Return what foveate knows of the model."""
        return served_qwen(self.get_hf_config(), per_question())  # type: ignore[attr-defined]

    def layouts_of(self, modality: str, item: Mapping[str, Any]) -> tuple[Layout, ...]:
        """Return the layout of one image or clip from what the processor made of it."""
        return (layout_of_item(self.served, modality, item),)


class QwenSpecProcessor(SpecProcessor):
    """Counts images and clips by their grids, since their patches are in one tensor."""

    def count(self, data: Mapping[str, Any], modality: str) -> int:
        """Return how many images or clips a processor's output holds."""
        return len(data[GRIDS[modality]])


class QwenSpecModel:
    """Compresses each image and clip by the spec of its request; comes before vLLM's class among base classes."""

    config: Any

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)  # type: ignore[call-arg]
        check_engine(vllm_config, reads_encoder=False)
        self.served = served_qwen(self.config, per_question=True)  # `SpecInfo` says what requests may ask for

    def get_encoder_cudagraph_config(self) -> Any:
        """Return vLLM's, for no modality: captured encoders would go past `embed_multimodal`."""
        return dataclasses.replace(super().get_encoder_cudagraph_config(), modalities=[])  # type: ignore[misc]

    def embed_multimodal(self, **kwargs: Any) -> Any:
        """Return the features of each image or clip: what its spec leaves of it.

        With DeepStack, each row holds the features and behind them those that deeper layers add.
        """
        rows, ids = ({kind: kwargs.pop(name, None) for kind, name in names.items()} for names in (FIELDS, TEXTS))
        features = super().embed_multimodal(**kwargs)  # type: ignore[misc]
        given = [name for name, pixels in PIXELS.items() if rows[name] is not None and kwargs.get(pixels) is not None]
        if not given:
            return features
        # vLLM encodes images and clips in calls of their own.
        (modality,) = given
        specs = [self.served.spec(read_row(row)) for row in rows[modality]]
        if all(spec.is_dense for spec in specs):
            return features
        layouts = layouts_of(self.served, modality, kwargs[GRIDS[modality]], kwargs.get(SECONDS))
        first, *others = torch.cat(tuple(features)).split(self.config.text_config.hidden_size, dim=1)
        texts = embedded_texts(self.language_model, specs, ids.get(modality))  # type: ignore[attr-defined]
        images = compress_each(specs, Capture(layouts, layouts, projected=first, companions=tuple(others)), texts)
        left = []
        for number, (spec, image) in enumerate(zip(specs, images, strict=True)):
            embeddings = torch.cat([image.features, *image.companions], dim=1)
            if spec.run_counts(image.layout) is None:
                embeddings = self.with_text(image, embeddings, number, kwargs)
            left.append(embeddings)
        return tuple(left)

    def with_text(self, clip: CompressedImage, embeddings: Tensor, number: int, inputs: Mapping[str, Any]) -> Tensor:
        """Put the text that stands between the frames of a clip among what is left of them.

        Args:
            clip: what is left.
            embeddings: `(M, D)`, its features with what goes along with them.
            number: of the clip among those of `inputs`.
            inputs: of `embed_multimodal`.

        Returns:
            `(M + T, D)`, with the embeddings of T text tokens.
        """
        raise NotImplementedError

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
            for begin, ids, reach in self._runs(feature, spec, input_tokens):
                text = begin - column
                parts += [torch.arange(text).expand(3, -1) + end, ids + end + text]
                end, column = end + text + reach, begin + ids.shape[1]
        parts.append(torch.arange(len(input_tokens) - column).expand(3, -1) + end)
        positions = torch.cat(parts, dim=1)
        return positions, int(positions.max()) + 1 - len(input_tokens)

    def _runs(self, feature: Any, spec: ServedSpec, input_tokens: list[int]) -> Iterator[tuple[int, Tensor, int]]:
        """Yield each run of an image or clip: its first column, its position ids `(3, n)` and how far they reach."""
        layout = self.timed(layout_of_item(self.served, feature.modality, feature.data), feature.data)
        counts, place = spec.run_counts(layout), feature.mm_position
        if counts is None:
            # Numbered anew, as the text between them is, so it doesn't matter where the text stands.
            yield place.offset, torch.arange(place.length).expand(3, -1), place.length
            return
        positions = spec.positions(layout)
        begins = self.run_begins(place.offset, len(counts), feature.modality, input_tokens)
        yield from zip(begins, positions.ids.split(counts, dim=1), positions.reaches, strict=True)

    def timed(self, layout: Layout, item: Mapping[str, Any]) -> Layout:
        """Return the layout of an image or clip with the times that vLLM gives the frames of a whole one.

        Args:
            layout: with times as transformers has them.
            item: what the processor made of it.
        """
        return layout

    def run_begins(self, offset: int, runs: int, modality: str, input_tokens: list[int]) -> list[int]:
        """Return the column of a prompt at which each run of an image or clip begins.

        Args:
            offset: the column at which its placeholders, and text between them, begin.
            runs: how many there are.
            modality: "image" or "video".
            input_tokens: of the prompt.
        """
        return [offset]

    def _spec_of(self, feature: Any) -> ServedSpec:
        """Return the spec of an image or clip; one that came as features is dense."""
        row = feature.data.get(FIELDS[feature.modality])
        return self.served.spec(DENSE if row is None else read_row(row.data))
