"""LoRA weights in peft's format, added to the outputs of layers inside a block; the model's weights don't change."""

from __future__ import annotations

import functools
import hashlib
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn
from torch.nn.functional import linear

from foveate.adapters import check_weights
from foveate.errors import FoveateError, first_line, quoted
from foveate.files import (
    LIST_LIMIT,
    FileError,
    copy_folder,
    modified,
    read_bytes,
    read_json_object,
    read_tensors,
    remove_file,
    shown_path,
    write_json,
    write_tensors,
)
from foveate.numbers import Between, check_real, check_whole

LORA_WEIGHTS: Final = "adapter_model.safetensors"
"""The name that peft gives the file of weights."""
_CONFIG: Final = "adapter_config.json"

_NAME = re.compile(r"base_model\.model\.(.+)\.lora_(A|B)\.weight")
_LARGEST_ALPHA: Final = 1e9
# Options under which LoRA isn't `x A B`, or the base model is changed.
_VARIANTS = (
    "alora_invocation_tokens",
    "alpha_pattern",
    "arrow_config",
    "kasa_config",
    "layer_replication",
    "monteclora_config",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_dora",
    "use_qalora",
    "velora_config",
)


class LoraDelta:
    """The low-rank product that LoRA adds to the output of one linear layer.

    Args:
        down: `(r, in)` float32.
        up: `(out, r)` float32, scaled.
    """

    def __init__(self, down: Float32[Tensor, "r in"], up: Float32[Tensor, "out r"]) -> None:
        self._stored = self._converted = down, up

    @property
    def rank(self) -> int:
        """The width between the two factors."""
        return self._stored[0].shape[0]

    @property
    def down(self) -> Float32[Tensor, "r in"]:
        """The first factor."""
        return self._stored[0]

    @property
    def up(self) -> Float32[Tensor, "out r"]:
        """The second factor, scaled."""
        return self._stored[1]

    @property
    def sizes(self) -> tuple[int, int]:
        """The widths of input and output of its layer."""
        return self._stored[0].shape[1], self._stored[1].shape[0]

    def __call__(self, hidden: Float[Tensor, "*B in"], output: Float[Tensor, "*B out"]) -> Float[Tensor, "*B out"]:
        """Add to a layer's output `(..., out)` what LoRA makes of its input `(..., in)`."""
        if (self._converted[0].device, self._converted[0].dtype) != (output.device, output.dtype):
            # A later training step can't use tensors that are made in inference mode.
            with torch.inference_mode(False):
                self._converted = self._stored[0].to(output), self._stored[1].to(output)
        down, up = self._converted
        return output + linear(linear(hidden.to(output), down), up)


def load_lora(folder: Path) -> Mapping[str, LoraDelta]:
    """Read LoRA weights that peft wrote, by the names of their layers in the base model.

    Raises:
        FoveateError: the weights are gone, damaged, or more than plain LoRA of linear layers.
    """
    return _load_lora(folder, _modified(folder))


def check_lora_fits(model: nn.Module, deltas: Mapping[str, LoraDelta]) -> None:
    """Check that a model has the layers of LoRA weights, and that they are as wide.

    Raises:
        FoveateError: it lacks one, or one is wider or narrower.
    """
    for name, delta in deltas.items():
        layer = _layer(model, name)
        own = getattr(layer, "in_features", None), getattr(layer, "out_features", None)
        if None not in own and own != delta.sizes:
            raise FoveateError(
                f"the adapter's LoRA weights of {name} are for a layer of {delta.sizes[0]} inputs and {delta.sizes[1]} "
                f"outputs, and the model's has {own[0]} and {own[1]}; load the model that it was trained with"
            )


def _layer(model: nn.Module, name: str) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError as error:
        raise FoveateError(f"this model has no layer {name}, which has LoRA weights in the adapter") from error


def lora_digest(folder: Path) -> bytes:
    """Return the SHA-256 of the weights.

    Raises:
        FoveateError: they are gone.
    """
    return _lora_digest(folder, _modified(folder))


def save_lora(wrapper: Any, folder: Path, dtype: torch.dtype | None) -> None:
    """Write the weights of peft's wrapper to a folder.

    Args:
        wrapper: a `peft.PeftModel`.
        folder: created.
        dtype: of the weights on disk; None keeps theirs.

    Raises:
        FoveateError: they are more than plain LoRA of linear layers.
    """
    wrapper.save_pretrained(folder, safe_serialization=True)
    _finish(folder, dtype)


def copy_lora(source: Path, folder: Path, dtype: torch.dtype | None) -> None:
    """Copy weights to a folder, which is created.

    Raises:
        FoveateError: they are gone, damaged, or more than plain LoRA of linear layers.
    """
    load_lora(source)
    copy_folder(source, folder)
    _finish(folder, dtype)


def _finish(folder: Path, dtype: torch.dtype | None) -> None:
    """Remove what isn't the adapter's own from a folder that peft wrote, convert the weights, and check them.

    peft adds an empty model card, and the path of the base model on the machine that trained it.
    """
    remove_file(folder / "README.md")
    config = read_json_object(folder / _CONFIG)
    base = config.get("base_model_name_or_path")
    if not isinstance(base, str) or Path(base).is_absolute():
        config["base_model_name_or_path"] = None
        write_json(folder / _CONFIG, dict(sorted(config.items())), indent=2)
    if dtype is not None:
        weights = folder / LORA_WEIGHTS
        write_tensors(weights, {name: value.to(dtype) for name, value in read_tensors(weights).items()})
    load_lora(folder)


