"""The one door to the insides of transformers: what may change between versions is used here only.

How a model is called is read from its signatures and outputs, not from a version. The version is looked at once, to
warn where foveate was never tested. Beside this module, `loading.py` and `embedded/` load models by the public Auto
classes, `train/` extends the public Trainer, and `costmodel/` builds models to measure them.
"""

from __future__ import annotations

import copy
import importlib.metadata
import inspect
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch

from foveate.errors import FoveateError, FoveateWarning, UnsupportedFamily

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import Cache
    from transformers.modeling_outputs import BaseModelOutputWithPooling as FeaturesOutput

__all__ = [
    "FeaturesOutput",
    "best_resolution",
    "block_types",
    "cache_argument",
    "cache_name",
    "cache_of_call",
    "cache_of_output",
    "cached_keys",
    "cached_rows",
    "causal_mask",
    "check_since",
    "check_version",
    "deepstack_output",
    "generation_settings",
    "is_older",
    "is_transformers_model",
    "last_keys",
    "layer_keys",
    "logits_processors",
    "new_cache",
    "passes_position_ids",
    "passes_types_from_start",
    "refuse_blocks",
    "refuse_checkpointing",
    "refuse_chunks",
    "refuse_mixed_images",
    "rope_index",
    "rotate_patches",
    "router_layers",
    "stop_criteria",
    "takes_any_mask",
    "window_order",
]

OLDEST = (5, 19)
"""The first version whose models take image features in place of pixels (`mm_encoder_outputs`) for beams, too."""
TESTED = ((5, 19), (5, 24))
"""The first and the last minor version that the test suite runs with."""
_CACHE_NAMES = ("past_key_values", "cache")
"""What models call the cache: up to 5.23, and from 5.24 on."""


def __getattr__(name: str) -> Any:
    """Import the container of features when it is first used: specs, layouts and plans need no transformers."""
    if name == "FeaturesOutput":
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        return BaseModelOutputWithPooling
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


# Models


def is_transformers_model(module: nn.Module) -> bool:
    """Return whether a module is a model of transformers, and not a wrapper that passes attributes of one on."""
    from transformers import PreTrainedModel

    return isinstance(module, PreTrainedModel)


# The cache in a call


def cache_name(forward: Callable[..., Any]) -> str:
    """Return the name under which a `forward` of transformers takes the cache.

    >>> def forward(hidden_states, past_key_values=None): ...
    >>> cache_name(forward)
    'past_key_values'
    """
    return _cache_name(getattr(forward, "__func__", forward))


@lru_cache(maxsize=256)
def _cache_name(forward: Callable[..., Any]) -> str:
    names = inspect.signature(forward).parameters
    return next((name for name in reversed(_CACHE_NAMES) if name in names), _default_cache_name())


@lru_cache(maxsize=1)
def _default_cache_name() -> str:
    """Return the name that this version's models use, for a `forward` that passes its keywords on unread."""
    from transformers.models.llama.modeling_llama import LlamaModel

    names = inspect.signature(LlamaModel.forward).parameters
    return next(name for name in reversed(_CACHE_NAMES) if name in names)


def cache_argument(forward: Callable[..., Any], cache: Any) -> dict[str, Any]:
    """Return the keyword that hands a cache to a `forward` of transformers, for `forward(..., **cache_argument(...))`.

    >>> def forward(hidden_states, cache=None): ...
    >>> cache_argument(forward, None)
    {'cache': None}
    """
    return {cache_name(forward): cache}


def cache_of_call(call: Mapping[str, Any]) -> Any:
    """Return the cache among the keywords of a call, whatever it is called there; None if there is none.

    >>> cache_of_call({"past_key_values": "kept"}), cache_of_call({"input_ids": 1})
    ('kept', None)
    """
    return next((call[name] for name in _CACHE_NAMES if call.get(name) is not None), None)


def cache_of_output(output: Any) -> Any:
    """Return the cache that a model gave back, in a tuple or in an output of its own class; None if there is none."""
    if isinstance(output, tuple):
        return next((value for value in output if hasattr(value, "get_seq_length")), None)
    return next((output[name] for name in _CACHE_NAMES if name in output), None)


# Caches


def new_cache(config: Any = None) -> Cache:
    """Make an empty dynamic cache for a decoder of this configuration.

    >>> new_cache().get_seq_length()
    0
    """
    from transformers import DynamicCache

    return DynamicCache() if config is None else DynamicCache(config=config)


