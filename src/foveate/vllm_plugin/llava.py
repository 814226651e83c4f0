"""LLaVA with a CLIP encoder in vLLM: steps at `@features` and `@input`, with attention and keys of the encoder.

LLaVA-NeXT, in `llava_next`, has much in common with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.model_executor.models.llava import (
    LlavaDummyInputsBuilder,
    LlavaForConditionalGeneration,
    LlavaMultiModalProcessor,
    LlavaProcessingInfo,
    PixtralHFMultiModalProcessor,
    PixtralHFProcessingInfo,
)
from vllm.model_executor.models.utils import WeightsMapper
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.processing import InputProcessingContext

from foveate.errors import FoveateError
from foveate.families import Capture
from foveate.layout import Layout
from foveate.serving import ServedModel, compress_each
from foveate.vllm_plugin.checks import check_engine
from foveate.vllm_plugin.processing import SpecInfo, SpecProcessor
from foveate.vllm_plugin.recording import all_heads, embedded_texts, recorded
from foveate.vllm_plugin.served import per_question, served_llava
from foveate.vllm_plugin.spec_rows import FIELDS, TEXTS, read_row


class ClipSpecInfo(SpecInfo):
    """What models have in common whose one kind of input is images for CLIP."""

    def served_model(self) -> ServedModel:
        """Return what foveate knows of the model."""
        return served_llava(self.get_hf_config(), per_question())  # type: ignore[attr-defined]

    def get_mm_max_tokens_per_item(self, seq_len: int, mm_counts: Mapping[str, int]) -> Mapping[str, int]:
        """Return the tokens of a dense image, which any request may ask for, whatever the server's spec."""
        return {"image": self.get_max_image_tokens()}  # type: ignore[attr-defined]


class LlavaSpecInfo(ClipSpecInfo, LlavaProcessingInfo):
    """LLaVA's images all have one layout."""

    def layouts_of(self, modality: str, item: Mapping[str, Any]) -> tuple[Layout, ...]:
        """Return the one layout; the processor resizes and crops every image to the encoder's size."""
        return (self.served.image_layout(1, 1),)


class LlavaSpecProcessor(SpecProcessor, LlavaMultiModalProcessor):
    """LLaVA's processor with a spec."""


class PixtralSpecInfo(SpecInfo, PixtralHFProcessingInfo):
    """A LLaVA with Pixtral's encoder, which is served whole: a spec is refused."""

    def served_model(self) -> ServedModel:
        """Refuse the model."""
        return served_llava(self.get_hf_config())


class PixtralSpecProcessor(SpecProcessor, PixtralHFMultiModalProcessor):
    """The processor that vLLM has for a LLaVA with Pixtral's encoder; it refuses specs."""


def llava_info(ctx: InputProcessingContext) -> SpecInfo:
    """Return what is known of a LLaVA, which has one class in vLLM for encoders with different processors."""
    pixtral = getattr(ctx.get_hf_config().vision_config, "model_type", None) == "pixtral"
    return PixtralSpecInfo(ctx) if pixtral else LlavaSpecInfo(ctx)


def llava_processor(info: Any, dummy_inputs: Any) -> SpecProcessor:
    """Return the processor that goes with what is known of a LLaVA."""
    kind = PixtralSpecProcessor if isinstance(info, PixtralSpecInfo) else LlavaSpecProcessor
    return kind(info, dummy_inputs)


# transformers 5 saves the encoder's weights without `vision_model` in their names, and vLLM looks for it.
CLIP_NAMES = WeightsMapper(
    orig_to_new_prefix={
        f"vision_tower.{part}.": f"vision_tower.vision_model.{part}."
        for part in ("embeddings", "encoder", "pre_layrnorm", "post_layernorm")
    }
)


class ClipSpecModel:
    """Compresses each image by the spec of its request; comes before vLLM's class among base classes."""

    config: Any
    vision_tower: Any
    multi_modal_projector: Any

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)  # type: ignore[call-arg]
        check_engine(vllm_config, reads_encoder=True)
        self.served: ServedModel | None = None
        try:
            self.served = served_llava(self.config, per_question=True)  # `SpecInfo` says what requests may ask for
        except FoveateError:
            return  # no image comes with a spec: `SpecInfo` refuses them
        self.served.bind(self.named_as_in_transformers())

    def named_as_in_transformers(self) -> Any:
        """Return the modules that foveate's family reads. Encoder layers that vLLM doesn't load are empty."""
        core, empty = _modules("vision_tower.encoder"), _modules("self_attn")
        loaded = self.vision_tower.vision_model.encoder.layers
        missing = self.config.vision_config.num_hidden_layers - len(loaded)
        core.vision_tower.encoder.layers = nn.ModuleList([*loaded, *([empty] * missing)])
        core.multi_modal_projector = self.multi_modal_projector
        return core

    def embed_multimodal(self, **kwargs: Any) -> Any:
        """Return the features of each image: what its spec leaves of them."""
        rows, ids = kwargs.pop(FIELDS["image"], None), kwargs.pop(TEXTS["image"], None)
        if self.served is None or rows is None or kwargs.get("pixel_values") is None:
            return super().embed_multimodal(**kwargs)  # type: ignore[misc]
        specs = [self.served.spec(read_row(row)) for row in rows]
        layouts, pixels = self.images(self.served, kwargs)
        signals = {signal for spec in specs for signal in spec.schedule.encoder_signals}
        numbers = {signal.layer % self.config.vision_config.num_hidden_layers for signal in signals}
        layers = self.vision_tower.vision_model.encoder.layers
        with recorded({number: {"qkv": layers[number].self_attn.qkv_proj} for number in numbers}) as found:
            features = self._image_pixels_to_features(self.vision_tower, pixels)  # type: ignore[attr-defined]
        attention = {number: queries_and_keys(outputs["qkv"]) for number, outputs in found.items()}
        capture = Capture(
            layouts, layouts, attention=attention, features=features, projected=self.multi_modal_projector(features)
        )
        texts = embedded_texts(self.language_model, specs, ids)  # type: ignore[attr-defined]
        return [image.features for image in compress_each(specs, capture, texts)]

    def images(self, served: ServedModel, inputs: dict[str, Any]) -> tuple[tuple[Layout, ...], Tensor]:
        """Return the layout of each image, and all crops that the encoder sees, `(crops, 3, H, W)`."""
        raise NotImplementedError


@MULTIMODAL_REGISTRY.register_processor(llava_processor, info=llava_info, dummy_inputs=LlavaDummyInputsBuilder)
class ServedLlava(ClipSpecModel, LlavaForConditionalGeneration):
    """LLaVA that compresses each image by the spec of its request."""

    hf_to_vllm_mapper = LlavaForConditionalGeneration.hf_to_vllm_mapper | CLIP_NAMES

    def images(self, served: ServedModel, inputs: dict[str, Any]) -> tuple[tuple[Layout, ...], Tensor]:
        """Return the one layout for each image, and the images."""
        pixels = self._parse_and_validate_image_input(**inputs)["pixel_values"]
        return (served.image_layout(1, 1),) * len(pixels), pixels


def _modules(path: str) -> Any:
    """Return an empty module that has other ones inside, under these names."""
    root = module = nn.Module()
    for name in path.split("."):
        setattr(module, name, nn.Module())
        module = getattr(module, name)
    return root


def queries_and_keys(output: Any) -> dict[str, Tensor]:
    """Return the queries and keys of all heads, each `(images, patches, D)`, from the output of vLLM's `qkv_proj`."""
    queries, keys, _ = output[0].chunk(3, dim=-1)
    return {"queries": all_heads(queries), "keys": all_heads(keys)}