@contextmanager
def lora_applied(model: nn.Module, deltas: Mapping[str, LoraDelta]) -> Iterator[None]:
    """Add LoRA weights to a model inside the block; of nested blocks, only the innermost adds its own.

    Raises:
        FoveateError: the model lacks one of the layers.
    """
    own, outer = object(), _innermost.get(model)

    def hook(delta: LoraDelta) -> Any:
        return lambda module, args, output: delta(args[0], output) if _innermost.get(model) is own else None

    handles: list[Any] = []
    try:
        for name, delta in deltas.items():
            handles.append(_layer(model, name).register_forward_hook(hook(delta)))
        _innermost[model] = own
        yield
    finally:
        for handle in handles:
            handle.remove()
        if outer is None:
            _innermost.pop(model, None)
        else:
            _innermost[model] = outer


@contextmanager
def adapters_disabled(model: nn.Module) -> Iterator[None]:
    """Disable the adapters that a model has itself inside the block; afterwards they are what they were."""
    if not getattr(model, "peft_config", None):
        yield
        return
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper

    classes = (BaseTunerLayer, ModulesToSaveWrapper)
    layers: list[Any] = [
        module for module in model.modules() if isinstance(module, classes) and not module.disable_adapters
    ]
    # peft changes requires_grad when it switches a layer.
    requires_grad = [(weight, weight.requires_grad) for layer in layers for weight in layer.parameters()]
    try:
        for layer in layers:
            layer.enable_adapters(False)
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)
        for weight, required in requires_grad:
            weight.requires_grad_(required)


_innermost: WeakKeyDictionary[nn.Module, object] = WeakKeyDictionary()
"""The innermost `lora_applied` block of each model."""


def _modified(folder: Path) -> int:
    try:
        return modified(folder / LORA_WEIGHTS)
    except FileError as error:
        raise FoveateError(
            f"the adapter's LoRA weights are gone from {folder}; load it from where they are now"
        ) from error


@functools.lru_cache(maxsize=16)
def _lora_digest(folder: Path, modified: int) -> bytes:
    """Cache the hash, which every question needs, for as long as the file isn't modified."""
    return hashlib.sha256(read_bytes(folder / LORA_WEIGHTS, limit=LIST_LIMIT)).digest()


@functools.lru_cache(maxsize=2)
def _load_lora(folder: Path, modified: int) -> Mapping[str, LoraDelta]:
    try:
        config = read_json_object(folder / _CONFIG)
        with torch.inference_mode(False):
            stored = read_tensors(folder / LORA_WEIGHTS)
            _check_plain_lora(folder, config, stored)
            names = sorted({found[1] for name in stored if (found := _NAME.fullmatch(name))})
            deltas: dict[str, LoraDelta] = {}
            for name in names:
                down, up = (stored[f"base_model.model.{name}.lora_{letter}.weight"] for letter in "AB")
                rank = down.shape[0]
                scale = config["lora_alpha"] / (math.sqrt(rank) if config.get("use_rslora") else rank)
                deltas[name] = LoraDelta(down.float(), up.float() * scale)
            return deltas
    except (KeyError, ValueError, TypeError, ArithmeticError) as error:
        raise FoveateError(
            f"{shown_path(folder)} holds no complete LoRA weights ({first_line(error)}); save the adapter again"
        ) from error


def _check_plain_lora(folder: Path, config: Mapping[str, Any], stored: Mapping[str, Tensor]) -> None:
    unsupported = [name for name in _VARIANTS if config.get(name)]
    unsupported += [name for name, value in stored.items() if not _NAME.fullmatch(name) or value.ndim != 2][:1]
    if config.get("peft_type") != "LORA":
        unsupported.append(f"peft_type {config.get('peft_type')}")
    if config.get("init_lora_weights", True) not in (True, False, "gaussian"):
        unsupported.append(f"init_lora_weights {config['init_lora_weights']}")
    if unsupported:
        raise FoveateError(f"{folder} has {', '.join(unsupported)}; VoCo takes plain LoRA weights of linear layers")
    for name in ("r", "lora_alpha"):
        if name not in config:
            raise ValueError(f"{_CONFIG} lacks {name}")
    check_real("lora_alpha", config["lora_alpha"], Between(-_LARGEST_ALPHA, _LARGEST_ALPHA))
    if type(config.get("use_rslora", False)) is not bool:
        raise ValueError(f"use_rslora is {quoted(config['use_rslora'])}, and should be true or false")
    ranks = {name: value.shape[0] for name, value in stored.items() if name.endswith("lora_A.weight")}
    if not ranks:
        raise ValueError(f"{LORA_WEIGHTS} holds none")
    shapes = {name: (rank, None) for name, rank in ranks.items()}
    shapes |= {name.replace("lora_A", "lora_B"): (None, rank) for name, rank in ranks.items()}
    check_weights(stored, shapes)
    known = _ranks(config)
    for name, rank in ranks.items():
        if rank not in known:
            raise ValueError(f"{name} has the rank {rank}, and {_CONFIG} has {', '.join(map(str, sorted(known)))}")


def _ranks(config: Mapping[str, Any]) -> set[int]:
    """Return the ranks that layers have by peft's configuration: `r`, and those of `rank_pattern`.

    Raises:
        ValueError: one is no whole number of 1 or more; the text names it.
    """
    pattern = config.get("rank_pattern")
    if not isinstance(pattern, dict | None):
        raise ValueError(f"rank_pattern is {quoted(pattern)}, and should give ranks by names of layers")
    ranks = {"r": config["r"], **{f"rank_pattern of {name}": rank for name, rank in (pattern or {}).items()}}
    return {check_whole(name, rank, Between(1)) for name, rank in ranks.items()}
