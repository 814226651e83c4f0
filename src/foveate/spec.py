"""The written form of a configuration: "cluster:64+fastv:0.5@2" <-> steps.

    spec := step ("+" step)*
    step := name [":" keep] [":" option "=" value]* ["@" place ("," place)*]
    keep := 64 | 0.25 | auto | 300/200/110 (one per layer) | mean=64 (over all layers of the decoder)

A value with any of + : @ = , or blanks in it, such as a path, stands in quotes: atp:adapter="my runs/a+b".
Everything that changes a result is in it. `str(parse(text))` is canonical: options in the order the method declares
them; options at their default and a method's default places are left out.
"""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from foveate.arguments import check_kind, listed
from foveate.errors import FoveateError, SpecError, nearest, shortened, shown, unknown
from foveate.keep import Keep
from foveate.method import Method, Step
from foveate.methods import aliases, method_class, method_names
from foveate.options import expected, read_value
from foveate.quotes import open_quote, pieces, unquote
from foveate.renamed import refuse_old_name
from foveate.tokens import PLACES, Place

__all__ = ["Spec", "SpecLike", "Step", "as_spec", "parse", "spec_list"]


_STEPS = "a list of Step objects"


@dataclass(frozen=True)
class Spec:
    """A sequence of steps, in the order in which they act."""

    steps: tuple[Step, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", tuple(listed("the steps of a spec", self.steps, _STEPS)))
        for step in self.steps:
            check_kind("a step of a spec", step, Step, "a Step")

    def __str__(self) -> str:
        return "+".join(str(step) for step in self.steps)


SpecLike: TypeAlias = "str | Spec | Step | Method | Sequence[Any]"
"""Every form in which callers may give a spec; `as_spec` reads them."""


def as_spec(value: SpecLike) -> Spec:
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
        _check_depth(value)
        steps = tuple(step for item in typing.cast("Sequence[Any]", value) for step in as_spec(item).steps)
        if not steps:
            raise SpecError(_EMPTY)
        return Spec(steps)
    if isinstance(value, Method):
        return Spec((Step(value),))
    raise SpecError(
        f'a spec is text such as "cluster:64", a method object such as Cluster(keep=64), a Step, a Spec, or a list '
        f"of these, not {shown(value)}"
    )


_DEEPEST = 10


def _check_depth(value: Sequence[Any], depth: int = 1) -> None:
    """Check that lists of steps don't stand inside each other without end.

    Raises:
        SpecError: they do.
    """
    if depth > _DEEPEST:
        raise SpecError(f"over {_DEEPEST} lists stand inside each other; write one list of steps")
    for item in value:
        if isinstance(item, (list, tuple)):
            _check_depth(typing.cast("Sequence[Any]", item), depth + 1)


def spec_list(specs: SpecLike | Iterable[SpecLike]) -> list[SpecLike]:
    """Return several specs as a list, and a single one as a list of one.

    A list counts as several specs; as an item of a list, it is one spec of several steps.

    >>> spec_list("cluster:64"), spec_list(["cluster:64", "fastv:0.5@2"])
    (['cluster:64'], ['cluster:64', 'fastv:0.5@2'])
    """
    single = isinstance(specs, str | Spec | Step | Method)
    if not single and not isinstance(specs, Iterable):  # pyright: ignore[reportUnnecessaryIsInstance]
        return [specs]  # `as_spec` refuses it
    return [typing.cast("SpecLike", specs)] if single else list(typing.cast("Iterable[SpecLike]", specs))


_EMPTY = 'an empty spec; write a method and how much to keep, for instance "cluster:64"'


def parse(text: str) -> Spec:
    """Read a spec.

    >>> str(parse("cluster:64:start=stride+cls:0.5"))
    'cluster:64+cls:0.5'

    Raises:
        SpecError: it can't be read; the text shows the place and the nearest valid name.
    """
    if not isinstance(text, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise SpecError(f'parse reads text such as "cluster:64", not {shown(text)}')
    if not text.strip():
        raise SpecError(_EMPTY)
    if (begin := open_quote(text)) is not None:
        raise _fail(text, begin, len(text) - begin, f"a quote is opened and not closed; add a {text[begin]} at its end")
    return Spec(tuple(_step(text, part, offset) for offset, part in pieces(text, "+")))


def _fail(text: str, start: int, length: int, message: str) -> SpecError:
    before, at, after = (
        "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in part)
        for part in (text[:start], text[start : start + length], text[start + length :])
    )
    # Of a very long spec, what stands around the place is enough.
    if len(before) > _AROUND:
        before = f"... {before[-_AROUND:]}"
    at, after = shortened(at), after if len(after) <= _AROUND else f"{after[:_AROUND]} ..."
    return SpecError(f"{before}{at}{after}\n{' ' * len(before)}{'^' * max(1, len(at))} {message}")


_AROUND = 100
"""Characters of a spec that an error shows before and after a place."""


def _step(text: str, part: str, offset: int) -> Step:
    (_, body), *after = pieces(part, "@")
    (_, first), *rest = pieces(body, ":")
    name = first.strip()
    known = (*method_names(), *aliases())
    if name not in known:
        message = unknown("method is called", name, known) + "  (foveate methods lists them)"
        raise _fail(text, offset, len(first), message)
    method = method_class(name)
    fields = {field.name: field for field in dataclasses.fields(method)}
    hints = typing.get_type_hints(method, include_extras=True)
    options: dict[str, Any] = {}
    for number, (begin, piece) in enumerate((offset + place, piece) for place, piece in rest):
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
            raise _fail(text, begin, len(key), unknown(f"option of {name} is called", key, tuple(fields)))
        if key in options:
            raise _fail(text, begin, len(piece), f"{key} is given twice")
        try:
            options[key] = Keep.of(value) if key == "keep" else read_value(hints[key], unquote(value))
        except FoveateError as error:
            raise _fail(text, begin, len(piece), str(error)) from None
        except ValueError:
            raise _fail(text, begin, len(piece), f"{key} must be {expected(hints[key])}, not {value!r}") from None
    where = part[after[0][0] :] if after else ""
    places = _places(text, where, offset + len(body) + 1) if after else ()
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
        elif place in PLACES:
            places.append(place)
        else:
            meant = nearest(place, PLACES, ", and the numbers of decoder layers")
            raise _fail(text, begin, len(piece), f'no place is called "{place}"; {meant}')
        begin += len(piece) + 1
    return tuple(places)


def __getattr__(name: str) -> Any:
    refuse_old_name(__name__, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
