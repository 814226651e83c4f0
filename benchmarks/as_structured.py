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


def holov(features: Tensor, attention: Tensor, kept: int, windows: int = 16, alpha: float = 0.09) -> Tensor:
    """Quotas by attention and variety, then one window after the other: `(N, D)`, `(N,)` -> picks, ascending."""
    x = features.float().reshape(windows, -1, features.shape[1])
    looked_at = attention.float().reshape(windows, -1)
    size = x.shape[1]
    alike = normalize(x, dim=-1) @ normalize(x, dim=-1).transpose(1, 2)
    alike = alike * (1 - torch.eye(size))
    mean = alike.sum(dim=-1) / (size - 1)
    variety = ((alike - mean[..., None]) ** 2).sum(dim=-1) / (size - 1)
    looked, varied = looked_at.mean(dim=1) * 1e3, variety.mean(dim=1)
    score = looked + alpha * varied * (looked / (varied + 1e-6))
    share = score / (score.sum() + 1e-6)
    quota = (share * kept).floor().long()
    quota[share.argsort(descending=True, stable=True)[: kept - int(quota.sum())]] += 1
    picks = [looked_at[number].topk(int(quota[number])).indices + number * size for number in range(windows)]
    return torch.cat(picks).sort().values


def tome(features: Tensor, kept: int) -> Tensor:
    """Rounds of bipartite matching that carry sums and sizes: `(B, N, D)` -> means `(B, kept, D)` in no order."""
    x = features.float()
    size = torch.ones(*x.shape[:2], 1)
    while (count := x.shape[1]) > kept:
        merges = min(count - kept, max(1, count // 4))
        unit = x / x.norm(dim=-1, keepdim=True)
        best, partner = (unit[:, ::2] @ unit[:, 1::2].transpose(1, 2)).max(dim=-1)
        order = best.argsort(dim=-1, descending=True)[..., None]
        gone, stay = order[:, :merges], order[:, merges:]
        target = partner[..., None].gather(1, gone)

        def merged(values: Tensor, gone: Tensor = gone, stay: Tensor = stay, target: Tensor = target) -> Tensor:
            even, odd = values[:, ::2], values[:, 1::2]
            width = values.shape[2]
            moved = even.gather(1, gone.expand(-1, -1, width))
            odd = odd.scatter_reduce(1, target.expand(-1, -1, width), moved, reduce="sum")
            return torch.cat([even.gather(1, stay.expand(-1, -1, width)), odd], dim=1)

        total = merged(size)
        x, size = merged(x * size) / total, total
    return x


def vispruner(features: Tensor, attention: Tensor, kept: int, step: int = 8) -> Tensor:
    """Rounds that multiply what is left anew: `(N, D)`, `(N,)` -> picks `(kept,)`, ascending."""
    order = attention.argsort(descending=True, stable=True)
    important, left = order[: kept // 2], order[kept // 2 :]
    unit = normalize(features.float(), dim=-1)
    while len(left) > kept - kept // 2:
        first, second = left[::2], left[1::2]
        best = (unit[first] @ unit[second].T).amax(dim=1)
        fewer = min(step, len(left) - (kept - kept // 2))
        left = torch.cat([first[best.argsort(descending=True, stable=True)[fewer:]], second])
    return torch.cat([important, left]).sort().values


def visionzip(features: Tensor, attention: Tensor, keys: Tensor, kept: int) -> Tensor:
    """Dominant tokens, and a product with the map of merges: `(N, D)`, `(N,)`, `(N, C)` -> `(kept, D)` in no order."""
    contextual = (20 * kept + 64) // 128
    dominant = attention.topk(kept - contextual).indices
    rest = torch.ones(len(features), dtype=torch.bool).index_fill(0, dominant, False)
    x, unit = features.float()[rest], normalize(keys.float()[rest], dim=-1)
    step = max(1, len(x) // contextual)
    target = torch.arange(0, step * contextual, step)
    merged = torch.ones(len(x), dtype=torch.bool).index_fill(0, target, False)
    near = (unit[merged] @ unit[target].T).argmax(dim=1)
    into = torch.nn.functional.one_hot(near, contextual).float()
    means = into.T @ x[merged] / into.sum(dim=0).clamp(min=1)[:, None]
    return torch.cat([features.float()[dominant], x[target] + means])


def prumerge(features: Tensor, attention: Tensor, keys: Tensor, kept: int, neighbours: int = 32) -> Tensor:
    """The most attended tokens, one after the other, and the extra token: `(kept, D)` in no order."""
    x, unit = features.float(), normalize(keys.float(), dim=-1)
    chosen = attention.topk(kept - 1).indices
    rest = torch.ones(len(x), dtype=torch.bool).index_fill(0, chosen, False)
    out: list[Tensor] = []
    for pick in chosen:
        alike = unit[pick] @ unit.T
        alike[pick] = -torch.inf
        near = alike.topk(neighbours).indices
        out.append(x[pick] + (attention[near, None] * x[near]).sum(dim=0))
    return torch.stack([*out, (attention[rest, None] * x[rest]).sum(dim=0)])


def cls(features: Tensor, attention: Tensor, kept: int) -> Tensor:
    """A mask of the most attended tokens of all images: `(B, N, D)`, `(B, N)` -> `(B, kept, D)`."""
    mask = torch.zeros_like(attention, dtype=torch.bool).scatter_(1, attention.topk(kept, dim=1).indices, True)
    return features[mask].view(len(features), kept, -1)


def most_attended(features: Tensor, attention: Tensor, kept: int) -> Tensor:
    """The most attended tokens of one image, in order (FastV, HiRED on a single grid): picks `(kept,)`."""
    return attention.topk(kept).indices.sort().values


def pool(features: Tensor, kept: int) -> Tensor:
    """Average pooling of one image's features and position ids alike: `(N, D)` -> `(kept, D)`, where N divides."""
    run = len(features) // kept
    position = torch.arange(len(features), dtype=torch.float16)[None]
    torch.nn.functional.avg_pool1d(position, run, run).long()
    return torch.nn.functional.avg_pool1d(features[None].transpose(1, 2), run, run)[0].T


def dart(
    features: Tensor, keys: Tensor, text_keys: Tensor, text: Tensor, behind: Tensor, kept: int, pivots: int = 4
) -> Tensor:
    """One pivot after the other, over the tokens that are left: picks `(kept,)`, ascending."""
    own = keys.float().abs().sum(dim=1).topk(pivots).indices
    words = torch.where(behind, text_keys.float().abs().sum(dim=1), -1.0).topk(pivots).indices
    states = normalize(torch.cat([features[own], text[words]]).float(), dim=-1)
    unit = normalize(features.float(), dim=-1)
    picks, left = [own], torch.ones(len(features), dtype=torch.bool).index_fill(0, own, False)
    share, more = divmod(kept - pivots, len(states))
    for number, state in enumerate(states):
        free = left.nonzero()[:, 0]
        taken = free[(unit[free] @ state).topk(share + (number < more), largest=False).indices]
        left[taken] = False
        picks.append(taken)
    return torch.cat(picks).sort().values


def sparsevlm(
    features: Tensor,
    attention: Tensor,
    visual: Tensor,
    text: Tensor,
    behind: Tensor,
    kept: int,
    split: Callable[[int], tuple[int, int]],
) -> Tensor:
    """Raters, their favourites, and clusters of the best others: `(N, D)` ... -> `(kept, D)` in no order."""
    like = (visual @ text[behind].T).softmax(dim=1).mean(dim=0)
    score = attention[behind][like > like.mean()].mean(dim=0)
    alone, merged = split(len(features))
    order = score.argsort(descending=True, stable=True)
    recycled = order[alone : alone + int((len(features) - alone) * 0.3)]
    _, means = dpc_knn(features[recycled], merged, merged)
    return torch.cat([features.float()[order[:alone]], means])


def atp(features: Tensor, logits: Tensor, attention: Tensor, kept: int, sides: tuple[int, int]) -> Tensor:
    """Two scores, scaled, and a grid by place; the largest margins: picks `(kept,)`, ascending."""

    def stretched(score: Tensor) -> Tensor:
        return (score - score.min()) / (score.max() - score.min())

    redundancy = (stretched(logits.float()) + stretched(attention.float().mean(dim=0))) / 2
    spatial = torch.zeros(sides)
    for step in (2, 3, 4):
        spatial[step // 2 :: step, step // 2 :: step] = 1 - 3 / step**2
    margin = torch.maximum(redundancy - 0.5, spatial.clamp(min=0).flatten() - 0.5)
    return margin.argsort(descending=True, stable=True)[:kept].sort().values


def evs(frames: Tensor, kept: int) -> Tensor:
    """One ranking over the clip, of all tokens but the first frame's: `(T, P, D)` -> picks `(kept,)`, ascending."""
    changed = 1 - torch.nn.functional.cosine_similarity(frames[1:], frames[:-1], dim=-1)
    score = torch.cat([torch.full_like(changed[:1], 255.0), changed]).flatten()
    return score.argsort(descending=True, stable=True)[:kept].sort().values


def dycoke(frames: Tensor, kept: int) -> Tensor:
    """One frame after the other, beside an earlier one: `(T, P, D)` -> picks, ascending."""
    length, each, _ = frames.shape
    pruned = length - -(-length // 4)
    fewer = min(each, (kept - (length - pruned) * each) // pruned)
    picks: list[Tensor] = []
    for number in range(length):
        if number % 4 == 0:
            picks.append(torch.arange(each) + number * each)
            continue
        before = number - (2 if number % 4 == 2 else 1)
        alike = torch.nn.functional.cosine_similarity(frames[number], frames[before], dim=-1)
        picks.append(alike.topk(fewer, largest=False).indices.sort().values + number * each)
    return torch.cat(picks)


RULES: dict[str, Callable[[Tensor, Tensor, int], object]] = {
    "divprune": lambda features, text, kept: divprune(features, kept),
    "cdpruner": cdpruner,
    "dpc-knn": lambda features, text, kept: dpc_knn(features, kept),
    "agglomerative": lambda features, text, kept: agglomerative(features, kept),
    "cluster": lambda features, text, kept: cluster(features, kept),
}
"""By method: a function of features `(N, D)`, text `(T, D)` and the number of kept tokens."""

CLIP_RULES: dict[str, Callable[[Tensor, int], Tensor]] = {"dycoke": dycoke, "evs": evs}
"""By method: a function of frames `(T, P, D)` and the number of kept tokens; it returns picks."""
