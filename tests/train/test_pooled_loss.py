"""What a stage with `pool@k` trains on: the loss of the whole model with averages written in and columns hidden."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import avg_pool1d

import foveate
from foveate.families import family_of
from foveate.loading import load
from foveate.train.batches import Batches
from foveate.train.sources import Scenes

STRIDE = 4


def oracle(model: Any, batch: dict[str, Any], first: int) -> Tensor:
    """LLaVolta's rule written down for every column: from layer `first` on, one of four visual columns is left.

    It holds the average of the four (1-D, raster order) and stands where their mean position is, rounded down.
    """
    family = family_of(model)
    visual = batch["input_ids"] == family.image_token
    real = batch["attention_mask"].bool()
    groups = torch.stack([row.nonzero()[:, 0] for row in visual]).unflatten(1, (-1, STRIDE))
    middle = groups.float().mean(-1).floor().long()
    seen = (real & ~visual).scatter(1, middle, True)
    columns = torch.arange(seen.shape[1])
    allowed = (columns[None] <= columns[:, None]) & seen[:, None] | torch.eye(len(columns), dtype=torch.bool)
    mask = torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)[:, None]

    def pooled(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        (hidden,) = args
        flat = groups.flatten(1)[..., None].expand(-1, -1, hidden.shape[-1])
        means = avg_pool1d(hidden.gather(1, flat).mT, STRIDE).mT
        return (hidden.scatter(1, middle[..., None].expand_as(means), means),), kwargs

    def hidden_columns(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        return args, {**kwargs, "attention_mask": mask}

    layers = family.decoder_layers
    handles = [layers[first].register_forward_pre_hook(pooled, with_kwargs=True)]
    handles += [layer.register_forward_pre_hook(hidden_columns, with_kwargs=True) for layer in layers[first:]]
    try:
        return model(**batch, use_cache=False).loss
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("layer", [1, 2])
def test_loss_and_gradients_under_pool_inside_the_decoder_are_the_oracles(tiny_model: Path, layer: int) -> None:
    model: Any
    model, processor = load(tiny_model)
    with torch.no_grad():
        for weight in model.parameters():
            weight *= 4 if weight.ndim > 1 else 1  # fresh weights hardly look at the image
    rows = Scenes(3, turns=3)
    batch = Batches(processor, family_of(model))([(i, rows[i]) for i in range(3)])
    batch = {name: batch[name] for name in ("input_ids", "attention_mask", "labels", "pixel_values")}
    assert not batch["attention_mask"].all()  # rows of different lengths
    found = []
    for spec in (None, f"pool:{1 / STRIDE}@{layer}"):
        model.zero_grad()
        if spec is None:
            loss = oracle(model, batch, layer)
        else:
            with foveate.apply(model, spec):
                loss = model(**batch, use_cache=False).loss
        loss.backward()
        found.append((loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}))
    (expected, theirs), (ours, mine) = found
    with torch.no_grad():
        assert abs(model(**batch, use_cache=False).loss - expected) > 1e-2  # pooling changes the loss at all
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)
    assert mine.keys() == theirs.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(mine[name], value, atol=1e-5, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}")
