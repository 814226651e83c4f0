"""Compare attention and place with thresholds.  ATP-LLaVA, Ye et al. 2024, arXiv 2412.00447 (our reading)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32

from foveate.methods import (
    AUTO,
    DecoderAttention,
    DecoderLogits,
    Effort,
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
from foveate.numbers import Between
from foveate.options import Reader, written
from foveate.plan import SELECTED

if TYPE_CHECKING:
    import numpy.typing as npt
    from torch import Tensor

    from foveate.methods.arithmetic.thresholds import LearnedThresholds

    Thresholds = LearnedThresholds | None
else:
    # Their import takes torch, and most specs name none.
    Thresholds = Any


def _thresholds(text: str) -> Thresholds:
    """Return the adapter that a spec names."""
    from foveate.methods.arithmetic.thresholds import LearnedThresholds

    return LearnedThresholds.read(text)


@register("atp")
@dataclass(frozen=True)
class ATPMethod(Method):
    """Keep a token if its redundancy score is above one threshold, or its spatial score above another.

    The redundancy score is the mean of two scores from the previous layer: the mean logit that the token receives from
    the image's tokens, and the mean attention that it receives from text. Each is scaled to 0 to 1 over the tokens of
    the image. The spatial score is 1 - `sparsity` / s^2 for the largest s of 4, 3 and 2 whose grid (every s-th row and
    column) contains the token, else 0. A token stays if its redundancy score is above `theta_r` or its spatial score
    above `theta_s`. A lower `theta_s` keeps denser grids; 1.0 keeps none. The scores depend on the question and the
    content, so the number of remaining tokens differs between images; it is at least one. If `keep` is a number, the
    method keeps that many tokens: those with the largest margin, the larger of the two differences between score and
    threshold. The authors act after layers 4, 14 and 24 of 32, and keep position ids.

    In the paper a trained module predicts both thresholds for each image and prompt. `adapter` names such a module
    (`foveate.ATP` trains them). It sets the thresholds and the layers, and `mean=144` shifts the thresholds so that
    images keep 144 tokens per layer on average. Without an adapter the thresholds are options, 0.5 by default. We had
    only others' accounts of the paper's equations, neither its text nor its code (none is published). The scaling of
    the scores, the grids, and the tokens that each mean is over are our choice.

    >>> tokens = VisualTokens.of(
    ...     torch.zeros(1, 4, 2),
    ...     (2, 2),
    ...     decoder_logits=torch.tensor([[0.0, 4.0, 2.0, 1.0]]),
    ...     decoder_attention=torch.tensor([[[0.1, 0.1, 0.3, 0.1]]]),
    ... )
    >>> ATPMethod(theta_s=1.0).plan(tokens).slot.tolist()
    [[2]]
    >>> ATPMethod(theta_s=0.0).plan(tokens).slot.tolist()
    [[2, 3]]
    """

    keep: Keep = AUTO
    theta_r: float = 0.5
    theta_s: float = 0.5
    sparsity: Annotated[float, Between(-1_000_000, 1_000_000)] = 3.0
    adapter: Annotated[Thresholds, Reader(_thresholds)] = None

    place = "decoder"
    layers = (4, 14, 24)
    paper = "arXiv 2412.00447"
    query_aware = True
    adaptive = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("theta_r", "theta_s"):
            if not 0 <= getattr(self, name) <= 1:
                raise FoveateError(f"{name}={getattr(self, name)}: write a threshold from 0 to 1")
        if self.sparsity < 0:
            raise FoveateError(f"sparsity={self.sparsity}: write 0 or more; the paper has 3.0")
        if self.adapter is not None and not self.keep.auto and self.keep.mean is None:
            raise KeepError(f"keep {self.keep}: an adapter decides how much remains; write auto, or a mean (mean=144)")
        if self.adapter is not None and (self.theta_r, self.theta_s) != (ATPMethod.theta_r, ATPMethod.theta_s):
            raise FoveateError("an adapter predicts theta_r and theta_s; leave them out")

    @property
    def places(self) -> tuple[Place, ...]:
        """Return the layers that the adapter was trained for; without an adapter, the authors'."""
        return super().places if self.adapter is None else self.adapter.layers

    @property
    def needs(self) -> tuple[Signal, ...]:
        """Request the previous layer's logits from the image and attention from text; text if the adapter reads it."""
        scores = (DecoderLogits(layer="previous"), DecoderAttention(rows="text", layer="previous"))
        return (*scores, Text()) if self.adapter is not None and self.adapter.features else scores

    @property
    def ragged(self) -> bool:
        """Return whether the number of kept tokens may differ between images: yes, unless `keep` is a number."""
        return self.keep.auto or self.adapter is not None

    def check(self, places: Sequence[Place], base: Callable[[], str]) -> None:
        """Check that the adapter, if there is one, was made for these layers and this model.

        Raises:
            FoveateError: the adapter was made for other layers or another model.
        """
        if self.adapter is None:
            return
        if tuple(places) != self.adapter.layers:
            learned, given = (",".join(map(str, layers)) for layers in (self.adapter.layers, places))
            raise FoveateError(f"the adapter {self.adapter} acts at layers {learned}, not at {given}; leave @ out")
        # A model without weights has no fingerprint.
        if model := base():
            self.adapter.check_base(model)

    def at_layers(self, places: Sequence[Place], arriving: int, layers: int) -> tuple[Method, ...]:
        """Return one method per layer: with an adapter, each with the thresholds learned for its layer.

        Raises:
            KeepError: the adapter can't reach the mean over layers that `keep` asks for.
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
        """Return `keep`, or all tokens if thresholds decide, because they may keep everything."""
        return self.bounds(layout)[1]

    def bounds(self, layout: Layout) -> tuple[int, int]:
        """Return the smallest and the largest number of tokens that may stay: one and all if thresholds decide."""
        if self.ragged:
            return 1, layout.content
        count = self.keep.count(layout.content)
        return count, count

    def memory(self, tokens: int, width: int) -> int:
        """Estimate scores, ranks and statistics: some ten numbers per token."""
        return 42 * tokens

    def effort(self, tokens: int, width: int) -> Effort:
        """Estimate both scores, and with an adapter their statistics."""
        launches, waits = (39, 2) if self.ragged else (27, 0)
        return Effort(2 * tokens * width, launches + SELECTED + (48 if self.adapter is not None else 0), waits)

    def plan(self, tokens: VisualTokens) -> Plan:
        """Plan to keep the tokens above a threshold, and always the token with the largest margin."""
        margin = self.margin(tokens)
        if not self.ragged:
            return Plan.highest(margin, self.count(tokens.layout))
        first = margin.argsort(dim=1, descending=True, stable=True)[:, :1]
        return Plan.keeping((margin > 0).scatter(1, first, True))

    def margin(self, tokens: VisualTokens, alive: Bool[Tensor, "B N"] | None = None) -> Float32[Tensor, "B N"]:
        """Return the larger of each token's margins over the two thresholds, `(B, N)` float32: tokens above 0 stay.

        Args:
            tokens: of images of one layout.
            alive: `(B, N)` bool, which tokens count; None for all.
        """
        adapter = self.adapter
        theta_r, theta_s = self.theta_r, self.theta_s
        if adapter is None:
            redundancy, *_ = self._scaled(tokens, alive)
        else:
            redundancy, statistics = self.scores(tokens, alive)
            question = tokens.signals[Text()][:, -1] if adapter.features else None
            theta_r, theta_s = self.predicted(statistics, question)
        margin = redundancy - theta_r
        if adapter is not None and "spatial" not in adapter.parts:
            return margin
        return torch.maximum(margin, self.spatial(tokens) - theta_s)

    def scores(
        self, tokens: VisualTokens, alive: Bool[Tensor, "B N"] | None = None
    ) -> tuple[Float32[Tensor, "B N"], Float32[Tensor, "B F"]]:
        """Return the redundancy score, `(B, N)` float32 from 0 to 1, and its statistics, `(B, 8)` float32."""
        redundancy, logits, attention, scaled = self._scaled(tokens, alive)
        alive = torch.ones_like(logits, dtype=torch.bool) if alive is None else alive
        from foveate.methods.arithmetic.thresholds import score_statistics

        return redundancy, score_statistics(logits, attention, scaled, alive)

    def _scaled(
        self, tokens: VisualTokens, alive: Bool[Tensor, "B N"] | None
    ) -> tuple[
        Float32[Tensor, "B N"],
        Float32[Tensor, "B N"],
        Float32[Tensor, "B N"],
        list[Float32[Tensor, "B N"]],
    ]:
        """Return the redundancy score, logits, attention, and both of them scaled."""
        logits = tokens.signals[self.needs[0]].float()
        attention = tokens.signals[self.needs[1]].float().mean(dim=1)
        stretched = {"self": _stretched(logits, alive), "cross": _stretched(attention, alive)}
        parts = ("self", "cross") if self.adapter is None else self.adapter.parts
        chosen = [score for name, score in stretched.items() if name in parts] or [torch.zeros_like(logits)]
        return torch.stack(chosen).mean(dim=0), logits, attention, [*stretched.values()]

    def predicted(
        self, statistics: Float32[Tensor, "B F"], question: Float[Tensor, "B D"] | None
    ) -> tuple[Float32[Tensor, "B 1"], Float32[Tensor, "B 1"]]:
        """Return both thresholds that an adapter predicts; only `ATPLayer` implements this."""
        raise FoveateError(f"{self} acts at several layers; plan with one of the methods that `at_layers` returns")

    def spatial(self, tokens: VisualTokens) -> Float32[Tensor, "#B N"]:
        """Return the spatial score by each token's place in the original image: `(B, N)` or `(1, N)` float32."""
        layout = tokens.layout if tokens.origin is None else tokens.origin.layout
        score = torch.tensor(_by_place(layout, self.sparsity))[None].to(tokens.features.device, non_blocking=True)
        if tokens.origin is None:
            return score
        return score.expand(tokens.origin.slot.shape[0], -1).gather(1, tokens.origin.slot)


