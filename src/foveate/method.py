"""The base classes of methods: frozen dataclasses that make plans; and a step, which is a method at some places."""

from __future__ import annotations

import functools
import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, NamedTuple

import torch
from jaxtyping import Float

from foveate.arguments import check_kind, listed
from foveate.errors import FoveateError, KeepError, SpecError, shown
from foveate.keep import Keep
from foveate.layout import Layout
from foveate.options import check_options, written
from foveate.plan import SELECTED, Plan
from foveate.tokens import PLACES, Place, Signal, VisualTokens

if TYPE_CHECKING:
    from torch import Tensor

Positions = Literal["keep", "pack"]
Per = Literal["image", "tile", "frame"]
ResizeMode = Literal["auto", "exact", "interpolate", "enlarge"]
ALL = Keep.of(1.0)
AUTO = Keep.of("auto")
MOST_BYTES: Final = 2_000_000_000
"""The most that a plan of one image may hold at once, beside its features and signals."""
MANY: Final = 8192
"""Plans of fewer tokens hold less than that, whatever the method."""


class Effort(NamedTuple):
    """The work of planning one image on an accelerator, for the cost model; the images of a batch share operations.

    Tests compare all of it with what is counted. Where the content decides, it is an estimate.

    Attributes:
        flops: FLOPs of the plan, one multiply-add being 2; those of applying it are left out.
        launches: operations that start work on the device, those of applying the plan among them.
        waits: how often the host waits for the device: for a value, or for a number of tokens that values decide.
    """

    flops: float
    launches: int
    waits: int = 0


def _checked(function: Callable[..., Any], kind: type, expected: str) -> Callable[..., Any]:
    """Return a method that checks its one argument before it runs: its type, and that `temporal` ones get a clip.

    What plans checks its memory, too.
    """
    name = [*inspect.signature(function).parameters][1]
    plans = function.__name__ == "plan"

    @functools.wraps(function)
    def checking(self: Any, *given: Any, **named: Any) -> Any:
        if given or name in named:
            value = given[0] if given else named[name]
            check_kind(name, value, kind, expected)
            self.check_frames(value if kind is Layout else value.layout)
            if plans and value.layout.content >= MANY:
                self.check_memory(*value.features.shape[1:])
        return function(self, *given, **named)

    return checking


