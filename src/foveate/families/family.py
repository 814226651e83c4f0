"""What a model family tells the engine: where its visual tokens are, how they are made, and what may be asked of them.

A family is one file. It holds every fact about one architecture, and no method and no hook; the engine holds the
hooks, and no fact about an architecture.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Self, cast

import torch
from torch import Tensor, nn

from foveate.errors import FoveateError, UnsupportedFamily
from foveate.families.decoder import Decoder
from foveate.families.vision_shape import VisionShape
from foveate.plan import Plan
from foveate.tokens import Layout, Segment, Signal


@dataclass(eq=False)
class Capture:
    """What one run of the encoder showed: kept only as long as plans are being made from it."""

    layouts: tuple[Layout, ...]
    """The layout of each image as the prompt's placeholders count it."""
    seen: tuple[Layout, ...]
    """The layout that the encoder really saw: smaller than `layouts` after a step at `@pixels`."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Whatever else the family wants to remember from the encoder's arguments."""
    attention: dict[int, dict[str, Any]] = field(default_factory=dict)
    """Encoder layer (counted from zero) -> the arguments of its attention, among them `hidden_states`; under "keys" the
    keys that it made of them, if they were kept."""
    inside: dict[int, Plan] = field(default_factory=dict)
    """Encoder layer -> what a step at `@encoder` made of the patches at its input; empty without one."""
    features: Tensor | None = None
    """The input of the family's `feature_module`, exactly as it came."""
    projected: Tensor | None = None
    """The output of the family's `projected_module`, exactly as it came."""
    companions: tuple[Tensor, ...] = ()
    """What else that output held with one row per visual token, exactly as it came."""


# Fields in which configurations give the visual tokens of an image.
_TOKEN_COUNTS = ("mm_tokens_per_image", "image_seq_length", "num_image_tokens", "image_token_length", "num_image_token")


