"""What a spec changes in vLLM's processors: the count of placeholders, what caches know an image by, and its spec.

The spec of a request comes as a keyword of the processor, `foveate`; that of the server, too. The processor of
transformers never sees it.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

import torch
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.parse import ImageProcessorItems, VideoProcessorItems
from vllm.multimodal.processing import InputProcessingContext, PromptReplacement, PromptUpdateDetails

from foveate.errors import FoveateError
from foveate.layout import Layout
from foveate.serving import DENSE, ServedModel, ServedSpec, SpecChoice
from foveate.serving.choice import ALLOWED_VARIABLE, CONFIG_KEY, DEFAULT_VARIABLE
from foveate.vllm_plugin.counting import SAVINGS
from foveate.vllm_plugin.served import SERVER
from foveate.vllm_plugin.spec_rows import FIELDS, PIXELS, TEXTS, written_row


def without_spec(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a processor without foveate's own."""
    return {name: value for name, value in options.items() if name != CONFIG_KEY}


@dataclasses.dataclass(frozen=True)
class Asked:
    """What takes the place of a spec among the options of a processor, once it is known; no request can write it.

    Attributes:
        spec: of the request.
        text: the ids of the text of its prompt, if the spec reads it.
    """

    spec: ServedSpec
    text: tuple[int, ...] = ()


