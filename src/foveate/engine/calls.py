"""Hooks on a method of a module that is not its `forward`: torch has hooks for `forward` alone."""

from __future__ import annotations

import functools
import inspect
import threading
import weakref
from collections.abc import Callable
from typing import Any

from torch import nn

_lock = threading.Lock()
_handles: weakref.WeakKeyDictionary[nn.Module, dict[str, list[CallHandle]]] = weakref.WeakKeyDictionary()


class CallHandle:
    """What listens to a method's calls; `remove` ends it."""

    def __init__(
        self,
        module: nn.Module,
        name: str,
        before: Callable[[dict[str, Any]], None] | None,
        after: Callable[[Any], None] | None,
    ) -> None:
        self.before = before
        self.after = after
        self._module = weakref.ref(module)
        self._name = name

    def remove(self) -> None:
        """Listen no more; when nobody does, the module is as it was."""
        module = self._module()
        if module is None:
            return
        with _lock:
            held = _handles[module][self._name]
            held.remove(self)
            if not held:
                del _handles[module][self._name]
                own = vars(module).pop(self._name).own
                if own is not None:
                    vars(module)[self._name] = own


def on_call(
    module: nn.Module,
    name: str,
    before: Callable[[dict[str, Any]], None] | None = None,
    after: Callable[[Any], None] | None = None,
) -> CallHandle:
    """Listen to the calls of a module's method: `before` sees the arguments by name, `after` what is returned.

    Only this module is concerned, not its class, and the method goes on telling its own signature. Listeners come and
    go in any order, from any thread.

    >>> class Adder(nn.Module):
    ...     def add(self, one, other=2):
    ...         return one + other
    >>> adder, seen = Adder(), []
    >>> handle = on_call(adder, "add", before=seen.append, after=seen.append)
    >>> adder.add(3), adder.add(3, other=4), seen
    (5, 7, [{'one': 3}, 5, {'one': 3, 'other': 4}, 7])
    >>> handle.remove()
    >>> "add" in vars(adder)
    False
    """
    handle = CallHandle(module, name, before, after)
    with _lock:
        held = _handles.setdefault(module, {})
        if name not in held:
            held[name] = []
            vars(module)[name] = _heard(module, name)
        held[name].append(handle)
    return handle


def _heard(module: nn.Module, name: str) -> Any:
    # The class's method is bound at each call: held here, the module would keep itself alive.
    own, shared = vars(module).get(name), getattr(type(module), name)
    owner = weakref.ref(module)
    method = getattr(module, name)
    signature = inspect.signature(method)

    @functools.wraps(shared)
    def heard(*args: Any, **kwargs: Any) -> Any:
        this = owner()
        listeners = tuple(_handles.get(this, {}).get(name, ())) if this is not None else ()
        for each in listeners:
            if each.before is not None:
                each.before({**signature.bind_partial(*args).arguments, **kwargs})
        output = shared(this, *args, **kwargs) if own is None else own(*args, **kwargs)
        for each in listeners:
            if each.after is not None:
                each.after(output)
        return output

    noted: Any = heard
    noted.__signature__ = signature
    noted.own = own
    return noted
