"""The written form of a configuration: "cluster:64+fastv:0.5@2" <-> steps.

    spec := step ("+" step)*
    step := name [":" keep] [":" option "=" value]* ["@" place ("," place)*]
    keep := 64 | 0.25 | auto | 300/200/110 (one per layer) | mean=64 (over all layers of the decoder)

Everything that changes a result is in it. `str(parse(text))` is canonical: options in the order the method declares
them, those at their default and a method's natural place left out.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import importlib.metadata
import re
import threading
import types
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from foveate.errors import FoveateError, KeepError, SpecError
from foveate.tokens import Keep, Place

_PLACES = ("pixels", "encoder", "features", "input")
_methods: dict[str, type[Any]] = {}
_aliases: dict[str, str] = {}
_loaded = False
_loading = threading.RLock()
T = TypeVar("T", bound=type)


def register(name: str, *aliases: str) -> Callable[[T], T]:
    """Make a method known under a name; a decorator of its class.

    Args:
        name: what canonical specs call it.
        aliases: what else people call it, for instance a paper's name for the same rule; read, never written.

    Raises:
        FoveateError: another method has the name.
    """

    def decorate(method: T) -> T:
        for each in (name, *aliases):
            held = _methods.get(_aliases.get(each, each))
            if held is not None and (held.__module__, held.__qualname__) != (method.__module__, method.__qualname__):
                raise FoveateError(f"two methods want to be called {each!r}: {held.__module__} and {method.__module__}")
        method.name = name  # pyright: ignore[reportAttributeAccessIssue]
        _methods[name] = method
        _aliases.update(dict.fromkeys(aliases, name))
        return method

    return decorate


def method_names() -> tuple[str, ...]:
    """The names of all methods, ours and those of installed packages (entry points, group "foveate.methods")."""
    _load()
    return tuple(sorted(_methods))


def method_class(name: str) -> type[Any]:
    """The class of a method.

    Raises:
        SpecError: no method has the name.
    """
    _load()
    name = _aliases.get(name, name)
    if name not in _methods:
        raise SpecError(_unknown("method is called", name, method_names()))
    return _methods[name]


def aliases_of(name: str) -> tuple[str, ...]:
    """What else a method is called."""
    _load()
    return tuple(sorted(alias for alias, real in _aliases.items() if real == name))


def _load() -> None:
    global _loaded
    # Another thread waits until all are there; a package that reads a spec while it is loaded here goes on.
    with _loading:
        if not _loaded:
            _loaded = True
            importlib.import_module("foveate.methods")
            for entry in importlib.metadata.entry_points(group="foveate.methods"):
                entry.load()


def _unknown(what: str, name: str, known: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    meant = f'; did you mean "{near[0]}"?' if near else f"; there are {', '.join(known)}"
    return f'no {what} "{name}"{meant}'


@dataclass(frozen=True)
class Step:
    """One method at one or more places; no places means its natural one."""

    method: Any
    places: tuple[Place, ...] = ()

    def __post_init__(self) -> None:
        if not _is_method(self.method):
            raise SpecError(f"a step takes a method object such as Cluster(keep=64), not {_shown(self.method)}")
        places = (self.places,) if isinstance(self.places, (str, int)) else tuple(self.places)
        object.__setattr__(self, "places", places or tuple(self.method.places))
        for place in places:
            _check_place(place)
        keep = self.method.keep
        if not keep.layers and keep.mean is None:
            return
        if not all(isinstance(place, int) for place in self.places):
            raise KeepError(f"keep {keep} is for decoder layers; say which ones, for instance {self.method}@8,16")
        if keep.layers and len(keep.layers) != len(self.places):
            raise KeepError(
                f"keep {keep} is for {len(keep.layers)} layers and the step names {len(self.places)}; "
                "give one keep per layer"
            )

    def __str__(self) -> str:
        text = str(self.method)
        if self.places != tuple(self.method.places):
            text += "@" + ",".join(str(place) for place in self.places)
        return text


@dataclass(frozen=True)
class Spec:
    """Steps, in the order they act."""

    steps: tuple[Step, ...]

    def __str__(self) -> str:
        return "+".join(str(step) for step in self.steps)


def as_spec(value: str | Spec | Step | Any) -> Spec:
    """Read a spec in any form that callers may give it.

    >>> from foveate.methods import Cluster, FastV
    >>> str(as_spec([Cluster(keep=64), FastV(keep=0.5).at(2)]))
    'cluster:64+fastv:0.5@2'
    >>> as_spec("cluster:64") == as_spec(Cluster(keep=64)) == as_spec(Step(Cluster(keep=64)))
    True

    Args:
        value: a spec as text; a `Spec`; a `Step`; a method object, which acts at its default place; or a list or tuple
            of these, whose steps act one after another.

    Raises:
        SpecError: the value is none of these, or its text can't be read.
    """
    if isinstance(value, Spec):
        return value
    if isinstance(value, str):
        return parse(value)
    if isinstance(value, Step):
        return Spec((value,))
    if isinstance(value, (list, tuple)):
        steps = tuple(step for item in typing.cast("Sequence[Any]", value) for step in as_spec(item).steps)
        if not steps:
            raise SpecError(_EMPTY)
        return Spec(steps)
    if _is_method(value):
        return Spec((Step(value),))
    raise SpecError(
        f'a spec is text such as "cluster:64", a method object such as Cluster(keep=64), a Step, a Spec, or a list '
        f"of these, not {_shown(value)}"
    )


_EMPTY = 'an empty spec; write a method and how much to keep, for instance "cluster:64"'


def _is_method(value: Any) -> bool:
    return not isinstance(value, type) and all(hasattr(value, name) for name in ("name", "keep", "places", "plan"))


def _shown(value: Any) -> str:
    """The value as an error names it: short, with its type."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    text = repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"


