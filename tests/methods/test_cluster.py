"""What stands for a cluster, worked out member by member."""

from typing import Any

import pytest
import torch
from torch import Tensor

from foveate.methods import Cluster
from foveate.methods.arithmetic.groups import highest
from foveate.plan import Plan
from foveate.tokens import VisualTokens

KEEP = 7


@pytest.fixture
def given_tokens() -> VisualTokens:
    generator = torch.Generator().manual_seed(3)
    attention = torch.rand(2, 48, generator=generator) ** 4
    return VisualTokens.of(torch.randn(2, 48, 5, generator=generator), (6, 8), encoder_attention=attention)


def clusters(tokens: VisualTokens) -> tuple[Plan, list[list[Tensor]]]:
    """The plain plan, and the members of each of its clusters."""
    plan = Cluster(keep=KEEP).plan(tokens)
    assert plan.group is not None
    return plan, [[(row == number).nonzero().flatten() for number in range(KEEP)] for row in plan.group]


def test_a_medoid_is_the_member_nearest_to_the_mean(given_tokens: VisualTokens) -> None:
    plain, members = clusters(given_tokens)
    means = plain.apply(given_tokens.features)
    plan = Cluster(keep=KEEP, take="medoid").plan(given_tokens)
    assert plan.group is None
    for image in (0, 1):
        nearest = [
            int(inside[(given_tokens.features[image, inside] - means[image, number]).norm(dim=1).argmin()])
            for number, inside in enumerate(members[image])
        ]
        assert plan.slot[image].tolist() == sorted(nearest)


def test_the_salient_member_is_the_most_attended(given_tokens: VisualTokens) -> None:
    _, members = clusters(given_tokens)
    method = Cluster(keep=KEEP, take="salient")
    attention = given_tokens.signals[method.needs[0]]
    plan = method.plan(given_tokens)
    assert plan.group is None
    for image in (0, 1):
        most = [int(inside[attention[image, inside].argmax()]) for inside in members[image]]
        assert plan.slot[image].tolist() == sorted(most)


def test_a_weighted_mean_is_by_attention(given_tokens: VisualTokens) -> None:
    plain, members = clusters(given_tokens)
    method = Cluster(keep=KEEP, take="weighted")
    attention = given_tokens.signals[method.needs[0]]
    attention[0, members[0][2]] = 0
    plan = method.plan(given_tokens)
    assert torch.equal(plan.slot, plain.slot)
    out = plan.apply(given_tokens.features)
    for image in (0, 1):
        for number, inside in enumerate(members[image]):
            share, x = attention[image, inside], given_tokens.features[image, inside]
            expected = x.mean(dim=0) if (image, number) == (0, 2) else share @ x / share.sum()
            torch.testing.assert_close(out[image, number], expected)


@pytest.mark.parametrize(("take", "count"), [("mean", 0), ("medoid", 0), ("weighted", 1), ("salient", 1)])
def test_it_asks_for_attention_only_where_it_looks(take: Any, count: int) -> None:
    assert len(Cluster(keep=KEEP, take=take).needs) == count


def test_of_equal_members_the_first() -> None:
    score = torch.tensor([[2.0, 2.0, 1.0, 5.0, 5.0]])
    assert highest(score, torch.tensor([[0, 0, 1, 1, 1]]), kept=2).tolist() == [[0, 3]]