def cached_keys(cache: Any, layer: int) -> Tensor | None:
    """Return the keys that a cache holds of a layer, `(B, H_keys, P, d)`; None if there are none."""
    if cache is None or not int(cache.get_seq_length(layer)):
        return None
    return cache.layers[layer].keys


def cached_rows(cache: Any) -> int:
    """Return the rows of a filled cache; layers of linear attention, which hold no keys, are passed over."""
    return next(layer.keys.shape[0] for layer in cache.layers if isinstance(getattr(layer, "keys", None), torch.Tensor))


def select_rows(cache: Any, rows: Tensor) -> None:
    """Keep these rows of a cache, `(R,)` int64, in this order; a row may occur more than once.

    Layers of linear attention, which hold a memory instead of keys, have another name for it.
    """
    for layer in cache.layers:
        getattr(layer, "batch_select_indices", layer.reorder_cache)(rows)


def with_rows(cache: Any, rows: Tensor) -> Any:
    """Return a new cache with these rows of another one, `(R,)` int64; a row may occur more than once."""
    made = copy.copy(cache)
    made.layers = [copy.copy(layer) for layer in cache.layers]
    for layer in made.layers:
        # The memories of linear attention are in mappings, which copies would share.
        vars(layer).update({name: dict(value) for name, value in vars(layer).items() if isinstance(value, dict)})
    select_rows(made, rows)
    return made


def row_bytes(cache: Any) -> int:
    """Return the bytes of one row of a filled cache: keys, values, and memories of linear attention."""
    tensors: list[Tensor] = []
    for layer in cache.layers:
        for value in vars(layer).values():
            held = value.values() if isinstance(value, dict) else (value,)
            tensors += [each for each in held if isinstance(each, torch.Tensor)]
    return sum(each.nbytes for each in tensors) // cached_rows(cache)


def layer_keys(
    layer: nn.Module, number: int, config: Any, hidden: Tensor, tables: Any, positions: Tensor
) -> Tensor | None:
    """Return the keys that a decoder layer caches of hidden states, `(B, H_keys, S, d)`; None if it caches none so.

    Args:
        layer: of a decoder.
        number: its place among the layers.
        config: of the decoder.
        hidden: `(B, S, D)`.
        tables: the `position_embeddings` of the layer.
        positions: `(B, S)` or `(axes, B, S)` int64.
    """
    cache: Any = new_cache(config)
    given = {"attention_mask": None, "position_embeddings": tables, "position_ids": positions, "use_cache": True}
    try:
        with torch.no_grad():
            layer(hidden, **given, **cache_argument(layer.forward, cache))
        keys = getattr(cache.layers[number], "keys", None)
    except Exception:  # a model's own code, which may want anything else
        return None
    return keys if isinstance(keys, torch.Tensor) and keys.ndim == 4 else None


def last_keys(cache: Any) -> tuple[int, Tensor | None]:
    """Return the deepest layer of a cache that holds keys, and these, `(B, H_keys, P, d)`; None if none does."""
    layers = list(enumerate(getattr(cache, "layers", ())))
    for layer, each in reversed(layers):
        keys = getattr(each, "keys", None)
        if isinstance(keys, torch.Tensor) and keys.ndim == 4 and keys.shape[-2]:
            return layer, keys
    return 0, None


# Attention


def causal_mask(
    config: Any,
    hidden: Tensor,
    mask: Tensor,
    cache: Cache | None,
    layer: int,
    beyond: Callable[..., Any] | None = None,
    within: Callable[..., Any] | None = None,
) -> Any:
    """Make the mask that a decoder layer takes, in the form that its attention implementation wants.

    Args:
        config: of the decoder.
        hidden: `(B, S, D)`, what the layer is about to read.
        mask: `(B, P + S)`, 0 at padding, over what the layer's cache holds and the S new columns.
        cache: of the conversation, without the new columns in this layer; or None.
        layer: whose cache is meant.
        beyond: says of (batch, head, query, key) whether a key is seen that isn't earlier; None for no such key.
        within: says whether one is seen at most; None for all. Keys count from the first one that the cache ever had.
    """
    from transformers.masking_utils import create_causal_mask

    return create_causal_mask(
        config=config,
        inputs_embeds=hidden,
        attention_mask=mask,
        position_ids=None,
        layer_idx=layer,
        or_mask_function=beyond,
        and_mask_function=within,
        **cache_argument(create_causal_mask, cache),
    )


def takes_any_mask(config: Any) -> bool:
    """Return whether the attention implementation of a decoder can hide any column from any other."""
    return config._attn_implementation in ("eager", "sdpa", "flex_attention")


