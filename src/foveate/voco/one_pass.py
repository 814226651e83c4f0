"""Run a decoder on images, VoCo tokens and text in one pass under the VoCo mask, as the paper trains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from foveate.errors import FoveateError
from foveate.families import Family
from foveate.tokens import Layout
from foveate.voco.embeddings import embedding_table
from foveate.voco.image_segments import decoder_positions, image_segments
from foveate.voco.mask import PADDING, TEXT, additive_mask, voco_mask
from foveate.voco.prompt_rows import PromptRow, padded_text


@dataclass(frozen=True)
class MaskedRow:
    """One row as the decoder reads it: its images' segments, then its text.

    Attributes:
        embeddings: `(S, D)`.
        positions: `(S, axes)` int64.
        segment: `(S,)` int64, as `voco_mask` takes it.
        voco: `(S,)` bool, the VoCo tokens.
    """

    embeddings: Float[Tensor, "S D"]
    positions: Int64[Tensor, "S axes"]
    segment: Int64[Tensor, "S"]
    voco: Bool[Tensor, "S"]


def one_pass_logits(
    model: nn.Module,
    family: Family,
    rows: Sequence[PromptRow],
    features: Sequence[Tensor],
    layouts: Sequence[Layout],
    voco: Float[Tensor, "n D"],
    packed: bool = False,
) -> tuple[Float[Tensor, "B T vocabulary"], Int64[Tensor, "B T"] | None]:
    """Return logits `(B, T, vocabulary)` and labels `(B, T)` of the text of all rows, padded on the left.

    Args:
        model: the model, or peft's wrapper around it.
        family: bound to the model.
        rows: the prompts.
        features: per image `(N, D)`, at the decoder's input.
        layouts: per image.
        voco: `(n, D)`, the embeddings of the VoCo tokens.
        packed: positions count the VoCo tokens of images after the first, and not their visual tokens.

    Raises:
        FoveateError: the attention backend can't take the mask.
    """
    implementation = family.decoder.config._attn_implementation  # pyright: ignore
    if implementation not in ("eager", "sdpa"):
        raise FoveateError(
            f"{implementation} attention can't take the VoCo mask; use in_two_passes=True, or eager or sdpa attention"
        )
    ids, mask, labels = padded_text([row if row.images else row.with_bos() for row in rows])
    masked = [
        _masked_row(family, row, row_ids, row_mask, features, layouts, voco, packed)
        for row, row_ids, row_mask in zip(rows, ids, mask, strict=True)
    ]
    # Padded on the left: the text of all rows ends together.
    width = max(row.embeddings.shape[0] for row in masked)

    def stack(values: list[Tensor], fill: int) -> Tensor:
        padded = [torch.cat([v.new_full((width - v.shape[0], *v.shape[1:]), fill), v]) for v in values]
        return torch.stack(padded)

    embeddings = stack([row.embeddings for row in masked], 0)
    visible = voco_mask(stack([row.segment for row in masked], PADDING), stack([row.voco for row in masked], 0))
    positions = stack([row.positions for row in masked], 0).permute(2, 0, 1)
    logits = model(
        inputs_embeds=embeddings,
        attention_mask=additive_mask(visible, embeddings.dtype),
        position_ids=decoder_positions(positions),
        use_cache=False,
    ).logits
    return logits[:, -ids.shape[1] :], labels


def _masked_row(
    family: Family,
    row: PromptRow,
    ids: Int64[Tensor, "T"],
    mask: Int64[Tensor, "T"],
    features: Sequence[Tensor],
    layouts: Sequence[Layout],
    voco: Float[Tensor, "n D"],
    packed: bool,
) -> MaskedRow:
    """Put a row's segments and its padded text one after the other."""
    device, tokens = ids.device, voco.shape[0]
    embeddings, positions, segment, is_voco = [], [], [], []
    end = 0
    for number, image in enumerate(row.images, start=1):
        one = image_segments(family, features[image][None], layouts[image], voco)
        length = one.embeddings.shape[1]
        if packed and number > 1:
            end -= one.end - tokens
        embeddings.append(one.embeddings[0])
        positions.append(one.positions + end)
        segment.append(torch.full((length,), number, device=device))
        is_voco.append(torch.arange(length, device=device) >= length - tokens)
        end += one.end
    text_positions = (mask.cumsum(0) - 1).clamp(min=0) + end
    embeddings.append(embedding_table(family)(ids))
    positions.append(text_positions.expand(family.position_axes, -1))
    segment.append(torch.where(mask.bool(), TEXT, PADDING))
    is_voco.append(torch.zeros_like(mask, dtype=torch.bool))
    return MaskedRow(torch.cat(embeddings), torch.cat(positions, dim=1).T, torch.cat(segment), torch.cat(is_voco))
