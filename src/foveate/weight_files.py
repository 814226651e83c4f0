"""Look into the weight files of a model folder without reading weights: names, types and shapes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Final

from foveate.errors import FoveateError
from foveate.files import FileError, files_in, is_file, open_tensors, read_json_object

__all__ = ["StoredTensor", "check_depth", "check_kinds", "check_size", "stored_tensors"]

_WHOLE: Final = "model.safetensors"
_INDEX: Final = "model.safetensors.index.json"
_PICKLES: Final = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_LAYER: Final = re.compile(r"(?P<stack>.*?\b(?:layers|blocks))\.(?P<number>\d+)\.")
_FLOATS: Final = {"F64", "F32", "F16", "BF16"}
SAFETENSORS_ONLY: Final = (
    "foveate reads safetensors only: get the model in that format, or convert it where you trust it (save_pretrained)"
)


@dataclass(frozen=True)
class StoredTensor:
    """What the header of a safetensors file says of a tensor.

    Attributes:
        kind: the type of its numbers, as safetensors writes it: "F32", "BF16", "I8", ...
        shape: its shape.
    """

    kind: str
    shape: tuple[int, ...]


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Read the headers of a model's weight files.

    Args:
        folder: with `model.safetensors`, or with an index and the files that it names.

    Returns:
        What is stored, by name.

    Raises:
        FoveateError: there are no weights in safetensors, a file of the index is missing, or one is damaged.
    """
    found: dict[str, StoredTensor] = {}
    for path in _weight_files(folder):
        try:
            with open_tensors(path, "file of weights") as file:
                for name in file.keys():  # noqa: SIM118
                    part = file.get_slice(name)
                    found[name] = StoredTensor(part.get_dtype(), tuple(part.get_shape()))
        except FileError as error:
            raise FoveateError(f"{error}; download the model again") from None
    return found


def check_kinds(name: str, stored: Mapping[str, StoredTensor], buffers: Collection[str]) -> None:
    """Check that weights are stored as floats of 16 bits or more, for a model without a quantisation config.

    transformers would take integers for the weights themselves.

    Args:
        name: what errors call the model.
        stored: from `stored_tensors`.
        buffers: the last parts of the names of the model's buffers, which may be integers.

    Raises:
        FoveateError: some are not.
    """
    wrong = {
        key: each.kind
        for key, each in stored.items()
        if each.kind not in _FLOATS and key.rsplit(".", 1)[-1] not in {*buffers, "num_batches_tracked"}
    }
    if wrong:
        kinds = ", ".join(f"{count} of type {kind}" for kind, count in Counter(wrong.values()).most_common())
        raise FoveateError(
            f"{name} stores quantised weights ({kinds}, such as {next(iter(wrong))}), and its config.json has no "
            "quantization_config that says how to read them; get the model in bfloat16, float16 or float32, and use "
            "quantize"
        )


def check_size(name: str, stored: Mapping[str, StoredTensor], weights: int) -> None:
    """Check that files hold about as many numbers as the configuration asks for, before they are loaded.

    A model that is much larger than its files would be filled up with random numbers, which takes minutes.

    Args:
        name: what errors call the model.
        stored: from `stored_tensors`.
        weights: how many numbers the model of the configuration has.

    Raises:
        FoveateError: the files hold less than half as many.
    """
    held = sum(prod(each.shape) for each in stored.values())
    if held < weights / 2:
        raise FoveateError(
            f"the config.json of {name} describes a model of {weights:,} weights, and its files hold {held:,}; they "
            "are of two models, or files are missing: download it again"
        )


def check_depth(name: str, stored: Collection[str], wanted: Collection[str]) -> None:
    """Check that files hold as many layers as the configuration asks for, before they are loaded.

    Names of modules may differ, so only numbers of layers are compared.

    Args:
        name: what errors call the model.
        stored: names of the weights in the files.
        wanted: names of the weights of the model of the configuration.

    Raises:
        FoveateError: some stack of layers has another depth.
    """
    found = sorted(set(_depths(stored).values()))
    for stack, depth in _depths(wanted).items():
        if found and depth not in found:
            raise FoveateError(
                f"the config.json of {name} asks for {depth} layers in {stack}, and its files hold stacks of "
                f"{', '.join(map(str, found))}: its weights and its config.json are not of one model; download it again"
            )


def _depths(names: Collection[str]) -> dict[str, int]:
    """Return how many layers each stack has: what stands before the first number in names of weights."""
    stacks: dict[str, set[str]] = {}
    for name in names:
        if layer := _LAYER.match(name):
            stacks.setdefault(layer["stack"], set()).add(layer["number"])
    return {stack: len(numbers) for stack, numbers in stacks.items()}


def _weight_files(folder: Path) -> list[Path]:
    """Find the files that hold the weights, as transformers does: one file, or those that the index names.

    Raises:
        FoveateError: there are none, or some are missing.
    """
    if is_file(folder / _WHOLE):
        return [folder / _WHOLE]
    if is_file(folder / _INDEX):
        return _indexed(folder / _INDEX)
    names = [path.name for path in files_in(folder)]
    pickles = [name for name in names if name.endswith(_PICKLES)]
    others = [name for name in names if name.endswith(".safetensors")]
    if others:
        raise FoveateError(
            f"{folder} has neither {_WHOLE} nor {_INDEX}, one of which transformers reads, and {others[0]} is neither; "
            "download the model again"
        )
    if pickles:
        raise FoveateError(
            f"{folder} holds pickled weights ({pickles[0]}), which can run code when they are opened; "
            f"{SAFETENSORS_ONLY}"
        )
    raise FoveateError(f"{folder} holds no weights (*.safetensors); download the model again")


def _indexed(index: Path) -> list[Path]:
    """Return the files that an index names.

    Raises:
        FoveateError: the index is damaged, or a file is missing.
    """
    try:
        data = read_json_object(index, "index of weights", strict=False)
    except FileError as error:
        raise FoveateError(f"{error}; download the model again") from None
    names = data.get("weight_map")
    files: list[Any] = list(dict.fromkeys(map(str, names.values()))) if isinstance(names, dict) else []
    if not files or not isinstance(data.get("metadata"), dict):
        raise FoveateError(
            f"{index} is damaged: it needs metadata, and a weight_map from names of weights to files; download the "
            "model again"
        )
    outside = [name for name in files if Path(name).name != name]
    if outside:
        raise FoveateError(f"{index} names {outside[0]!r}, and weights are files beside it; download the model again")
    missing = sorted(name for name in files if not is_file(index.parent / name))
    if missing:
        raise FoveateError(
            f"{index.parent} lacks {len(missing)} of its {len(files)} files of weights ({', '.join(missing[:3])}"
            f"{', ...' if len(missing) > 3 else ''}); download the model again"
        )
    return [index.parent / name for name in files]
