"""docs/model-types.md: what foveate does with every type of model that reads images and text.

Each type is built from its configuration on the meta device, and `family_of` is asked. The page is of the transformers
version that it names; with another one installed it stays as it is.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import transformers

from foveate import FoveateWarning
from foveate.errors import FoveateError, UnsupportedFamily
from foveate.families import Generic, families, family_class, family_of

VERSION = "5.23"
"""The minor version of transformers that the page is of."""

HEAD = f"""\
# Which models work

All types of models that `AutoModelForImageTextToText` of transformers {VERSION} knows. A type is built from its
configuration, with no weights, and foveate is asked what it does with it: `python docs/make.py model_types`. Which
methods a family takes, [support](support.md) says. "layers" are the inputs of decoder layers. A released model may have
fewer places than its type's default configuration: layers need full attention throughout.

| type | model | family | places |
|---|---|---|---|
"""

REFUSED = """
## Refused

`foveate.apply`, `compress` and `encode` refuse these when they are called, and name the reason.

| type | why |
|---|---|
"""

NOT_BUILT = """
## Not known

These can't be built from a configuration here, so nothing is said of them: """

_ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
FIELDS: Mapping[str, Mapping[str, Any]] = {
    "aya_vision": {"vision_config": {"model_type": "siglip_vision_model", "hidden_size": 64, "num_attention_heads": 4}},
    "chameleon": {"vocabulary_map": {"<image>": 5, "IMGIMGAZ": 7}},
    "cohere_compass": {
        "text_config": {
            "num_hidden_layers": 2,
            "layer_types": ["full_attention"] * 2,
            "rope_parameters": {"full_attention": _ROPE, "sliding_attention": _ROPE},
        }
    },
    "deepseek_ocr2": {"text_config": {"num_hidden_layers": 2, "mlp_layer_types": ["dense"] * 2}},
    "diffusion_gemma": {"text_config": {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 32}},
    "emu3": {"vocabulary_map": {"<image>": 5, "<|extra_200|>": 6, "<|visual token 000000|>": 7}},
    "gemma4": {"vision_config": {"model_type": "gemma4_vision"}},
    "gemma4_unified": {"vision_config": {"model_type": "gemma4_unified_vision"}},
    "granite4_vision": {"deepstack_layer_map": [[0, 0]], "downsample_rate": "1/2"},
    "hunyuan_vl": {"text_config": {"head_dim": 16}},
    "llama4": {"vision_config": {"hidden_size": 1408, "vision_output_dim": 4096}},
    "qwen4_exp": {
        "text_config": {
            "indexer_n_heads": 4,
            "indexer_kv_heads": 1,
            "indexer_head_dim": 16,
            "indexer_budget": 64,
            "indexer_compress_ratio": 4,
        }
    },
    # Released configurations have the placeholder, which the default ones lack.
    "blip-2": {"image_token_id": 5},
    "instructblip": {"image_token_id": 5},
    "minicpm_ocr": {"image_token_id": 5},
    "minicpmv4_7": {"image_token_id": 5},
    "nemotron_h_omni": {"image_token_id": 5},
    **{family.name: family.example for family in families() if family.example and family.name == family.kind()},
}
"""The fields of a configuration that a type needs beside its defaults."""


class NotBuilt(Exception):
    """A model can't be built from its configuration here."""


@dataclass(frozen=True)
class Answer:
    """What foveate does with a type of model.

    Attributes:
        model: the name of its architecture.
        family: of its own, or "none"; None if it is refused.
        places: where steps can act.
        refusal: why it is refused.
    """

    model: str
    family: str | None
    places: tuple[str, ...]
    refusal: str = ""


def model_types() -> tuple[str, ...]:
    """Return every type that reads images and text in the installed transformers."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    return tuple(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)


def answer(kind: str) -> Answer:
    """Build a model of this type without weights, and ask `family_of`.

    Raises:
        NotBuilt: transformers can't build it.
    """
    config = configured(kind)
    try:
        # What builds a model of it may be missing here: some encoders are another package's.
        family = family_class(config).of_config(config)
        return Answer(_title(kind), family.title, family.places)
    except FoveateError:
        model = built(kind)
    title = type(model).__name__.partition("For")[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FoveateWarning)
        try:
            family = family_of(model)
        except UnsupportedFamily as error:
            reason = str(error).partition("nothing can be done: ")[2].rpartition("; ")[0]
            return Answer(title, None, (), reason or str(error))
    return Answer(title, "none" if isinstance(family, Generic) else family.title, family.places)


def pages() -> dict[str, str]:
    """Return the page; nothing where another version is installed."""
    return {"model-types.md": page()} if transformers.__version__.startswith(f"{VERSION}.") else {}


def page() -> str:
    """Return the text of docs/model-types.md."""
    taken, refused, unknown = "", "", []
    for kind in sorted(model_types()):
        try:
            found = answer(kind)
        except NotBuilt:
            unknown.append(f"`{kind}`")
            continue
        if found.family is None:
            refused += f"| `{kind}` | {found.refusal} |\n"
        else:
            places = ", ".join("layers" if place == "decoder" else f"`@{place}`" for place in found.places)
            taken += f"| `{kind}` | {found.model} | {found.family} | {places} |\n"
    return HEAD + taken + REFUSED + refused + NOT_BUILT + ", ".join(unknown) + ".\n"


def _title(kind: str) -> str:
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as NAMES

    return NAMES[kind].partition("For")[0]


def configured(kind: str) -> Any:
    """Return the default configuration of this type, with `FIELDS` in it.

    Raises:
        NotBuilt: transformers has none.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.for_model(kind, **FIELDS.get(kind, {}))
    except Exception as error:  # whatever a configuration's own code raises
        raise NotBuilt(f"{kind}: {type(error).__name__}: {error}") from error


def built(kind: str) -> Any:
    """Build a model of this type on the meta device, from the default configuration and `FIELDS`.

    Raises:
        NotBuilt: transformers can't build it, or only with timm, which may be here or not.
    """
    import torch
    from transformers import AutoModelForImageTextToText

    config = configured(kind)
    if hasattr(getattr(config, "vision_config", None), "architecture"):
        raise NotBuilt(f"{kind}: its encoder is one of timm")
    try:
        with torch.device("meta"):
            return AutoModelForImageTextToText.from_config(config)
    except Exception as error:  # whatever a model's own code raises
        raise NotBuilt(f"{kind}: {type(error).__name__}: {error}") from error
