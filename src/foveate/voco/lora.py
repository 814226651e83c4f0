"""LoRA weights in peft's format, added to what layers return while a block runs: the model stays as it is."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from foveate.errors import FoveateError

LORA_WEIGHTS: Final = "adapter_model.safetensors"
"""What peft calls them."""

_NAME = re.compile(r"base_model\.model\.(.+)\.lora_(A|B)\.weight")
# What makes of LoRA something else than `x A B`, or of the base model another one.
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


class Branch:
    """What LoRA adds to one linear layer.

    Args:
        down: `(r, in)`.
        up: `(out, r)`, scaled.
    """

    def __init__(self, down: Tensor, up: Tensor) -> None:
        self._stored = self._near = down, up

    def __call__(self, hidden: Tensor, output: Tensor) -> Tensor:
        """The layer's output `(..., out)` and what LoRA adds, for its input `(..., in)`."""
        if (self._near[0].device, self._near[0].dtype) != (output.device, output.dtype):
            # What is made in inference mode is of no use to a training step after it.
            with torch.inference_mode(False):
                self._near = self._stored[0].to(output), self._stored[1].to(output)
        down, up = self._near
        return output + linear(linear(hidden.to(output), down), up)


def branches(folder: Path) -> Mapping[str, Branch]:
    """What a folder that peft wrote adds to which layers, by their names in the base model.

    Raises:
        FoveateError: it is gone, damaged, or more than plain LoRA of linear layers.
    """
    return _branches(folder, _changed(folder))


def digest(folder: Path) -> bytes:
    """The hash of the weights.

    Raises:
        FoveateError: they are gone.
    """
    return _digest(folder, _changed(folder))


@contextmanager
def added(model: nn.Module, parts: Mapping[str, Branch]) -> Iterator[None]:
    """With LoRA weights in a model; inside another such block, those of the inner one alone.

    Raises:
        FoveateError: the model has no such layers.
    """
    mine, outer = object(), _innermost.get(model)

    def hook(branch: Branch) -> Any:
        return lambda module, args, output: branch(args[0], output) if _innermost.get(model) is mine else None

    handles: list[Any] = []
    try:
        for name, branch in parts.items():
            try:
                handles.append(model.get_submodule(name).register_forward_hook(hook(branch)))
            except AttributeError as error:
                raise FoveateError(f"this model has no layer {name}, which has LoRA weights in the adapter") from error
        _innermost[model] = mine
        yield
    finally:
        for handle in handles:
            handle.remove()
        if outer is None:
            _innermost.pop(model, None)
        else:
            _innermost[model] = outer


@contextmanager
def without_adapters(model: nn.Module) -> Iterator[None]:
    """With the model's own adapters off, which are as they were afterwards."""
    if not getattr(model, "peft_config", None):
        yield
        return
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper

    kinds = (BaseTunerLayer, ModulesToSaveWrapper)
    layers: list[Any] = [each for each in model.modules() if isinstance(each, kinds) and not each.disable_adapters]
    # Switching them freezes and thaws them.
    learned = [(weight, weight.requires_grad) for layer in layers for weight in layer.parameters()]
    try:
        for layer in layers:
            layer.enable_adapters(False)
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)
        for weight, was in learned:
            weight.requires_grad_(was)


_innermost: WeakKeyDictionary[nn.Module, object] = WeakKeyDictionary()


def _changed(folder: Path) -> int:
    try:
        return (folder / LORA_WEIGHTS).stat().st_mtime_ns
    except OSError as error:
        raise FoveateError(f"the adapter's LoRA weights are gone from {folder}; load it from where they are") from error


@functools.lru_cache(maxsize=16)
def _digest(folder: Path, changed: int) -> bytes:
    """Every question asks for it."""
    return hashlib.sha256((folder / LORA_WEIGHTS).read_bytes()).digest()


@functools.lru_cache(maxsize=2)
def _branches(folder: Path, changed: int) -> Mapping[str, Branch]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        with torch.inference_mode(False):
            stored = load_file(folder / LORA_WEIGHTS)
            _check_plain(folder, config, stored)
            names = sorted({found[1] for name in stored if (found := _NAME.fullmatch(name))})
            parts: dict[str, Branch] = {}
            for name in names:
                down, up = (stored[f"base_model.model.{name}.lora_{letter}.weight"] for letter in "AB")
                rank = down.shape[0]
                scale = config["lora_alpha"] / (math.sqrt(rank) if config.get("use_rslora") else rank)
                parts[name] = Branch(down.float(), up.float() * scale)
            return parts
    except (OSError, KeyError, ValueError, TypeError, SafetensorError) as error:
        raise FoveateError(f"{folder} holds no whole LoRA weights ({error}); save the adapter again") from error


def _check_plain(folder: Path, config: Mapping[str, Any], stored: Mapping[str, Tensor]) -> None:
    odd = [name for name in _VARIANTS if config.get(name)]
    odd += [name for name, value in stored.items() if not _NAME.fullmatch(name) or value.ndim != 2][:1]
    if config.get("peft_type") != "LORA":
        odd.append(f"peft_type {config.get('peft_type')}")
    if config.get("init_lora_weights", True) not in (True, False, "gaussian"):
        odd.append(f"init_lora_weights {config['init_lora_weights']}")
    if odd:
        raise FoveateError(f"{folder} has {', '.join(odd)}; VoCo takes plain LoRA weights of linear layers")
