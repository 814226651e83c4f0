"""Fingerprints: short names of models and adapters by their weights, and of inputs by their values."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import torch

from foveate.arguments import check_kind
from foveate.errors import FoveateError, quoted, shown

if TYPE_CHECKING:
    from torch import Tensor, nn

DIGITS = 16
"""Hexadecimal digits of a fingerprint."""
_FINGERPRINT = re.compile(f"[0-9a-f]{{{DIGITS}}}")
_WRAPPED = re.compile(r"_orig_mod\.|_fsdp_wrapped_module\.|_checkpoint_wrapped_module\.")
"""What torch's wrappers of inner modules add to the names of weights: compiled, sharded, checkpointed ones."""
_SAMPLES = 64
"""Values of each weight that count in the fingerprint of a model."""
_ANSWER_SAMPLES = 4096
"""Values of each weight that count where answers are compared."""
_INCIDENTAL = frozenset({"_name_or_path", "transformers_version", "foveate"})
"""Keys of a configuration that don't change the dense model: its folder, a version, the spec that it is saved with."""


def model_fingerprint(core: nn.Module) -> str:
    """Return the fingerprint of a base model: sixteen hexadecimal digits from the shape and a sample of each weight.

    Weights are rounded to bfloat16, so a model has one fingerprint in float32 and bfloat16. LoRA weights and the names
    that wrappers add don't count. Weights that FSDP2 has sharded are gathered one by one, so all processes have to ask.

    Args:
        core: the model itself, `family_of(model).core`.

    Raises:
        FoveateError: it is no module, or its weights were never loaded.

    >>> model_fingerprint(torch.nn.Linear(2, 2)) == model_fingerprint(torch.nn.Linear(2, 2))
    False
    """
    check_kind("core", core, torch.nn.Module, "a torch module")
    digest = hashlib.sha256()
    for name, weight in sorted(_base_weights(core)):
        digest.update(f"{name} {tuple(weight.shape)}".encode())
        sample = _sample(_whole(name, weight.detach()), _SAMPLES)[:_SAMPLES].to(torch.bfloat16).float().cpu()
        digest.update(sample.numpy().tobytes())
    return digest.hexdigest()[:DIGITS]


def check_fingerprint(name: str, value: str) -> None:
    """Check that a text from a file is the fingerprint of a model.

    Raises:
        ValueError: it isn't; the text names it.

    >>> check_fingerprint("base", "x")
    Traceback (most recent call last):
    ValueError: base is 'x', and should be the 16 hexadecimal digits of a model's fingerprint
    """
    if not _FINGERPRINT.fullmatch(value):
        raise ValueError(
            f"{name} is {quoted(value)}, and should be the {DIGITS} hexadecimal digits of a model's fingerprint"
        )


def answering_fingerprint(model: nn.Module, processor: Any) -> str:
    """Return the fingerprint of all that decides a model's answers: SHA-256 over configuration, weights and processor.

    Of each parameter 4,096 evenly spread values are read, so a model of many gigabytes takes seconds, too.
    """
    digest = hashlib.sha256()
    config: Mapping[str, Any] = model.config.to_dict()  # pyright: ignore
    digest.update(repr(sorted((k, str(v)) for k, v in config.items() if k not in _INCIDENTAL)).encode())
    for name, weight in loaded_parameters(model):
        sample = _sample(weight.detach(), _ANSWER_SAMPLES).to("cpu", torch.float32).contiguous()
        digest.update(name.encode() + str(tuple(weight.shape)).encode() + sample.numpy().tobytes())
    digest.update(str(getattr(processor, "chat_template", "")).encode())
    images = getattr(processor, "image_processor", None)
    digest.update(repr(sorted((k, str(v)) for k, v in images.to_dict().items()) if images else "").encode())
    return digest.hexdigest()


def learned_fingerprint(method: Any) -> str:
    """Return the fingerprint of what a method has learned, such as an adapter; "" for a method without any.

    Args:
        method: a dataclass, whose fields that are modules count with their weights and calibration.
    """
    digest, found = hashlib.sha256(), False
    for field in fields(method):
        module = getattr(method, field.name)
        if isinstance(module, torch.nn.Module):
            found = True
            digest.update(f"{field.name} {sorted(map(str, vars(module).get('curve', ())))}".encode())
            for name, weight in sorted(module.state_dict().items()):
                digest.update(name.encode())
                update_digest(digest, weight)
    return digest.hexdigest()[:DIGITS] if found else ""


def _sample(weight: Tensor, count: int) -> Tensor:
    """Return about `count` evenly spread values of a weight, and fewer than twice as many."""
    flat = weight.flatten()
    return flat[:: max(1, flat.shape[0] // count)]


def loaded_parameters(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the names and values of a model's parameters; accelerate loads those that it has offloaded, one by one."""
    from accelerate.utils import align_module_device

    seen: set[int] = set()
    for prefix, module in model.named_modules():
        # After loading, a parameter is another object, so it is told by the one that stands for it.
        stored = {name: id(weight) for name, weight in module.named_parameters(recurse=False)}
        with align_module_device(module):
            for name, weight in module.named_parameters(recurse=False):
                if stored[name] not in seen:
                    seen.add(stored[name])
                    yield f"{prefix}.{name}" if prefix else name, weight


def _base_weights(core: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, weight in loaded_parameters(core):
        if "lora_" not in name:
            name = name.replace(".base_layer", "").removeprefix("base_model.model.")
            yield _WRAPPED.sub("", name), weight


def _whole(name: str, weight: Any) -> Tensor:
    """Return a weight as a plain tensor, whether it is in shards or quantised by torchao.

    Raises:
        FoveateError: it was never loaded.
    """
    if weight.is_meta:
        raise FoveateError(
            f"{name} was never loaded, and an adapter is matched with its model by all weights; load them first"
        )
    if hasattr(weight, "full_tensor"):
        weight = weight.full_tensor()
    # Tensors that are put together from others name them so.
    return weight.dequantize() if hasattr(type(weight), "__tensor_flatten__") else weight


def update_digest(digest: Any, value: Any) -> None:
    """Add a value to a digest: bytes, a tensor or what becomes one, or a list of these.

    Args:
        digest: of `hashlib`.
        value: shapes and dtypes of tensors count, too; floating values count as float32.

    Raises:
        FoveateError: it is something else, or a tensor on the meta device.
    """
    if isinstance(value, list | tuple):
        for item in value:
            update_digest(digest, item)
        return
    if not isinstance(value, bytes):
        if getattr(value, "is_meta", False):
            raise FoveateError("a tensor on the meta device has no values; pass it on a real device")
        try:
            tensor = torch.as_tensor(value).detach().cpu()
        except (TypeError, ValueError, RuntimeError):
            raise FoveateError(f"{shown(value)} is no tensor, and nothing that becomes one") from None
        digest.update(f"{tuple(tensor.shape)} {tensor.dtype} ".encode())
        # numpy has no bfloat16.
        value = (tensor.float() if tensor.is_floating_point() else tensor).contiguous().numpy().tobytes()
    digest.update(value)
