"""Initialise an adapter's thresholds and statistics from data, so that training begins near the target."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import nn

from foveate.atp.soft_masks import LayerScores, soft_masks
from foveate.engine.inputs import checked_prompts
from foveate.errors import FoveateError, KeepError, shown
from foveate.families import family_of, vlm_of
from foveate.fingerprint import model_fingerprint
from foveate.methods.arithmetic.thresholds import LearnedThresholds, ThresholdPredictor
from foveate.methods.atp import ATPMethod
from foveate.numbers import Between, check_real
from foveate.tokens import Keep

Grid = Literal[0, 2, 3, 4]

_TOKENS = 10_000
"""Tokens of an imaginary image, by which shares are turned into budgets and back."""
_CLOSED = 0.9
"""A spatial threshold above the scores of all grids."""


def starting_shares(layers: Sequence[int], depth: int, share: float) -> list[float]:
    """Return the share of an image's tokens that a fixed rule leaves after each layer, for a share on average.

    Each layer keeps the same fraction of what arrives.

    Args:
        layers: of the adapter, ascending.
        depth: the number of decoder layers.
        share: of the tokens per decoder layer.

    Raises:
        KeepError: these layers can't leave so few tokens.

    >>> starting_shares((1, 2), 4, 0.5)
    [0.5, 0.25]
    """
    method = ATPMethod(Keep(mean=max(1, round(share * _TOKENS))))
    try:
        return [budget / _TOKENS for budget in method.budgets(layers, _TOKENS, depth)]
    except KeepError:
        raise KeepError(
            f"{share:g} of the tokens per layer can't remain: layers before layer {layers[0]} of {depth} have all of "
            f"them, so the share is more than {layers[0] / depth:.3g} and up to 1; ask for more, or name earlier layers"
        ) from None


def initialise_thresholds(
    model: nn.Module, adapter: LearnedThresholds, batches: Iterable[Mapping[str, Any]], share: float, grid: Grid
) -> None:
    """Set each layer's thresholds to where a fixed rule would leave `share`; `foveate.ATP.prepare` says more.

    Raises:
        KeepError: these layers can't leave so few tokens, or no layer has room for the grid.
        FoveateError: the share or the grid is something else, no batch has an image, a batch is no output of a
            processor, or the adapter was made for another model.
    """
    adapter.check_base(model_fingerprint(family_of(model).core))
    check_real("share", share, Between(1 / _TOKENS, 1))
    if grid not in get_args(Grid):
        raise FoveateError(f"grid must be 2, 3 or 4, or 0 for none, not {shown(grid)}")
    depth = len(family_of(model).decoder_layers)
    shares = starting_shares(adapter.layers, depth, share)
    grid_scores = {step: 1 - ATPMethod.sparsity / step**2 for step in (2, 3, 4)}
    recorded = _record_scores(model, adapter, batches)
    opened = False
    for number, layer in enumerate(adapter.layers):
        scores = recorded[layer]
        predictor = adapter.predictors[number]
        assert isinstance(predictor, ThresholdPredictor)
        _set_statistics(predictor, scores)
        redundancy = [score.redundancy for score in scores]
        spatial = _CLOSED
        if grid:
            on_grid = [score.spatial >= grid_scores[grid] - 1e-3 for score in scores]
            if max(float(tokens.float().mean()) for tokens in on_grid) < shares[number]:
                opened = True
                # Tokens on the grid stay in any case, so they count first.
                redundancy = [score.masked_fill(on, 1.0) for score, on in zip(redundancy, on_grid, strict=True)]
                # Halfway to the next denser grid.
                spatial = (grid_scores[grid] + grid_scores.get(grid - 1, 0.0)) / 2
        cut = torch.stack([score.quantile(1 - shares[number]) for score in redundancy])
        with torch.no_grad():
            predictor.redundancy.bias.fill_(float(cut.mean().clamp(0.01, 0.99).logit()))
            predictor.spatial.bias.fill_(float(torch.tensor(spatial).logit()))
    if grid and not opened:
        raise KeepError(
            f"{share:.1%} of the tokens per layer leave no room for one of every {grid} rows and columns at layers "
            f"{', '.join(map(str, adapter.layers))}; leave grid out, or ask for more tokens"
        )


@torch.no_grad()
def _record_scores(
    model: nn.Module, adapter: LearnedThresholds, batches: Iterable[Mapping[str, Any]]
) -> dict[int, list[LayerScores]]:
    """Return the scores of each image, by layer of the adapter."""
    model = vlm_of(model)
    with soft_masks(model, adapter, 1.0) as masks:
        masks.scores_only = True
        for batch in checked_prompts(batches):
            model(**{**batch, "use_cache": False})
    if not all(masks.scores.values()):
        raise FoveateError("no image came to prepare the thresholds on; pass prompts with images")
    return masks.scores


@torch.no_grad()
def _set_statistics(predictor: ThresholdPredictor, scores: list[LayerScores]) -> None:
    """Set what the statistics of the scores are normalised with."""
    statistics = torch.stack([score.statistics for score in scores])
    predictor.center.copy_(statistics.mean(dim=0))
    several = len(statistics) > 1
    predictor.spread.copy_(statistics.std(dim=0).clamp(min=1e-3) if several else torch.ones_like(statistics[0]))
