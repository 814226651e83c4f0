"""Aya Vision: Cohere2 Vision's tiles, with their names before them.  Dash et al. 2025, arXiv 2505.08751."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from foveate.errors import UnsupportedFamily
from foveate.families.arranged_tiles import nearest_shape
from foveate.families.cohere2_vision import Cohere2Vision
from foveate.families.config_fields import read_number
from foveate.families.llava import check_all_patches
from foveate.families.registry import register_family
from foveate.layout import Layout

if TYPE_CHECKING:
    from torch import Tensor, nn


@register_family
class AyaVision(Cohere2Vision):
    """Aya Vision with a SigLIP encoder: the name of each tile, as text, stands before it, and a mark ends the image.

    This text is no part of the image, and always stays. Tiles, signals and ways to resize are those of Cohere2 Vision;
    the processor cuts an image as InternVL's does.
    """

    name = "aya_vision"
    title = "Aya Vision"
    core_class = "AyaVisionModel"
    checkpoints: ClassVar[tuple[str, ...]] = ("CohereLabs/aya-vision-8b", "CohereLabs/aya-vision-32b")
    decoders = ("cohere2", "cohere")
    end = 1

    def check_config(self) -> None:
        """Check that the encoder is SigLIP's, that one of its layers is read, and that no patch is dropped after it."""
        super().check_config()
        depth = read_number(self.config.vision_config, "num_hidden_layers")
        layer = self.config.vision_feature_layer
        if not isinstance(layer, int) or not -depth - 1 <= layer <= depth:
            raise UnsupportedFamily(
                f"{self.title} that reads layers {layer} of its encoder (vision_feature_layer) is not supported; one "
                f"of its {depth} layers is"
            )
        check_all_patches(self)

    def image_layout(self, height: int, width: int) -> Layout:
        """Return the tiles of an image of `height` x `width` pixels: up to 12 in the arrangement nearest its shape."""
        return self._cut(*nearest_shape(height, width, self.edge))

    @property
    def projector_widths(self) -> tuple[int, ...]:
        """The width of what the projector's first layer makes: values, and as many gates beside them."""
        width = getattr(self.config, "alignment_intermediate_size", None)
        return ((width or read_number(self.config.text_config, "hidden_size")) // 2,)

    @property
    def feature_module(self) -> nn.Module:
        """The projector's norm, which reads the patches of a token side by side."""
        return self.core.multi_modal_projector.layernorm  # pyright: ignore

    @property
    def encoder_inputs(self) -> tuple[str, ...]:
        """Pixels, and the layer of the tower that is read."""
        return (*self.pixel_inputs, "vision_feature_layer", "vision_feature_select_strategy")

    def project(self, features: Tensor) -> Tensor:
        """Apply the projector's norm and MLP."""
        projector: Any = self.projected_module
        return super().project(projector.layernorm(features))