@dataclass(frozen=True)
class Method(ABC):
    """A rule that makes a plan from visual tokens. It never sees a model, a prompt's length or a device.

    Attributes:
        keep: how many tokens remain: an int is tokens per image, a float the fraction of those that arrive; an adaptive
            method also takes "auto", and decides from the content.
        positions: whether kept tokens keep their position ids ("keep") or get new ones without gaps ("pack").
        per: whether `keep` is the budget of an image or clip ("image"), of each tile of an image ("tile") or of each
            frame of a clip ("frame"); a tile or frame that has fewer tokens than a budget keeps all. The engine splits
            them (`foveate.methods.tiles`); `count` and `plan` handle one budget.
        place: default place; "decoder" means the input of one decoder layer or several, which a step names.
        layers: of a method of the decoder, the layers that its authors use, in a decoder of 32.
        fixed: whether the layout alone decides which tokens are kept.
        temporal: whether it compares or chooses whole frames, so that it acts on clips of two frames or more alone.
        unchanged_if_all: whether every token stays as it is where all are kept, so that the engine needs no plan then.
        takes_keep: False if the rule alone decides how much remains; specs then leave the keep out.
        operations: that an accelerator starts to plan one image and to apply the plan, if `effort` is the default.
    """

    keep: Keep = ALL
    positions: Positions = "keep"
    per: Per = "image"

    name: ClassVar[str] = ""
    place: ClassVar[Place] = "input"
    layers: ClassVar[tuple[int, ...]] = ()
    fixed: ClassVar[bool] = False
    temporal: ClassVar[bool] = False
    unchanged_if_all: ClassVar[bool] = False
    takes_keep: ClassVar[bool] = True
    operations: ClassVar[int] = 3 + SELECTED
    paper: ClassVar[str] = ""
    query_aware: ClassVar[bool] = False
    adaptive: ClassVar[bool] = False
    trained: ClassVar[bool] = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "keep", Keep.of(self.keep))
        if self.keep.auto and not self.adaptive:
            raise KeepError(
                f"{self.name} must be told how much to keep; write a number of tokens (64) or a fraction (0.25)"
            )
        if not self.takes_keep and self.keep != ALL:
            raise KeepError(f"{self.name} takes no keep: its rule decides how much remains; leave {self.keep} out")
        if self.keep.mean is not None and self.per != "image":
            raise KeepError(
                f"{self.keep} is a mean over the layers of an image; with per={self.per} write one keep per layer"
            )
        if self.temporal and self.per == "frame":
            raise KeepError(
                f"{self.name} works on several frames of a clip, so it can't plan each by itself; leave per=frame out, "
                "or use a method for images, such as cluster"
            )
        check_options(self)

    def __init_subclass__(cls, **options: Any) -> None:
        """Let the methods of every subclass that take a layout or tokens check the type of that argument."""
        super().__init_subclass__(**options)
        for name, kind, expected in (
            ("count", Layout, "a Layout"),
            ("bounds", Layout, "a Layout"),
            ("shrink", Layout, "a Layout"),
            ("plan", VisualTokens, "VisualTokens, which VisualTokens.of makes"),
            ("score", VisualTokens, "VisualTokens, which VisualTokens.of makes"),
        ):
            if name in cls.__dict__:
                setattr(cls, name, _checked(cls.__dict__[name], kind, expected))

    @property
    def places(self) -> tuple[Place, ...]:
        """The default places with these options; a step without places acts there."""
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
        """Check that the method can act at these places; the default accepts all.

        Methods with weights check that the weights were made for this model.

        Args:
            places: of its step.
            base: returns the fingerprint of the model; "" if the model has no weights.

        Raises:
            FoveateError: it can't act there.
        """
        return

    @property
    def needs(self) -> tuple[Signal, ...]:
        """The signals that the method reads."""
        return ()

    @property
    def ragged(self) -> bool:
        """Whether, with these options, images of one layout may keep different numbers of tokens."""
        return self.adaptive

    def count(self, layout: Layout) -> int:
        """Compute how many tokens of an image of this layout are kept; if the content decides, the most.

        Raises:
            KeepError: the keep is more than there are tokens.
        """
        check_kind("layout", layout, Layout, "a Layout")
        self.check_frames(layout)
        return self.keep.count(layout.content)

    def keeps_all(self, tokens: int | None = None) -> bool:
        """Return whether all of so many tokens (None: of any number) stay as they are, so that no plan is needed.

        >>> from foveate.methods.random import Random
        >>> Random(keep=1.0).keeps_all(576), Random(keep=576).keeps_all(576), Random(keep=64).keeps_all(576)
        (True, True, False)
        """
        if not self.unchanged_if_all or self.ragged:
            return False
        return self.keep == ALL or (self.per == "image" and tokens is not None and self.keep.tokens == tokens)

    def check_frames(self, layout: Layout) -> None:
        """Check that a `temporal` method is given a clip: one grid of two frames or more. Others take any layout.

        Raises:
            FoveateError: it is given something else.
        """
        if not self.temporal or (len(layout.segments) == 1 and layout.segments[0].t > 1):
            return
        grids = layout.segments
        found = f"one frame of {grids[0].h} x {grids[0].w} tokens" if len(grids) == 1 else f"{len(grids)} grids"
        raise FoveateError(
            f"{self.name} works on the frames of a clip, and was given {found}; use it on clips of 2 frames or more, "
            "as the first step after the encoder, or use a method for images, such as cluster"
        )

    def bounds(self, layout: Layout) -> tuple[int, int]:
        """Compute the fewest and the most tokens of an image of this layout that may be kept: equal unless `ragged`.

        Raises:
            KeepError: the keep is more than there are tokens.
        """
        count = self.count(layout)
        return count, count

    def at_layers(self, places: Sequence[Place], arriving: int, layers: int) -> tuple[Method, ...]:
        """Return the method for each of its places, with one number or fraction as its keep.

        Args:
            places: decoder layers, ascending, where keep is one per layer or a mean over them.
            arriving: tokens of the image that arrive at the first of them.
            layers: of the decoder.

        Raises:
            KeepError: no keep at these layers gives the mean that is asked for.
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
        """Return the method for the input of each of `layers` encoder layers, with one number as its keep.

        Each drops equally many tokens, rounded to whole tokens.

        >>> from foveate.methods.tome import ToMe
        >>> [str(each.keep) for each in ToMe(keep=0.25).in_encoder(576, 4)]
        ['468', '360', '252', '144']

        Args:
            arriving: tokens of the image before the first of them.
            layers: of the encoder.

        Raises:
            FoveateError: the rule can't act there.
            KeepError: the keep is more than there are tokens, or can't be reached in so many layers.
        """
        if self.ragged:
            raise FoveateError(
                f"{self} lets the content decide how many tokens remain, and inside the encoder all images of a batch "
                "keep equally many; write a number or a fraction"
            )
        if self.temporal:
            raise FoveateError(
                f"{self.name} works on the frames of a clip, and after the first step inside the encoder their tokens "
                "no longer stand at equal places; use @features or @input"
            )
        if self.fixed:
            raise FoveateError(
                f"{self.name} reads the grid alone, and after the first step inside the encoder there is none; use "
                "@features or @input"
            )
        gone = arriving - self.keep.count(arriving)
        return tuple(
            replace(self, keep=Keep(tokens=arriving - gone * number // layers)) for number in range(1, layers + 1)
        )

    def budgets(self, places: Sequence[int], arriving: int, layers: int) -> tuple[int, ...]:
        """Compute the tokens to keep at each layer, so that the mean over all decoder layers is `keep.mean`.

        Each layer keeps the same fraction of the tokens that arrive, rounded to whole tokens.

        >>> from foveate.methods.pool import Pool
        >>> Pool(keep="mean=270").budgets((8, 16, 24), 576, 32)
        (288, 144, 72)

        Raises:
            KeepError: no fraction at these layers gives that mean.
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
        """Estimate the work of `plan` for one image of `tokens` tokens, each `width` wide.

        The default reads each feature once, in `operations`. Override it if `plan` multiplies tokens with tokens, if
        its options decide how much it does, or if the host waits for it.
        """
        return Effort(2 * tokens * width, self.operations)

    def memory(self, tokens: int, width: int) -> int:
        """Estimate the most bytes that `plan` holds at once for one image, beside the features and signals.

        The estimate is for features in float32 on a CPU; others are copied to float32 first. The default holds a few
        numbers per token. Override it if `plan` holds pairs of tokens, or copies of features.
        """
        return 17 * tokens

    def check_memory(self, tokens: int, width: int) -> None:
        """Refuse to plan an image for which `memory` is above 2 GB; where the content decides how much, it isn't known.

        Raises:
            FoveateError: it is.
        """
        needed = 0 if self.ragged else self.memory(tokens, width)
        if needed > MOST_BYTES:
            raise FoveateError(
                f"{self} would hold {needed / 1e9:,.1f} GB at once to plan {tokens:,} tokens, and may hold "
                f"{MOST_BYTES / 1e9:g} GB; keep fewer, let a step before it leave fewer, such as pool, or plan parts "
                "by themselves with per=frame or per=tile"
            )

    @abstractmethod
    def plan(self, tokens: VisualTokens) -> Plan:
        """Decide which tokens are kept and what is merged into them."""

    def __str__(self) -> str:
        return written(self)