@dataclass(frozen=True)
class ATPLayer(ATPMethod):
    """Apply the method at one layer of an adapter; `ATPMethod.at_layers` makes it, and specs never name it.

    Attributes:
        number: the index of the layer among the adapter's layers.
        shift: added to the logits of the predicted thresholds.
    """

    number: int = 0
    shift: float = 0.0

    @classmethod
    def of(cls, adapter: Thresholds, number: int, shift: float = 0.0) -> ATPLayer:
        """Return the method with the thresholds that an adapter learned for its layer number `number`."""
        return cls(adapter=adapter, number=number, shift=shift)

    @property
    def places(self) -> tuple[Place, ...]:
        """Return the one layer that this method acts at."""
        assert self.adapter is not None
        return (self.adapter.layers[self.number],)

    def check(self, places: Sequence[Place], base: Callable[[], str]) -> None:
        """Check that the adapter was made for these layers and this model."""
        assert self.adapter is not None
        replaced = tuple(self.adapter.layers) if tuple(places) == self.places else places
        super().check(replaced, base)

    def at_layers(self, places: Sequence[Place], arriving: int, layers: int) -> tuple[Method, ...]:
        """Return this method for each place."""
        return (self,) * len(places)

    def predicted(
        self, statistics: Float32[Tensor, "B F"], question: Float[Tensor, "B D"] | None
    ) -> tuple[Float32[Tensor, "B 1"], Float32[Tensor, "B 1"]]:
        """Return both predicted thresholds, each `(B, 1)` float32."""
        assert self.adapter is not None
        return self.adapter.predictors[self.number](statistics, question, self.shift)

    def __str__(self) -> str:
        # Specs name whole adapters, not their single layers.
        return written(ATPMethod(adapter=self.adapter))