def _check_place(place: Any) -> None:
    whole = isinstance(place, int) and not isinstance(place, bool) and place >= 0
    if not whole and place not in (*_PLACES, "decoder"):
        raise SpecError(
            f"no place is called {place!r}; there are {', '.join(_PLACES)}, and the numbers of decoder layers"
        )


def written(method: Any) -> str:
    """A method's own part of a step: name, keep, and the options that differ from their defaults."""
    parts: list[str] = [str(method.name), *([str(method.keep)] if method.takes_keep else [])]
    for field in dataclasses.fields(method):
        value = getattr(method, field.name)
        if field.name != "keep" and value != field.default:
            parts.append(f"{field.name}={_printed(value)}")
    return ":".join(parts)


def _printed(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return str(value).lower()
    # "1e+20" would end the step at its plus.
    return str(value).replace("e+", "e") if isinstance(value, float) else str(value)


def parse(text: str) -> Spec:
    """Read a spec.

    >>> str(parse("cluster:64:start=stride+cls:0.5"))
    'cluster:64+cls:0.5'

    Raises:
        SpecError: it can't be read; the text shows the place and the nearest valid name.
    """
    if not text.strip():
        raise SpecError(_EMPTY)
    steps: list[Step] = []
    offset = 0
    for part in text.split("+"):
        steps.append(_step(text, part, offset))
        offset += len(part) + 1
    return Spec(tuple(steps))


def _fail(text: str, start: int, length: int, message: str) -> SpecError:
    return SpecError(f"{text}\n{' ' * start}{'^' * max(1, length)} {message}")


def _step(text: str, part: str, offset: int) -> Step:
    body, at, where = part.partition("@")
    pieces = body.split(":")
    name = pieces[0].strip()
    known = method_names()
    name = _aliases.get(name, name)
    if name not in known:
        message = _unknown("method is called", name, (*known, *_aliases)) + "  (foveate methods lists them)"
        raise _fail(text, offset, len(pieces[0]), message)
    method = method_class(name)
    fields = {field.name: field for field in dataclasses.fields(method)}
    hints = typing.get_type_hints(method)
    options: dict[str, Any] = {}
    begin = offset + len(pieces[0]) + 1
    for number, piece in enumerate(pieces[1:]):
        key, equals, value = (each.strip() for each in piece.partition("="))
        if key == "mean" and "mean" not in fields:
            if number:
                raise _fail(text, begin, len(piece), "a keep comes first, once")
            key, value = "keep", piece
        if not equals:
            if number:
                raise _fail(text, begin, len(piece), "an option is written name=value; a keep comes first, once")
            key, value = "keep", key
        if key not in fields:
            raise _fail(text, begin, len(key), _unknown(f"option of {name} is called", key, tuple(fields)))
        if key in options:
            raise _fail(text, begin, len(piece), f"{key} is given twice")
        try:
            options[key] = Keep.of(value) if key == "keep" else _value(hints[key], value)
        except FoveateError as error:
            raise _fail(text, begin, len(piece), str(error)) from None
        except ValueError:
            raise _fail(text, begin, len(piece), f"{key} must be {_wanted(hints[key])}, not {value!r}") from None
        begin += len(piece) + 1
    places = _places(text, where, offset + len(body) + 1) if at else ()
    try:
        return Step(method(**options), places)
    except FoveateError as error:
        raise _fail(text, offset, len(body), str(error)) from None


def _places(text: str, where: str, begin: int) -> tuple[Place, ...]:
    places: list[Place] = []
    for piece in where.split(","):
        place = piece.strip()
        if re.fullmatch("[0-9]{1,9}", place):
            places.append(int(place))
        elif place in _PLACES:
            places.append(place)
        else:
            near = difflib.get_close_matches(place, _PLACES, n=1)
            known = f"there are {', '.join(_PLACES)}, and the numbers of decoder layers"
            meant = f'did you mean "{near[0]}"?' if near else known
            raise _fail(text, begin, len(piece), f'no place is called "{place}"; {meant}')
        begin += len(piece) + 1
    return tuple(places)


def _value(kind: Any, text: str) -> Any:
    """Read an option of a declared type; ValueError if it can't be."""
    if typing.get_origin(kind) is typing.Literal:
        for each in typing.get_args(kind):
            if _printed(each) == text:
                return each
        raise ValueError(text)
    if typing.get_origin(kind) in {typing.Union, types.UnionType}:
        for each in typing.get_args(kind):
            if each is type(None):
                if text == "none":
                    return None
                continue
            try:
                return _value(each, text)
            except FoveateError:
                raise
            except ValueError:
                continue
        raise ValueError(text)
    if kind is bool:
        if text not in {"true", "false"}:
            raise ValueError(text)
        return text == "true"
    # Weights: a class that says itself how to read what stands for them.
    return kind.read(text) if hasattr(kind, "read") else kind(text)


def _wanted(kind: Any) -> str:
    if typing.get_origin(kind) is typing.Literal:
        return " or ".join(_printed(each) for each in typing.get_args(kind))
    if typing.get_origin(kind) in {typing.Union, types.UnionType}:
        return " or ".join(_wanted(each) for each in typing.get_args(kind))
    words = {int: "a whole number", float: "a number", bool: "true or false", type(None): "none"}
    return words.get(kind, str(kind))


def check_choices(method: object) -> None:
    """Whether options with few choices hold one of them, however the method was made.

    Raises:
        FoveateError: one doesn't; the text names the choices.
    """
    hints = typing.get_type_hints(type(method))
    for field in dataclasses.fields(typing.cast("Any", method)):
        kind, value = hints[field.name], getattr(method, field.name)
        if typing.get_origin(kind) is typing.Literal and value not in typing.get_args(kind):
            raise FoveateError(f"{field.name} must be {_wanted(kind)}, not {value!r}")
