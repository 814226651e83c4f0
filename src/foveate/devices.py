"""Choose the device and the number format of a model, before it is loaded, and say what was chosen."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

import torch

from foveate.arguments import check_kind
from foveate.device_names import check_device_name
from foveate.errors import FoveateError, first_line, quoted
from foveate.numbers import Between, check_whole

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = [
    "DEVICE_MAPS",
    "DTYPES",
    "QUANTIZATIONS",
    "Placement",
    "card",
    "constant",
    "devices_of",
    "load_arguments",
    "on_cpu",
    "placement_of",
    "synchronize",
    "usable_device",
    "usable_dtype",
]

DTYPES: Final = ("float32", "bfloat16", "float16")
"""What a model can be loaded in; "auto" is the dtype that it was saved in."""

QUANTIZATIONS: Final = ("4bit", "8bit")
"""How bitsandbytes can quantise linear layers."""

DEVICE_MAPS: Final = ("auto", "balanced", "balanced_low_0", "sequential")
"""How accelerate can spread a model over devices."""


# Choosing


def usable_device(name: str | torch.device = "auto") -> torch.device:
    """Return the torch device with a name; "auto" is the first CUDA GPU, or the CPU where there is none.

    Raises:
        FoveateError: this machine has no such device.

    >>> usable_device("cpu")
    device(type='cpu')
    """
    if not isinstance(name, torch.device):
        check_device_name(name)
    if name == "auto":
        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
        usable = device.type != "meta"
    except (RuntimeError, AssertionError, NotImplementedError, TypeError, ImportError):
        usable = False
    if not usable:
        raise FoveateError(f"this machine has no device {str(name)!r}; {_devices_here(str(name))}")
    return device


def _devices_here(wanted: str) -> str:
    """Say what can be used instead of a device that isn't there."""
    if torch.cuda.is_available():
        gpus = (torch.device("cuda", index) for index in range(torch.cuda.device_count()))
        return f"use cpu, or {', '.join(f'{gpu} ({card(gpu)})' for gpu in gpus)}"
    if wanted.startswith("cuda"):
        if torch.version.cuda is None and torch.version.hip is None:
            return f"torch {torch.__version__} is built without CUDA: install a build with it, or use cpu"
        return "torch finds no GPU: look at the driver (nvidia-smi) and CUDA_VISIBLE_DEVICES, or use cpu"
    return "use cpu, or cuda or mps where there is a GPU"


def usable_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """Return a dtype after multiplying two small matrices in it on the device.

    Args:
        dtype: one of `DTYPES`, or a torch dtype.
        device: where the model will run.

    Raises:
        FoveateError: it is no floating-point dtype, or the device can't compute in it.

    >>> usable_dtype("bfloat16", torch.device("cpu"))
    torch.bfloat16
    """
    if isinstance(dtype, str):
        if dtype not in DTYPES:
            raise FoveateError(f"there is no dtype {quoted(dtype)} here; use {', '.join(DTYPES)}, or auto: as saved")
        dtype = getattr(torch, dtype)
    if not isinstance(dtype, torch.dtype):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise FoveateError(f"a dtype is one of {', '.join(DTYPES)}, or torch's, not {quoted(dtype)}")
    if not dtype.is_floating_point:
        raise FoveateError(f"{_plain(dtype)} holds no floating-point numbers; use {', '.join(DTYPES)}")
    try:
        values = torch.ones(2, 2, device=device, dtype=dtype)
        torch.nn.functional.softmax(torch.nn.functional.linear(values, values), dim=-1)
    except (RuntimeError, NotImplementedError, TypeError) as error:
        # The reason that torch gives may name an operator that users don't know.
        raise FoveateError(
            f"{device} can't compute in {_plain(dtype)} ({first_line(error)}); use another dtype: {', '.join(DTYPES)}"
        ) from error
    return dtype


