"""Both ways to run a decoder on VoCo tokens: in two passes, or in one under the mask.  Equal but for rounding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from foveate.errors import FoveateError
from foveate.families import Family
from foveate.families.turning import frequencies
from foveate.tokens import Layout
from foveate.transformers_api import cache_argument
from foveate.voco.arrange import IGNORED, Sample, framing
from foveate.voco.mask import PADDING, TEXT, additive, voco_mask
from foveate.voco.memory import VoCoMemory


@dataclass(frozen=True)
class Segments:
    """Segments of images of one layout, in the decoder's own terms: embeddings `(B, S, D)`, positions `(axes, S)`."""

    embeddings: Tensor
    positions: Tensor
    end: int


def segments(family: Family, features: Tensor, layout: Layout, voco: Tensor) -> Segments:
    """`[BOS] image VoCo...` for `(B, N, D)` features of one layout, with VoCo embeddings `(n, D)`."""
    before, behind = framing(family)
    table = embedding_table(family)
    # The encoder may have another dtype than the decoder, which takes what its embeddings are.
    features = features.to(table.weight.dtype)
    device, rows = features.device, features.shape[0]

    def embed(ids: list[int]) -> Tensor:
        return table(torch.tensor(ids, dtype=torch.int64, device=device)).expand(rows, -1, -1)

    count = voco.shape[0]
    start, span = len(before), family.image_span(layout)
    tail = torch.arange(len(behind) + count) + start + span
    axes = family.position_axes
    positions = [
        torch.arange(start).expand(axes, -1),
        family.image_positions(layout) + start,
        tail.expand(axes, -1),
    ]
    return Segments(
        torch.cat([embed(before), features, embed(behind), voco.to(features).expand(rows, -1, -1)], dim=1),
        torch.cat(positions, dim=1).to(device),
        start + span + len(behind) + count,
    )


def read(
    family: Family, features: Sequence[Tensor], layouts: Sequence[Layout], voco: Tensor, base: str, adapter: str
) -> list[VoCoMemory]:
    """The first pass: memories of images, plainly causal; gradients flow if they are on.

    Args:
        family: bound to the model that reads.
        features: per image `(N, D)`, at the decoder's input.
        layouts: per image.
        voco: `(n, D)`, the embeddings of the VoCo tokens.
        base: the fingerprint that memories will carry.
        adapter: the same of the adapter.

    Raises:
        UnsupportedFamily: the decoder remembers something else than keys and values.
    """
    from transformers import DynamicCache

    turning = frequencies(family)
    groups: dict[Layout, list[int]] = {}
    for image, layout in enumerate(layouts):
        groups.setdefault(layout, []).append(image)
    found: dict[int, VoCoMemory] = {}
    for layout, members in groups.items():
        one = segments(family, torch.stack([features[image] for image in members]), layout, voco)
        rows, length = one.embeddings.shape[:2]
        cache = DynamicCache(config=family.decoder.config)  # pyright: ignore[reportArgumentType]
        family.decoder(
            inputs_embeds=one.embeddings,
            attention_mask=torch.ones(rows, length, dtype=torch.int64, device=one.embeddings.device),
            position_ids=_positions(one.positions[:, None].expand(-1, rows, -1)),
            use_cache=True,
            **cache_argument(family.decoder.forward, cache),
        )
        keys = torch.stack([layer.keys[:, :, -voco.shape[0] :] for layer in cache.layers], dim=1)  # pyright: ignore
        values = torch.stack([layer.values[:, :, -voco.shape[0] :] for layer in cache.layers], dim=1)  # pyright: ignore
        # Taken apart at once: the gradient of one image's slice would be as large as all images together.
        for image, key, value in zip(members, keys.unbind(0), values.unbind(0), strict=True):
            found[image] = VoCoMemory(key, value, 0, one.end, layout.total, base, adapter, frequencies=turning)
    return [found[image] for image in range(len(layouts))]


def two_passes(
    model: nn.Module, family: Family, rows: list[Sample], memories: Sequence[VoCoMemory], packed: bool = False
) -> tuple[Tensor, Tensor | None]:
    """The second pass: text behind the memories of its row: logits `(B, T, vocabulary)` and labels `(B, T)`."""
    own = [[memories[image] for image in row.images] for row in rows]
    held = [VoCoMemory.joined(each, packed=packed) if each else None for each in own]
    return text_behind(model, family, rows, held)


