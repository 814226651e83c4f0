"""SparseVLM with a count from the rank of the attention.  Zhang et al. 2024, arXiv 2410.04417 (our reading)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal, cast

import torch

from foveate.methods import AUTO, Effort, FoveateError, Keep, Layout, Plan, VisualTokens, register
from foveate.methods.sparsevlm import SparseVLM, keep_and_recycle, raters
from foveate.numbers import Between

if TYPE_CHECKING:
    from torch import Tensor


@register("sparsevlm-rank")
@dataclass(frozen=True)
class SparseVLMRank(SparseVLM):
    """Keep tokens as `sparsevlm` does, as many as the rank of the raters' attention gives.

    The matrix is the attention that raters gave to visual tokens, mean over heads. Its rank times `scale` plus `bias`,
    rounded down, is the number of kept tokens: at least one, at most all. The rank is at most the number of raters, so
    long questions keep more. By default merged tokens are added to this number; `recycle` changes that. With a given
    `keep`, the method is `sparsevlm`. It reads the question and the content, so the count differs between images.

    The paper adapts its counts by this rank; the authors' code has had fixed tables since. We have not seen the text of
    the paper. The formula and its numbers (13.5, 0, layers 2, 6, 15 and 19 of 32, which is `@3,7,16,20`) are those of
    the first version of the code, as copies in other repositories have it. Cost: singular values of one matrix per
    image, and one transfer of the counts to the host.

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
    scale: Annotated[float, Between(0, 1_000_000)] = 13.5
    bias: Annotated[float, Between(-1_000_000, 1_000_000)] = 0.0

    layers = (3, 7, 16, 20)
    adaptive = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.scale > 0:
            raise FoveateError(f"scale={self.scale}: the rank is multiplied with a number above 0; the code has 13.5")

    @property
    def ragged(self) -> bool:
        """Whether counts differ between images: only if the content decides."""
        return self.keep.auto

    def count(self, layout: Layout) -> int:
        """Return `keep`, or all tokens, since the rank is not known in advance."""
        return self.bounds(layout)[1]

    def bounds(self, layout: Layout) -> tuple[int, int]:
        """Return the counts for one kept token with its merged ones, and for all tokens."""
        if self.keep.auto:
            return sum(self.split(layout.content, 1)), layout.content
        count = super().count(layout)
        return count, count

    def effort(self, tokens: int, width: int) -> Effort:
        """Estimate the cost as if half of the tokens were kept, with the singular values of 16 rows."""
        if not self.keep.auto:
            return super().effort(tokens, width)
        likely = self._half.effort(tokens, width)
        return Effort(likely.flops + 40 * 16**2 * tokens, likely.launches + 45, 4)

    def plan(self, tokens: VisualTokens) -> Plan:
        """Plan images of equal count together, then join the plans."""
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
    """Join plans of one image each into one plan; padding repeats the last slot of an image."""
    most = max(plan.slot.shape[1] for plan in plans)
    counts = torch.tensor([plan.slot.shape[1] for plan in plans])

    def padded(slot: Tensor) -> Tensor:
        return torch.cat([slot, slot[:, -1:].expand(-1, most - slot.shape[1])], dim=1)

    slot = torch.cat([padded(plan.slot) for plan in plans])
    group = torch.cat([plan.group for plan in plans if plan.group is not None])
    valid = (
        (torch.arange(most) < counts[:, None]).to(slot.device, non_blocking=True) if int(counts.min()) < most else None
    )
    return Plan(slot, group, valid=valid)
