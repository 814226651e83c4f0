"""A plan: which tokens are kept, at which slots, and which tokens are merged into them.  Pure data, no model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import torch
from jaxtyping import Bool, Float, Float32, Int64, Shaped

from foveate.arguments import check_kind, listed
from foveate.devices import on_cpu
from foveate.errors import PlanError, shown
from foveate.numbers import Between, check_whole
from foveate.precision import without_autocast

if TYPE_CHECKING:
    from torch import Tensor

SELECTED: Final = 1
"""Operations that `Plan.apply` starts on an accelerator for one image, if the plan is a selection."""
AVERAGED: Final = 9
"""The same, of a plan with groups."""
POOLED: Final = 3
"""The same, of a plan whose groups are equal blocks."""
WEIGHTED: Final = 6
"""The same, of a plan with groups and weights."""
MIXED: Final = 3
"""The same, of a plan with `mix`."""


@dataclass(frozen=True)
class Plan:
    """What becomes of the N tokens of B images.

    Attributes:
        slot: `(B, M)` int64, unique and ascending: the place that each kept token takes. A slot is a member of its own
            group; of a cluster it is the member nearest to the mean index.
        group: `(B, N)` int64: which kept token each token flows into, -1 = dropped; None = selection.
        weight: `(B, N)`, the raw coefficients: out_m = sum of w_n x_n over its group; None = 1 / group size.
        mix: `(B, M, N)`, only where one token flows into several; out = mix x. Used in place of group and weight.
        valid: `(B, M)` bool when counts differ between images: kept tokens first, then padding.

    >>> plan = Plan(slot=torch.tensor([[0, 2]]), group=torch.tensor([[0, 0, 1, 1]]))
    >>> plan.apply(torch.tensor([[[1.0], [3.0], [5.0], [7.0]]])).flatten().tolist()
    [2.0, 6.0]
    >>> plan.select(torch.tensor([[10, 11, 12, 13]])).tolist()
    [[10, 12]]
    """

    slot: Int64[Tensor, "B M"]
    group: Int64[Tensor, "B N"] | None = None
    weight: Float[Tensor, "B N"] | None = None
    mix: Float[Tensor, "B M N"] | None = None
    valid: Bool[Tensor, "B M"] | None = None
    # What is known of the values beside; whoever replaces a field makes a plan of which nothing is known.
    # Rows and columns of a block, and the columns of the grid:
    _blocks: tuple[int, int, int] | None = field(default=None, init=False, repr=False, compare=False)
    # How many tokens there must be for the slots:
    _least: int | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _check_slot(self.slot)
        images, kept = self.slot.shape
        wanted = {
            "group": (images, None),
            "weight": (images, None),
            "mix": (images, kept, None),
            "valid": (images, kept),
        }
        for name, shape in wanted.items():
            value = getattr(self, name)
            if value is None:
                continue
            check_kind(f"{name} of a plan", value, torch.Tensor, "a tensor or None")
            fits = value.ndim == len(shape) and all(b in (None, a) for a, b in zip(value.shape, shape, strict=True))
            word = _KINDS[name]
            kind = value.is_floating_point() if word == "floats" else value.dtype == getattr(torch, word)
            if not fits or not kind:
                words = ", ".join("tokens" if size is None else str(size) for size in shape)
                raise PlanError(f"{name} of a plan is {_described(value)}, and must be {word} ({words})")
        if self.group is not None:
            _check_numbers("group of a plan", self.group, -1, kept)
        if self.weight is not None and self.group is None:
            raise PlanError(
                "weight of a plan came without group; the weights of a selection are 1, so leave weight out"
            )
        if self.mix is not None and self.group is not None:
            raise PlanError("a plan has either mix, or group and weight; leave the others out")
        if self.group is not None and self.weight is not None and self.group.shape != self.weight.shape:
            raise PlanError(f"group of a plan is {_described(self.group)} and weight {_described(self.weight)}")

    @classmethod
    def keeping(cls, mask: Bool[Tensor, "B N"], kept: int | None = None) -> Plan:
        """Make the selection that a mask marks: `(B, N)` bool; ragged if images differ in how many tokens they keep.

        `kept` is how many tokens every image keeps, if that is known; otherwise the counts are copied to the host once.
        Padding repeats an image's last slot.

        >>> plan = Plan.keeping(torch.tensor([[True, False, True], [False, True, False]]))
        >>> plan.slot.tolist(), plan.valid.tolist()
        ([[0, 2], [1, 1]], [[True, True], [True, False]])

        Raises:
            PlanError: the mask is something else.
            FoveateError: there are not so many tokens to keep.
        """
        if not isinstance(mask, torch.Tensor) or mask.ndim != 2 or mask.dtype != torch.bool or not len(mask):  # pyright: ignore
            found = _described(mask) if isinstance(mask, torch.Tensor) else shown(mask)  # pyright: ignore
            raise PlanError(f"a mask of kept tokens must be bool (images, tokens), with an image or more, not {found}")
        order = mask.byte().argsort(dim=1, descending=True, stable=True)
        if kept is not None:
            return cls._within(order[:, : check_whole("kept", kept, Between(0, mask.shape[1]))], mask.shape[1])
        counts = mask.sum(dim=1)
        most = int(counts.max())
        numbers = torch.arange(most, device=mask.device)
        slot = order.gather(1, torch.minimum(numbers, (counts - 1).clamp(min=0)[:, None]))
        valid = numbers < counts[:, None]
        return cls(slot, valid=None if bool(valid.all()) else valid)

    @classmethod
    def highest(cls, score: Float[Tensor, "B N"], kept: int) -> Plan:
        """Make the selection of the `kept` highest scores of each image, `(B, N)`; of equal ones, the first.

        >>> Plan.highest(torch.tensor([[0.1, 0.3, 0.2, 0.3], [0.0, 0.0, 0.0, 0.0]]), 2).slot.tolist()
        [[1, 3], [0, 1]]

        Raises:
            FoveateError: there are not so many tokens to keep.
        """
        tokens = score.shape[1]
        kept = check_whole("kept", kept, Between(0, tokens))
        if on_cpu(score) and 0 < kept < tokens:
            # Which of equal scores topk takes differs between devices, so it decides only where none is equal.
            best, order = score.topk(kept + 1, dim=1)
            if bool((best[:, kept - 1] > best[:, kept]).all()):
                return cls._within(order[:, :kept].sort(dim=1).values, tokens)
        # Half precision makes many equal.
        order = score.argsort(dim=1, descending=True, stable=True)
        return cls._within(order[:, :kept].sort(dim=1).values, tokens)

    @classmethod
    def _within(cls, slot: Tensor, tokens: int) -> Plan:
        """Make a selection whose slots are known to be below a number of tokens."""
        plan = cls(slot)
        object.__setattr__(plan, "_least", tokens)
        return plan

    @classmethod
    def averaging(
        cls, slot: Int64[Tensor, "B M"], group: Int64[Tensor, "B N"], block: tuple[int, int], columns: int
    ) -> Plan:
        """Make the plan of groups that are equal blocks of a grid, which pooling applies: that is faster.

        Args:
            slot: `(B, M)` int64, as in `Plan`. Numbers aren't looked at.
            group: `(B, N)` int64: the block of each token, counted row by row. Numbers aren't looked at.
            block: its rows and columns. Frames of a clip stand below each other.
            columns: of the grid. The block's divide them.

        >>> group = torch.tensor([[0, 0, 1, 1]])
        >>> plan = Plan.averaging(torch.tensor([[0, 2]]), group, block=(1, 2), columns=4)
        >>> plan.apply(torch.tensor([[[1.0], [3.0], [5.0], [7.0]]])).flatten().tolist()
        [2.0, 6.0]
        """
        _check_slot(slot)
        plan = cls.__new__(cls)
        known = {"slot": slot, "group": group, "_blocks": (*block, columns), "_least": group.shape[1]}
        for name, value in known.items():
            object.__setattr__(plan, name, value)
        return plan

    @classmethod
    def batch(cls, plans: Sequence[Plan]) -> Plan:
        """Join plans over equally many tokens, which keep equally many, into one batch; the inverse of `image`."""

        def of(values: list[Tensor | None]) -> Tensor | None:
            found = [each for each in values if each is not None]
            if len(found) not in (0, len(plans)):
                raise PlanError("selections and plans that merge can't be one batch; see `grouped`")
            return torch.cat(found) if found else None

        plans = listed("plans", plans, "a list of plans")
        for plan in plans:
            check_kind("a plan", plan, Plan, "a Plan")
        if not plans or len({plan.slot.shape[1] for plan in plans}) > 1:
            raise PlanError("a batch needs at least one plan, and all must keep equally many tokens")
        names = ("group", "weight", "mix", "valid")
        rest = {name: of([getattr(plan, name) for plan in plans]) for name in names}
        return cls(torch.cat([plan.slot for plan in plans]), **rest)

    @classmethod
    def complete(cls, images: int, tokens: int, device: torch.device | None = None) -> Plan:
        """Make the plan that keeps every token where it is.

        >>> Plan.complete(2, 3).slot.tolist()
        [[0, 1, 2], [0, 1, 2]]
        """
        return cls(slot=torch.arange(tokens, device=device).expand(images, -1))

    def rows(self, index: slice | Int64[Tensor, " R"]) -> Plan:
        """Take the plans of some images, in the order of `index`; an image may come more than once.

        >>> plan = Plan(slot=torch.tensor([[0, 2], [1, 3]]))
        >>> plan.rows(torch.tensor([1, 1, 0])).slot.tolist()
        [[1, 3], [1, 3], [0, 2]]

        Raises:
            PlanError: `index` is something else, or there is no such image. On an accelerator, its numbers are not
                looked at.
        """
        self._check_rows(index)
        rest = (None if part is None else part[index] for part in (self.group, self.weight, self.mix, self.valid))
        plan = Plan(self.slot[index], *rest)
        object.__setattr__(plan, "_blocks", self._blocks)
        return plan

    def image(self, number: int, kept: int | None = None) -> Plan:
        """Take the plan of one image, as a batch of one without padding.

        Args:
            number: of the image in the batch.
            kept: how many tokens the image keeps; None if all images keep equally many.

        Raises:
            FoveateError: there is no such image, or the batch doesn't keep so many tokens.
        """
        images, most = self.slot.shape
        number = check_whole("the number of an image", number, Between(0, images - 1))
        if kept is not None:
            kept = check_whole("kept", kept, Between(0, most))
        plan = self.rows(slice(number, number + 1))
        # Kept tokens come first, so what follows them is padding; groups never point there.
        mix = None if plan.mix is None else plan.mix[:, :kept]
        return Plan(plan.slot[:, :kept], plan.group, plan.weight, mix)

    def apply(self, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B M D"]:
        """Compute features of the kept tokens: `(B, N, D)` -> `(B, M, D)`, in the dtype of `x`; sums are in float32.

        Raises:
            PlanError: the plan is over other tokens. On an accelerator, numbers of tokens are not looked at.
        """
        self._check_over(x, 3)
        if self.mix is None and self.group is None:
            return self._selected(x)
        if self._blocks is not None:
            return self._pooled(x)
        with without_autocast(x.device):
            return self._applied(x)

    def _check_over(self, x: Tensor, axes: int) -> None:
        """Check that values are those of this plan's tokens. No device but the CPU is asked for numbers.

        Raises:
            PlanError: they aren't.
        """
        if not isinstance(x, torch.Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise PlanError(f"a plan applies to a tensor (images, tokens, ...), not to {shown(x)}")
        tokens = self.mix.shape[2] if self.mix is not None else None if self.group is None else self.group.shape[1]
        fits = x.ndim >= axes and x.shape[0] == self.slot.shape[0]
        if not fits or tokens not in (None, x.shape[1]):
            over = "" if tokens is None else f" of {tokens} tokens"
            raise PlanError(f"this plan is for {self.slot.shape[0]} images{over}, and the values are {_described(x)}")
        if self._least is None or self._least > x.shape[1]:
            _check_numbers("slot of the plan", self.slot, 0, x.shape[1])
            object.__setattr__(self, "_least", x.shape[1])

    def _check_rows(self, index: object) -> None:
        """Check that an index picks images of the batch.

        Raises:
            PlanError: it doesn't.
        """
        if isinstance(index, slice):
            return
        if not isinstance(index, torch.Tensor) or index.ndim != 1 or index.dtype != torch.int64:
            found = _described(index) if isinstance(index, torch.Tensor) else shown(index)
            raise PlanError(f"an index of images must be a slice or int64 (images), not {found}")
        _check_numbers("the index of images", index, 0, self.slot.shape[0])

    def _check_tokens(self, tokens: object) -> int:
        """Return over how many tokens this plan is.

        Raises:
            PlanError: it is over another number, or has slots outside of it.
            FoveateError: `tokens` is no number of tokens.
        """
        tokens = check_whole("tokens", tokens, Between(0))
        own = self.mix.shape[2] if self.mix is not None else None if self.group is None else self.group.shape[1]
        if own not in (None, tokens):
            raise PlanError(f"this plan is over {own} tokens, not {tokens}")
        _check_numbers("slot of the plan", self.slot, 0, tokens)
        return tokens

    def _applied(self, x: Tensor) -> Tensor:
        if self.mix is not None:
            return torch.bmm(self.mix.to(torch.promote_types(x.dtype, torch.float32)), _wide(x)).to(x.dtype)
        assert self.group is not None
        if not on_cpu(x):
            # Scattered sums of accelerators come in any order; a product with the dense map is as fast, and repeats.
            return self._multiplied(_wide(x)).to(x.dtype)
        images, kept = x.shape[0], self.slot.shape[1] + 1
        wide = _wide(x)
        if self.weight is not None:
            wide = wide * self.weights()[..., None].to(wide.dtype)
        # Row 0 of each image takes what is dropped.
        rows = self.group + 1 + torch.arange(images, device=x.device)[:, None] * kept
        out = wide.new_zeros(images * kept, x.shape[2]).index_add(0, rows.flatten(), wide.flatten(0, 1))
        out = out.view(images, kept, -1)[:, 1:]
        if self.weight is None:
            # A mean: dividing after the sum divides fewer numbers.
            out = out / _counts(self.group, kept - 1).clamp(min=1)[..., None]
        return out.to(x.dtype)

    def _pooled(self, x: Tensor) -> Tensor:
        assert self._blocks is not None
        *block, columns = self._blocks
        grid = _wide(x).reshape(x.shape[0], -1, columns, x.shape[2]).permute(0, 3, 1, 2)
        return torch.nn.functional.avg_pool2d(grid, block).permute(0, 2, 3, 1).flatten(1, 2).to(x.dtype)

    def _multiplied(self, x: Float32[Tensor, "B N D"]) -> Float32[Tensor, "B M D"]:
        assert self.group is not None
        numbers = torch.arange(self.slot.shape[1], device=x.device)[:, None]
        inside = self.group[:, None] == numbers
        if self.weight is not None:
            return torch.bmm(inside * self.weight[:, None].to(x.dtype), x)
        inside = inside.to(x.dtype)
        return torch.bmm(inside, x).div_(inside.sum(dim=2, keepdim=True).clamp_(min=1))

    def select(self, x: Shaped[Tensor, "B N *rest"]) -> Shaped[Tensor, "B M *rest"]:
        """Take the values at the slots: `(B, N, ...)` -> `(B, M, ...)`; position ids, signals, labels, mask columns."""
        self._check_over(x, 2)
        return self._selected(x)

    def _selected(self, x: Tensor) -> Tensor:
        if x.ndim == 2:
            return x.gather(1, self.slot)
        # Whole rows are copied several times faster than their elements are gathered.
        rows = self.slot
        if x.shape[0] > 1:
            rows = rows + torch.arange(0, x.shape[0] * x.shape[1], x.shape[1], device=x.device)[:, None]
        return x.flatten(0, 1).index_select(0, rows.flatten()).view(*self.slot.shape, *x.shape[2:])

    def size(self) -> Int64[Tensor, "B M"]:
        """Count the tokens that each kept token stands for: `(B, M)` int64, 0 at padding."""
        if self.mix is not None:
            size = (self.mix != 0).sum(dim=2)
        elif self.group is None:
            size = torch.ones_like(self.slot)
        else:
            size = _counts(self.group, self.slot.shape[1])
        return size if self.valid is None else size * self.valid

    def weights(self) -> Float[Tensor, "B N"]:
        """Return the coefficient of each token: `(B, N)` float, 0 where it is dropped. Not for plans with `mix`."""
        if self.group is None:
            raise PlanError("a selection and a plan with mix have no weights; see `grouped` and `matrix`")
        kept = self.group >= 0
        if self.weight is not None:
            return self.weight * kept
        counts = _counts(self.group, self.slot.shape[1]).clamp(min=1)
        return kept / counts.gather(1, self.group.clamp(min=0))

    def grouped(self, tokens: int) -> Plan:
        """Return the same plan with explicit `group` and `weight`, over `tokens` tokens. Not for plans with `mix`.

        Raises:
            PlanError: the plan has `mix`, or is over other tokens. On an accelerator, slots are not looked at.
        """
        if self.mix is not None:
            raise PlanError("one token may flow into several in a plan with mix, so it has no groups; see `matrix`")
        tokens = self._check_tokens(tokens)
        if self.group is not None:
            return Plan(self.slot, self.group, self.weights(), None, self.valid)
        numbers = torch.arange(self.slot.shape[1], device=self.slot.device).expand_as(self.slot)
        group = torch.full((self.slot.shape[0], tokens), -1, dtype=torch.int64, device=self.slot.device)
        if self.valid is not None:
            numbers = torch.where(self.valid, numbers, -1)
        # The padding of a ragged plan repeats a slot: the larger number, the real one, wins.
        group = group.scatter_reduce(1, self.slot, numbers, "amax")
        return Plan(self.slot, group, (group >= 0).float(), None, self.valid)

    def matrix(self, tokens: int | None = None) -> Float32[Tensor, "B M N"]:
        """Return the dense map: `(B, M, N)` float32. A selection needs N (`tokens`).

        Raises:
            PlanError: the plan is a selection and `tokens` is missing, or the plan is over other tokens.
        """
        if tokens is not None:
            tokens = self._check_tokens(tokens)
        if self.mix is not None:
            return self.mix.float()
        if self.group is None:
            if tokens is None:
                raise PlanError("a selection needs the number of tokens that it is over: matrix(576)")
            return self.grouped(tokens).matrix()
        numbers = torch.arange(self.slot.shape[1], device=self.slot.device)
        return (self.group[:, None] == numbers[None, :, None]) * self.weights()[:, None].float()

    def compose(self, later: Plan, tokens: int | None = None) -> Plan:
        """Compose this plan with a later one over the tokens that it keeps: one plan over this plan's tokens.

        `tokens` is N; it is needed only if this plan is a selection and the later plan merges.

        Raises:
            PlanError: the plans don't fit together, or `tokens` is missing or another number.
        """
        check_kind("the later plan", later, Plan, "a Plan")
        if later.slot.shape[0] != self.slot.shape[0]:
            raise PlanError(f"a plan of {self.slot.shape[0]} images, then one of {later.slot.shape[0]}")
        later._check_over(self.slot, 2)
        if tokens is not None:
            tokens = self._check_tokens(tokens)
        slot = self.slot.gather(1, later.slot)
        valid = later.valid
        if self.valid is not None:
            # What is padding here is padding there: slots ascend, so it stays behind.
            through = self.valid.gather(1, later.slot)
            valid = through if valid is None else valid & through
        if self.mix is not None:
            tokens = self.mix.shape[2]
        elif self.group is not None:
            tokens = self.group.shape[1]
        if self.mix is not None or later.mix is not None:
            mix = torch.bmm(later.matrix(self.slot.shape[1]).float(), self.matrix(tokens).float())
            return Plan(slot, None, None, mix, valid)
        if self.group is None and later.group is None:
            return Plan(slot, valid=valid)
        if tokens is None:
            raise PlanError(
                "a selection, then a plan that merges: say over how many tokens, compose(later, tokens=576)"
            )
        first = self.grouped(tokens)
        second = later.grouped(self.slot.shape[1])
        assert first.group is not None
        assert first.weight is not None
        assert second.group is not None
        assert second.weight is not None
        through = first.group.clamp(min=0)
        group = torch.where(first.group < 0, -1, second.group.gather(1, through))
        weight = first.weight * second.weight.gather(1, through) * (group >= 0)
        return Plan(slot, group, weight, None, valid)


_KINDS = {"group": "int64", "weight": "floats", "mix": "floats", "valid": "bool"}


def _described(value: Tensor) -> str:
    return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"


def _check_numbers(name: str, value: Int64[Tensor, "*shape"], low: int, end: int) -> None:
    """Check that indices lie from `low` to before `end`. No device but the CPU is asked for numbers.

    Raises:
        PlanError: one doesn't.
    """
    if not on_cpu(value) or not value.numel():
        return
    least, most = value.aminmax()
    if int(least) < low or int(most) >= end:
        raise PlanError(f"{name} holds {int(least)} to {int(most)}, and may hold {low} to {end - 1}")


def _check_slot(slot: object) -> None:
    """Check the slots of a plan by type and shape.

    Raises:
        PlanError: they are something else.
    """
    if not isinstance(slot, torch.Tensor):
        raise PlanError(f"slot of a plan must be a tensor (images, kept tokens), not {shown(slot)}")
    if slot.ndim != 2 or slot.dtype != torch.int64:
        raise PlanError(f"slot of a plan is {_described(slot)}, and must be int64 (images, kept tokens)")


def _wide(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    return x if x.dtype == torch.float32 else x.to(torch.promote_types(x.dtype, torch.float32))


def _counts(group: Int64[Tensor, "B N"], kept: int) -> Int64[Tensor, "B M"]:
    counts = torch.zeros(group.shape[0], kept + 1, dtype=torch.int64, device=group.device)
    return counts.scatter_add(1, group + 1, torch.ones_like(group))[:, 1:]