def load_arguments(
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    device_map: str | Mapping[str, Any] | None = None,
    quantize: str | None = None,
) -> dict[str, Any]:
    """Check how a model is to be placed, and return the arguments of `from_pretrained` that place it so.

    Args:
        device: one device, or "auto" for the GPU if there is one; None is the CPU, or wherever `device_map` says.
        dtype: one of `DTYPES`, a torch dtype, or "auto" for the dtype that the model was saved in; None leaves the
            choice to the caller.
        device_map: how to spread the model over devices: one of `DEVICE_MAPS`, or a mapping as accelerate takes it.
        quantize: one of `QUANTIZATIONS`.

    Raises:
        FoveateError: a device isn't there, it can't compute in the dtype, bitsandbytes is missing or can't run on the
            device, or two of the arguments exclude each other.

    >>> load_arguments("cpu", "bfloat16")
    {'device_map': {'': device(type='cpu')}, 'dtype': torch.bfloat16}
    """
    found: dict[str, Any] = {}
    if device is not None and device_map is not None:
        raise FoveateError(
            f"device {str(device)!r} and device map {device_map!r} exclude each other: the first puts the whole model "
            "on one device, the second spreads it; give one of them"
        )
    if device_map is not None:
        check_kind("device_map", device_map, (str, Mapping), f"one of {', '.join(DEVICE_MAPS)}, or a mapping")
        if isinstance(device_map, str) and device_map not in DEVICE_MAPS:
            raise FoveateError(
                f"there is no device map {device_map!r}; use {', '.join(DEVICE_MAPS)}, or name a device instead"
            )
        if isinstance(device_map, Mapping):
            _check_places(device_map)
        place = usable_device("auto")
        found["device_map"] = device_map
    elif device is not None:
        place = usable_device(device)
        found["device_map"] = {"": place}
    else:
        place = torch.device("cpu")
    if dtype is not None:
        found["dtype"] = dtype if dtype == "auto" else usable_dtype(dtype, place)
    if quantize is not None:
        found["quantization_config"] = _quantization(quantize, found.get("dtype"), place)
    return found


def _check_places(device_map: Mapping[Any, Any]) -> None:
    """Check that each module of a device map goes to a device of this machine, or waits on the disk.

    Raises:
        FoveateError: one doesn't.
    """
    for name, place in device_map.items():
        check_kind("a module of the device map", name, str, 'the name of a module, or "" for the whole model')
        if place == "disk":
            continue
        if type(place) is int:
            kind = torch.accelerator.current_accelerator() or torch.device("cuda")
            place = torch.device(kind.type, check_whole("the number of a GPU", place, Between(0, 127)))
        usable_device(place)


def _quantization(quantize: str, dtype: Any, device: torch.device) -> Any:
    """Return transformers' settings for bitsandbytes.

    Raises:
        FoveateError: bitsandbytes is missing, too old, or can't run on the device.
    """
    if quantize not in QUANTIZATIONS:
        raise FoveateError(f"there is no quantisation {quantize!r}; use {' or '.join(QUANTIZATIONS)}")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise FoveateError(f"{quantize} needs bitsandbytes, which is not installed: pip install bitsandbytes")
    from transformers import BitsAndBytesConfig
    from transformers.utils import is_bitsandbytes_available

    try:
        bitsandbytes = importlib.import_module("bitsandbytes")
        able = getattr(bitsandbytes, "supported_torch_devices", {"cuda"})
    except Exception as error:
        raise FoveateError(f"bitsandbytes cannot be imported ({first_line(error)}); install it again") from error
    if not is_bitsandbytes_available():
        raise FoveateError(
            f"bitsandbytes {bitsandbytes.__version__} is older than transformers needs: pip install -U bitsandbytes"
        )
    if device.type not in able:
        raise FoveateError(
            f"bitsandbytes {bitsandbytes.__version__} can't quantise on {device.type}, only on "
            f"{', '.join(sorted(able))}; leave the quantisation out, or choose another device"
        )
    if quantize == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    compute = dtype if isinstance(dtype, torch.dtype) else torch.bfloat16
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute)


# Saying what was chosen


