"""Thresholds on what a token gets and where it stands.  ATP-LLaVA, Ye et al. 2024, arXiv 2412.00447 (our reading)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float32
from torch import Tensor

from foveate.methods import (
    AUTO,
    DecoderAttention,
    DecoderLogits,
    FoveateError,
    Keep,
    KeepError,
    Layout,
    Method,
    Place,
    Plan,
    Signal,
    Text,
    VisualTokens,
    register,
)
from foveate.methods.thresholds import LearnedThresholds, Predictor, statistics
from foveate.options import written


@register("atp")
@dataclass(frozen=True)
class ATP(Method):
    """A token stays if it is attended to more than one threshold, or stands on a grid sparser than another.

    Its redundancy score is the mean of two, each stretched to 0 to 1 over the tokens of the image: the mean logit that
    the image's tokens gave it in the layer before, and the mean attention that text gave it there. Its spatial score is
    1 - `sparsity` / s^2 for the largest s of 4, 3 and 2 such that it stands on the grid of every s-th row and column,
    else 0. It stays if the first is above `theta_r` or the second above `theta_s`: a lower `theta_s` lets denser grids
    through, 1.0 none. Reads the question and looks at the content, so images differ in how many tokens remain (at least
    one); a `keep` of its own takes that many by the larger of the two margins instead. The authors act behind layers 4,
    14 and 24 of 32, and keep position ids.

    In the paper a trained module predicts both thresholds for each image and prompt. `adapter` names one (`foveate.ATP`
    trains them): it brings thresholds and layers of its own, and `mean=144` moves the thresholds until an image keeps
    so many tokens per layer on average over images. Without one they are options, 0.5 unless told otherwise. Neither
    the paper's text nor its code was seen (there is no code), only others' accounts of its equations: the stretching,
    the grids and which tokens a mean is over are our choice.

    >>> tokens = VisualTokens.of(
    ...     torch.zeros(1, 4, 2),
    ...     (2, 2),
    ...     decoder_logits=torch.tensor([[0.0, 4.0, 2.0, 1.0]]),
    ...     decoder_attention=torch.tensor([[[0.1, 0.1, 0.3, 0.1]]]),
    ... )
    >>> ATP(theta_s=1.0).plan(tokens).slot.tolist()
    [[2]]
    >>> ATP(theta_s=0.0).plan(tokens).slot.tolist()
    [[2, 3]]
    """

    keep: Keep = AUTO
    theta_r: float = 0.5
    theta_s: float = 0.5
    sparsity: float = 3.0
    adapter: LearnedThresholds | None = None

    place = "decoder"
    layers = (4, 14, 24)
    paper = "arXiv 2412.00447"
    query_aware = True
    adaptive = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("theta_r", "theta_s"):
            if not 0 <= getattr(self, name) <= 1:
                raise FoveateError(f"{name}={getattr(self, name)}: a threshold is from 0 to 1")
        if self.sparsity < 0:
            raise FoveateError(f"sparsity={self.sparsity}: write 0 or more; the paper has 3.0")
        if self.adapter is not None and not self.keep.auto and self.keep.mean is None:
            raise KeepError(f"keep {self.keep}: an adapter decides how much remains; write auto, or a mean (mean=144)")
        if self.adapter is not None and (self.theta_r, self.theta_s) != (ATP.theta_r, ATP.theta_s):
            raise FoveateError("an adapter predicts theta_r and theta_s; leave them out")

    @property
    def places(self) -> tuple[Place, ...]:
        """Where the adapter was trained to act, if there is one."""
        return super().places if self.adapter is None else self.adapter.layers

    @property
    def needs(self) -> tuple[Signal, ...]:
        """Logits from the image and attention from text, of the layer before; an adapter may read the question."""
        scores = (DecoderLogits(layer="previous"), DecoderAttention(rows="text", layer="previous"))
        return (*scores, Text()) if self.adapter is not None and self.adapter.features else scores

    @property
    def ragged(self) -> bool:
        """Only if thresholds decide."""
        return self.keep.auto or self.adapter is not None

    def check(self, places: Sequence[Place], base: Callable[[], str]) -> None:
        """An adapter is for one model and for some of its layers.

        Raises:
            FoveateError: it is for others.
        """
        if self.adapter is None:
            return
        if tuple(places) != self.adapter.layers:
            learned, given = (",".join(map(str, each)) for each in (self.adapter.layers, places))
            raise FoveateError(f"the adapter {self.adapter} acts at layers {learned}, not at {given}; leave @ out")
        model = base()
        if model and model != self.adapter.base:
            raise FoveateError(
                f"the adapter {self.adapter} was made for another base model (their weights differ); load the model "
                "that it was trained with, or train a new one"
            )

    def at_layers(self, places: Sequence[Place], arriving: int, layers: int) -> tuple[Method, ...]:
        """With an adapter, what it has learned for each layer.

        Raises:
            KeepError: the mean over layers that is asked for can't be had.
        """
        if self.adapter is None:
            return super().at_layers(places, arriving, layers)
        shift = 0.0 if self.keep.mean is None else self.adapter.shift(self.keep.mean / arriving)
        return tuple(
            ATPLayer(
                positions=self.positions,
                per=self.per,
                sparsity=self.sparsity,
                adapter=self.adapter,
                number=number,
                shift=shift,
            )
            for number in range(len(places))
        )

    def count(self, layout: Layout) -> int:
        """`keep`, or all: thresholds may let everything through."""
        return self.bounds(layout)[1]

    def bounds(self, layout: Layout) -> tuple[int, int]:
        """From one token to all."""
        if self.ragged:
            return 1, layout.content
        count = self.keep.count(layout.content)
        return count, count

    def plan(self, tokens: VisualTokens) -> Plan:
        """What is above a threshold, and the best token in any case."""
        margin = self.margin(tokens)
        order = margin.argsort(dim=1, descending=True, stable=True)
        if not self.ragged:
            return Plan(slot=order[:, : self.count(tokens.layout)].sort(dim=1).values)
        return Plan.keeping((margin > 0).scatter(1, order[:, :1], True))

    def margin(self, tokens: VisualTokens, alive: Bool[Tensor, "B N"] | None = None) -> Float32[Tensor, "B N"]:
        """By how much a token is above the threshold that it passes most easily: `(B, N)` float32, stays above 0.

        Args:
            tokens: of images of one layout.
            alive: `(B, N)`, which of them count; None for all.
        """
        redundancy, looks = self.scores(tokens, alive)
        adapter = self.adapter
        theta_r, theta_s = self.theta_r, self.theta_s
        if adapter is not None:
            question = tokens.signals[Text()][:, -1] if adapter.features else None
            theta_r, theta_s = self.predicted(looks, question)
        margin = redundancy - theta_r
        if adapter is not None and "spatial" not in adapter.parts:
            return margin
        return torch.maximum(margin, self.spatial(tokens) - theta_s)

    def scores(
        self, tokens: VisualTokens, alive: Bool[Tensor, "B N"] | None = None
    ) -> tuple[Float32[Tensor, "B N"], Float32[Tensor, "B F"]]:
        """The redundancy score, `(B, N)` float32 from 0 to 1, and what an adapter is told of it, `(B, 8)` float32."""
        logits = tokens.signals[self.needs[0]].float()
        attention = tokens.signals[self.needs[1]].float().mean(dim=1)
        alive = torch.ones_like(logits, dtype=torch.bool) if alive is None else alive
        stretched = {"self": _stretched(logits, alive), "cross": _stretched(attention, alive)}
        parts = ("self", "cross") if self.adapter is None else self.adapter.parts
        chosen = [score for name, score in stretched.items() if name in parts] or [torch.zeros_like(logits)]
        return torch.stack(chosen).mean(dim=0), statistics(logits, attention, [*stretched.values()], alive)

    def predicted(
        self, statistics: Float32[Tensor, "B F"], question: Float[Tensor, "B D"] | None
    ) -> tuple[Float32[Tensor, "B 1"], Float32[Tensor, "B 1"]]:
        """What an adapter makes of the statistics; only at a layer of its own."""
        raise FoveateError(f"{self} acts at several layers; plan with what `at_layers` says of one of them")

    def spatial(self, tokens: VisualTokens) -> Float32[Tensor, "#B N"]:
        """The spatial score, by where a token stands in the whole image: `(B, N)` or `(1, N)`."""
        layout = tokens.layout if tokens.origin is None else tokens.origin.layout
        parts: list[Tensor] = []
        for segment in layout.segments:
            score = torch.zeros(segment.h, segment.w)
            for step in (2, 3, 4):
                # A coarser grid comes later and scores higher.
                score[step // 2 :: step, step // 2 :: step] = 1 - self.sparsity / step**2
            parts.append(score.flatten().repeat(segment.t))
        score = torch.cat(parts).clamp(min=0)[None].to(tokens.features.device)
        if tokens.origin is None:
            return score
        return score.expand(tokens.origin.slot.shape[0], -1).gather(1, tokens.origin.slot)


@dataclass(frozen=True)
class ATPLayer(ATP):
    """The rule at one layer of an adapter: made from it, never written.

    Attributes:
        number: of the layer, among the adapter's.
        shift: added to what the adapter predicts.
    """

    number: int = 0
    shift: float = 0.0

    @classmethod
    def of(cls, adapter: LearnedThresholds, number: int, shift: float = 0.0) -> ATPLayer:
        """What an adapter has learned for its layer `number`."""
        return cls(adapter=adapter, number=number, shift=shift)

    @property
    def places(self) -> tuple[Place, ...]:
        """Its one layer."""
        assert self.adapter is not None
        return (self.adapter.layers[self.number],)

    def check(self, places: Sequence[Place], base: Callable[[], str]) -> None:
        """As the whole adapter does."""
        assert self.adapter is not None
        replaced = tuple(self.adapter.layers) if tuple(places) == self.places else places
        super().check(replaced, base)

    def at_layers(self, places: Sequence[Place], arriving: int, layers: int) -> tuple[Method, ...]:
        """Itself."""
        return (self,) * len(places)

    def predicted(
        self, statistics: Float32[Tensor, "B F"], question: Float[Tensor, "B D"] | None
    ) -> tuple[Float32[Tensor, "B 1"], Float32[Tensor, "B 1"]]:
        """Both thresholds, each `(B, 1)` float32."""
        assert self.adapter is not None
        predictor = self.adapter.predictors[self.number]
        assert isinstance(predictor, Predictor)
        return predictor(statistics, question, self.shift)

    def __str__(self) -> str:
        # Specs name whole adapters.
        return written(ATP(adapter=self.adapter))


def _stretched(score: Float32[Tensor, "B N"], alive: Bool[Tensor, "B N"]) -> Float32[Tensor, "B N"]:
    """Each row from 0 to 1 over the tokens that count; all 0 where nothing differs."""
    low = score.masked_fill(~alive, float("inf")).amin(dim=1, keepdim=True)
    high = score.masked_fill(~alive, float("-inf")).amax(dim=1, keepdim=True)
    span = high - low
    # Those that don't count may lie far outside, above all where only one does.
    return ((score - low) / torch.where(span > 0, span, 1.0)).masked_fill(~alive, 0.0)
