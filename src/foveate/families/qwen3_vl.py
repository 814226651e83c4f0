"""Qwen3-VL: full attention and no [CLS], DeepStack, M-RoPE.  Bai et al. 2025, arXiv 2511.21631."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from foveate.families.family import Capture
from foveate.families.qwen3 import Qwen3Encoder
from foveate.families.registry import register_family
from foveate.transformers_api import deepstack_output

if TYPE_CHECKING:
    from torch import Tensor

_DEEPSTACK = frozenset({"deepstack_visual_embeds", "visual_pos_masks"})


@register_family
class Qwen3VL(Qwen3Encoder):
    """Qwen3-VL: images of any size, four patches per visual token, features of several encoder layers per token.

    DeepStack adds features of earlier encoder layers to the hidden states after the first decoder layers. A plan is
    applied to these features as to the projected ones.
    """

    name = "qwen3_vl"
    title = "Qwen3-VL"
    checkpoints = (
        "Qwen/Qwen3-VL-2B-Instruct",
        "Qwen/Qwen3-VL-4B-Instruct",
        "Qwen/Qwen3-VL-8B-Instruct",
        "Qwen/Qwen3-VL-32B-Instruct",
        "Qwen/Qwen3-VL-2B-Thinking",
        "Qwen/Qwen3-VL-4B-Thinking",
        "Qwen/Qwen3-VL-8B-Thinking",
        "Qwen/Qwen3-VL-32B-Thinking",
    )
    core_class = "Qwen3VLModel"
    clip_places = ("pixels", "features", "input", "decoder")

    def output_companions(self, output: Any) -> tuple[Tensor, ...]:
        """Return the DeepStack features of all images, per layer `(tokens, D)`."""
        return tuple(output.deepstack_features)

    def companions(self, capture: Capture) -> tuple[tuple[Tensor, ...], ...]:
        """Return the DeepStack features, per image and layer `(N, D)`."""
        layers = [layer.split([layout.total for layout in capture.seen]) for layer in capture.companions]
        return tuple(tuple(layer[image] for layer in layers) for image in range(len(capture.seen)))

    def grow(self, output: Any, capture: Capture, index: Sequence[Tensor]) -> Any:
        """Repeat merged rows and DeepStack rows up to each image's full count."""
        output = super().grow(output, capture, index)
        output.deepstack_features = [self.grown(layer, capture, index) for layer in output.deepstack_features]
        return output

    @classmethod
    def container(
        cls,
        features: Sequence[Tensor],
        companions: Sequence[Sequence[Tensor]] = (),
        stacked: bool = False,
        row_tokens: Sequence[int] = (),
    ) -> dict[str, Any]:
        """Make a container of features per image, and DeepStack features per layer and image."""
        layers = [list(layer) for layer in zip(*companions, strict=True)]
        return {"image": deepstack_output(list(features), layers)}

    def take_additions(self, call: dict[str, Any]) -> tuple[dict[str, Any], tuple[Tensor, ...]]:
        """Take out the DeepStack features, which the decoder adds at fixed columns."""
        without = {name: value for name, value in call.items() if name not in _DEEPSTACK}
        return without, tuple(call.get("deepstack_visual_embeds") or ())
