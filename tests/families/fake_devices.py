"""Two devices on a machine that has none: tensors carry the name of one, and an operation on two of them raises.

All numbers are computed on the CPU. What holds on real devices holds here: the results of an operation are on the
device of its arguments, tensors of one device can't be used with those of another, a number alone can, and a tensor on
the CPU can be an index.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from accelerate.utils import send_to_device
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

CPU = torch.device("cpu")
_MOVING = {"to", "copy_", "cpu", "set_data", "__set__", "__repr__", "type_as"}
_INDEXING = {"__getitem__", "__setitem__", "index_put", "index_put_"}
_QUESTIONS = {"is_cuda": True, "is_cpu": False}


class FakeDevices(TorchFunctionMode):
    """Within the block, devices of the type "cuda" are there, whatever their number."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name, owner = getattr(func, "__name__", ""), getattr(func, "__self__", None)
        if name == "__get__" and owner is Tensor.device:
            return place_of(args[0])
        if name == "__get__" and getattr(owner, "__name__", "") in _QUESTIONS:
            answer = _QUESTIONS[owner.__name__]
            return answer if place_of(args[0]) != CPU else not answer
        tensors = list(_tensors((args, kwargs)))
        places = {place_of(each) for each in tensors if each.ndim or place_of(each) != CPU}
        if name in ("numpy", "__array__") and places - {CPU}:
            raise TypeError("can't convert cuda device type tensor to numpy; use Tensor.cpu() first")
        wanted, args, kwargs = _without_devices(func, name, args, kwargs)
        if len(places) > 1 and name not in _MOVING:
            among = places - {CPU} if name in _INDEXING else places
            if len(among) > 1 or (name in _INDEXING and place_of(tensors[0]) == CPU):
                raise RuntimeError(f"{name}: expected all tensors to be on the same device, but found {places}")
        result = func(*args, **kwargs)
        if name == "cpu":
            wanted = CPU
        elif name in _MOVING:
            wanted = wanted or place_of(tensors[0])
        if wanted is not None and any(result is each for each in tensors):
            # Nothing was copied, and what was passed stays where it is.
            with torch._C.DisableTorchFunction():
                result = torch.ops.aten.alias(result)
        _mark(result, wanted or next(iter(places - {CPU}), CPU))
        return result


def place_of(tensor: Tensor) -> torch.device:
    with torch._C.DisableTorchFunction():
        return getattr(tensor, "fake_device", CPU)


def _mark(value: Any, device: torch.device) -> None:
    for tensor in _tensors(value):
        with torch._C.DisableTorchFunction():
            if device != CPU or hasattr(tensor, "fake_device"):
                tensor.fake_device = device  # pyright: ignore[reportAttributeAccessIssue]


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _tensors(each)
    elif isinstance(value, tuple | list):
        for each in value:
            yield from _tensors(each)


def _without_devices(func: Any, name: str, args: Any, kwargs: Any) -> tuple[torch.device | None, Any, Any]:
    """Take the device out of a call; return it beside the rest."""
    wanted = kwargs.pop("device", None)
    if wanted is not None:
        wanted = torch.device(wanted)
        kwargs["device"] = CPU
    if name == "to" and len(args) > 1:
        other = args[1]
        if isinstance(other, str | torch.device):
            wanted, args = torch.device(other), (args[0], CPU, *args[2:])
        elif isinstance(other, Tensor):
            wanted, args = place_of(other), (args[0], CPU, other.dtype, *args[2:])
    return wanted, args, kwargs


class RunsOn(ModelHook):
    """What accelerate puts on each block of a `device_map`: inputs are sent to the block's device."""

    def __init__(self, device: torch.device, back: bool = False) -> None:
        self.execution_device, self.back = device, back
        self.input_device = device

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if self.back:
            self.input_device = next((place_of(each) for each in _tensors((args, kwargs))), CPU)
        skip = "past_key_values"
        return (
            send_to_device(args, self.execution_device),
            send_to_device(kwargs, self.execution_device, skip_keys=[skip, "cache"]),
        )

    def post_forward(self, module: nn.Module, output: Any) -> Any:
        return (
            send_to_device(output, self.input_device, skip_keys=["past_key_values", "cache"]) if self.back else output
        )


def spread(model: Any, device_map: Mapping[str, str]) -> Any:
    """Put blocks of a model on devices, by the names of modules; "" is the device of what is sent back and forth."""
    for name, device in device_map.items():
        place = torch.device(device)
        module = model.get_submodule(name)
        # Outer modules come first, so what no inner one has is where they are.
        for weight in (*module.parameters(), *module.buffers()):
            weight.fake_device = place
        add_hook_to_module(module, RunsOn(place, back=not name))
    return model
