"""Read settings from plain data: pydantic checks keys and values, and every error is one line that names the place."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Self, Union, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from foveate.errors import FoveateError, nearest, quoted
from foveate.files import FileError, read_yaml, shown_path
from foveate.numbers import LARGEST_SEED, MOST, read_real

DENSE: Final = "dense"
"""What a recipe writes where nothing is compressed."""


class RecipeError(FoveateError):
    """A recipe with an unknown key or an impossible value; its text names the place.

    Args:
        text: what was wrong, what was expected, what to do.
        placed: whether the text names its place already, so that settings around it add nothing.
    """

    def __init__(self, text: str, *, placed: bool = False) -> None:
        super().__init__(text)
        self.placed = placed


class Settings(BaseModel):
    """The base of all settings: no unknown keys, no silent conversions, and errors of one line.

    Numbers may be written as text, since YAML takes `1e-3` for text.

    Raises:
        RecipeError: a key is unknown (the nearest one is named) or missing, or a value is impossible.

    >>> class Adapter(Settings):
    ...     place = "adapter"
    ...     rank: Count = 16
    >>> Adapter(rank=4).rank
    4
    >>> Adapter.model_validate({"rnak": 4})
    Traceback (most recent call last):
    foveate.train.settings.RecipeError: adapter has no key "rnak"; did you mean "rank"?
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, arbitrary_types_allowed=True)

    place: ClassVar[str] = "the settings"
    """What errors call these settings."""
    outermost: ClassVar[bool] = False
    """Whether errors about one value need no place."""

    def __init__(self, **given: Any) -> None:
        try:
            super().__init__(**given)
        except ValidationError as error:
            raise _own_error(error) from None

    @classmethod
    def model_validate(cls, obj: Any, **more: Any) -> Self:
        """Read a mapping; see the class for the errors."""
        cls._check_keys(obj)
        try:
            return super().model_validate(obj, **more)
        except ValidationError as error:
            raise _own_error(error) from None

    @model_validator(mode="wrap")
    @classmethod
    def _in_one_line(cls, given: Any, handler: Any) -> Self:
        cls._check_keys(given)
        try:
            return handler(given)
        except ValidationError as error:
            raise RecipeError(_line(cls, error), placed=True) from None

    @classmethod
    def _check_keys(cls, given: Any) -> None:
        """Check that keys are text: YAML takes `1`, `yes` and `null` for other things."""
        for key in given if isinstance(given, dict) else ():
            if not isinstance(key, str):
                raise RecipeError(
                    f"{cls.place} has no key {quoted(key)}; {nearest(str(key), cls.model_fields)}", placed=True
                )


def _number(value: Any) -> Any:
    """Read text as a number; what isn't one is left to pydantic, which refuses it."""
    if isinstance(value, str):
        try:
            return read_real(value)
        except ValueError:
            return value
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 10**300:
        return float("inf")
    return value


Count = Annotated[int, Field(ge=1, le=MOST)]
"""A whole number from 1 on."""

Seed = Annotated[int, Field(ge=0, le=LARGEST_SEED)]
"""A whole number that every generator takes as its seed."""

Number = Annotated[float, BeforeValidator(_number), Field(allow_inf_nan=False)]
"""A finite number, which may be written as text."""

Names = Annotated[tuple[str, ...], Field(strict=False)]
"""A list of texts."""

Counts = Annotated[tuple[Count, ...], Field(strict=False)]
"""A list of whole numbers from 1 on."""


def canonical(spec: Any, where: str) -> str:
    """Return a spec in its canonical form, or `dense`.

    Raises:
        RecipeError: it can't be read.
    """
    from foveate.spec import parse

    if spec is None or spec == DENSE:
        return DENSE
    if not isinstance(spec, str):
        raise RecipeError(f"{where} is a spec like pool:0.25@2, or dense, not {spec!r}")
    try:
        return str(parse(spec))
    except FoveateError as error:
        raise RecipeError(f"{where}:\n{error}") from None


