import torch

from foveate.engine.planning import _row
from foveate.plan import Plan


def test_one_image_of_a_ragged_mix() -> None:
    """The padding goes from the map too, not from the slots alone."""
    mix = torch.rand(2, 2, 3)
    plan = Plan(torch.tensor([[0, 2], [1, 1]]), mix=mix, valid=torch.tensor([[True, True], [True, False]]))
    one = _row(plan, 1, torch.tensor([1]))
    assert one.slot.tolist() == [[1]]
    x = torch.randn(2, 3, 4)
    torch.testing.assert_close(one.apply(x[1:]), plan.apply(x)[1:, :1])
