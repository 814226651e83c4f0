"""LLaVA-1.5: a CLIP encoder, a two-layer projector, a Llama-style decoder.  Liu et al. 2023, arXiv 2310.03744."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch

from foveate.errors import FoveateError, UnsupportedFamily, shown
from foveate.families.config_fields import read_number
from foveate.families.family import Capture, Family, cls_attention
from foveate.families.pixels import resized_pixels
from foveate.families.registry import register_family
from foveate.families.vision_shape import VisionShape
from foveate.tokens import EncoderAttention, EncoderKeys, Layout, Segment, Signal

if TYPE_CHECKING:
    from torch import Tensor, nn


@register_family
class Llava(Family):
    """LLaVA with a CLIP tower: one grid of patches per image, [CLS] in row 0 of the encoder and dropped after it.

    Position ids are one-dimensional. An image can be resized before the encoder in two ways: "interpolate" gives CLIP a
    smaller image and interpolates its position embeddings, so that fewer tokens come out; "enlarge" shrinks the image
    and enlarges it again, which loses detail and saves no token.

    A step at `@encoder` acts between CLIP's layers, up to the one that is read, and never drops or merges [CLS].
    """

    name = "llava"
    title = "LLaVA"
    checkpoints = (
        "llava-hf/llava-1.5-7b-hf",
        "llava-hf/llava-1.5-13b-hf",
        "llava-hf/bakLlava-v1-hf",
        "xtuner/llava-llama-3-8b-v1_1-transformers",
    )
    encoders = ("clip_vision_model",)
    core_class = "LlavaModel"
    counts_padding = True
    places = ("pixels", "encoder", "features", "input", "decoder")
    encoder_marks = 1
    resize_modes = ("interpolate", "enlarge")
    gives_pixels = True
    pixel_inputs = ("pixel_values", "image_sizes")

    def check_config(self) -> None:
        """Check that the encoder is CLIP's, has the layers that are read, and that [CLS] is dropped after it."""
        self.check_encoder()
        self.check_feature_layers()
        strategy = getattr(self.config, "vision_feature_select_strategy", "default")
        if strategy != "default":
            raise UnsupportedFamily(
                f"{self.title} that keeps [CLS] among the visual tokens (vision_feature_select_strategy={strategy!r}) "
                "is not supported yet; 'default' is"
            )

    def check_feature_layers(self) -> None:
        """Check that the encoder has the layers whose output becomes features; 0 is its embeddings.

        Raises:
            FoveateError: it hasn't.
        """
        named = getattr(self.config, "vision_feature_layer", -2)
        depth = read_number(self.config.vision_config, "num_hidden_layers")
        layers = [named] if isinstance(named, int) else list(named)
        for layer in layers:
            if not -depth - 1 <= layer <= depth:
                raise FoveateError(
                    f"vision_feature_layer names layer {layer}, and the encoder has {depth}; name one "
                    f"from {-depth - 1} to {depth}"
                )
        if not layers:
            raise FoveateError("vision_feature_layer names no layer; name one, such as -2")

    def image_layout(self, height: int, width: int) -> Layout:
        """Return the same grid for every size: the processor resizes and crops images to the encoder's size."""
        return Layout((Segment(1, self.side, self.side),))

    def vision_shape(self) -> VisionShape:
        """Read CLIP's sizes; the projector reads one layer of it, or several side by side."""
        layers = getattr(self.config, "vision_feature_layer", -2)
        levels = 1 if isinstance(layers, int) else len(layers)
        patch = read_number(self.config.vision_config, "patch_size")
        return VisionShape.read(self.config, patch, marks=self.encoder_marks, levels=levels)

    @property
    def tower(self) -> nn.Module:
        """The vision model: CLIP, or the SigLIP of a family that is made like this one."""
        return self.core.vision_tower  # pyright: ignore[reportReturnType]

    @property
    def encoder_attentions(self) -> Sequence[nn.Module]:
        """The self-attention of each CLIP layer."""
        return [layer.self_attn for layer in self.core.vision_tower.encoder.layers]  # pyright: ignore

    @property
    def encoder_layers(self) -> Sequence[nn.Module]:
        """The layers of the vision model."""
        return list(self.core.vision_tower.encoder.layers)  # pyright: ignore

    @property
    def encoder_reads(self) -> int:
        """The layer that `vision_feature_layer` names."""
        read = getattr(self.config, "vision_feature_layer", -2)
        if not isinstance(read, int):
            raise FoveateError(
                f"this {self.title} reads several layers of its encoder ({', '.join(map(str, read))}), so no patches "
                "can go between them; use @features"
            )
        # The configuration counts the embeddings as the first.
        return read % (int(self.config.vision_config.num_hidden_layers) + 1) - 1

    def check_read_layer(self, arguments: Mapping[str, Any]) -> None:
        """Check that a call reads the layer that the configuration names: up to that one a step merges patches.

        Raises:
            FoveateError: it reads another one.
        """
        named, own = arguments.get("vision_feature_layer"), getattr(self.config, "vision_feature_layer", -2)
        count = int(self.config.vision_config.num_hidden_layers) + 1
        if named is None or named == own or (isinstance(named, int) and named % count == own % count):
            return
        raise FoveateError(
            f"the call reads layer {named} of the encoder, and the configuration names {own}; with a step at @encoder "
            f"its layer can't be chosen in a call: write {named} into model.config.vision_feature_layer before apply"
        )

    @property
    def feature_module(self) -> nn.Module:
        """The projector: it reads the selected CLIP layer without [CLS]."""
        return self.core.multi_modal_projector  # pyright: ignore[reportReturnType]

    @property
    def projected_module(self) -> nn.Module:
        """The projector, too: its output goes into the decoder."""
        return self.core.multi_modal_projector  # pyright: ignore[reportReturnType]

    @property
    def encoder_inputs(self) -> tuple[str, ...]:
        """Pixels, and the layers of the tower that are read."""
        return (*self.pixel_inputs, "vision_feature_layer", "vision_feature_select_strategy")

    @property
    def token_side(self) -> int:
        """Pixels along one side of a visual token."""
        return read_number(self.config.vision_config, "patch_size")

    @property
    def side(self) -> int:
        """Visual tokens along one side of an image, or of a crop of one, that the encoder sees."""
        return read_number(self.config.vision_config, "image_size") // self.token_side

    def check_feature_maps(self) -> None:
        """Check that the model reads one layer of its encoder."""
        if not isinstance(self.config.vision_feature_layer, int):
            raise UnsupportedFamily("LLaVA that reads several layers of its encoder can't train on kept features yet")

    def read_feature_maps(self, rows: int, columns: int) -> None:
        """Replace the tower by one that returns its pixels, with patches of one feature."""
        from foveate.feature_maps import FeatureMaps

        self.check_feature_maps()
        depth = self.config.vision_config.num_hidden_layers
        self.core.vision_tower = FeatureMaps(depth, self.encoder_marks)  # pyright: ignore[reportAttributeAccessIssue]
        self.config.vision_config.patch_size = 1
        self.config.image_seq_length = rows * columns

    def _reads_feature_maps(self) -> bool:
        from foveate.feature_maps import FeatureMaps

        return isinstance(self.tower, FeatureMaps)

    def layouts(self, inputs: Mapping[str, Any]) -> tuple[Layout, ...]:
        """Return one grid per image of `pixel_values`, `(images, channels, height, width)`."""
        layouts = self.pixel_layouts(inputs["pixel_values"])
        self.check_pixels(inputs["pixel_values"])
        return layouts

    def check_pixels(self, pixels: Tensor) -> None:
        """Check that images or crops have the size for which the encoder has positions.

        Raises:
            FoveateError: they have another one.
        """
        if self.has_model and self._reads_feature_maps():
            return
        edge = read_number(self.config.vision_config, "image_size")
        channels = read_number(self.config.vision_config, "num_channels")
        if pixels.shape[-3] != channels:
            raise FoveateError(
                f"pixel_values are {tuple(pixels.shape)}, and images of this {self.title} have {channels} channels, "
                "which come before height and width"
            )
        if tuple(pixels.shape[-2:]) != (edge, edge):
            height, width = pixels.shape[-2:]
            raise FoveateError(
                f"the processor makes images of {width} x {height} pixels, and the encoder of this {self.title} takes "
                f"{edge} x {edge}; correct size and crop_size of the processor"
            )

    def pixel_layouts(self, pixels: Tensor) -> tuple[Layout, ...]:
        """Return one grid per image of `(images, channels, height, width)`."""
        self._check_axes(pixels)
        grid = Segment(1, pixels.shape[-2] // self.token_side, pixels.shape[-1] // self.token_side)
        return (Layout((grid,)),) * pixels.shape[0]

    def _check_axes(self, pixels: object) -> None:
        """Check that pixels are a tensor with the axes of images.

        Raises:
            FoveateError: they aren't.
        """
        if not isinstance(pixels, torch.Tensor) or pixels.ndim != 4:
            found = tuple(pixels.shape) if isinstance(pixels, torch.Tensor) else shown(pixels)
            raise FoveateError(
                f"pixel_values of {self.title} must be a tensor (images, channels, height, width), not {found}"
            )

    def pixels(self, capture: Capture) -> tuple[Tensor, ...]:
        """Return the pixels of the square of each token, channels first."""
        assert capture.pixels is not None
        side = self.token_side
        return tuple(
            image.unfold(1, side, side).unfold(2, side, side).permute(1, 2, 0, 3, 4).flatten(2).flatten(0, 1)
            for image in capture.pixels
        )

    def tower_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Capture:
        """Read the layouts of the images from the pixels of the call."""
        pixels = args[0] if args else kwargs["pixel_values"]
        self._check_axes(pixels)
        if not kwargs.get("interpolate_pos_encoding"):
            self.check_pixels(pixels)
        layouts = self.pixel_layouts(pixels)
        return Capture(layouts=layouts, seen=layouts)

    def shrink(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        capture: Capture,
        sizes: Sequence[tuple[int, int]],
        mode: str,
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Average pixels down to the target grid; "enlarge" enlarges them to the tower's size again."""
        if len(set(sizes)) > 1:
            raise FoveateError(f"images of one {self.title} call share their size; {sorted(set(sizes))} were asked for")
        pixels = args[0] if args else kwargs["pixel_values"]
        height, width = sizes[0]
        small = self.resized(pixels, sizes[0], mode)
        if mode != "enlarge":
            kwargs = {**kwargs, "interpolate_pos_encoding": True}
            capture.seen = (Layout((Segment(1, height, width),)),) * len(sizes)
        small = small.to(pixels.dtype)
        return ((small, *args[1:]), kwargs) if args else ((), {**kwargs, "pixel_values": small})

    def resized(self, pixels: Tensor, size: tuple[int, int], mode: str) -> Tensor:
        """Average pixels `(images, C, H, W)` down to those of `size` tokens, in float32; enlarge them by the mode."""
        height, width = size
        return resized_pixels(pixels, (height * self.token_side, width * self.token_side), mode == "enlarge")

    def grow(self, output: Any, capture: Capture, index: Sequence[Tensor]) -> Any:
        """Repeat rows: `(images, n, D)` -> `(images, N, D)`, since all images of a call have one size."""
        rows = torch.stack(tuple(index)).to(output.device)
        return output.gather(1, rows[..., None].expand(-1, -1, output.shape[-1]))

    def features(self, capture: Capture) -> tuple[Tensor, ...]:
        """Return the selected CLIP layer, per image `(N, D_encoder)`."""
        assert capture.features is not None
        return capture.features.unbind(0)

    def projected(self, capture: Capture) -> tuple[Tensor, ...]:
        """Return the projector's output, per image `(N, D)`."""
        assert capture.projected is not None
        return capture.projected.unbind(0)

    def project(self, features: Tensor) -> Tensor:
        """Apply the two-layer projector."""
        return self.core.multi_modal_projector(features)  # pyright: ignore[reportCallIssue]

    def encoder_signal(self, signal: Signal, capture: Capture) -> tuple[Tensor, ...]:
        """Compute attention of [CLS] `(N,)`, or keys `(N, D_key)`.

        Attention is the encoder's softmax without the column of [CLS]. Only the row of [CLS] is computed, from the
        captured queries and keys of the layer.
        """
        return self.crop_signal(signal, capture).unbind(0)

    def crop_signal(self, signal: Signal, capture: Capture) -> Tensor:
        """Compute the same for all images or crops of a call: `(images, N)` or `(images, N, D_key)`."""
        assert isinstance(signal, EncoderAttention | EncoderKeys)
        layer = self.encoder_layer(signal.layer)
        attention: Any = self.encoder_attentions[layer]
        call = capture.attention[layer]
        keys: Tensor = call["keys"].unflatten(-1, (-1, attention.head_dim))
        if isinstance(signal, EncoderAttention):
            queries = call["queries"].unflatten(-1, (-1, attention.head_dim))
            # After a step at `@encoder` a mask weighs each token, the same for every row.
            mask = call.get("attention_mask")
            bias = None if mask is None else mask[:, 0, 0]
            return self.crop_attention(queries, keys, attention.scale, signal.heads, bias)
        keys = keys[:, self.encoder_marks :]
        return keys.mean(dim=2) if signal.heads == "mean" else keys.flatten(2)

    def crop_attention(
        self, queries: Tensor, keys: Tensor, scale: float, heads: Literal["mean", "full"], bias: Tensor | None
    ) -> Tensor:
        """Compute the attention that patches get: queries and keys `(images, T, H, d)` -> `(images, N)`.

        Args:
            queries: of all rows.
            keys: of all rows.
            scale: factor of the scores.
            heads: as the signal asks for.
            bias: `(images, T)`, added to the scores of each row, or None.
        """
        return cls_attention(queries[:, 0], keys.transpose(1, 2), scale, heads, bias)[:, 1:]


def check_all_patches(family: Family) -> None:
    """Check that the model drops no row of an encoder whose rows are all patches.

    Raises:
        UnsupportedFamily: it drops the first one.
    """
    strategy = getattr(family.config, "vision_feature_select_strategy", "default")
    if strategy != "full":
        raise UnsupportedFamily(
            f"{family.title} that drops the encoder's first row (vision_feature_select_strategy={strategy!r}), which "
            "is a patch, is not supported; 'full' is"
        )
