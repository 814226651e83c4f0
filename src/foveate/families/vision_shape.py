"""The sizes of a vision encoder and its projector, as plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

from foveate.errors import FoveateError
from foveate.families.config_fields import read_number


@dataclass(frozen=True)
class VisionShape:
    """An encoder of patches and a projector; the cost model counts their work and weights from this.

    A family reads it from its configuration: `Family.vision_shape`.

    Attributes:
        depth: encoder layers; 0 where patches become tokens without any.
        width: width of a patch's hidden state.
        heads: attention heads of an encoder layer.
        mlp_width: width between the layers of an encoder layer's MLP.
        patch_values: values of one patch of the image: channels x frames x pixels.
        decoder_width: width of a token's hidden state in the decoder.
        gated_mlp: whether the MLP of an encoder layer has three matrices (a gate) rather than two.
        merge: patches along one side of a visual token.
        averaged: whether the projector reads the mean of a token's patches, and not all of them side by side.
        averaged_by_product: whether a matrix of all tokens by all patches of an image makes these means, at the end of
            the encoder.
        marks: tokens of the encoder beside the patches, such as [CLS].
        window: patches along one side of an attention window; None if every layer attends to the whole image.
        full_attention_layers: encoder layers that attend beyond windows.
        levels: encoder layers whose outputs the projector reads side by side.
        extra_projectors: projectors beside the first, such as those of DeepStack.
        projector_widths: widths between the projector's layers, one fewer than there are layers; None is two layers
            with the decoder's width between them.
        gated_projector: whether the layer before the projector's last one has a gate, and so two matrices.
        down_sampled: width of the tokens that a convolution makes of `merge` x `merge` patches behind the last layer,
            and which the projector reads; None without one.
        rotary: whether the encoder has rotary embeddings; its norms are unfused RMS norms then, else fused layer norms.
        joint: whether images are padded to one size and cut into patches, and then the patches of all images of a call
            are one sequence, whose attention is computed as a whole and masked where images differ.
        whole_projector: whether the projector always runs over the tokens of an image of full size.
        pooling: whether one more row attends to all patches after the last layer, as in SigLIP with its head; the model
            computes its output, which nothing reads.
        merged_after: encoder layer, counted from zero, after which windows of 2 x 2 patches become one row each, by
            attention within them and an MLP that reads them side by side; None if patches stay.
        projects_patches: whether the projector runs on each patch, and a visual token is the mean of what it makes.
        attends: whether the projector reads what attention finds in a token's patches, whose mean asks for it.

    Raises:
        FoveateError: the width is no multiple of the number of heads.
    """

    depth: int
    width: int
    heads: int
    mlp_width: int
    patch_values: int
    decoder_width: int
    gated_mlp: bool = False
    merge: int = 1
    averaged: bool = False
    averaged_by_product: bool = False
    marks: int = 0
    window: int | None = None
    full_attention_layers: frozenset[int] = frozenset()
    levels: int = 1
    extra_projectors: int = 0
    projector_widths: tuple[int, ...] | None = None
    gated_projector: bool = False
    down_sampled: int | None = None
    rotary: bool = False
    joint: bool = False
    whole_projector: bool = False
    pooling: bool = False
    merged_after: int | None = None
    projects_patches: bool = False
    attends: bool = False

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise FoveateError(f"the encoder's width {self.width} is no multiple of its {self.heads} heads")

    @classmethod
    def read(cls, config: Any, patch: int, **more: Any) -> Self:
        """Read the sizes that most configurations name alike.

        Args:
            config: of the model, with `vision_config` and `text_config`.
            patch: pixels along one side of a patch.
            **more: the other attributes.

        Raises:
            FoveateError: a field is missing or makes no sense.
        """
        vision = config.vision_config
        return cls(
            depth=read_number(vision, "num_hidden_layers"),
            width=read_number(vision, "hidden_size"),
            heads=read_number(vision, "num_attention_heads"),
            mlp_width=read_number(vision, "intermediate_size"),
            patch_values=read_number(vision, "num_channels") * patch**2,
            decoder_width=read_number(config.text_config, "hidden_size"),
            pooling=bool(getattr(vision, "vision_use_head", False)),
            **more,
        )

    @property
    def projector_inputs(self) -> int:
        """Values that the projector reads of one visual token, of all its patches together."""
        if self.attends:
            return self.width
        side = self.merge if self.merged_after is None else self.merge // 2
        return self.down_sampled or self.width * self.levels * (1 if self.averaged else side**2)

    def rows_in(self, layer: int, patches: int) -> int:
        """Return how many rows so many patches are in an encoder layer, which may count from the end."""
        merged = self.merged_after is not None and layer % self.depth > self.merged_after
        return patches // 4 if merged else patches
