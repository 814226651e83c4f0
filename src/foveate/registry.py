"""The names of methods: each class that is registered, and what else people call it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

from foveate.arguments import check_kind
from foveate.errors import FoveateError, quoted

T = TypeVar("T", bound=type)

METHODS: dict[str, type[Any]] = {}
"""The class of each registered method, by its name in specs. Only what is imported already; see `foveate.methods`."""

ALIASES: dict[str, str] = {}
"""The name that each alias stands for."""

_LONGEST_NAME: Final = 60
"""Characters of a name; errors and tables show so many."""


def register(name: str, *aliases: str) -> Callable[[T], T]:
    """Give a method the name that specs use; a decorator of its class.

    Args:
        name: written in canonical specs.
        aliases: other names that specs may use, for instance a paper's name for the same rule; read, never written.

    Raises:
        FoveateError: another method has one of these names, a name is empty or holds blanks or signs, or what is
            registered is no class.
    """
    for given in (name, *aliases):
        check_kind("the name of a method", given, str, 'a text such as "cluster"')
        if not given.replace("-", "_").isidentifier() or len(given) > _LONGEST_NAME:
            raise FoveateError(
                f"{quoted(given)} can't be the name of a method; use letters, digits and hyphens, {_LONGEST_NAME} of "
                "them at most"
            )

    def decorate(method: T) -> T:
        check_kind("a registered method", method, type, "a class")
        for wanted in (name, *aliases):
            other = METHODS.get(ALIASES.get(wanted, wanted))
            if other is not None and (other.__module__, other.__qualname__) != (method.__module__, method.__qualname__):
                raise FoveateError(
                    f"two methods want to be called {wanted!r}: {other.__module__} and {method.__module__}"
                )
        method.name = name  # pyright: ignore[reportAttributeAccessIssue]
        METHODS[name] = method
        ALIASES.update(dict.fromkeys(aliases, name))
        return method

    return decorate
