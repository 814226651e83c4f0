"""Caches that hold a compressed prompt: they carry their state, and refuse calls that don't know it.

A cache with a state gets a class of its own, derived from the class that it had. So a copy has the state, too, methods
that move rows move the state, and a call of the model outside `apply`, whose columns would not fit, is refused.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from foveate.engine.state import CacheState
from foveate.errors import FoveateError
from foveate.transformers_api import cached_rows, last_keys, select_rows

_STATE, _IN_CALL, _PLAIN = "foveate_state", "foveate_in_call", "foveate_plain"
_OUTSIDE = (
    "this cache holds a compressed prompt, and the model was called without the foveate.apply that knows it, so its "
    "columns would not fit: go on inside foveate.apply, or begin with an empty cache"
)
_REBUILT = (
    "this cache holds a compressed prompt, and was made anew from the tensors of another cache, so what foveate knows "
    "of it is lost: pass that cache itself, or copy.deepcopy of it; if inputs from foveate.compress filled it, go on "
    "outside foveate.apply"
)
_REMEMBERED = 256
"""Of so many compressed prompts, the latest ones, a cache that was rebuilt is recognised."""


def cache_state(cache: Any) -> CacheState | None:
    """Return the state of a cache; None for no cache, an emptied one, and one that never saw a compressed prompt."""
    state: CacheState | None = getattr(cache, _STATE, None)
    if state is not None and cache.get_seq_length() == 0:
        set_cache_state(cache, None)
        return None
    return state


def set_cache_state(cache: Any, state: CacheState | None) -> None:
    """Set the state of a cache; None takes it away."""
    if isinstance(cache, CompressedCache) != (state is not None):
        cache.__class__ = type(cache).__mro__[2] if state is None else _compressed_class(type(cache))
    if state is not None:
        setattr(cache, _STATE, state)
        return
    for name in {_STATE, _IN_CALL} & vars(cache).keys():
        delattr(cache, name)


def begin_call(cache: Any) -> None:
    """Let a call that knows the state of a cache add to it."""
    setattr(cache, _IN_CALL, True)


def end_call(cache: Any) -> None:
    """Refuse calls of the model again until the next one that knows the state."""
    vars(cache).pop(_IN_CALL, None)


class CompressedCache:
    """What the class of a cache gets in front of it while the cache holds a compressed prompt."""

    def update(self, *args: Any, **kwargs: Any) -> Any:
        """Add keys and values, if the running call knows the state.

        Raises:
            FoveateError: it doesn't.
        """
        return self._known_call("update", *args, **kwargs)

    # The mask is made first, before a layer has changed anything; then layers of linear attention come, some of which
    # change their memory in place.

    def get_mask_sizes(self, *args: Any, **kwargs: Any) -> Any:
        """Return how long a mask must be, if the running call knows the state."""
        cache: Any = self
        if cache.is_compileable:
            # For a static cache `generate` makes masks itself, outside of the call, which refuses them.
            return super().get_mask_sizes(*args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]
        return self._known_call("get_mask_sizes", *args, **kwargs)

    def has_previous_state(self, *args: Any, **kwargs: Any) -> Any:
        """Tell whether a layer of linear attention has a memory, if the running call knows the state."""
        return self._known_call("has_previous_state", *args, **kwargs)

    def get_conv_state(self, *args: Any, **kwargs: Any) -> Any:
        """Return the last inputs of a layer's convolution, if the running call knows the state."""
        return self._known_call("get_conv_state", *args, **kwargs)

    def update_conv_state(self, *args: Any, **kwargs: Any) -> Any:
        """Change the last inputs of a layer's convolution, if the running call knows the state."""
        return self._known_call("update_conv_state", *args, **kwargs)

    def _known_call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Call a method of the cache's own class, if the running call of the model knows the state.

        Raises:
            FoveateError: it doesn't.
        """
        cache: Any = self
        if not getattr(cache, _IN_CALL, False):
            if cache.get_seq_length():
                raise FoveateError(_OUTSIDE)
            set_cache_state(cache, None)
            return getattr(cache, name)(*args, **kwargs)
        return getattr(super(), name)(*args, **kwargs)

    def reorder_cache(self, rows: Tensor) -> None:
        """Take rows in another order, as beam search does, and the state with them."""
        self._move(super().reorder_cache, rows)  # pyright: ignore[reportAttributeAccessIssue]

    def batch_select_indices(self, rows: Tensor) -> None:
        """Keep some rows, and their part of the state."""
        self._move(partial(select_rows, self), rows)

    def _move(self, move: Callable[[Tensor], None], rows: Tensor) -> None:
        state = cache_state(self)
        before = cached_rows(self)
        move(rows)
        if state is not None:
            state = state.rows(before)
            rows = rows.to(state.first.columns.device)
            set_cache_state(self, replace(state, layers=tuple(layer.picked(rows) for layer in state.layers)))

    def __reduce_ex__(self, protocol: Any) -> Any:
        # Python makes copies and pickles by the name of the class, and this class was made here.
        held = {name: value for name, value in vars(self).items() if name != _IN_CALL}
        return _empty_cache, (type(self).__mro__[2],), held


@lru_cache(maxsize=64)
def _compressed_class(base: type) -> type:
    """Make the class of a cache of class `base` that holds a compressed prompt."""
    return type(base.__name__, (CompressedCache, base), {"__module__": base.__module__, "__doc__": base.__doc__})


def _empty_cache(base: type) -> Any:
    made: Any = _compressed_class(base)
    return made.__new__(made)


# Caches that were made anew


@dataclass(frozen=True)
class _Sample:
    """Some numbers of the keys that a compressed prompt has in the last layer: no other prompt has the same.

    Attributes:
        layer: which one.
        length: columns of the compressed prompt there.
        keys: `(B, P, 4)` of eight columns or a few more, the last among them.
        columns: `(B, M)` int64, the columns of the full prompt that it has.
    """

    layer: int
    length: int
    keys: Tensor
    columns: Tensor

    @staticmethod
    def of(keys: Tensor, length: int) -> Tensor:
        """Take numbers of the keys `(B, H, P, d)` of the first `length` columns."""
        step = max(1, (length - 1) // 7)
        return keys[:, 0, (length - 1) % step : length : step, :4].detach().clone()

    def matches(self, keys: Tensor) -> Tensor:
        """Return whether a row of the keys `(B, H, P, d)` begins with a shorter row of this prompt: `()` bool."""
        other = self.of(keys, self.length)
        same = (self.keys.to(other)[:, None] == other).flatten(2).all(dim=2)
        shorter = (self.columns.diff(dim=1) != 1).any(dim=1)
        return (same & shorter.to(other.device)[:, None]).any()


_samples: deque[_Sample] = deque(maxlen=_REMEMBERED)


def remember(cache: Any, state: CacheState) -> None:
    """Remember a cache by its content, after a call that brought images."""
    layer, keys = last_keys(cache)
    held = state.at(layer)
    if keys is not None and 0 < held.length <= keys.shape[-2]:
        _samples.append(_Sample(layer, held.length, _Sample.of(keys, held.length), held.columns))


def refuse_rebuilt(cache: Any) -> None:
    """Refuse a cache without a state that holds a compressed prompt; each cache is looked at once.

    Raises:
        FoveateError: it does.
    """
    if cache is None or getattr(cache, _PLAIN, False) or not _samples:
        return
    layer, keys = last_keys(cache)
    if keys is None:
        return
    width = keys.shape[-1]
    fitting = [
        sample
        for sample in tuple(_samples)
        if sample.layer == layer and sample.length <= keys.shape[-2] and sample.keys.shape[-1] == min(4, width)
    ]
    if fitting and bool(torch.stack([sample.matches(keys) for sample in fitting]).any()):
        raise FoveateError(_REBUILT)
    setattr(cache, _PLAIN, True)