def text_behind(
    model: nn.Module, family: Family, rows: list[Sample], held: Sequence[VoCoMemory | None]
) -> tuple[Tensor, Tensor | None]:
    """Text behind one memory per row, or none: logits `(B, T, vocabulary)` and labels `(B, T)`."""
    ids, mask, labels = text_of([row.alone() if m is None else row for row, m in zip(rows, held, strict=True)])
    cache, seen, positions = filled_cache(family, held, mask, ids.device)
    logits = model(
        input_ids=ids,
        attention_mask=torch.cat([seen, mask], dim=1),
        position_ids=positions,
        **cache_argument(model.forward, cache),
    ).logits
    return logits, labels


def one_pass(
    model: nn.Module,
    family: Family,
    rows: list[Sample],
    features: Sequence[Tensor],
    layouts: Sequence[Layout],
    voco: Tensor,
    packed: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Images and text together under the mask: logits `(B, T, vocabulary)` and labels `(B, T)` of the text.

    Raises:
        FoveateError: the attention backend can't take the mask.
    """
    implementation = family.decoder.config._attn_implementation  # pyright: ignore
    if implementation not in ("eager", "sdpa"):
        raise FoveateError(
            f"{implementation} attention can't take the VoCo mask; use in_two_passes=True, or eager or sdpa attention"
        )
    ids, mask, labels = text_of([row if row.images else row.alone() for row in rows])
    table = embedding_table(family)
    device, longest = ids.device, ids.shape[1]
    lines, positions, segment, marked = [], [], [], []
    for number, row in enumerate(rows):
        parts, places, kinds, marks, end = [], [], [], [], 0
        for place, image in enumerate(row.images, start=1):
            one = segments(family, features[image][None], layouts[image], voco)
            length = one.embeddings.shape[1]
            if packed and place > 1:
                end -= one.end - voco.shape[0]
            parts.append(one.embeddings[0])
            places.append(one.positions + end)
            kinds.append(torch.full((length,), place, device=device))
            marks.append(torch.arange(length, device=device) >= length - voco.shape[0])
            end += one.end
        parts.append(table(ids[number]))
        steps = (mask[number].cumsum(0) - 1).clamp(min=0) + end
        places.append(steps.expand(family.position_axes, -1))
        kinds.append(torch.where(mask[number].bool(), TEXT, PADDING))
        marks.append(torch.zeros(longest, dtype=torch.bool, device=device))
        lines.append(torch.cat(parts))
        positions.append(torch.cat(places, dim=1))
        segment.append(torch.cat(kinds))
        marked.append(torch.cat(marks))
    # Padded on the left: the text of all rows ends together.
    width = max(line.shape[0] for line in lines)

    def stack(values: list[Tensor], fill: int) -> Tensor:
        padded = [torch.cat([v.new_full((width - v.shape[0], *v.shape[1:]), fill), v]) for v in values]
        return torch.stack(padded)

    embeddings = stack(lines, 0)
    seen = additive(voco_mask(stack(segment, PADDING), stack(marked, 0)), embeddings.dtype)
    places = stack([each.T for each in positions], 0).permute(2, 0, 1)
    logits = model(
        inputs_embeds=embeddings, attention_mask=seen, position_ids=_positions(places), use_cache=False
    ).logits
    return logits[:, -longest:], labels


@dataclass(frozen=True)
class VoCoOutput:
    """What a training step needs.

    Attributes:
        logits: `(B, T, vocabulary)` over the text.
        labels: `(B, T)` int64 of the text, -100 where nothing is learned; None if none came.
        loss: the mean cross-entropy of the next token, a scalar; None without labels.
    """

    logits: Tensor
    labels: Tensor | None
    loss: Tensor | None


def distillation(student: VoCoOutput, logits: Tensor, labels: Tensor, temperature: float = 1.0) -> Tensor:
    """The paper's Eq. 1, which its code leaves out: KL from the dense model's next-token distribution, a scalar.

    Args:
        student: what `VoCo.forward` returned.
        logits: `(B, S, vocabulary)` of the dense model on the same batch.
        labels: `(B, S)` int64 of the dense batch, with the same answers in the same order.
        temperature: softens both.
    """
    assert student.labels is not None
    mine = student.logits[:, :-1][student.labels[:, 1:] != IGNORED].float() / temperature
    its = logits[:, :-1][labels[:, 1:] != IGNORED].float() / temperature
    return nn.functional.kl_div(mine.log_softmax(-1), its.log_softmax(-1), log_target=True, reduction="batchmean") * (
        temperature**2
    )


def embedding_table(family: Family) -> Any:
    """The embeddings of the decoder's vocabulary."""
    return family.core.get_input_embeddings()  # pyright: ignore[reportCallIssue]


def home(family: Family) -> tuple[torch.device, torch.dtype]:
    """Where the decoder takes keys and values, and as what: as its embeddings are; the encoder may be elsewhere."""
    weight: Tensor = embedding_table(family).weight
    return weight.device, weight.dtype


def _positions(axes: Tensor) -> Tensor:
    """`(axes, B, S)` as the decoder takes it: `(B, S)` where there is one axis."""
    return axes[0] if axes.shape[0] == 1 else axes


def real_mask(model: Any, ids: Tensor) -> Tensor:
    """1 from the first id on that is not the padding id of `generate`: `(B, T)` int64."""
    pad = model.generation_config.pad_token_id
    return torch.ones_like(ids) if pad is None else ((ids != pad).cumsum(dim=1) > 0).long()


def text_of(rows: list[Sample]) -> tuple[Tensor, Tensor, Tensor | None]:
    """Text of all rows `(B, T)`, padded on the left: ids, mask, labels."""
    longest = max(row.text.shape[0] for row in rows)

    def stack(values: list[Tensor], fill: int) -> Tensor:
        return torch.stack([torch.cat([v.new_full((longest - v.shape[0],), fill), v]) for v in values])

    ids = stack([row.text for row in rows], 0)
    mask = stack([torch.ones_like(row.text) for row in rows], 0)
    labels = [row.labels for row in rows if row.labels is not None]
    return ids, mask, stack(labels, IGNORED) if labels else None


def filled_cache(
    family: Family, memories: Sequence[VoCoMemory | None], mask: Tensor, device: torch.device
) -> tuple[Any, Tensor, Tensor]:
    """A cache that holds the memories, padded on the left; its mask `(B, n)`; positions of the text behind it."""
    from transformers import DynamicCache

    cache = DynamicCache(config=family.decoder.config)  # pyright: ignore[reportArgumentType]
    held = [memory for memory in memories if memory is not None]
    longest = max((memory.tokens for memory in held), default=0)
    seen = mask.new_zeros(mask.shape[0], longest)
    starts = torch.tensor([0 if memory is None else memory.end for memory in memories], device=device)
    if held:
        shape = (held[0].keys.shape[0], held[0].keys.shape[1], longest, held[0].keys.shape[3])

        def padded(values: Tensor | None) -> Tensor:
            if values is None:
                return held[0].keys.new_zeros(shape, device=device)
            return nn.functional.pad(values.to(device), (0, 0, longest - values.shape[2], 0))

        keys = torch.stack([padded(None if m is None else m.keys) for m in memories], dim=1)
        values = torch.stack([padded(None if m is None else m.values) for m in memories], dim=1)
        # Taken apart at once: the gradient of one layer's slice would be as large as all layers together.
        for layer, (key, value) in enumerate(zip(keys.unbind(0), values.unbind(0), strict=True)):
            cache.update(key, value, layer)
        for row, memory in enumerate(memories):
            if memory is not None:
                seen[row, longest - memory.tokens :] = 1
    steps = (mask.cumsum(dim=1) - 1).clamp(min=0) + starts[:, None]
    return cache, seen, steps if family.position_axes == 1 else steps.expand(family.position_axes, -1, -1)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean over all labels that are not -100, of the next token.

    Raises:
        FoveateError: there is none.
    """
    learned = labels[:, 1:] != IGNORED
    if not learned.any():
        raise FoveateError("no label is left to learn from; labels must hold the answer, -100 elsewhere")
    return nn.functional.cross_entropy(logits[:, :-1][learned].float(), labels[:, 1:][learned])
