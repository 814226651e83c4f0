"""Every method that is told how much to keep and acts behind the encoder, and options to try it with."""

from typing import Any

from foveate.listing import listing
from foveate.methods import PixelMethod, method_class

Variant = tuple[str, dict[str, Any]]

NUMBERS: tuple[Variant, ...] = (
    ("random", {"seed": 3}),
    ("random", {"seed": 5}),
    ("cluster", {"start": "plusplus", "seed": 1}),
    ("cluster", {"start": "plusplus", "seed": 2}),
    ("cluster", {"iterations": 0}),
    ("sparsevlm-plus", {"heads": 2}),
    ("dart", {"text_pivots": 0}),
    ("dart", {"text_pivots": 0, "pivots": 1}),
    ("tome", {"per_round": 2, "metric": "keys"}),
    ("tome", {"per_round": 3, "metric": "keys"}),
    ("dpc-knn", {"neighbours": 1}),
    ("dpc-knn", {"neighbours": 3}),
    ("visionzip", {"contextual": 0}),
    ("visionzip", {"contextual": 1}),
    ("prumerge", {"extra": False, "neighbours": 3}),
    ("prumerge", {"extra": False, "neighbours": 4}),
    ("vispruner", {"important": 0.0, "step": 3}),
    ("vispruner", {"important": 0.25, "step": 3}),
    ("vispruner", {"important": 1.0}),
    ("holov", {"windows": 3}),
    ("holov", {"windows": 7}),
)
"""Values beside the defaults that declared types don't tell, for methods in which they matter."""

CLIP_NUMBERS: tuple[Variant, ...] = (
    ("fastvid", {"segments": 2, "tau": -1.0, "step": 2}),
    ("fastvid", {"segments": 1, "tau": -1.0, "beta": 0.0}),
    ("fastvid", {"context": 1.0}),
    ("prunevid", {"tau": 0.0, "segments": 0.5}),
    ("prunevid", {"tau": -1.0, "segments": 0.0, "neighbours": 2}),
)
"""The same, for methods that act on clips alone."""


def variants(clips: bool = False) -> tuple[Variant, ...]:
    """Each method with its defaults, with every other choice of each option that has few, and with `NUMBERS`.

    Args:
        clips: whether methods for clips alone are among them, too.
    """
    found: list[Variant] = []
    for card in listing():
        method = method_class(card.name)
        if issubclass(method, PixelMethod) or not method.takes_keep or (method.temporal and not clips):
            continue
        found.append((card.name, {}))
        for option, of in card.options.items():
            default = of["default"]
            choices = [False, True] if isinstance(default, bool) else of.get("choices", [])
            if option not in ("positions", "per"):
                found += [(card.name, {option: choice}) for choice in choices if choice != default]
    return (*found, *NUMBERS, *(CLIP_NUMBERS if clips else ()))


def keeps_its_budget(method: Any) -> bool:
    """Whether no more tokens remain than a method is told, and equally many of each image."""
    return not method.ragged and getattr(method, "recycle", None) != "beside"


def spec_of(variant: Variant) -> str:
    """The spec of a variant, with `{k}` in place of the keep."""
    name, options = variant
    return ":".join([name, "{k}", *(f"{option}={str(value).lower()}" for option, value in options.items())])
