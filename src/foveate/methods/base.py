"""What every method is: a frozen dataclass that makes plans."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from foveate.plan import Plan
from foveate.spec import check_choices, written
from foveate.tokens import Keep, Layout, Place, Signal, VisualTokens

Positions = Literal["keep", "pack"]
ResizeMode = Literal["auto", "exact", "interpolate", "enlarge"]
ALL = Keep.of(1.0)


@dataclass(frozen=True)
class Method(ABC):
    """One idea: from visual tokens to a plan. It never sees a model, a prompt's length or a device.

    Attributes:
        keep: how much remains: an int is tokens per image, a float the fraction of what arrives.
        positions: whether kept tokens keep their position ids ("keep") or get new ones without gaps ("pack").
    """

    keep: Keep = ALL
    positions: Positions = "keep"

    name: ClassVar[str] = ""
    place: ClassVar[Place] = "input"
    paper: ClassVar[str] = ""
    query_aware: ClassVar[bool] = False
    adaptive: ClassVar[bool] = False
    trained: ClassVar[bool] = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "keep", Keep.of(self.keep))
        check_choices(self)

    @property
    def needs(self) -> tuple[Signal, ...]:
        """The signals it looks at."""
        return ()

    def count(self, layout: Layout) -> int:
        """Tokens that remain of an image of this layout, before any pixel is seen.

        Raises:
            KeepError: more would remain than there are.
        """
        return self.keep.count(layout.content)

    @abstractmethod
    def plan(self, tokens: VisualTokens) -> Plan:
        """What becomes of these tokens."""

    def __str__(self) -> str:
        return written(self)


class ScoredMethod(Method):
    """Keeps the tokens with the highest scores, in their order; of equal scores, the first."""

    @abstractmethod
    def score(self, tokens: VisualTokens) -> Float[Tensor, "B N"]:
        """How much each token matters: `(B, N)`, higher stays."""

    def plan(self, tokens: VisualTokens) -> Plan:
        """Top-k by score."""
        # Not topk: which of equal scores it takes differs between devices, and half precision makes many equal.
        order = self.score(tokens).argsort(dim=1, descending=True, stable=True)
        return Plan(slot=order[:, : self.count(tokens.layout)].sort(dim=1).values)


class PixelMethod(Method):
    """Acts on the image before the encoder; the family knows how."""

    place = "pixels"
    mode: ResizeMode

    @abstractmethod
    def shrink(self, layout: Layout) -> tuple[int, int]:
        """Rows and columns of visual tokens that an image of this layout is shrunk to."""

    def count(self, layout: Layout) -> int:
        """Tokens that remain."""
        height, width = self.shrink(layout)
        return height * width * layout.segments[0].t

    def plan(self, tokens: VisualTokens) -> Plan:
        """Nothing is left to plan behind the encoder."""
        slots = torch.arange(tokens.features.shape[1], device=tokens.features.device)
        return Plan(slot=slots.expand(tokens.features.shape[0], -1))
