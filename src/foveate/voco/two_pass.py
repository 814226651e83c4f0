"""Run a decoder in two passes: images into memories, then text after them.  Equal to one pass but for rounding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from foveate.families import Family
from foveate.families.turning import frequencies
from foveate.tokens import Layout
from foveate.transformers_api import cache_argument, new_cache
from foveate.voco.image_segments import decoder_positions, image_segments
from foveate.voco.memory import VoCoMemory
from foveate.voco.prompt_rows import PromptRow, padded_text


def read_images(
    family: Family,
    features: Sequence[Tensor],
    layouts: Sequence[Layout],
    voco: Float[Tensor, "n D"],
    base: str,
    adapter: str,
) -> list[VoCoMemory]:
    """Run the first pass: read images into memories, under causal attention; gradients flow if they are enabled.

    Args:
        family: bound to the model that reads.
        features: per image `(N, D)`, at the decoder's input.
        layouts: per image.
        voco: `(n, D)`, the embeddings of the VoCo tokens.
        base: the base model's fingerprint, for the memories.
        adapter: the adapter's fingerprint, for the memories.

    Raises:
        UnsupportedFamily: a decoder layer caches something other than keys and values.
    """
    rotary = frequencies(family)
    groups: dict[Layout, list[int]] = {}
    for image, layout in enumerate(layouts):
        groups.setdefault(layout, []).append(image)
    memories: dict[int, VoCoMemory] = {}
    for layout, images in groups.items():
        segments = image_segments(family, torch.stack([features[image] for image in images]), layout, voco)
        rows, length = segments.embeddings.shape[:2]
        cache = new_cache(family.decoder.config)
        family.decoder(
            inputs_embeds=segments.embeddings,
            attention_mask=torch.ones(rows, length, dtype=torch.int64, device=segments.embeddings.device),
            position_ids=decoder_positions(segments.positions[:, None].expand(-1, rows, -1)),
            use_cache=True,
            **cache_argument(family.decoder.forward, cache),
        )
        keys = torch.stack([layer.keys[:, :, -voco.shape[0] :] for layer in cache.layers], dim=1)  # pyright: ignore
        values = torch.stack([layer.values[:, :, -voco.shape[0] :] for layer in cache.layers], dim=1)  # pyright: ignore
        # Under autocast, transformers 5.24 keeps keys in float32, as it rotates them.
        keys = keys.to(values.dtype)
        # Unbound at once: the gradient of one image's slice would be as large as that of all images.
        for image, key, value in zip(images, keys.unbind(0), values.unbind(0), strict=True):
            memories[image] = VoCoMemory(key, value, 0, segments.end, layout.total, base, adapter, frequencies=rotary)
    return [memories[image] for image in range(len(layouts))]


def two_pass_logits(
    model: nn.Module, family: Family, rows: Sequence[PromptRow], memories: Sequence[VoCoMemory], packed: bool = False
) -> tuple[Float[Tensor, "B T vocabulary"], Int64[Tensor, "B T"] | None]:
    """Run the second pass: return logits `(B, T, vocabulary)` and labels `(B, T)` of text after its row's memories.

    Args:
        model: the model, or peft's wrapper around it.
        family: bound to the model.
        rows: the prompts.
        memories: one per image of the batch.
        packed: as in `VoCoMemory.joined`.
    """
    per_row = [[memories[image] for image in row.images] for row in rows]
    joined = [VoCoMemory.joined(own, packed=packed) if own else None for own in per_row]
    return text_logits(model, family, rows, joined)


def text_logits(
    model: nn.Module, family: Family, rows: Sequence[PromptRow], memories: Sequence[VoCoMemory | None]
) -> tuple[Float[Tensor, "B T vocabulary"], Int64[Tensor, "B T"] | None]:
    """Return logits `(B, T, vocabulary)` and labels `(B, T)` of each row's text after one memory, or after none.

    Args:
        model: the model, or peft's wrapper around it.
        family: bound to the model.
        rows: the prompts; their images don't count.
        memories: one per row.
    """
    texts = [row.with_bos() if memory is None else row for row, memory in zip(rows, memories, strict=True)]
    ids, mask, labels = padded_text(texts)
    cache, memory_mask, positions = memory_cache(family, memories, mask, ids.device)
    logits = model(
        input_ids=ids,
        attention_mask=torch.cat([memory_mask, mask], dim=1),
        position_ids=positions,
        **cache_argument(model.forward, cache),
    ).logits
    return logits, labels


def memory_cache(
    family: Family, memories: Sequence[VoCoMemory | None], mask: Int64[Tensor, "B T"], device: torch.device
) -> tuple[Any, Int64[Tensor, "B n"], Tensor]:
    """Fill a cache with memories, for text that follows them.

    Args:
        family: bound to the model.
        memories: one per row, padded on the left to the longest; None leaves the row's cache empty.
        mask: `(B, T)` int64, 0 at the text's padding.
        device: where the cache goes.

    Returns:
        The cache; its mask `(B, n)` int64; and the text's positions `(B, T)`, or `(axes, B, T)` if there are several
        axes.
    """
    cache = new_cache(family.decoder.config)
    given = [memory for memory in memories if memory is not None]
    longest = max((memory.tokens for memory in given), default=0)
    memory_mask = mask.new_zeros(mask.shape[0], longest)
    starts = torch.tensor([0 if memory is None else memory.end for memory in memories], device=device)
    if given:
        layers, heads, _, width = given[0].keys.shape

        def padded(values: Tensor | None) -> Tensor:
            if values is None:
                return given[0].keys.new_zeros((layers, heads, longest, width), device=device)
            return nn.functional.pad(values.to(device), (0, 0, longest - values.shape[2], 0))

        keys = torch.stack([padded(None if m is None else m.keys) for m in memories], dim=1)
        values = torch.stack([padded(None if m is None else m.values) for m in memories], dim=1)
        # Unbound at once: the gradient of one layer's slice would be as large as that of all layers.
        for layer, (key, value) in enumerate(zip(keys.unbind(0), values.unbind(0), strict=True)):
            cache.update(key, value, layer)
        for row, memory in enumerate(memories):
            if memory is not None:
                memory_mask[row, longest - memory.tokens :] = 1
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0) + starts[:, None]
    axes = family.position_axes
    return cache, memory_mask, positions if axes == 1 else positions.expand(axes, -1, -1)
