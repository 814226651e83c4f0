"""Find again the images that a container of features holds, however the container was passed on.

The hooks leave what they know on the container that the encoder returns. On the way to the core, wrappers such as
accelerate's hooks rebuild containers and move their tensors; such a copy is known by its features.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_IMAGES = "foveate_images"
_NUMBERS = 16
"""How many numbers of each image's features are compared."""

_marked: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()
"""Every marked container that lives, by its `id`, the earliest first."""
_thread: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
"""The thread that marked the images of a container."""


def mark_images(output: Any, images: Any) -> None:
    """Keep with a container of features what its images are, a `Capture` or an `Encoded`."""
    setattr(output, _IMAGES, images)
    _marked.pop(id(output), None)
    _marked[id(output)] = output
    _thread[images] = threading.get_ident()


def images_of(output: Any) -> Any:
    """Return what the images of a container are, a `Capture` or an `Encoded`; None if it was never marked."""
    return getattr(output, _IMAGES, None)


def original(output: Any) -> Any:
    """Return the marked container that `output` is or was copied from; `output` itself if there is none.

    Where several hold the same features, it is the one that this thread marked last.
    """
    if images_of(output) is not None or getattr(output, "pooler_output", None) is None:
        return output
    living = [reference() for reference in _marked.valuerefs()]
    found = [other for other in living if other is not None and _same_features(output, other)]
    here = threading.get_ident()
    return max(reversed(found), key=lambda other: _thread.get(images_of(other)) == here, default=output)


def _same_features(output: Any, other: Any) -> bool:
    """Return whether two containers hold the same features, on whatever device and in whatever dtype."""
    first, second = (_tensors(each) for each in (output, other))
    if not first or [each.shape for each in first] != [each.shape for each in second]:
        return False
    if all(one is two for one, two in zip(first, second, strict=True)):
        return True
    one, two = _sample(first), _sample(second)
    return torch.equal(one, two.to(one.dtype))


def _tensors(output: Any) -> Sequence[Tensor]:
    features = getattr(output, "pooler_output", None)
    return [features] if isinstance(features, Tensor) else list(features or ())


def _sample(features: Sequence[Tensor]) -> Tensor:
    """Take some numbers of each image's features, to the host in one copy."""
    spread = [each.detach().flatten()[:: max(1, each.numel() // _NUMBERS)] for each in features]
    return torch.cat(spread).cpu()
