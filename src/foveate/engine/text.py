"""The text of a prompt, as methods see it that read the question."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from foveate.engine.cut import check_prompt
from foveate.families import Family
from foveate.tokens import Layout


def texts_of(
    family: Family, input_ids: Tensor, attention_mask: Tensor | None, layouts: Sequence[Layout]
) -> list[Tensor]:
    """The text that stands with each image: all text of its row in this call, embedded, `(T, D)`.

    Before the image and behind it; neither placeholders of images nor padding. A row that is to be learnt from holds
    its answer, too, and so does the text.

    Args:
        family: says which placeholder, and how text is embedded.
        input_ids: `(B, S)` int64.
        attention_mask: `(B, S)`, 0 at padding; None means none is padding.
        layouts: of each image, in prompt order.

    Raises:
        FoveateError: images and placeholders don't fit together.
    """
    placeholder = input_ids == family.image_token
    rows = check_prompt(family, placeholder, layouts)
    real = ~placeholder if attention_mask is None else ~placeholder & attention_mask.bool()
    with torch.no_grad():
        texts = family.embed(input_ids[real]).split(real.sum(dim=1).tolist())
    return [texts[row] for row in rows]