class Family(Decoder, ABC):
    """One architecture, bound to one model.

    `of_config` makes a family from a configuration alone. It has everything that schedules and costs are computed from:
    the layouts of images, the places where steps can act, the depth of encoder and decoder.

    Args:
        model: a model of this family, or anything that has one inside (a PEFT wrapper, for instance).

    Raises:
        UnsupportedFamily: the model is not of this family, or its configuration is not supported.
    """

    name: ClassVar[str]
    """The `model_type` of its configuration."""
    title: ClassVar[str]
    """What people call it."""
    core_class: ClassVar[str]
    """The class in which image features meet text embeddings; the engine hooks that module."""
    position_axes: ClassVar[int] = 1
    """Axes of the decoder's position ids: 1, or 3 with M-RoPE."""
    counts_padding: ClassVar[bool] = False
    """Whether padding moves positions on when the caller gives no position ids (a plain arange does)."""
    places: ClassVar[tuple[str, ...]] = ("pixels", "features", "input", "decoder")
    """Where steps can act; "decoder" means the inputs of its layers."""
    outside_encoder: ClassVar[str] = "nothing tells what becomes of patches behind its encoder"
    """Why no step can act at `@encoder`, for a family that hasn't that place."""
    encoder_marks: ClassVar[int] = 0
    """Rows of the encoder in front of an image's patches, such as [CLS]."""
    watches_tower: ClassVar[bool] = True
    """Whether the encoder's calls are watched; if not, what `get_image_features` returns is all that is known."""
    knows_grids: ClassVar[bool] = True
    """Whether layouts tell where in the image a token stands; if not, each is one row, and no picture can be drawn."""
    resize_modes: ClassVar[tuple[str, ...]] = ()
    """How an image can be shrunk before the encoder; the first is what "auto" means."""
    pixel_inputs: ClassVar[tuple[str, ...]] = ("pixel_values",)
    """The inputs that describe images; gone once the features are there."""
    encoder_arguments: ClassVar[tuple[str, ...]] = ()
    """Arguments of the core's `get_image_features` that `tower_call` needs and the tower isn't given."""
    memories: ClassVar[tuple[str, ...]] = ()
    """Attributes of the core that a call leaves behind; `apply` puts them back as they were."""
    video_inputs: ClassVar[tuple[str, ...]] = ("pixel_values_videos",)
    """The inputs that describe clips: refused for now, not silently left at full length."""

    def __init__(self, model: nn.Module) -> None:
        self.core = find_core(model, self.core_class)
        self.config: Any = self.core.config
        self.check_config()

    # What the configuration alone tells: nothing in this part may read `self.core`

    @classmethod
    def of_config(cls, config: Any) -> Self:
        """Make the family of a configuration, without a model.

        Raises:
            UnsupportedFamily: the configuration is not supported.
        """
        family = object.__new__(cls)
        family.config, family.has_model = config, False
        family.core = cast("nn.Module", _NoModel(cls.title))
        family.check_config()
        return family

    def check_config(self) -> None:
        """Check that the family supports this configuration; by default it supports every one.

        Raises:
            UnsupportedFamily: it does not.
        """

    def image_layout(self, height: int, width: int) -> Layout:
        """Return the layout of an image of `height` x `width` pixels, as the family's processor prepares it.

        The default is one row of as many tokens as the configuration says an image has.

        Raises:
            FoveateError: an image of this size leaves no token, or the configuration does not give the number.
        """
        return Layout((Segment(1, 1, self.tokens_per_image[1]),))

    @property
    def tokens_per_image(self) -> tuple[str, int]:
        """The field of the configuration that gives the visual tokens of every image, and its value.

        Raises:
            FoveateError: there is no such field.
        """
        config = self.config
        if getattr(config, "vision_feature_select_strategy", "default") == "default":
            for part in (config, getattr(config, "text_config", None), getattr(config, "vision_config", None)):
                for name in _TOKEN_COUNTS:
                    value = getattr(part, name, None)
                    if isinstance(value, int) and value > 0:
                        return name, value
        raise FoveateError(
            f"the configuration of {self.title} doesn't tell how many visual tokens an image gets; write the number "
            "into it as image_seq_length, and the decoder can be counted"
        )

    def encoder_grids(self, layout: Layout) -> tuple[Segment, ...]:
        """Return the grids of patches that the encoder sees of an image of this layout: one, or one per tile."""
        return layout.segments

    def vision_shape(self) -> VisionShape | None:
        """Return the sizes of encoder and projector, for the cost model; None if the family doesn't know them.

        Raises:
            FoveateError: a field of the configuration is missing or makes no sense.
        """
        return None

    # Places in the model

    @property
    @abstractmethod
    def tower(self) -> nn.Module:
        """The vision encoder: the engine's hooks watch its call."""

    @property
    @abstractmethod
    def encoder_attentions(self) -> Sequence[nn.Module]:
        """The attention module of each encoder layer, first layer first."""

    @property
    def encoder_layers(self) -> Sequence[nn.Module]:
        """The layers of the encoder, first layer first; each is called with its hidden states and a mask, in order."""
        raise NotImplementedError

    @property
    def encoder_keys(self) -> Sequence[nn.Module]:
        """The module of each encoder layer whose output is its keys, heads side by side."""
        raise NotImplementedError

    @property
    def encoder_reads(self) -> int:
        """The encoder layer, counted from zero, whose output becomes features; -1 if none has to run for that.

        Read from the configuration alone.

        Raises:
            FoveateError: it is more than one.
        """
        raise NotImplementedError

    @property
    @abstractmethod
    def feature_module(self) -> nn.Module:
        """The module whose input is what `@features` means: the vectors that the projector's MLP is about to read."""

    @property
    @abstractmethod
    def projected_module(self) -> nn.Module:
        """The module whose output holds the projected features of all images."""

    @property
    def projectors(self) -> tuple[nn.Module, ...]:
        """All that stands between encoder and decoder: what training the projector alone trains."""
        return (self.feature_module,)

    def embed(self, input_ids: Tensor) -> Tensor:
        """What the decoder is given for text: ids `(...)` -> `(..., D)`."""
        return self.core.get_input_embeddings()(input_ids)  # pyright: ignore[reportCallIssue]

    @property
    def image_token(self) -> int:
        """The id of the placeholder that one visual token takes in `input_ids`."""
        return int(self.config.image_token_id)

    # Features in place of pixels

    def check_feature_maps(self) -> None:
        """Whether a model of this family can be made to read kept features.

        Raises:
            UnsupportedFamily: it can't.
        """
        raise UnsupportedFamily(f"{self.title} can't train on kept features yet; leave data.features out")

    def read_feature_maps(self, rows: int, columns: int) -> None:
        """Make the model read feature maps (images, D_encoder, rows, columns) as its pixels; its encoder is gone."""
        self.check_feature_maps()

    # Layouts and positions

    @abstractmethod
    def layouts(self, inputs: Mapping[str, Any]) -> tuple[Layout, ...]:
        """The layout of each image, in prompt order, from the processor's output; no encoder runs."""

    @abstractmethod
    def image_positions(self, layout: Layout) -> Tensor:
        """The position ids inside one image, from its first token on: `(axes, N)` int64."""

    @abstractmethod
    def image_span(self, layout: Layout) -> int:
        """How far one image moves the position of what follows it."""

    def text_position(self, position_ids: Tensor) -> int | None:
        """How many columns stand before the first one of a call, as the position ids of `generate` tell it.

        Only asked without padding. None means that they don't tell.
        """
        return int(position_ids[0, 0])

    # Encoding

    def encode(self, inputs: Mapping[str, Any]) -> Any:
        """Run the model's own encoder and projector over the images of `inputs`; returns the model's own container."""
        arguments = {name: inputs[name] for name in self.encoder_inputs if inputs.get(name) is not None}
        return self.core.get_image_features(**arguments, return_dict=True)  # pyright: ignore[reportCallIssue]

    @property
    def encoder_inputs(self) -> tuple[str, ...]:
        """The arguments of the model's `get_image_features` that a call may carry."""
        return self.pixel_inputs

    def encoded(self, output: Any) -> Capture:
        """What `get_image_features` returned, as a capture; only asked of a family that doesn't watch its tower."""
        raise NotImplementedError

    def in_prompt(
        self, capture: Capture, order: Sequence[int], input_ids: Tensor | None
    ) -> tuple[Capture, Sequence[int]]:
        """A capture with the layouts that only a prompt tells, and the order of its images there.

        Args:
            capture: of one run of the encoder.
            order: for each image of the prompt, its number in `capture`; beams name an image more than once.
            input_ids: `(B, S)` int64, or None if they aren't known.
        """
        return capture, order

    @abstractmethod
    def tower_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Capture:
        """Start a capture from the arguments of a call of the tower; `encoder_arguments` are among `kwargs`."""

    @abstractmethod
    def shrink(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        capture: Capture,
        sizes: Sequence[tuple[int, int]],
        mode: str,
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Shrink the images of a call of the tower to `sizes` (rows and columns of visual tokens, one per image).

        Sets `capture.seen` and returns the tower's new arguments.
        """

    def shrunk(self, layout: Layout, size: tuple[int, int]) -> Layout:
        """The layout of an image whose first grid was shrunk to `size` rows and columns.

        Structural tokens stay in the order of those they stand for in the full layout.
        """
        return Layout((Segment(layout.segments[0].t, *size),))

    @abstractmethod
    def grow(self, output: Any, capture: Capture, index: Sequence[Tensor]) -> Any:
        """Give the output of `projected_module` its full count of rows back, after `shrink`.

        The model's own code counts the rows of each image before the engine can cut the prompt; `index[i]` of shape
        `(N,)` says which row of image i stands at each place.
        """

    @abstractmethod
    def features(self, capture: Capture) -> tuple[Tensor, ...]:
        """The features at `@features`, per image `(N, D_encoder)`, in token order."""

    @abstractmethod
    def projected(self, capture: Capture) -> tuple[Tensor, ...]:
        """The features at `@input`, per image `(N, D)`, in token order."""

    def structural(self, capture: Capture) -> tuple[Tensor, ...]:
        """What the model puts in place of structural tokens, per image `(S, D)`, in the order of the full layout's.

        From the model's own parameters, with their gradient.
        """
        assert not any(layout.structural for layout in capture.layouts)
        return (torch.empty(0),) * len(capture.layouts)

    @abstractmethod
    def project(self, features: Tensor) -> Tensor:
        """Project features of `@features` to the decoder: `(..., D_encoder)` -> `(..., D)`."""

    def output_companions(self, output: Any) -> tuple[Tensor, ...]:
        """What the output of `projected_module` holds of each visual token besides its features, such as DeepStack's.

        Companions ride along with the features: a plan moves them in the same way, wherever it was made.
        """
        return ()

    def companions(self, capture: Capture) -> tuple[tuple[Tensor, ...], ...]:
        """The companions of each image, each `(N, D)` in token order; the same number for every image."""
        return ((),) * len(capture.layouts)

    def container(self, features: Sequence[Tensor], companions: Sequence[Sequence[Tensor]] = ()) -> dict[str, Any]:
        """What the model takes as `mm_encoder_outputs`, freshly made: `generate` changes it in place.

        Args:
            features: per image `(M, D)`.
            companions: per image, what rides along, each `(M, D)`.
        """
        from foveate.families.container import FeatureList, ImageFeatures

        return {"image": ImageFeatures(pooler_output=FeatureList(features))}  # pyright: ignore[reportArgumentType]

    # Signals

    @abstractmethod
    def gives(self, signal: Signal) -> bool:
        """Whether this family can answer a request for `signal`."""

    @abstractmethod
    def encoder_signal(self, signal: Signal, capture: Capture) -> tuple[Tensor, ...]:
        """The answer to an encoder signal, per image, in token order."""

    def encoder_layer(self, layer: int) -> int:
        """The index from zero of encoder layer `layer`, which may count from the end.

        Raises:
            FoveateError: the encoder has no such layer.
        """
        count = len(self.encoder_attentions)
        if not -count <= layer < count:
            raise FoveateError(
                f"encoder layer {layer} was asked for, and this {self.title} encoder has {count} layers; "
                f"name one from {-count} to {count - 1}"
            )
        return layer % count


class _NoModel:
    """Stands for the model of a family that knows a configuration alone: every use of it is an error."""

    def __init__(self, title: str) -> None:
        self._title = title

    def __getattr__(self, name: str) -> Any:
        raise FoveateError(
            f"this {self._title} family was made from a configuration and has no model, so it has no {name}; make it "
            "from the model with foveate.families.family_of"
        )


def find_core(model: nn.Module, class_name: str) -> nn.Module:
    """The first module of a class of this name inside `model`, or the model itself.

    Raises:
        UnsupportedFamily: there is none.
    """
    for module in model.modules():
        # By name along the bases: FSDP2 gives a module a class of its own, derived from the model's.
        if any(base.__name__ == class_name for base in type(module).__mro__):
            return module
    raise UnsupportedFamily(f"{type(model).__name__} has no {class_name} inside; pass the whole model")


def cls_attention(
    query: Tensor, key: Tensor, scale: float, heads: Literal["mean", "full"] = "mean", bias: Tensor | None = None
) -> Tensor:
    """Attention of one query row to every token.

    Args:
        query: `(B, H, d)`, the row that looks.
        key: `(B, H, T, d)`.
        scale: what the scores of one head are multiplied with before the softmax.
        heads: "mean" averages over heads; "full" takes them as one head of width H d, scaled by its own width.
        bias: `(B, T)`, what is added to the scores of each token; None for nothing.

    Returns:
        `(B, T)` float32, rows sum to 1.
    """
    if heads == "full":
        query, key = query.flatten(1)[:, None], key.transpose(1, 2).flatten(2)[:, None]
        scale = query.shape[-1] ** -0.5
    scores = torch.einsum("bhd,bhtd->bht", query, key) * scale
    if bias is not None:
        scores = scores + bias[:, None]
    return scores.softmax(dim=-1, dtype=torch.float32).mean(dim=1)


def attention_received(
    query: Tensor, key: Tensor, scale: float, rows_at_once: int = 1024, heads: Literal["mean", "full"] = "mean"
) -> Tensor:
    """Attention that each token receives from all tokens, summed over the rows that look.

    The map is made in blocks of `rows_at_once` rows, so memory grows with the number of tokens and not with its square.

    Args:
        query: `(B, H, T, d)`.
        key: `(B, H, T, d)`.
        scale: what the scores of one head are multiplied with before the softmax.
        rows_at_once: how many query rows are scored at a time.
        heads: "mean" averages over heads; "full" takes them as one head of width H d, scaled by its own width.

    Returns:
        `(B, T)` float32, rows sum to T.
    """
    if heads == "full":
        query, key = (each.transpose(1, 2).flatten(2)[:, None] for each in (query, key))
        scale = query.shape[-1] ** -0.5
    received = query.new_zeros(query.shape[0], query.shape[2], dtype=torch.float32)
    for block in query.split(rows_at_once, dim=2):
        scores = torch.matmul(block, key.transpose(-1, -2)) * scale
        received += scores.softmax(dim=-1, dtype=torch.float32).mean(dim=1).sum(dim=1)
    return received
