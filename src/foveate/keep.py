"""How much a method keeps: a number of tokens, a fraction, one of these per layer, or a mean over layers."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Any, cast

from foveate.errors import KeepError, quoted, shown
from foveate.numbers import Between, check_whole, read_decimal, read_whole


@dataclass(frozen=True)
class Keep:
    """How many tokens a method keeps: a number per image, an exact fraction of those that arrive, or "auto".

    One rounding rule: a fraction of N tokens is rounded to the nearest whole number, halves up, and is at least 1.
    A step at several decoder layers may have one keep for each ("300/200/110"), or the mean over all layers of the
    decoder ("mean=64"), from which the method makes one for each.

    >>> Keep.of("0.25").count(576), Keep.of(64).count(576), Keep.of(1.0).count(576)
    (144, 64, 576)
    >>> str(Keep.of(0.5)), str(Keep.of(1.0)), str(Keep.of(1)), str(Keep.of("auto"))
    ('0.5', '1.0', '1', 'auto')
    >>> [each.count(576) for each in Keep.of("300/0.5").layers], Keep.of("mean=64").mean
    ([300, 288], 64)
    """

    tokens: int | None = None
    share: Fraction | None = None
    auto: bool = False
    """The method decides from the content; only adaptive methods can."""
    layers: tuple[Keep, ...] = ()
    """One keep per layer."""
    mean: int | None = None
    """Mean number of tokens per layer, over all layers of the decoder."""

    def __post_init__(self) -> None:
        given: Any = self.layers
        members = cast("tuple[Any, ...]", given) if isinstance(given, tuple) else (None,)
        if not all(isinstance(each, Keep) for each in members):
            raise KeepError(f"layers of a keep are a tuple of Keep objects, not {shown(self.layers)}")
        numbers: tuple[tuple[str, Any, type[Any]], ...] = (
            ("tokens", self.tokens, int),
            ("mean", self.mean, int),
            ("share", self.share, Fraction),
        )
        for name, value, kind in numbers:
            fits = type(value) is not bool and isinstance(value, kind)  # pyright: ignore[reportUnnecessaryIsInstance]
            if value is not None and not fits:
                raise KeepError(f"{name} of a keep is a {kind.__name__}, not {shown(value)}; Keep.of reads other forms")
        if self.layers or self.mean is not None:
            self._check_layers()
            return
        if self.auto and self.tokens is None and self.share is None:
            return
        if self.auto or (self.tokens is None) == (self.share is None):
            raise KeepError("a keep is a number of tokens or a fraction of them: give one of the two")
        if self.tokens is not None and self.tokens < 1:
            raise KeepError(
                f"keep {self.tokens} leaves nothing; keep at least 1 token, or a fraction above 0 such as 0.25"
            )
        if self.share is not None and (not 0 < self.share <= 1 or _digits(self.share) is None):
            raise KeepError(f"keep {self.share} is no decimal fraction above 0 and up to 1.0; 0.25, for instance, is")

    def _check_layers(self) -> None:
        kinds = (self.tokens, self.share, self.auto or None, self.layers or None, self.mean)
        nested = any(each.layers or each.mean for each in self.layers)
        if sum(kind is not None for kind in kinds) != 1 or nested or len(self.layers) == 1:
            raise KeepError("a keep is a number, a fraction, one of them per layer, or a mean over layers: give one")
        if self.mean is not None and self.mean < 1:
            raise KeepError(f"a mean of {self.mean} tokens leaves nothing; write at least mean=1")
        counts = [each.tokens for each in self.layers if each.tokens is not None]
        for earlier, later in pairwise(counts):
            if later > earlier:
                raise KeepError(
                    f"keep {self} grows with depth; no more than {earlier} tokens arrive where {later} should stay"
                )

    @classmethod
    def of(cls, value: Keep | float | str) -> Keep:
        """Read a keep: an int is a number of tokens, a float a fraction; text with a dot is a fraction.

        Raises:
            KeepError: the value is none of these, nor "auto", one keep per layer ("300/200") or a mean ("mean=64").
        """
        if isinstance(value, Keep):
            return value
        text = "" if isinstance(value, int) and abs(value) > 10**30 else str(value).strip(" ")
        if text == "auto":
            return cls(auto=True)
        if "/" in text:
            return cls(layers=tuple(cls.of(each) for each in text.split("/")))
        if mean := re.fullmatch(r"mean\s*=\s*([0-9]{1,9})", text):
            return cls(mean=int(mean[1]))
        try:
            if isinstance(value, bool):
                raise ValueError
            if not re.search(r"\.|e-", text):
                return cls(tokens=read_whole(text))
            share = read_decimal(text)
        except KeepError:
            raise
        except ValueError:
            raise KeepError(
                f"invalid keep {quoted(value)}; write a number of tokens (64) or a fraction of them (0.25)"
            ) from None
        if not 0 < share <= 1:
            raise KeepError(f"keep {text} is no fraction above 0 and up to 1.0; a number of tokens has no dot (64)")
        return cls(share=share)

    def count(self, tokens: int) -> int:
        """Compute how many of `tokens` tokens are kept.

        Raises:
            KeepError: the keep is more than `tokens`, or the content decides.
            FoveateError: `tokens` is no number of tokens.
        """
        if self.layers or self.mean is not None:
            raise KeepError(
                f"keep {self} is for a step at several decoder layers; write one for each, as in 300/200@8,16"
            )
        if self.auto:
            raise KeepError("keep auto gives no number; the method's `bounds` give the fewest and the most tokens")
        tokens = check_whole("tokens", tokens, Between(0, math.inf))
        if self.share is not None:
            return max(1, math.floor(self.share * tokens + Fraction(1, 2)))
        assert self.tokens is not None
        if self.tokens > tokens:
            raise KeepError(
                f"keep {self.tokens} is more than the {tokens} tokens there are; keep at most {tokens}, or 1.0"
            )
        return self.tokens

    def __str__(self) -> str:
        if self.auto:
            return "auto"
        if self.layers:
            return "/".join(map(str, self.layers))
        if self.mean is not None:
            return f"mean={self.mean}"
        if self.share is None:
            return str(self.tokens)
        digits = _digits(self.share)
        assert digits is not None
        whole, rest = divmod(int(self.share * 10**digits), 10**digits)
        return f"{whole}.{rest:0{digits}d}"


def _digits(share: Fraction) -> int | None:
    """Return how many decimal places write a fraction exactly, at least 1; None if no number does."""
    rest, twos, fives = share.denominator, 0, 0
    while rest % 2 == 0:
        rest, twos = rest // 2, twos + 1
    while rest % 5 == 0:
        rest, fives = rest // 5, fives + 1
    return max(1, twos, fives) if rest == 1 else None


def spread(budget: int, weights: Sequence[int]) -> list[int]:
    """Divide `budget` in proportion to `weights`, at least 1 each, by largest remainders.

    >>> spread(10, [1, 1, 2])
    [3, 2, 5]
    """
    whole = sum(weights)
    # In whole numbers, which torch.compile can follow.
    parts = [max(1, budget * weight // whole) for weight in weights]
    order = sorted(range(len(weights)), key=lambda i: (parts[i] * whole - budget * weights[i], i))
    for i in order:
        if sum(parts) >= budget:
            break
        parts[i] += 1
    return parts
