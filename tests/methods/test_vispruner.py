"""The lists by which a processor looks for duplicates give what looking at all pairs gives."""

import pytest
import torch
from given import tokens

from foveate.methods import VisPruner, vispruner


@pytest.mark.parametrize("length", [1, 4, 60])
def test_lists_are_all_pairs(length: int) -> None:
    """Short lists, too: whose list is of no use is looked up in the whole row."""
    generator = torch.Generator().manual_seed(length)
    alike = torch.rand(3, 60, 60, generator=generator)
    look = vispruner.likest_by_list(alike, length)
    for left in (60, 31, 7):
        order = torch.rand(3, 60, generator=generator).argsort(dim=1)[:, :left]
        hands = order[:, ::2], order[:, 1::2]
        assert torch.equal(look(*hands), vispruner.likest(alike, *hands))


def test_a_whole_plan_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Through several halvings of what is left."""
    given = tokens((20, 24), images=2, width=16)
    method = VisPruner(keep=20, important=0.2, step=5)
    plain = method.plan(given).slot
    monkeypatch.setattr(vispruner, "_MANY", 30)
    monkeypatch.setattr(vispruner.likest_by_list, "__defaults__", (3,))
    assert torch.equal(method.plan(given).slot, plain)
    monkeypatch.setattr(vispruner, "likest_by_list", lambda alike: lambda first, second: first.float())
    assert not torch.equal(method.plan(given).slot, plain)
