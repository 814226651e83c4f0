"""An accelerator that isn't there: its tensors say that they lie on a device, and a CPU computes them.

So code takes the branches of accelerators, and what it launches and what it waits for is counted. As on a real device,
an operation that mixes tensors of the device with those of the CPU fails, and numpy can't read what lies there. The
device is torch's "meta", because torch lets no other one be without hardware.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from foveate.plan import Plan
from foveate.tokens import Signals, VisualTokens

PLACE: Final = torch.device("meta")
_NO_WORK: Final = ("aten::empty", "aten::new_empty", "aten::_unsafe_view", "aten::lift_fresh", "aten::_reshape_alias")
"""Operations beside views that start nothing: they only allocate, or name the same memory anew."""
_ASKS: Final = (
    "aten::_local_scalar_dense",
    "aten::nonzero",
    "aten::masked_select",
    "aten::bincount",
    "aten::_unique",
    "aten::unique_",
    "aten::equal",
    "aten::_linalg_svd",
    "aten::linalg_svd",
    "aten::linalg_eig",
)
"""Operations after which the host waits: it needs a value, or a size that depends on values."""
_INDEXING: Final = ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_")


class There(Tensor):
    """A tensor on the accelerator; `values_here` are its values, on the CPU."""

    values_here: Tensor

    @staticmethod
    def __new__(cls, values: Tensor) -> There:
        there = Tensor._make_wrapper_subclass(  # pyright: ignore[reportAttributeAccessIssue]
            cls,
            values.shape,
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            device=PLACE,
        )
        there.values_here = values
        return there

    def tolist(self) -> Any:
        """Copy to the host and list, as torch does; it refuses subclasses."""
        return self.cpu().tolist()

    def numpy(self, *, force: bool = False) -> Any:
        raise TypeError("can't convert a tensor of an accelerator to numpy; use Tensor.cpu() first")

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{function} outside of `with Accelerator()`")


class _Tensors(TorchFunctionMode):
    """Makes tensors of numbers on the CPU and copies them: torch would make them without values."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if function in (torch.tensor, torch.as_tensor) and _is_there(kwargs.get("device")):
            place = kwargs.pop("device")
            return function(*args, **kwargs).to(place)
        if function in (Tensor.__getitem__, Tensor.__setitem__) and isinstance(args[0], There):
            args = (args[0], _indices(args[1]), *args[2:])
        if function is Tensor.new_tensor and isinstance(args[0], There):
            return torch.tensor(*args[1:], **{"dtype": args[0].dtype, **kwargs}).to(PLACE)
        return function(*args, **kwargs)


class Accelerator(TorchDispatchMode):
    """Runs operations on tensors of the accelerator, and counts them.

    Attributes:
        launched: the operations that start work on the device, each with how often.
        waited: those after which the host waits for the device.
    """

    def __init__(self) -> None:
        super().__init__()
        self.launched: Counter[str] = Counter()
        self.waited: Counter[str] = Counter()
        self._tensors = _Tensors()

    def __enter__(self) -> Accelerator:
        self._tensors.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)
        self._tensors.__exit__(*raised)

    def forget(self) -> None:
        """Count from nothing on."""
        self.launched.clear()
        self.waited.clear()

    @property
    def launches(self) -> int:
        """How many operations started work."""
        return self.launched.total()

    @property
    def waits(self) -> int:
        """How often the host waited."""
        return self.waited.total()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        given = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        there = [each for each in given if isinstance(each, There)]
        # Numbers of no axes may come from the host.
        mixed = [each for each in given if not isinstance(each, There) and each.ndim] if there else []
        copies = "copy" in str(function)
        if mixed and not copies and not _takes_host_indices(function):
            raise RuntimeError(f"{function}: some tensors are on the accelerator, and {len(mixed)} on the CPU")
        onto = bool(there)
        if kwargs.get("device") is not None:
            onto = _is_there(kwargs["device"])
            kwargs["device"] = torch.device("cpu")
        self._note(function, args, kwargs, there, onto)
        found = function(*_values(args), **_values(kwargs))
        if not onto:
            return found
        # An operation in place returns what it was given.
        same = {id(each.values_here): each for each in there}
        return tree_map_only(Tensor, lambda each: same[id(each)] if id(each) in same else There(each), found)

    def _note(self, function: Any, args: Any, kwargs: Any, there: list[There], onto: bool) -> None:
        if not there and not onto:
            return
        name = str(function)
        schema = function._schema.name
        if name.startswith("aten.copy_"):
            crosses = isinstance(args[0], There) != isinstance(args[1], There) and bool(args[1].ndim)
        else:
            crosses = schema == "aten::_to_copy" and onto != bool(there)
        if crosses:
            # What goes to the device without blocking is staged; what comes from it is waited for.
            if not (onto and kwargs.get("non_blocking")):
                self.waited[name] += 1
        elif schema.startswith(_ASKS) or _by_mask(schema, args):
            self.waited[name] += 1
        if schema != "aten::_local_scalar_dense" and not function.is_view and not schema.startswith(_NO_WORK):
            self.launched[name] += 1


def _indices(given: Any) -> Any:
    """Copy lists of numbers among indices to the accelerator, as torch does."""
    if isinstance(given, list):
        return torch.tensor(given).to(PLACE)
    return tuple(map(_indices, given)) if isinstance(given, tuple) else given


def _is_there(device: Any) -> bool:
    return device is not None and torch.device(device).type == PLACE.type


def _values(given: Any) -> Any:
    return tree_map_only(There, lambda each: each.values_here, given)


def _takes_host_indices(function: Any) -> bool:
    return function._schema.name in _INDEXING


def _by_mask(schema: str, args: Any) -> bool:
    """Return whether an indexing looks for the places of a mask, or takes its numbers from the host."""
    if schema not in _INDEXING:
        return False
    given = [each for each in args[1] if each is not None]
    return any(each.dtype == torch.bool or not isinstance(each, There) for each in given)


def on_accelerator(tokens: VisualTokens) -> VisualTokens:
    """Move what a method sees to the accelerator; inside `with Accelerator()`."""
    known = tokens.signals
    signals = Signals(
        {signal: values.to(PLACE) for signal, values in known._answers.items()},
        {kind: values.to(PLACE) for kind, values in known._of_kind.items()},
    )
    return VisualTokens(tokens.features.to(PLACE), tokens.layout, signals)


def on_host(plan: Plan) -> Plan:
    """Copy a plan to the CPU; inside `with Accelerator()`."""
    parts = (plan.slot, plan.group, plan.weight, plan.mix, plan.valid)
    return Plan(*(None if each is None else each.cpu() for each in parts))  # pyright: ignore[reportArgumentType]