@functools.lru_cache(maxsize=64)
def _by_place(layout: Layout, sparsity: float) -> npt.NDArray[np.float32]:
    """Return the spatial score of each token; don't change it in place.

    No tensor: one that is made in inference mode can't be used in training, and one that torch.export makes, nowhere.
    """
    parts: list[npt.NDArray[np.float32]] = []
    for segment in layout.segments:
        score = np.zeros((segment.h, segment.w), np.float32)
        for step in (2, 3, 4):
            # Coarser grids score higher, so they are written last.
            score[step // 2 :: step, step // 2 :: step] = 1 - sparsity / step**2
        parts.append(np.tile(score.flatten(), segment.t))
    return np.maximum(np.concatenate(parts), np.float32(0))


def _stretched(score: Float32[Tensor, "B N"], alive: Bool[Tensor, "B N"] | None) -> Float32[Tensor, "B N"]:
    """Scale each row to 0 to 1 over the tokens that count (None: all); return 0 for all if they are equal."""
    low = score if alive is None else score.masked_fill(~alive, float("inf"))
    high = score if alive is None else score.masked_fill(~alive, float("-inf"))
    low, high = low.amin(dim=1, keepdim=True), high.amax(dim=1, keepdim=True)
    span = high - low
    # Tokens that don't count may lie far outside 0 to 1, above all if only one token counts.
    scaled = (score - low) / torch.where(span > 0, span, 1.0)
    return scaled if alive is None else scaled.masked_fill(~alive, 0.0)