class ScoredMethod(Method):
    """Keeps the tokens with the highest scores, in their order; of equal scores, the first."""

    @abstractmethod
    def score(self, tokens: VisualTokens) -> Float[Tensor, "B N"]:
        """Score each token: `(B, N)`; the highest scores are kept."""

    def plan(self, tokens: VisualTokens) -> Plan:
        """Keep the tokens with the highest scores."""
        return Plan.highest(self.score(tokens), self.count(tokens.layout))


class PixelMethod(Method):
    """A method that shrinks the image before the encoder; the family does the resizing."""

    place = "pixels"
    mode: ResizeMode

    @abstractmethod
    def shrink(self, layout: Layout) -> tuple[int, int]:
        """Compute the rows and columns of visual tokens that an image of this layout is shrunk to."""

    def count(self, layout: Layout) -> int:
        """Count the tokens of the shrunk image."""
        height, width = self.shrink(layout)
        return height * width * layout.segments[0].t

    def plan(self, tokens: VisualTokens) -> Plan:
        """Keep all tokens: the encoder made no more."""
        slots = torch.arange(tokens.features.shape[1], device=tokens.features.device)
        return Plan(slot=slots.expand(tokens.features.shape[0], -1))


@dataclass(frozen=True)
class Step:
    """A method at one or more places; without places, at its default."""

    method: Method
    places: tuple[Place, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.method, Method):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise SpecError(f"a step takes a method object such as Cluster(keep=64), not {shown(self.method)}")
        given: Any = self.places
        places = (given,) if isinstance(given, (str, int)) else tuple(listed("places", given, "places of a step"))
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
