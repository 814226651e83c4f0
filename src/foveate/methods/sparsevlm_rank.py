"""SparseVLM, with as many tokens as the attention has rank for.  Zhang et al. 2024, arXiv 2410.04417 (our reading)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor

from foveate.methods import AUTO, Effort, FoveateError, Keep, Layout, Plan, VisualTokens, register
from foveate.methods.sparsevlm import SparseVLM, keep_and_recycle, raters


@register("sparsevlm-rank")
@dataclass(frozen=True)
class SparseVLMRank(SparseVLM):
    """Like `sparsevlm`, and the rank of the raters' attention tells how many tokens remain.

    Of the matrix of attention that raters gave to visual tokens, mean over heads, the rank times `scale` plus `bias`,
    rounded down, is how many tokens are kept: at least one, at most all. The rank is at most the number of raters, so
    long questions keep more. Merged tokens come on top unless `recycle` says otherwise. A `keep` that is told makes it
    `sparsevlm`. Reads the question and looks at the content, so images differ in how many tokens remain.

    The paper adapts its counts by this rank; the authors' code has had fixed tables since, and the text was not seen.
    Formula and numbers (13.5, 0, layers 2, 6, 15 and 19 of 32, which is `@3,7,16,20`) are those of the code's first
    version as other repositories carry it on. Cost: singular values of one matrix per image, and a look at the host.

    >>> from foveate.tokens import Behind, DecoderInput
    >>> attention = torch.eye(3, 8)[None] / 8
    >>> answers = {DecoderInput("visual"): torch.ones(1, 8, 2), DecoderInput("text"): torch.ones(1, 3, 2)}
    >>> answers[Behind()] = torch.ones(1, 3, dtype=torch.bool)
    >>> tokens = VisualTokens.of(torch.randn(1, 8, 2), (2, 4), decoder_attention=attention, signals=answers)
    >>> SparseVLMRank(scale=1.5, recycle="none").plan(tokens).slot.tolist()
    [[0, 1, 2, 3]]
    """

    keep: Keep = AUTO
    recycle: Literal["within", "beside", "none"] = "beside"
    scale: float = 13.5
    bias: float = 0.0

    layers = (3, 7, 16, 20)
    adaptive = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.scale > 0:
            raise FoveateError(f"scale={self.scale}: the rank is multiplied with a number above 0; the code has 13.5")

    @property
    def ragged(self) -> bool:
        """Only if the content decides."""
        return self.keep.auto

    def count(self, layout: Layout) -> int:
        """`keep`, or all: the rank is not known before."""
        return self.bounds(layout)[1]

    def bounds(self, layout: Layout) -> tuple[int, int]:
        """From one token, and what is merged beside it, to all."""
        if self.keep.auto:
            return sum(self.split(layout.content, 1)), layout.content
        count = super().count(layout)
        return count, count

    def effort(self, tokens: int, width: int) -> Effort:
        """As if half of the tokens were left, and the singular values of 16 rows."""
        likely = super().effort(tokens, width) if not self.keep.auto else self._half.effort(tokens, width)
        return Effort(likely.flops + 40 * 16**2 * tokens, likely.launches + 20)

    def plan(self, tokens: VisualTokens) -> Plan:
        """Images of one count at once, then all together."""
        if not self.keep.auto:
            return super().plan(tokens)
        attention = tokens.signals[self.needs[0]].float() * raters(tokens)[..., None]
        rank = cast("Tensor", torch.linalg.matrix_rank(attention))  # pyright: ignore[reportUnknownMemberType]
        arrive = attention.shape[2]
        counts = (rank * self.scale + self.bias).floor().clamp(min=1, max=arrive).long()
        remain = [int(count) for count in counts.cpu()]
        score = self.score(tokens)
        plans: dict[int, Plan] = {}
        for count in sorted(set(remain)):
            rows = [image for image, own in enumerate(remain) if own == count]
            plan = keep_and_recycle(score[rows], tokens.features[rows], *self.split(arrive, count)).grouped(arrive)
            assert plan.group is not None
            for at, image in enumerate(rows):
                plans[image] = Plan(plan.slot[at : at + 1], plan.group[at : at + 1])
        return _together([plans[image] for image in range(len(remain))])

    @property
    def _half(self) -> SparseVLM:
        return SparseVLM(keep=Keep.of(0.5), recycle=self.recycle)


def _together(plans: list[Plan]) -> Plan:
    """Plans of one image each as one of them all; padding repeats an image's last slot."""
    most = max(plan.slot.shape[1] for plan in plans)
    counts = torch.tensor([plan.slot.shape[1] for plan in plans])

    def padded(slot: Tensor) -> Tensor:
        return torch.cat([slot, slot[:, -1:].expand(-1, most - slot.shape[1])], dim=1)

    slot = torch.cat([padded(plan.slot) for plan in plans])
    group = torch.cat([plan.group for plan in plans if plan.group is not None])
    valid = (torch.arange(most) < counts[:, None]).to(slot.device) if int(counts.min()) < most else None
    return Plan(slot, group, valid=valid)
