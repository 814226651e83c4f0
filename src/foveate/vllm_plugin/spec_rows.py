"""Specs on their way from vLLM's processor to its workers: one row of bytes beside the pixels of each image or clip."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from foveate.errors import FoveateError

LENGTH: Final = 256
"""Bytes of a row; a longer spec is refused."""
FIELDS: Final = {"image": "foveate_spec", "video": "foveate_clip_spec"}
"""The names of the fields with these rows, by vLLM's names of the modalities."""
TEXTS: Final = {"image": "foveate_text"}
"""The names of the fields with the ids of the prompt's text, for methods that read it."""
PIXELS: Final = {"image": "pixel_values", "video": "pixel_values_videos"}
"""The names of the outputs of a processor with pixels."""


def written_row(spec: str) -> Tensor:
    """Write a spec into a row: `(LENGTH,)` uint8, with zeros behind it.

    Raises:
        FoveateError: it is too long.
    """
    data = spec.encode()
    if len(data) > LENGTH:
        raise FoveateError(f"a spec of {len(data)} bytes is too long for a server; write one of {LENGTH} or fewer")
    return torch.tensor([*data, *bytes(LENGTH - len(data))], dtype=torch.uint8)


def read_row(row: Tensor) -> str:
    """Read the spec of a row."""
    return bytes(row.tolist()).rstrip(b"\0").decode()
