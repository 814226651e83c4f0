"""Methods in the structure of their authors' code: one image, one token or cluster at a time.

Written from the formulas, to be timed beside the plans of foveate and to agree with them.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import normalize


def divprune(features: Tensor, kept: int) -> Tensor:
    """Each step looks up the distances of all picks again: `(N, D)` -> picks `(kept,)`, ascending."""
    unit = normalize(features.float(), dim=-1)
    away = 1 - unit @ unit.T
    picks = [int(away.topk(2, dim=0, largest=False).values[1].argmax())]
    for _ in range(kept - 1):
        nearest = away[torch.tensor(picks)].amin(dim=0)
        nearest[torch.tensor(picks)] = -torch.inf
        picks.append(int(nearest.argmax()))
    return torch.tensor(picks).sort().values


def cdpruner(features: Tensor, text: Tensor, kept: int) -> Tensor:
    """Chen's greedy algorithm on the whole kernel: `(N, D)`, `(T, D)` -> picks `(kept,)`, ascending."""
    unit = normalize(features.float(), dim=-1)
    relevance = -(unit @ normalize(text.float(), dim=-1).T).mean(dim=1)
    relevance = (relevance - relevance.min() + 1e-6) / (relevance.max() - relevance.min())
    kernel = relevance[:, None] * (unit @ unit.T) * relevance
    factor = torch.zeros(kept, len(kernel))
    left = kernel.diagonal().clone()
    picks: list[int] = []
    for step in range(kept):
        pick = int(left.argmax())
        picks.append(pick)
        row = (kernel[pick] - torch.einsum("t,tn->n", factor[:step, pick], factor[:step])) / left[pick].sqrt()
        factor[step] = row
        left = left - row.square()
        left[pick] = -torch.inf
    return torch.tensor(picks).sort().values


def dpc_knn(features: Tensor, kept: int, neighbours: int = 7) -> tuple[Tensor, Tensor]:
    """Density peaks, and the mean of one cluster after the other: `(N, D)` -> centres `(kept,)`, means `(kept, D)`."""
    x = features.float()
    away = torch.cdist(x, x) / x.shape[1] ** 0.5
    density = (-away.topk(neighbours, dim=1, largest=False).values.square().mean(dim=1)).exp()
    denser = density[None] > density[:, None]
    far = torch.where(denser, away, away.max()).amin(dim=1)
    centre = (far * density).topk(kept).indices
    group = away[centre].argmin(dim=0)
    group[centre] = torch.arange(kept)
    return centre, torch.stack([x[group == number].mean(dim=0) for number in range(kept)])


def agglomerative(features: Tensor, kept: int) -> Tensor:
    """Ward's linkage, one merge at a time by the formula of Lance and Williams: `(N, D)` -> labels `(N,)`."""
    x = features.float()
    heights = torch.cdist(x, x).square() / 2
    heights.fill_diagonal_(torch.inf)
    size = torch.ones(len(x))
    label = torch.arange(len(x))
    for _ in range(len(x) - kept):
        first, second = divmod(int(heights.argmin()), len(x))
        first, second = min(first, second), max(first, second)
        merged = (
            (size[first] + size) * heights[first]
            + (size[second] + size) * heights[second]
            - size * heights[first, second]
        ) / (size[first] + size[second] + size)
        merged[first] = torch.inf
        heights[first], heights[:, first] = merged, merged
        heights[second], heights[:, second] = torch.inf, torch.inf
        size[first] += size[second]
        label[label == second] = first
    return label


def cluster(features: Tensor, kept: int, iterations: int = 10) -> Tensor:
    """k-means, the mean of one cluster after the other: `(N, D)` -> means `(kept, D)` in no order."""
    x = features.float()
    centre = x[(torch.arange(kept) * 2 + 1) * len(x) // (2 * kept)]
    for _ in range(iterations + 1):
        group = torch.cdist(x, centre).argmin(dim=1)
        members = [x[group == number] for number in range(kept)]
        centre = torch.stack([each.mean(dim=0) if len(each) else centre[n] for n, each in enumerate(members)])
    return centre


RULES: dict[str, Callable[[Tensor, Tensor, int], object]] = {
    "divprune": lambda features, text, kept: divprune(features, kept),
    "cdpruner": cdpruner,
    "dpc-knn": lambda features, text, kept: dpc_knn(features, kept),
    "agglomerative": lambda features, text, kept: agglomerative(features, kept),
    "cluster": lambda features, text, kept: cluster(features, kept),
}
"""By method: a function of features `(N, D)`, text `(T, D)` and the number of kept tokens."""