def read_mapping(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds a mapping.

    Raises:
        RecipeError: there is no such file, it isn't plain YAML, or it holds something else.
    """
    try:
        found = read_yaml(path, "recipe")
    except FileError as error:
        raise RecipeError(str(error)) from None
    if not isinstance(found, dict):
        what = "and this file is empty" if found is None else f"not {type(found).__name__}"
        raise RecipeError(f"{shown_path(path)}: a recipe is a mapping, {what}")
    return found


_WORDS: Final[dict[str, str]] = {
    "int": "a whole number",
    "float": "a number",
    "finite": "a finite number",
    "string": "text",
    "bool": "true or false",
    "tuple": "a list",
    "dict": "a mapping",
    "model": "a mapping",
}
"""What people call the kinds of values that pydantic's errors name."""

_BOUNDS: Final = ("ge", "gt", "le", "lt")

_ORDER: Final = ("model_type", "extra_forbidden", "missing")
"""Of several errors the first of these kinds is reported: a misspelt key explains the missing one."""


def _own_error(error: ValidationError) -> RecipeError:
    """Return the error that a model's own validator has raised, which pydantic puts into one of its own."""
    return error.errors(include_url=False)[0].get("ctx", {})["error"]


def _line(kind: type[Settings], error: ValidationError) -> str:
    """Write the most telling of pydantic's errors as one line."""
    found = sorted(
        error.errors(include_url=False),
        key=lambda each: _ORDER.index(each["type"]) if each["type"] in _ORDER else len(_ORDER),
    )[0]
    what, value, context = found["type"], found["input"], found.get("ctx", {})
    inside = "" if kind.outermost else f"{kind.place}: "
    if what == "value_error":
        return str(context["error"]) if getattr(context["error"], "placed", False) else f"{inside}{context['error']}"
    if not found["loc"]:
        return f"{kind.place} is a mapping, not {type(value).__name__}"
    name, *items = found["loc"]
    if what in ("extra_forbidden", "invalid_key"):
        return f'{kind.place} has no key "{name}"; {nearest(str(name), kind.model_fields)}'
    if what == "missing":
        return f'{kind.place} lacks "{name}"'
    places = [str(item + 1 if isinstance(item, int) else item) for item in items]
    item_name = ", number ".join([str(name), *places])
    return f"{inside}{item_name} is {_wanted(kind, str(name), what, context)}, not {quoted(value)}"


def each_of(kind: type[Settings], given: list[Any], place: str) -> tuple[Any, ...]:
    """Read a list of mappings; errors call each by its place in the list, counted from 1.

    Raises:
        RecipeError: one of them is broken.
    """
    found: list[Any] = []
    for number, one in enumerate(given, start=1):
        try:
            found.append(kind.model_validate(one))
        except RecipeError as error:
            text = f"{place}, number {number}{str(error).removeprefix(kind.place)}"
            raise RecipeError(text, placed=True) from None
    return tuple(found)


def _wanted(kind: type[Settings], name: str, what: str, context: dict[str, Any]) -> str:
    """Say what a value should have been."""
    if what == "literal_error":
        return f"one of {context['expected'].replace(' or ', ', ')}".replace("'", "")
    field = kind.model_fields[name]
    bounds = {key: getattr(each, key) for each in field.metadata for key in _BOUNDS if hasattr(each, key)}
    bounds |= {key: context[key] for key in _BOUNDS if key in context}
    if any(key in context for key in bounds):
        if any(part is int for part in _parts(field.annotation)):
            least, most = bounds.get("ge", 0), bounds.get("le", MOST)
            return f"a whole number from {least:,} " + ("on" if most == MOST else f"to {most:,}")
        return f"{field.description} {_range(bounds)}" if field.description else _range(bounds)
    word = _WORDS.get(what.split("_")[0], what.replace("_", " "))
    return f"{word} or nothing" if type(None) in get_args(field.annotation) else word


def _range(bounds: dict[str, float]) -> str:
    """Write bounds in words.

    >>> _range({"ge": 0, "lt": 1}), _range({"gt": 0, "lt": 1}), _range({"gt": 0})
    ('from 0 to below 1', 'between 0 and 1', 'more than 0')
    """
    if "gt" in bounds and "lt" in bounds:
        return f"between {bounds['gt']:g} and {bounds['lt']:g}"
    low = f"from {bounds['ge']:g}" if "ge" in bounds else f"more than {bounds['gt']:g}"
    if "le" in bounds:
        return f"{low} to {bounds['le']:g}"
    if "lt" in bounds:
        return f"{low} to below {bounds['lt']:g}"
    return low if "gt" in bounds else f"at least {bounds['ge']:g}"


def _parts(annotation: Any) -> list[Any]:
    """List the plain types inside an annotation."""
    if get_origin(annotation) in (Union, types.UnionType, Annotated, tuple):
        return [part for each in get_args(annotation) for part in _parts(each)]
    return [annotation]
