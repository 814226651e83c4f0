"""What a spec changes in vLLM's processors: the count of placeholders, what caches know an image by, and its spec.

The spec of a request comes as a keyword of the processor, `foveate`; that of the server, too. The processor of
transformers never sees it.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.parse import ImageEmbeddingItems, ImageProcessorItems
from vllm.multimodal.processing import InputProcessingContext, PromptReplacement

from foveate.errors import FoveateError
from foveate.layout import Layout
from foveate.serving import ServedModel, ServedSpec, SpecChoice
from foveate.serving.choice import ALLOWED_VARIABLE, CONFIG_KEY, DEFAULT_VARIABLE
from foveate.vllm_plugin.counting import SAVINGS
from foveate.vllm_plugin.served import SERVER
from foveate.vllm_plugin.spec_rows import FIELD, written_row

PIXELS = "pixel_values"
"""The output of a processor with the pixels of images."""


def without_spec(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a processor without foveate's own."""
    return {name: value for name, value in options.items() if name != CONFIG_KEY}


def is_dense(spec: ServedSpec | None) -> bool:
    """Return whether images with this spec keep every token."""
    return spec is None or spec.is_dense


class SpecContext(InputProcessingContext):
    """Keeps foveate's keyword from the processor of transformers, which would refuse it."""

    def get_merged_mm_kwargs(self, kwargs: Mapping[str, object], **more: Any) -> dict[str, Any]:
        """Return the options of the server and of a request, without foveate's own."""
        return without_spec(super().get_merged_mm_kwargs(kwargs, **more))


class SpecInfo:
    """Knows the specs of a server; comes before vLLM's own class in a list of base classes."""

    def __init__(self, ctx: InputProcessingContext) -> None:
        super().__init__(SpecContext(ctx.model_config, ctx.tokenizer))  # type: ignore[call-arg]
        self.choice: SpecChoice | None = None
        self.refusal = ""
        option = (self.ctx.get_mm_config().mm_processor_kwargs or {}).get(CONFIG_KEY)
        try:
            served = self.served_model()
        except FoveateError as error:
            # Without a spec it is served as without foveate.
            self.refusal = str(error)
            if option is not None or os.environ.get(DEFAULT_VARIABLE) or os.environ.get(ALLOWED_VARIABLE):
                raise RuntimeError(f"foveate: {error}") from None
            return
        try:
            self.choice = SpecChoice(served, option)
        except FoveateError as error:
            # A server with a spec that can't be done doesn't start. vLLM would take a ValueError for a model of text.
            raise RuntimeError(f"foveate: {error}") from None

    def served_model(self) -> ServedModel:
        """Return what foveate knows of the model, from its configuration.

        Raises:
            FoveateError: foveate can do nothing for it in vLLM.
        """
        raise NotImplementedError

    @property
    def served(self) -> ServedModel:
        """What foveate knows of the model."""
        assert self.choice is not None
        return self.choice.model

    def spec_of(self, options: Mapping[str, Any]) -> ServedSpec | None:
        """Return the spec of a request from the options of its processor; None if foveate does nothing for the model.

        Raises:
            ValueError: it can't be done; vLLM answers such a request with status 400 and this text.
        """
        asked = options.get(CONFIG_KEY)
        if self.choice is None and asked is None:
            return None
        try:
            if self.choice is None:
                raise FoveateError(self.refusal)
            return self.choice.of_request(asked)
        except FoveateError as error:
            raise ValueError(f"foveate: {error}") from None

    def check_clips(self, options: Mapping[str, Any], images: bool) -> None:
        """Check that a request with clips, which are served whole, asks for nothing else.

        Args:
            options: of its processor.
            images: whether the request also brings images.

        Raises:
            ValueError: the request names a spec, or its images would get one.
        """
        spec = self.spec_of(options)
        if not is_dense(spec) and (images or options.get(CONFIG_KEY) is not None):
            raise ValueError(
                f"foveate: {spec.text} can't be applied to a request with a clip, which {SERVER} serves whole; name "
                "the spec dense, or pass frames as images"
            )

    def dense_tokens(self, width: int, height: int, options: Mapping[str, Any]) -> int:
        """Return how many tokens an image has whole.

        Args:
            width: of the image, in pixels.
            height: of the image, in pixels.
            options: of the processor of transformers.
        """
        raise NotImplementedError

    def layout_of(self, number: int, items: Any, outputs: Any) -> Layout:
        """Return the layout of one image of a request.

        Args:
            number: of the image among those of the request.
            items: what the request brought.
            outputs: what the processor made of it.
        """
        raise NotImplementedError


