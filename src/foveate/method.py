"""What every method is: a frozen dataclass that makes plans."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from foveate.errors import FoveateError, KeepError, SpecError, shown
from foveate.keep import Keep
from foveate.layout import Layout
from foveate.options import check_choices, written
from foveate.plan import Plan
from foveate.tokens import PLACES, Place, Signal, VisualTokens

Positions = Literal["keep", "pack"]
Per = Literal["image", "tile"]
ResizeMode = Literal["auto", "exact", "interpolate", "enlarge"]
ALL = Keep.of(1.0)
AUTO = Keep.of("auto")


class Effort(NamedTuple):
    """What making the plan of one image takes, roughly: for the cost model, which adds signals and the plan's use.

    Attributes:
        flops: FLOPs, one multiply-add being 2.
        launches: tensor operations one behind another; images of a batch share them.
    """

    flops: float
    launches: int


@dataclass(frozen=True)
class Method(ABC):
    """One idea: from visual tokens to a plan. It never sees a model, a prompt's length or a device.

    Attributes:
        keep: how much remains: an int is tokens per image, a float the fraction of what arrives; an adaptive method
            also takes "auto", and looks at the content.
        positions: whether kept tokens keep their position ids ("keep") or get new ones without gaps ("pack").
        per: whether `keep` is the budget of an image or of each of its tiles; a tile that has fewer tokens than a
            budget keeps all. The engine sees to it (`foveate.methods.tiles`), `count` and `plan` know of one budget.
        place: where it acts by nature; "decoder" is at the input of one decoder layer or of several.
        layers: of a method of the decoder, the layers where its authors have it act, of 32.
        fixed: whether the layout alone decides which tokens remain.
        takes_keep: False if the rule alone decides how much remains; specs then leave the keep out.
    """

    keep: Keep = ALL
    positions: Positions = "keep"
    per: Per = "image"

    name: ClassVar[str] = ""
    place: ClassVar[Place] = "input"
    layers: ClassVar[tuple[int, ...]] = ()
    fixed: ClassVar[bool] = False
    takes_keep: ClassVar[bool] = True
    paper: ClassVar[str] = ""
    query_aware: ClassVar[bool] = False
    adaptive: ClassVar[bool] = False
    trained: ClassVar[bool] = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "keep", Keep.of(self.keep))
        if self.keep.auto and not self.adaptive:
            raise KeepError(f"{self.name} is told how much to keep; write a number of tokens (64) or a fraction (0.25)")
        if not self.takes_keep and self.keep != ALL:
            raise KeepError(f"{self.name} takes no keep: its rule decides how much remains; leave {self.keep} out")
        if self.keep.mean is not None and self.per == "tile":
            raise KeepError(
                f"{self.keep} is a mean over the layers of an image; with per=tile write one keep per layer"
            )
        check_choices(self)

    @property
    def places(self) -> tuple[Place, ...]:
        """Where it acts by nature, with these options; a spec that says nothing of places means these."""
        return (self.place,)

    def at(self, *places: Place) -> Step:
        """Make a step of this method at places other than its default.

        >>> from foveate.methods.fastv import FastV
        >>> str(FastV(keep=0.5).at(2)), str(FastV(keep=0.5).at(8, 16))
        ('fastv:0.5@2', 'fastv:0.5@8,16')

        Args:
            places: names of places or numbers of decoder layers; none means the default place.

        Raises:
            KeepError: `keep` holds one number per layer, and there are more or fewer places.
            SpecError: no place has such a name.
        """
        return Step(self, places)

    def check(self, places: Sequence[Place], base: Callable[[], str]) -> None:
        """Whether it can act there; methods with weights look at whose they are. Anything goes, as it stands.

        Args:
            places: of its step.
            base: tells the fingerprint of the model; "" where the model has no weights.

        Raises:
            FoveateError: it can't.
        """
        return

    @property
    def needs(self) -> tuple[Signal, ...]:
        """The signals it looks at."""
        return ()

    @property
    def ragged(self) -> bool:
        """Whether, with these options, images of one layout may differ in how many tokens remain."""
        return self.adaptive

    def count(self, layout: Layout) -> int:
        """Tokens that remain of an image of this layout, before any pixel is seen; if the content decides, the most.

        Raises:
            KeepError: more would remain than there are.
        """
        return self.keep.count(layout.content)

    def bounds(self, layout: Layout) -> tuple[int, int]:
        """The fewest and the most tokens that may remain of an image of this layout: one number unless `ragged`.

        Raises:
            KeepError: more would remain than there are.
        """
        count = self.count(layout)
        return count, count

    def at_layers(self, places: Sequence[Place], arriving: int, layers: int) -> tuple[Method, ...]:
        """The method as it acts at each of its places, with a plain keep.

        Args:
            places: decoder layers, ascending, where keep is one per layer or a mean over them.
            arriving: tokens of the image that arrive at the first of them.
            layers: of the decoder.

        Raises:
            KeepError: the mean over layers that is asked for can't be had from these layers.
        """
        if self.keep.layers:
            return tuple(replace(self, keep=keep) for keep in self.keep.layers)
        if self.keep.mean is None:
            return (self,) * len(places)
        return tuple(
            replace(self, keep=Keep(tokens=count))
            for count in self.budgets([place for place in places if isinstance(place, int)], arriving, layers)
        )

    def in_encoder(self, arriving: int, layers: int) -> tuple[Method, ...]:
        """The method as it acts at the inputs of `layers` encoder layers, one behind another, with a plain keep.

        Equally many tokens go at each, as near as whole tokens come.

        >>> from foveate.methods.tome import ToMe
        >>> [str(each.keep) for each in ToMe(keep=0.25).in_encoder(576, 4)]
        ['468', '360', '252', '144']

        Args:
            arriving: tokens of the image in front of the first of them.
            layers: of the encoder.

        Raises:
            FoveateError: the rule can't act there.
            KeepError: more would remain than there are, or it can't be had in so many layers.
        """
        if self.ragged:
            raise FoveateError(
                f"{self} lets the content decide how much remains, and inside the encoder all images of a batch keep "
                "equally many; write a number or a fraction"
            )
        if self.fixed:
            raise FoveateError(
                f"{self.name} looks at the grid alone, which is gone behind the first step inside the encoder; use "
                "@features or @input"
            )
        gone = arriving - self.keep.count(arriving)
        return tuple(
            replace(self, keep=Keep(tokens=arriving - gone * number // layers)) for number in range(1, layers + 1)
        )

    def budgets(self, places: Sequence[int], arriving: int, layers: int) -> tuple[int, ...]:
        """Tokens to keep at each layer, so that the mean over all layers of the decoder is `keep.mean`.

        The same fraction of what arrives at each, as near as whole tokens come.

        >>> from foveate.methods.pool import Pool
        >>> Pool(keep="mean=270").budgets((8, 16, 24), 576, 32)
        (288, 144, 72)

        Raises:
            KeepError: it can't be had from these layers.
        """
        assert self.keep.mean is not None
        spans = [end - begin for begin, end in pairwise((*places, layers))]
        wanted = self.keep.mean * layers - arriving * places[0]
        if not sum(spans) <= wanted <= arriving * sum(spans):
            least = (arriving * places[0] + sum(spans)) / layers
            raise KeepError(
                f"{self} at layers {', '.join(map(str, places))} of {layers}: {arriving} tokens arrive, so the mean "
                f"over layers can be {least:.1f} to {arriving}; name earlier layers or another mean"
            )
        low, high = 0.0, 1.0
        for _ in range(60):
            share = (low + high) / 2
            mass = sum(span * arriving * share ** (number + 1) for number, span in enumerate(spans))
            low, high = (share, high) if mass < wanted else (low, share)
        return tuple(max(1, math.floor(arriving * high ** (number + 1) + 0.5)) for number in range(len(spans)))

    def effort(self, tokens: int, width: int) -> Effort:
        """An estimate of what `plan` takes for one image of `tokens` tokens, each `width` wide.

        As it stands: look at each feature once, sort, pick. Override it where products of tokens or loops are made.
        """
        return Effort(2 * tokens * width, 12)

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


@dataclass(frozen=True)
class Step:
    """One method at one or more places; no places means its natural one."""

    method: Method
    places: tuple[Place, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.method, Method):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise SpecError(f"a step takes a method object such as Cluster(keep=64), not {shown(self.method)}")
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


def _check_place(place: Any) -> None:
    whole = isinstance(place, int) and not isinstance(place, bool) and place >= 0
    if not whole and place not in (*PLACES, "decoder"):
        raise SpecError(
            f"no place is called {place!r}; there are {', '.join(PLACES)}, and the numbers of decoder layers"
        )