def text_of(options: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the ids of the prompt's text among the options of a processor; () where no step reads it."""
    asked = options.get(CONFIG_KEY)
    return asked.text if isinstance(asked, Asked) else ()


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
        if isinstance(asked, Asked):
            return asked.spec
        if self.choice is None and asked is None:
            return None
        try:
            if self.choice is None:
                raise FoveateError(self.refusal)
            return self.choice.of_request(asked)
        except FoveateError as error:
            raise ValueError(f"foveate: {error}") from None

    def check_pictures(self, options: Mapping[str, Any], modalities: Iterable[str]) -> None:
        """Check that a request brings a clip, if its spec works on the frames of clips.

        Args:
            options: of its processor.
            modalities: of what it brings.

        Raises:
            ValueError: it brings pictures alone, or the model takes the frames of a clip as pictures.
        """
        spec = self.spec_of(options)
        if spec is None or not modalities or ("video" in modalities and self.served.family.clip_places):
            return
        try:
            spec.check_pictures()
        except FoveateError as error:
            raise ValueError(f"foveate: {error}") from None

    def layouts_of(self, modality: str, item: Mapping[str, Any]) -> tuple[Layout, ...]:
        """Return the layout of an image or clip of a request; several where each of its frames or tiles is an image.

        Args:
            modality: vLLM's name of it, "image" or "video".
            item: what the processor made of it.
        """
        raise NotImplementedError


@dataclasses.dataclass
class LeftInPrompt(PromptUpdateDetails):
    """The placeholders of what a spec leaves of an image or clip, and of the text between its runs.

    Attributes:
        spec: that was applied.
        before: visual tokens of the whole.
        after: visual tokens that are left.
    """

    spec: ServedSpec | None = None
    before: int = 0
    after: int = 0


def left_in_prompt(whole: PromptUpdateDetails, spec: ServedSpec, layouts: Sequence[Layout]) -> LeftInPrompt:
    """Return the placeholders of what is left of an image or clip.

    Where the content decides how many tokens of each frame stay, their sum is known, but not where the text between
    them will stand. Then the model makes the embeddings of all of it, and it doesn't matter where placeholders are.

    Args:
        whole: its placeholders and the text between them, before any step.
        spec: that is applied.
        layouts: of the images or clips that it consists of.

    Raises:
        FoveateError: it can't be applied to one of them.
    """
    ids = whole.full
    marks = [True] * len(ids) if whole.is_embed is None else whole.is_embed(ids).tolist()
    total = sum(spec.count(layout) for layout in layouts)
    shares = [spec.run_counts(layout) for layout in layouts]
    known = all(counts is not None for counts in shares)
    before = iter([length for layout in layouts for length in layout.run_lengths])
    after = iter([count for counts in shares for count in counts or ()] if known else [total])
    left: list[int] = []
    place = 0
    for inside, run in groupby(marks):
        length = len(list(run))
        if inside:
            # Images without text between them have one run of placeholders.
            rest = length
            while rest:
                rest -= next(before)
                left += [ids[place]] * next(after, 0)
            assert not rest
        else:
            left += ids[place : place + length]
        place += length
    assert next(before, None) is None
    return LeftInPrompt(left, whole.is_embed if known else None, spec, marks.count(True), total)


class SpecProcessor:
    """Counts what specs leave; comes before vLLM's own class in a list of base classes."""

    info: Any

    def get_dummy_inputs(self, *arguments: Any, **options: Any) -> Any:
        """Return vLLM's inputs that fill the server before it serves; they aren't counted as requests."""
        inputs = super().get_dummy_inputs(*arguments, **options)  # type: ignore
        inputs.foveate_counts = False
        return inputs

    def apply(self, inputs: Any, timing_ctx: Any) -> Any:
        """Process a request, and count what its images and clips save."""
        if not getattr(inputs, "foveate_counts", True):
            return self._applied_to_dummies(inputs, timing_ctx)
        self.info.check_pictures(inputs.hf_processor_mm_kwargs, inputs.mm_data_items)
        inputs = self._with_text(inputs)
        made = super().apply(inputs, timing_ctx)  # type: ignore
        for items in inputs.foveate_updates.values():
            for update in items:
                details = update[0].content
                if isinstance(details, LeftInPrompt) and details.spec is not None:
                    SAVINGS.count(self.info.choice, details.spec, details.before, details.after)
        return made

    def _with_text(self, inputs: Any) -> Any:
        """Put the text of the prompt beside a spec that reads it.

        Raises:
            ValueError: the request brings a clip, or no text.
        """
        spec = self.info.spec_of(inputs.hf_processor_mm_kwargs)
        if spec is None or not spec.reads_text:
            return inputs
        if "video" in inputs.mm_data_items:
            raise ValueError(
                f"foveate: {spec.text} reads the question, and {SERVER} isn't told which text the processor writes "
                "between the frames of a clip; use a method that reads the clip alone, such as cluster"
            )
        text = tuple(token for token in inputs.prompt if token != self.info.served.family.image_token)
        if not text:
            raise ValueError(f"foveate: {spec.text} reads the question, and the prompt has no text beside its images")
        options = {**inputs.hf_processor_mm_kwargs, CONFIG_KEY: Asked(spec, text)}
        return dataclasses.replace(inputs, hf_processor_mm_kwargs=options)

    def _applied_to_dummies(self, inputs: Any, timing_ctx: Any) -> Any:
        spec = self.info.spec_of(inputs.hf_processor_mm_kwargs)
        try:
            if spec is None or not spec.reads_text:
                return super().apply(inputs, timing_ctx)  # type: ignore
        except ValueError:
            # What vLLM makes up may be too small for the server's spec.
            if spec is None:
                raise
        # Nor does it have a question.
        options = {**inputs.hf_processor_mm_kwargs, CONFIG_KEY: Asked(self.info.served.spec(DENSE))}
        return super().apply(dataclasses.replace(inputs, hf_processor_mm_kwargs=options), timing_ctx)  # type: ignore

    def _cached_apply_hf_processor(self, inputs: Any, timing_ctx: Any) -> Any:
        made = super()._cached_apply_hf_processor(inputs, timing_ctx)  # type: ignore
        inputs.foveate_updates = made.prompt_updates
        return made

    def _get_mm_hashes(self, inputs: Any) -> Any:
        # The canonical spec, the server's as well: two spellings share a cache, and servers that share one stay right.
        spec = self.info.spec_of(inputs.hf_processor_mm_kwargs)
        options = without_spec(inputs.hf_processor_mm_kwargs)
        if not is_dense(spec):
            options[CONFIG_KEY] = spec.text
        # What is left of an image by one question is not what is left by another.
        if text := text_of(inputs.hf_processor_mm_kwargs):
            options[TEXTS["image"]] = " ".join(map(str, text))
        return super()._get_mm_hashes(dataclasses.replace(inputs, hf_processor_mm_kwargs=options))  # type: ignore

    def _call_hf_processor(self, hf_data: Any, hf_kwargs: Mapping[str, Any]) -> Any:
        return super()._call_hf_processor(hf_data, without_spec(hf_kwargs))  # type: ignore

    def _postprocess_hf_mm_data(self, mm_inputs: Any, hf_processor_mm_kwargs: Any, processed_data: Any) -> Any:
        data = super()._postprocess_hf_mm_data(  # type: ignore
            mm_inputs, without_spec(hf_processor_mm_kwargs), processed_data
        )
        spec = self.info.spec_of(hf_processor_mm_kwargs)
        for modality, pixels in PIXELS.items():
            if pixels in data and spec is not None:
                row = written_row(spec.text)
                count = self.count(data, modality)
                data[FIELDS[modality]] = row.expand(count, -1).contiguous()
                if modality in TEXTS and self.info.served.per_question:
                    # Images with a text and without may be encoded together, so all have one.
                    text = torch.tensor(text_of(hf_processor_mm_kwargs), dtype=torch.int64)
                    data[TEXTS[modality]] = text.expand(count, -1).contiguous()
        return data

    def count(self, data: Mapping[str, Any], modality: str) -> int:
        """Return how many images or clips a processor's output holds."""
        return len(data[PIXELS[modality]])

    def _get_mm_fields_config(self, hf_inputs: Any, hf_processor_mm_kwargs: Any) -> Any:
        fields = super()._get_mm_fields_config(hf_inputs, without_spec(hf_processor_mm_kwargs))  # type: ignore
        rows = {
            name: MultiModalFieldConfig.batched(modality, keep_on_cpu=True)
            for names in (FIELDS, TEXTS)
            for modality, name in names.items()
        }
        return {**fields, **rows}

    def _get_prompt_updates(self, mm_items: Any, hf_processor_mm_kwargs: Any, out_mm_kwargs: Any) -> Sequence[Any]:
        spec = self.info.spec_of(hf_processor_mm_kwargs)
        whole = super()._get_prompt_updates(  # type: ignore
            mm_items, without_spec(hf_processor_mm_kwargs), out_mm_kwargs
        )
        if spec is None:
            return whole

        def shortened(update: PromptReplacement) -> PromptReplacement:
            def replacement(number: int) -> Any:
                given = update.replacement(number) if callable(update.replacement) else update.replacement
                details = given if isinstance(given, PromptUpdateDetails) else PromptUpdateDetails.from_seq(given)
                if not isinstance(mm_items.get(update.modality), ImageProcessorItems | VideoProcessorItems):
                    return details  # It came as features.
                try:
                    layouts = self.info.layouts_of(update.modality, out_mm_kwargs[update.modality][number])
                    return left_in_prompt(details, spec, layouts)
                except FoveateError as error:
                    raise ValueError(f"foveate: {error}") from None

            return dataclasses.replace(update, replacement=replacement)

        return [shortened(update) for update in whole]