@dataclass(frozen=True)
class Placement:
    """Where a loaded model is, and in which number format.

    Attributes:
        device: the devices that it runs on, such as "cuda:0" or "cuda:0, cuda:1, offloaded to cpu".
        card: the names of the GPUs among them; None without one.
        dtype: of its floating-point weights, and what they are multiplied in.
        quantize: "4bit" or "8bit"; None if its weights are not quantised by bitsandbytes.
    """

    device: str
    card: str | None
    dtype: str
    quantize: str | None = None

    @property
    def title(self) -> str:
        """Name all of it in a few words.

        >>> Placement("cuda:0", "NVIDIA L4", "bfloat16", "4bit").title
        'bfloat16, 4bit, on cuda:0 (NVIDIA L4)'
        """
        numbers = self.dtype if self.quantize is None else f"{self.dtype}, {self.quantize},"
        return f"{numbers} on {self.device}" + ("" if self.card is None else f" ({self.card})")

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, for JSON."""
        return asdict(self)


def placement_of(model: nn.Module) -> Placement:
    """Return where a model is and in which number format.

    >>> placement_of(torch.nn.Linear(2, 2))
    Placement(device='cpu', card=None, dtype='float32', quantize=None)
    """
    devices = devices_of(model)
    names = ", ".join(map(str, [device for device in devices if device.type != "cpu"] or devices))
    if offloaded := _offloaded(model):
        names += f", offloaded to {', '.join(offloaded)}"
    cards = dict.fromkeys(name for name in map(card, devices) if name is not None)
    weights = [weight.dtype for weight in model.parameters() if weight.is_floating_point()]
    dtype = getattr(model, "dtype", None) or (weights[0] if weights else torch.get_default_dtype())
    bits = {
        getattr(model, "is_loaded_in_4bit", False): "4bit",
        getattr(model, "is_loaded_in_8bit", False): "8bit",
    }
    return Placement(names, ", ".join(cards) or None, _plain(dtype), bits.get(True))


def devices_of(model: nn.Module) -> tuple[torch.device, ...]:
    """Return the devices that a model's weights are on, each once; weights that were offloaded count by where they run.

    >>> devices_of(torch.nn.Linear(2, 2))
    (device(type='cpu'),)
    """
    mapped = [torch.device(place) for place in _map_of(model) if place not in _STORES]
    weights = [weight.device for weight in model.parameters() if not weight.is_meta]
    found = dict.fromkeys(_numbered(device) for device in (*mapped, *weights))
    return tuple(found) or (torch.device("cpu"),)


_STORES: Final = ("cpu", "disk")
"""Where accelerate keeps weights that it moves to a GPU for as long as they are needed."""


def _map_of(model: nn.Module) -> list[Any]:
    """Return the places of a model's device map, each once; none if it has no map."""
    places = (getattr(model, "hf_device_map", None) or {}).values()
    return list(dict.fromkeys(str(place) if isinstance(place, torch.device) else place for place in places))


def _offloaded(model: nn.Module) -> list[Any]:
    """Return where weights wait that run elsewhere; nothing if the whole model is on the CPU."""
    places = _map_of(model)
    return [place for place in places if place in _STORES] if any(place not in _STORES for place in places) else []


def _numbered(device: torch.device) -> torch.device:
    """Write the current GPU with its number: "cuda" and "cuda:0" are one device."""
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def card(device: str | torch.device) -> str | None:
    """Return the name of a GPU, such as "NVIDIA H100 80GB HBM3"; None for a CPU.

    >>> card("cpu")
    """
    device = torch.device(device)
    return torch.cuda.get_device_name(device) if device.type == "cuda" else None


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# Branching


def on_cpu(x: Tensor) -> bool:
    """Return whether a CPU computes what is done with a tensor: looking at values is free there, and so is starting.

    While `torch.export` or `torch.compile` records what is done, there are no values to look at: then this is False.
    Code that differs between CPUs and accelerators asks here and nowhere else.

    >>> on_cpu(torch.zeros(1))
    True
    """
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


_Made = TypeVar("_Made")


def constant(function: Callable[..., _Made]) -> Callable[..., _Made]:
    """Let a function of numbers and texts compute its tensor at once, even where `torch.compile` records what is done.

    The result is then a constant of what is recorded; random numbers with a seed would be drawn anew in each call.

    >>> @constant
    ... def first(count: int) -> Tensor:
    ...     return torch.randperm(count, generator=torch.Generator().manual_seed(0))
    >>> len(first(4))
    4
    """

    @functools.wraps(function)
    def computed(*values: Any) -> _Made:
        # What records sees operations in this thread.
        with ThreadPoolExecutor(1) as apart:
            return apart.submit(function, *values).result()

    @functools.wraps(function)
    def called(*values: Any) -> _Made:
        return at_once(*values) if torch.compiler.is_compiling() else function(*values)

    at_once = torch.compiler.assume_constant_result(computed)
    return called


# Waiting


def synchronize(devices: Iterable[torch.device]) -> None:
    """Wait until all queued work of these devices is done; a CPU queues nothing."""
    for device in devices:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        elif device.type not in ("cpu", "meta"):
            torch.accelerator.synchronize(device)


def checked_device(device: Any) -> torch.device:
    """Return a torch device, for moving tensors; they may go to the meta device, too.

    Raises:
        FoveateError: torch knows no device of this name, or this machine has none.
    """
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise FoveateError(f"there is no device {quoted(device)}; write cpu, cuda or cuda:1, for instance") from error
    return found if found.type == "meta" else usable_device(found)