def rotate_patches(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Rotate queries and keys `(patches, H, d)` as Qwen's encoders do, by tables `(patches, d)`."""
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb_vision

    return apply_rotary_pos_emb_vision(query, key, cos, sin)


def router_layers(decoder: Any, layers: Iterable[nn.Module]) -> list[int]:
    """Return, for each router whose logits a decoder records, in order, the number of the layer that it is part of."""
    recorded = (getattr(decoder, "_can_record_outputs", None) or {}).get("router_logits", [])
    recorders = recorded if isinstance(recorded, list | tuple) else [recorded]
    targets = (getattr(each, "target_class", each) for each in recorders)
    kinds = tuple(kind for kind in targets if isinstance(kind, type))
    return [number for number, layer in enumerate(layers) for part in layer.modules() if isinstance(part, kinds)]


def block_types(model: Any) -> tuple[str, ...]:
    """Return the token types from which a model makes blocks of columns that look in both directions.

    Such a model has a `create_masks_for_generate` of its own, which takes them; others read them for positions, or
    not at all.
    """
    own = getattr(model, "create_masks_for_generate", None)
    names = inspect.signature(own).parameters if own is not None else {}
    return tuple(name for name in ("token_type_ids", "mm_token_type_ids") if name in names)


def passes_types_from_start(model: Any, name: str) -> bool:
    """Return whether `generate` passes a model the token types of all columns, those in the cache included."""
    ids = torch.zeros(1, 4, dtype=torch.int64)
    try:
        made = model.prepare_inputs_for_generation(
            ids, next_sequence_length=2, is_first_iteration=True, use_cache=True, **{name: ids}
        )
        return made["input_ids"].shape[1] == 2 and made[name].shape[1] == 4
    except Exception:  # a model's own code, which may want anything else
        return False


def passes_position_ids(model: Any) -> bool:
    """Return whether `generate` passes a model the position ids that its caller gave."""
    ids = torch.zeros(1, 4, dtype=torch.int64)
    try:
        made = model.prepare_inputs_for_generation(ids, is_first_iteration=True, use_cache=True, position_ids=ids)
    except Exception:  # a model's own code, which may want anything else
        return False
    return made.get("position_ids") is not None


def rope_index(
    core: Any, ids: Tensor, types: Tensor, grids: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor] | None:
    """Return the position ids that a model makes of a prompt with images; None if it makes none of these.

    Args:
        core: a model with `get_rope_index`.
        ids: `(B, S)` int64.
        types: `(B, S)`, 1 at images, else 0.
        grids: `(images, 3)` int64, frames, rows and columns of patches.
        mask: `(B, S)`, 0 at padding; or None.

    Returns:
        Position ids `(axes, B, S)`, and by how much text after each row is moved, `(B, 1)`.
    """
    given = {"input_ids": ids, "mm_token_type_ids": types, "image_grid_thw": grids, "attention_mask": mask}
    names = inspect.signature(core.get_rope_index).parameters
    try:
        positions, deltas = core.get_rope_index(**{name: value for name, value in given.items() if name in names})
    except Exception:  # a model's own code, which may want anything else
        return None
    return (positions, deltas) if isinstance(positions, torch.Tensor) and isinstance(deltas, torch.Tensor) else None


# Decoding


def generation_settings(model: Any) -> Any:
    """Return a copy of a model's generation configuration, without sampling."""
    settings = copy.deepcopy(model.generation_config)
    settings.do_sample = False
    return settings


def logits_processors(model: Any, settings: Any, ids: Tensor, longest: int) -> Any:
    """Make what changes the logits of each step of greedy decoding, as `generate` makes it for the same prompt.

    Args:
        model: with `generate`.
        settings: from `generation_settings`.
        ids: `(R, S)` int64, prompts of one length, without padding.
        longest: the most tokens of an answer.

    Returns:
        A callable that takes the ids so far `(R, S + n)` and logits `(R, V)` float32, and returns logits; it is empty
        (`len` 0) if the settings change nothing.

    Raises:
        ValueError: the settings can't be used, or a TypeError: whatever transformers raises for them.
    """
    made = copy.deepcopy(settings)
    made.max_length = ids.shape[1] + longest
    if made.min_new_tokens is not None:
        # As in `generate`, it takes the place of a length that counts the prompt.
        made.min_length = made.min_new_tokens + ids.shape[1]
    model._prepare_special_tokens(made, True, device=ids.device)
    return model._get_logits_processor(
        made, input_ids_seq_length=ids.shape[1], encoder_input_ids=ids, device=ids.device
    )


def stop_criteria(model: Any, settings: Any, tokenizer: Any, device: torch.device) -> Any:
    """Make what ends an answer, as `generate` makes it, but for the most tokens and the clock.

    Args:
        model: with `generate`.
        settings: from `generation_settings`.
        tokenizer: of the model; settings with strings that end an answer need it.
        device: of the ids.

    Returns:
        A callable that takes ids `(R, S)` and scores, and returns which rows have ended, `(R,)` bool; it is empty
        (`len` 0) if nothing ends an answer.

    Raises:
        ValueError: the settings can't be used, or a TypeError: whatever transformers raises for them.
    """
    from transformers import StoppingCriteriaList

    made = copy.deepcopy(settings)
    made.max_length = made.max_time = None
    model._prepare_special_tokens(made, True, device=device)
    return model._get_stopping_criteria(made, stopping_criteria=StoppingCriteriaList(), tokenizer=tokenizer)


# Images


def window_order(grids: Tensor, merge: int, window: int, patch: int) -> Tensor:
    """Return, for each merged token of an encoder with windows, its place in the order of the image: `(tokens,)` int64.

    Args:
        grids: `(images, 3)` int64, frames, rows and columns of patches.
        merge: patches along one side of a token.
        window: pixels along one side of a window.
        patch: pixels along one side of a patch.
    """
    from transformers.vision_utils import get_vision_window_index

    index, _ = get_vision_window_index(grids, spatial_merge_size=merge, window_size=window, patch_size=patch)
    return torch.argsort(index)


def best_resolution(size: tuple[int, int], resolutions: Iterable[Sequence[int]]) -> tuple[int, int]:
    """Return the resolution, (height, width) in pixels, into which an image of this size is tiled.

    It is the one that keeps most of the image's pixels, of several the smallest, then the first: what the function
    `select_best_resolution` of transformers returns, whose import takes seconds. A test compares the two.

    >>> best_resolution((480, 640), [[336, 672], [672, 336], [672, 672]])
    (672, 672)
    """
    height, width = size

    def worth(resolution: Sequence[int]) -> tuple[int, int]:
        high, wide = resolution
        scale = min(wide / width, high / height)
        return min(int(width * scale) * int(height * scale), height * width), -high * wide

    high, wide = max(resolutions, key=worth)
    return high, wide


def deepstack_output(features: list[Tensor], layers: list[list[Tensor]]) -> Any:
    """Make the output of an encoder with DeepStack: features per image, and per layer and image what it adds later."""
    from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures

    return BaseModelOutputWithDeepstackFeatures(pooler_output=features, deepstack_features=layers)  # pyright: ignore


# What older versions get wrong


def checkpointing_repeats_hooks() -> bool:
    """Return whether layers under gradient checkpointing run their hooks again in the backward pass: up to 5.22."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    return "__call__" in vars(GradientCheckpointingLayer)


def refuse_checkpointing(layers: Iterable[Any], place: str) -> None:
    """Refuse to act inside layers that train with gradient checkpointing, where their hooks would run twice.

    Args:
        layers: all of the encoder or of the decoder.
        place: "encoder" or "decoder".

    Raises:
        FoveateError: the installed version runs the hooks of `layers` again in the backward pass.
    """
    if not checkpointing_repeats_hooks():
        return
    if any(layer.training and getattr(layer, "gradient_checkpointing", False) for layer in layers):
        raise FoveateError(
            f"steps inside the {place} can't be trained with gradient checkpointing in transformers {_installed()}, "
            "which runs a layer's hooks again in the backward pass; use @input, turn checkpointing off, or install "
            "5.23 or later"
        )


@lru_cache(maxsize=64)
def _mixes_images(generator: type) -> bool:
    """Return whether a class of models mixes up the images of a prompt when it repeats them for beams or answers."""
    model = SimpleNamespace(config=SimpleNamespace(image_token_id=1))
    images = {"image": __getattr__("FeaturesOutput")(pooler_output=[torch.zeros(1, 1), torch.ones(1, 1)])}  # pyright: ignore
    repeated = generator._expand_multimodal_outputs(model, torch.tensor([[1, 1]]), images, expand_size=2)  # pyright: ignore
    return [int(image) for image in repeated["image"].pooler_output] != [0, 1, 0, 1]


def refuse_mixed_images(model: nn.Module, came: int, placeholder: Tensor) -> None:
    """Refuse beams or several answers of prompts with several images, for models that repeat images in a wrong order.

    Args:
        model: as the caller passed it.
        came: images that came to the decoder, each repeated for its beams.
        placeholder: `(B, S)` bool, where a visual token goes, with a row for each beam.

    Raises:
        FoveateError: the model mixes up the images of a prompt.
    """
    if came <= int(placeholder.any(dim=1).sum()):
        return
    repeating = [type(each) for each in model.modules() if hasattr(type(each), "_expand_multimodal_outputs")]
    if any(_mixes_images(each) for each in repeating):
        raise FoveateError(
            f"transformers {_installed()} mixes up the images of a prompt for which `generate` follows several beams "
            f"or gives several answers with {repeating[0].__name__}, also without foveate; pass one image per prompt"
        )


def chunks_lose_images() -> bool:
    """Return whether chunked prefill drops the images of a prompt without a word: up to 5.22."""
    from transformers.generation import utils

    return not hasattr(utils, "_slice_mm_encoder_output")


def refuse_chunks(arguments: Mapping[str, Any]) -> None:
    """Refuse chunked prefill.

    Args:
        arguments: that `generate` passed to `prepare_inputs_for_generation`.

    Raises:
        FoveateError: the installed version loses the images of chunks, and these arguments are of one.
    """
    # For a chunk, and only there, `generate` says nothing of the place in the sequence.
    whole = "next_sequence_length" in arguments or "is_first_iteration" in arguments
    if not whole and chunks_lose_images():
        raise FoveateError(
            f"chunked prefill of transformers {_installed()} loses images, and the beginning of later turns under "
            "apply: leave out prefill_chunk_size, or install 5.23 or later"
        )


def refuse_blocks(core: Any) -> None:
    """Refuse a model that puts features into a prompt in blocks of one length: SmolVLM up to 5.20.

    Args:
        core: of the model, with `config` and, if it has one, `inputs_merger`.

    Raises:
        UnsupportedFamily: one feature and two more can't be put into two prompts.
    """
    if not hasattr(core, "inputs_merger"):
        return
    # On the CPU, also where the model has no weights.
    placeholder = core.config.image_token_id
    prompts = torch.tensor([[placeholder, placeholder + 1], [placeholder, placeholder]], device="cpu")
    try:
        core.inputs_merger(prompts, torch.zeros(2, 2, 1, device="cpu"), torch.zeros(1, 3, 1, device="cpu"))
    except (RuntimeError, ValueError) as error:
        raise UnsupportedFamily(
            f"transformers {_installed()} puts its image features into the prompt in blocks of one length, which "
            "shorter images don't fill; install another version"
        ) from error


def _installed() -> str:
    # As the package says, which needs no import of it.
    return importlib.metadata.version("transformers")


# The version


def check_version(version: str | None = None) -> None:
    """Check that the installed transformers can work: refuse it below the seam, warn once outside the tested range.

    Raises:
        FoveateError: the version is older than the first whose models take image features in place of pixels.

    >>> check_version("5.23.0")
    """
    version = version or _installed()
    found = _minor(version)
    tested = " to ".join(f"{major}.{minor}" for major, minor in TESTED)
    if found < OLDEST:
        raise FoveateError(
            f"transformers {version} is too old: its models can't take image features in place of pixels for every "
            f"prompt, which begins with {OLDEST[0]}.{OLDEST[1]}; install one from {tested}"
        )
    if not TESTED[0] <= found <= TESTED[1]:
        _warn_untested(version, tested)


def is_older(since: tuple[int, int], version: str | None = None) -> bool:
    """Return whether a version of transformers, by default the installed one, comes before a minor version.

    >>> is_older((5, 20), "5.19.3"), is_older((5, 20), "5.20.0")
    (True, False)
    """
    return _minor(version or _installed()) < since


def _minor(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2])


def check_since(title: str, since: tuple[int, int], version: str | None = None) -> None:
    """Check that the installed transformers has models of a type in a form that can be used.

    Args:
        title: of the architecture.
        since: the first minor version that has.
        version: the installed one by default.

    Raises:
        UnsupportedFamily: the version is older.

    >>> check_since("Idefics3", (5, 20), "5.19.0")
    Traceback (most recent call last):
    foveate.errors.UnsupportedFamily: Idefics3 needs transformers 5.20 or later, and this is 5.19.0; install a newer one
    """
    version = version or _installed()
    if is_older(since, version):
        raise UnsupportedFamily(
            f"{title} needs transformers {since[0]}.{since[1]} or later, and this is {version}; install a newer one"
        )


@lru_cache(maxsize=8)
def _warn_untested(version: str, tested: str) -> None:
    warnings.warn(
        f"foveate is tested with transformers {tested}, and this is {version}; check a few answers against the "
        "uncompressed model's",
        FoveateWarning,
        stacklevel=4,
    )
