"""What a spec changes in vLLM's processors: the count of placeholders, what caches know an image by, and its spec.

The spec of a request comes as a keyword of the processor, `foveate`; that of the server, too. The processor of
transformers never sees it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.parse import ImageEmbeddingItems, VideoEmbeddingItems
from vllm.multimodal.processing import InputProcessingContext, PromptReplacement

from foveate.errors import FoveateError
from foveate.layout import Layout
from foveate.serving import DENSE, ServedModel, ServedSpec, SpecChoice
from foveate.serving.choice import CONFIG_KEY
from foveate.vllm_plugin.spec_rows import FIELDS, written_row

SERVER = "vLLM"
PIXELS = {"image": "pixel_values", "video": "pixel_values_videos"}
"""By modality, the output of a processor that says that there are pixels to encode."""


def without_spec(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a processor without foveate's own."""
    return {name: value for name, value in options.items() if name != CONFIG_KEY}


class SpecContext(InputProcessingContext):
    """Keeps foveate's keyword from the processor of transformers, which would refuse it."""

    def get_merged_mm_kwargs(self, kwargs: Mapping[str, object], **more: Any) -> dict[str, Any]:
        """Return the options of the server and of a request, without foveate's own."""
        return without_spec(super().get_merged_mm_kwargs(kwargs, **more))


class SpecInfo:
    """Knows the specs of a server; comes before vLLM's own class in a list of base classes."""

    def __init__(self, ctx: InputProcessingContext) -> None:
        super().__init__(SpecContext(ctx.model_config, ctx.tokenizer))  # type: ignore[call-arg]
        self.served = self.served_model()
        option = (self.ctx.get_mm_config().mm_processor_kwargs or {}).get(CONFIG_KEY)
        try:
            # A server with a spec that can't be done doesn't start.
            self.choice = SpecChoice(self.served, option)
        except FoveateError as error:
            raise ValueError(f"foveate: {error}") from None

    def served_model(self) -> ServedModel:
        """Return what foveate knows of the model, from its configuration."""
        raise NotImplementedError

    def spec_of(self, options: Mapping[str, Any]) -> ServedSpec:
        """Return the spec of a request from the options of its processor.

        Raises:
            ValueError: it can't be done; vLLM answers such a request with status 400 and this text.
        """
        try:
            return self.choice.of_request(options.get(CONFIG_KEY))
        except FoveateError as error:
            raise ValueError(f"foveate: {error}") from None

    def layout_of(self, modality: str, number: int, items: Any, outputs: Any) -> Layout:
        """Return the layout of one image or clip of a request.

        Args:
            modality: "image" or "video".
            number: of the image or clip among those of the modality.
            items: what the request brought.
            outputs: what the processor made of it.
        """
        raise NotImplementedError


class SpecProcessor:
    """Counts what specs leave; comes before vLLM's own class in a list of base classes."""

    info: Any

    def _get_mm_hashes(self, inputs: Any) -> Any:
        # The canonical spec, the server's as well: two spellings share a cache, and servers that share one stay right.
        spec = self.info.spec_of(inputs.hf_processor_mm_kwargs).text
        options = without_spec(inputs.hf_processor_mm_kwargs)
        if spec != DENSE:
            options[CONFIG_KEY] = spec
        return super()._get_mm_hashes(dataclasses.replace(inputs, hf_processor_mm_kwargs=options))  # type: ignore

    def _call_hf_processor(self, hf_data: Any, hf_kwargs: Mapping[str, Any]) -> Any:
        return super()._call_hf_processor(hf_data, without_spec(hf_kwargs))  # type: ignore

    def _postprocess_hf_mm_data(self, mm_inputs: Any, hf_processor_mm_kwargs: Any, processed_data: Any) -> Any:
        data = super()._postprocess_hf_mm_data(  # type: ignore
            mm_inputs, without_spec(hf_processor_mm_kwargs), processed_data
        )
        for modality, count in self.counts(data).items():
            row = written_row(self.info.spec_of(hf_processor_mm_kwargs).text)
            data[FIELDS[modality]] = row.expand(count, -1).contiguous()
        return data

    def counts(self, data: Mapping[str, Any]) -> dict[str, int]:
        """Return how many images and clips with pixels a processor's output holds, by modality."""
        return {modality: len(data[name]) for modality, name in PIXELS.items() if name in data}

    def _get_mm_fields_config(self, hf_inputs: Any, hf_processor_mm_kwargs: Any) -> Any:
        fields = super()._get_mm_fields_config(hf_inputs, without_spec(hf_processor_mm_kwargs))  # type: ignore
        rows = {name: MultiModalFieldConfig.batched(modality, keep_on_cpu=True) for modality, name in FIELDS.items()}
        return {**fields, **rows}

    def _get_prompt_updates(self, mm_items: Any, hf_processor_mm_kwargs: Any, out_mm_kwargs: Any) -> Sequence[Any]:
        spec = self.info.spec_of(hf_processor_mm_kwargs)
        dense = super()._get_prompt_updates(  # type: ignore
            mm_items, without_spec(hf_processor_mm_kwargs), out_mm_kwargs
        )
        if spec.is_dense:
            return dense

        def shortened(update: PromptReplacement) -> PromptReplacement:
            def replacement(number: int) -> Any:
                whole = update.replacement(number) if callable(update.replacement) else update.replacement
                items = mm_items.get(update.modality)
                if isinstance(items, ImageEmbeddingItems | VideoEmbeddingItems):
                    return whole
                layout = self.info.layout_of(update.modality, number, mm_items, out_mm_kwargs)
                try:
                    return self.placeholders(whole, spec.count(layout))
                except FoveateError as error:
                    raise ValueError(f"foveate: {error}") from None

            return dataclasses.replace(update, replacement=replacement)

        return [shortened(update) for update in dense]

    def placeholders(self, dense: Any, count: int) -> Any:
        """Return the placeholders of an image of which so many tokens are left.

        Args:
            dense: those of the whole image, all the same.
            count: of tokens that are left.
        """
        return dense[:1] * count