class SpecProcessor:
    """Counts what specs leave; comes before vLLM's own class in a list of base classes."""

    info: Any

    def get_dummy_inputs(self, *arguments: Any, **options: Any) -> Any:
        """Return vLLM's inputs that fill the server before it serves; they aren't counted as requests."""
        inputs = super().get_dummy_inputs(*arguments, **options)  # type: ignore
        inputs.foveate_counts = False
        return inputs

    def apply(self, inputs: Any, timing_ctx: Any) -> Any:
        """Process a request, and count what its images save."""
        made = super().apply(inputs, timing_ctx)  # type: ignore
        images = inputs.mm_data_items.get("image")
        if self.info.choice is not None and getattr(inputs, "foveate_counts", True) and images is not None:
            self._count_savings(inputs.hf_processor_mm_kwargs, images, made["mm_placeholders"]["image"])
        return made

    def _count_savings(self, options: Mapping[str, Any], images: Any, places: Sequence[Any]) -> None:
        spec = self.info.spec_of(options)
        if not isinstance(images, ImageProcessorItems):
            return  # They came as features.
        for number, place in enumerate(places):
            if images.get(number) is None:
                continue  # It came as the name of an image that was sent before.
            size = images.get_image_size(number)
            before = self.info.dense_tokens(size.width, size.height, without_spec(options))
            SAVINGS.count(self.info.choice, spec, before, place.get_num_embeds())

    def _get_mm_hashes(self, inputs: Any) -> Any:
        # The canonical spec, the server's as well: two spellings share a cache, and servers that share one stay right.
        spec = self.info.spec_of(inputs.hf_processor_mm_kwargs)
        options = without_spec(inputs.hf_processor_mm_kwargs)
        if not is_dense(spec):
            options[CONFIG_KEY] = spec.text
        return super()._get_mm_hashes(dataclasses.replace(inputs, hf_processor_mm_kwargs=options))  # type: ignore

    def _call_hf_processor(self, hf_data: Any, hf_kwargs: Mapping[str, Any]) -> Any:
        return super()._call_hf_processor(hf_data, without_spec(hf_kwargs))  # type: ignore

    def _postprocess_hf_mm_data(self, mm_inputs: Any, hf_processor_mm_kwargs: Any, processed_data: Any) -> Any:
        data = super()._postprocess_hf_mm_data(  # type: ignore
            mm_inputs, without_spec(hf_processor_mm_kwargs), processed_data
        )
        spec = self.info.spec_of(hf_processor_mm_kwargs)
        if PIXELS in data and spec is not None:
            row = written_row(spec.text)
            data[FIELD] = row.expand(self.count(data), -1).contiguous()
        return data

    def count(self, data: Mapping[str, Any]) -> int:
        """Return how many images a processor's output holds."""
        return len(data[PIXELS])

    def _get_mm_fields_config(self, hf_inputs: Any, hf_processor_mm_kwargs: Any) -> Any:
        fields = super()._get_mm_fields_config(hf_inputs, without_spec(hf_processor_mm_kwargs))  # type: ignore
        return {**fields, FIELD: MultiModalFieldConfig.batched("image", keep_on_cpu=True)}

    def _get_prompt_updates(self, mm_items: Any, hf_processor_mm_kwargs: Any, out_mm_kwargs: Any) -> Sequence[Any]:
        spec = self.info.spec_of(hf_processor_mm_kwargs)
        dense = super()._get_prompt_updates(  # type: ignore
            mm_items, without_spec(hf_processor_mm_kwargs), out_mm_kwargs
        )
        if "video" in mm_items:
            self.info.check_clips(hf_processor_mm_kwargs, images="image" in mm_items)
        if is_dense(spec):
            return dense

        def shortened(update: PromptReplacement) -> PromptReplacement:
            def replacement(number: int) -> Any:
                whole = update.replacement(number) if callable(update.replacement) else update.replacement
                if isinstance(mm_items.get("image"), ImageEmbeddingItems):
                    return whole
                layout = self.info.layout_of(number, mm_items, out_mm_kwargs)
                try:
                    return self.placeholders(whole, spec.count(layout))
                except FoveateError as error:
                    raise ValueError(f"foveate: {error}") from None

            return dataclasses.replace(update, replacement=replacement)

        return [shortened(update) if update.modality == "image" else update for update in dense]

    def placeholders(self, dense: Any, count: int) -> Any:
        """Return the placeholders of an image of which so many tokens are left.

        Args:
            dense: those of the whole image, all the same.
            count: of tokens that are left.
        """
        return dense[:1] * count
