"""The interface of a model family: where visual tokens are, how they are made, and which signals there are.

A family is one file that holds every fact about one architecture, its cost side included. It has no method and no hook;
the engine has the hooks, and no fact about an architecture.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, cast

import torch

from foveate.errors import FoveateError, UnsupportedFamily
from foveate.families.config_fields import kind_of
from foveate.families.decoder import Decoder
from foveate.families.own_keys import computes_own_keys
from foveate.families.vision_shape import VisionShape
from foveate.layout import one_row
from foveate.plan import Plan
from foveate.precision import without_autocast
from foveate.tokens import (
    DecoderAttention,
    DecoderKeys,
    DecoderLogits,
    EncoderAttention,
    EncoderKeys,
    Layout,
    Pixels,
    RotaryLogits,
    Segment,
    Signal,
)
from foveate.transformers_api import OLDEST

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(eq=False)
class Capture:
    """What the hooks record during one run of the encoder; dropped as soon as plans are made from it."""

    layouts: tuple[Layout, ...]
    """The layout of each image in the prompt, which its placeholders count."""
    seen: tuple[Layout, ...]
    """The layout that the encoder saw: smaller than `layouts` after a step at `@pixels`."""
    sizes: tuple[tuple[int, int], ...] = ()
    """Rows and columns of visual tokens that a step at `@pixels` asked for, for families with `resizes_inputs`."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Other values of the encoder's arguments that the family needs later."""
    attention: dict[int, dict[str, Any]] = field(default_factory=dict)
    """Encoder layer (from zero) -> the arguments of its attention by name, without its input, and the outputs of the
    family's `encoder_projections`, detached."""
    inside: dict[int, Plan] = field(default_factory=dict)
    """Encoder layer -> the plan of a step at `@encoder` at its input; empty without such a step."""
    pixels: Tensor | None = None
    """The pixels that the tower was called with, if a method reads them."""
    features: Tensor | None = None
    """The input of the family's `feature_module`, unchanged; `(tokens, D)` of all calls with `projects_each`."""
    projected: Tensor | None = None
    """The output of the family's `projected_module`, unchanged; `(tokens, D)` of all calls with `projects_each`."""
    companions: tuple[Tensor, ...] = ()
    """The other tensors of that output with one row per visual token, unchanged."""
    stacked: bool = False
    """Whether the model takes the features of its images or clips as one tensor, and not as a list."""

    def by_image(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Part the rows of all visual tokens that the encoder saw, `(tokens, ...)`, into those of each image."""
        return rows.split([layout.content for layout in self.seen])


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
    """Its own name: the `model_type` of its configuration, unless `model_type` says another."""
    model_type: ClassVar[str] = ""
    """The `model_type` of its configuration, where it isn't the name: for a type that several families share."""
    encoders: ClassVar[tuple[str, ...]] = ()
    """The `model_type` of the encoders that it takes, where families share a type; () takes any."""
    example: ClassVar[Mapping[str, Any]] = {}
    """Values that make a default configuration of its type one of its own, beside the encoder; for pages and tables."""
    title: ClassVar[str]
    """The name of the architecture in texts."""
    checkpoints: ClassVar[tuple[str, ...]] = ()
    """Released models of it, by their names on the hub."""
    core_class: ClassVar[str]
    """The class of the module that puts image features among text embeddings; the engine hooks it."""
    since: ClassVar[tuple[int, int]] = OLDEST
    """The first version of transformers whose models of this type can be given fewer features."""
    position_axes: ClassVar[int] = 1
    """Axes of the decoder's position ids: 1, or 3 with M-RoPE."""
    counts_padding: ClassVar[bool] = False
    """Whether padding counts as positions when the caller gives no position ids, as in a plain arange."""
    first_position: ClassVar[int] = 0
    """The position id of the first token when the caller gives no position ids."""
    places: ClassVar[tuple[str, ...]] = ("pixels", "features", "input", "decoder")
    """Where steps can act; "decoder" means the inputs of its layers."""
    note: ClassVar[str] = ""
    """What a model that no family describes lacks, and why none does; "" for one with a family."""
    outside_encoder: ClassVar[str] = "nothing tells what happens to patches after its encoder"
    """Why no step can act at `@encoder`, for a family without that place."""
    encoder_marks: ClassVar[int] = 0
    """Rows of the encoder in front of an image's patches, such as [CLS]."""
    watches_tower: ClassVar[bool] = True
    """Whether the engine hooks the encoder; if not, it sees only what `get_image_features` returns."""
    knows_grids: ClassVar[bool] = True
    """Whether layouts have rows and columns; if not, each image is one row, and overlays can't be drawn."""
    resize_modes: ClassVar[tuple[str, ...]] = ()
    """How an image can be resized before the encoder; "auto" is the first."""
    resizes_inputs: ClassVar[bool] = False
    """Whether images are resized among the arguments of `get_image_features`, by `resized_inputs`, and the model then
    takes them for smaller ones; if not, `shrink` and `grow` do it around the tower."""
    projects_each: ClassVar[bool] = False
    """Whether the model calls its projector once for each entry of the encoder's output, and not for all of them."""
    pixel_inputs: ClassVar[tuple[str, ...]] = ("pixel_values",)
    """The inputs that describe images; they are dropped from a call once its features are computed."""
    encoder_arguments: ClassVar[tuple[str, ...]] = ()
    """Arguments of `get_image_features` that `tower_call` or `encoded` needs and the tower does not get."""
    block_types: ClassVar[tuple[str, ...]] = ()
    """The token types from which the model makes blocks of columns that look in both directions; 0 is text."""
    blocks_after_cache: ClassVar[bool] = True
    """Whether the model makes these blocks in a call with a filled cache, too, from the types of all columns."""
    answer_type: ClassVar[int] = 0
    """The token type of the answer, in `block_types`."""
    has_one_decoder: ClassVar[bool] = False
    """Whether it is refused inside a model that reads images for another decoder than its own."""
    images_see_question: ClassVar[bool] = False
    """Whether the columns of an image also see text that comes after it."""
    block_layers: ClassVar[tuple[str, ...]] = ("full_attention", "sliding_attention")
    """The kinds of decoder layers in which blocks look in both directions."""
    blocks_end_at_windows: ClassVar[bool] = True
    """Whether columns of one block see each other only inside their windows, in layers that have windows."""
    takes_positions: ClassVar[bool] = True
    """Whether `generate` passes on the position ids that it is given."""
    memories: ClassVar[tuple[str, ...]] = ()
    """Attributes of the core that a call changes; `apply` restores them."""
    inside: ClassVar[tuple[str, ...]] = ()
    """The `model_type` of larger models that have one of this family inside, and its weights in their files."""
    all_logits: ClassVar[bool] = False
    """Whether a call makes the logits of all its tokens, also where those of the last one are wanted."""
    video_inputs: ClassVar[tuple[str, ...]] = ("pixel_values_videos",)
    """The inputs that describe clips, pixels first; dropped from a call as `pixel_inputs` are."""
    clip_places: ClassVar[tuple[str, ...]] = ()
    """Where steps can act on clips, as in `places`; () refuses clips."""
    without_clips: ClassVar[str] = ""
    """Why a model takes no clips although others of its family do."""
    clips_are_images: ClassVar[bool] = False
    """Whether the processor takes a clip and writes it as images, with text between them."""
    gives_pixels: ClassVar[bool] = False
    """Whether it tells which pixels a token is made of."""

    def __init__(self, model: nn.Module) -> None:
        self.core = find_core(model, self.core_class)
        self.config: Any = self.core.config
        # First, since some families ask the layers what they are.
        if not hasattr(self.decoder, "layers"):
            raise UnsupportedFamily(
                f"{self.title} with a language model of type {kind_of(self.decoder.config)} is not supported: it has "
                "no layers where most models have them"
            )
        self.check_config()
        self.check_token()
        if self.watches_tower:
            self.check_modules()

    def check_token(self) -> None:
        """Check that the configuration names the placeholder of visual tokens.

        Raises:
            UnsupportedFamily: it doesn't.
        """
        _ = self.image_token

    def check_modules(self) -> None:
        """Check that encoder and projector are there, and made as the family knows them.

        Raises:
            FoveateError: one is None; the model can't read images.
            UnsupportedFamily: one is made in another way.
        """
        parts = {"encoder": "tower", "projector": "projected_module", "input of the projector": "feature_module"}
        for what, name in parts.items():
            try:
                module = getattr(self, name)
            except (AttributeError, LookupError, TypeError) as error:
                raise UnsupportedFamily(
                    f"the {what} of this {self.title} is not where models of {self.title} have it: {error}"
                ) from error
            if not isinstance(module, torch.nn.Module):
                raise FoveateError(
                    f"this {self.title} has {module} where its {what} is expected, so it can't read images; load the "
                    "whole model, with the vision_config of its checkpoint"
                )

    # What the configuration alone tells: nothing in this part may read `self.core`

    @classmethod
    def kind(cls) -> str:
        """Return the `model_type` of its models."""
        return cls.model_type or cls.name

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

    def check_encoder(self) -> None:
        """Check that the encoder is one of `encoders`.

        Raises:
            FoveateError: there is none.
            UnsupportedFamily: it is not.
        """
        vision = getattr(self.config, "vision_config", None)
        if self.encoders and vision is None:
            raise FoveateError(
                f"this {self.title} can't read images: its configuration has no vision_config; {self.title} with "
                f"{' or '.join(self.encoders)} is supported"
            )
        encoder = getattr(vision, "model_type", None)
        if self.encoders and encoder not in self.encoders:
            raise UnsupportedFamily(
                f"{self.title} with a {encoder} encoder is not supported yet; {self.title} with "
                f"{' or '.join(self.encoders)} is"
            )

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
        return one_row(self.tokens_per_image[1])

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
    def shortened_module(self) -> nn.Module:
        """The module whose outputs get their full length again: the core, or the decoder if the core makes logits."""
        return self.core

    @property
    @abstractmethod
    def tower(self) -> nn.Module:
        """The vision encoder, whose calls the engine hooks."""

    @property
    @abstractmethod
    def encoder_attentions(self) -> Sequence[nn.Module]:
        """The attention module of each encoder layer, first layer first."""

    @property
    def encoder_layers(self) -> Sequence[nn.Module]:
        """The layers of the encoder, first layer first; each takes hidden states and a mask, in this order."""
        raise NotImplementedError

    def encoder_projections(self, layer: int) -> Mapping[str, nn.Module]:
        """Return the modules of an encoder layer that make its queries and keys, by names of the family's choice.

        Their outputs are captured while the layer runs, under these names. A module knows what its weights alone don't
        tell: unmerged LoRA, quantisation, shards that are together only during the call. The default is the projections
        to "queries" and "keys" that most encoders have, heads side by side.

        Args:
            layer: of the encoder, counted from zero.
        """
        attention: Any = self.encoder_attentions[layer]
        return {"queries": attention.q_proj, "keys": attention.k_proj}

    @property
    def encoder_reads(self) -> int:
        """The encoder layer, counted from zero, whose output becomes features; -1 if none has to run for that.

        Read from the configuration alone.

        Raises:
            FoveateError: it is more than one.
        """
        raise NotImplementedError

    def check_read_layer(self, arguments: Mapping[str, Any]) -> None:
        """Check that a call of `get_image_features` reads the layer of `encoder_reads`, for families with `@encoder`.

        Args:
            arguments: of the call, by name.

        Raises:
            FoveateError: it reads another one.
        """

    @property
    @abstractmethod
    def feature_module(self) -> nn.Module:
        """The module whose input are the features at `@features`: the vectors that the projector's MLP reads."""

    @property
    @abstractmethod
    def projected_module(self) -> nn.Module:
        """The module whose output holds the projected features of all images."""

    @property
    def projectors(self) -> tuple[nn.Module, ...]:
        """All modules between encoder and decoder, which training of the projector alone trains."""
        return (self.feature_module,)

    def embed(self, input_ids: Tensor) -> Tensor:
        """Embed text as the decoder gets it: ids `(...)` int64 -> `(..., D)`."""
        return self.core.get_input_embeddings()(input_ids)  # pyright: ignore[reportCallIssue]

    @property
    def image_token(self) -> int:
        """The id of a visual token's placeholder in `input_ids`."""
        found = getattr(self.config, "image_token_id", None)
        if not isinstance(found, int):
            raise UnsupportedFamily(
                f"the configuration of {self.title} has no image_token_id, so nothing tells where its images stand; "
                "write the id of the tokenizer's image token into it"
            )
        return found

    @property
    def video_token(self) -> int:
        """The id of the placeholder of a clip's tokens, for families with `clip_places`."""
        return int(self.config.video_token_id)

    def placeholders(self, input_ids: Tensor) -> Tensor:
        """Mark the placeholders of images and clips in prompts: ids `(...)` int64 -> `(...)` bool."""
        images = input_ids == self.image_token
        return images | (input_ids == self.video_token) if self.clip_places else images

    # Features in place of pixels

    def check_feature_maps(self) -> None:
        """Check that a model of this family can read stored features in place of pixels.

        Raises:
            UnsupportedFamily: it cannot.
        """
        raise UnsupportedFamily(f"{self.title} can't train on kept features yet; leave data.features out")

    def read_feature_maps(self, rows: int, columns: int) -> None:
        """Replace the encoder, so that `pixel_values` are feature maps `(images, D_encoder, rows, columns)`."""
        self.check_feature_maps()

    # Layouts and positions

    def placeholder_runs(self, input_ids: Tensor) -> list[int]:
        """Return the length of each run of placeholders, row by row of the prompt `(B, S)`."""
        edges = torch.nn.functional.pad(input_ids == self.image_token, (1, 1)).int().diff(dim=1)
        return ((edges < 0).nonzero()[:, 1] - (edges > 0).nonzero()[:, 1]).tolist()

    @abstractmethod
    def layouts(self, inputs: Mapping[str, Any]) -> tuple[Layout, ...]:
        """Return the layout of each image, in prompt order, from the processor's output; no encoder runs."""

    def clip_layout(self, frames: int, height: int, width: int) -> Layout:
        """Return the layout of a clip of so many frames, as the processor prepares it, for families with `clip_places`.

        Args:
            frames: that the processor has chosen of the clip.
            height: of a frame, in pixels.
            width: of a frame, in pixels.

        Raises:
            FoveateError: the family takes no clips.
        """
        raise FoveateError(no_clips(self))

    @property
    def frames_per_patch(self) -> int:
        """Frames of a clip that the encoder takes together, and makes one frame of visual tokens of."""
        return 1

    def frame_layout(self, height: int, width: int) -> Layout:
        """Return the layout of a frame of a clip that is written as images; by default that of an image."""
        return self.image_layout(height, width)

    def clip_layouts(self, inputs: Mapping[str, Any]) -> tuple[Layout, ...]:
        """Return the layout of each clip, in prompt order, from the processor's output; no encoder runs.

        Raises:
            FoveateError: the family takes no clips.
        """
        raise FoveateError(no_clips(self))

    def timed(self, layouts: Sequence[Layout], inputs: Mapping[str, Any]) -> tuple[Layout, ...]:
        """Return the layouts of clips with what the encoder isn't told of them: the times of their frames.

        Args:
            layouts: of the clips as the encoder saw them, in prompt order.
            inputs: of a call. With beams, what has one value per clip comes several times.
        """
        return tuple(layouts)

    def image_positions(self, layout: Layout) -> Tensor:
        """Return the position ids of one image's columns, counted from the first one of each run: `(axes, N)` int64.

        The default has one axis and counts columns, as text has it.
        """
        return layout.within_runs[None]

    def image_spans(self, layout: Layout) -> tuple[int, ...]:
        """Return by how much each run of one image raises the positions of what follows it; by default, its columns."""
        return layout.run_lengths

    def token_types(self, input_ids: Tensor) -> Tensor:
        """Return the token types of prompts `(B, S)` as the processor writes them: by default 1 at images."""
        types = (input_ids == self.image_token).int()
        # Families that take clips need not repeat that their type is 2.
        return types.masked_fill(input_ids == self.video_token, 2) if self.clip_places else types

    def attention_blocks(self, types: Tensor) -> Tensor:
        """Return the block of columns that look in both directions, -1 for none, from token types: `(B, S)` int64.

        By default each run of type 1 is one.
        """
        inside = types == 1
        begins = inside & ~torch.nn.functional.pad(inside, (1, 0))[:, :-1]
        return torch.where(inside, begins.long().cumsum(dim=1), -1)

    def text_position(self, position_ids: Tensor) -> int | None:
        """Return how many columns precede the first one of a call, read from the position ids of `generate`.

        Only called without padding. None if the position ids don't tell.
        """
        return int(position_ids[0, 0])

    # Encoding

    def encode(self, inputs: Mapping[str, Any]) -> Any:
        """Run the model's encoder and projector on the images of `inputs`, and return the model's own container."""
        arguments = {name: inputs[name] for name in self.encoder_inputs if inputs.get(name) is not None}
        return self.core.get_image_features(**arguments, return_dict=True)  # pyright: ignore[reportCallIssue]

    def joined(self, images: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Join the pixel inputs of several prompts to those of one call: one after another, in the first axis.

        Where images have several tiles, the others are filled up to the image with the most of them.

        Args:
            images: for each prompt its pixel inputs by name, the same names for all.
        """
        found: dict[str, Tensor] = {}
        for name in images[0]:
            given = [each[name] for each in images]
            most = max(value.shape[1] if value.ndim > 2 else 0 for value in given)
            if most:
                given = [
                    torch.nn.functional.pad(value, (0, 0) * (value.ndim - 2) + (0, most - value.shape[1]))
                    for value in given
                ]
            found[name] = torch.cat(given)
        return found

    def encode_clips(self, inputs: Mapping[str, Any]) -> Any:
        """Run the model's encoder and projector on the clips of `inputs`, and return the model's own container."""
        arguments = {name: inputs[name] for name in self.clip_encoder_inputs if inputs.get(name) is not None}
        return self.core.get_video_features(**arguments, return_dict=True)  # pyright: ignore[reportCallIssue]

    @property
    def clip_encoder_inputs(self) -> tuple[str, ...]:
        """The inputs of a call that `get_video_features` takes."""
        return self.video_inputs

    @property
    def encoder_inputs(self) -> tuple[str, ...]:
        """The inputs of a call that `get_image_features` takes."""
        return self.pixel_inputs

    def encoded(self, output: Any, arguments: Mapping[str, Any]) -> Capture:
        """Make a capture of what `get_image_features` returned; for families with `watches_tower` False.

        Args:
            output: of the method.
            arguments: those of `encoder_arguments`, by name; None where the call has none.
        """
        raise NotImplementedError

    def in_prompt(
        self, capture: Capture, order: Sequence[int], input_ids: Tensor | None
    ) -> tuple[Capture, Sequence[int]]:
        """Return a capture whose layouts are those of a prompt, and the order of its images in the prompt.

        Args:
            capture: of one run of the encoder.
            order: for each image of the prompt, its number in `capture`; with beams an image occurs more than once.
            input_ids: `(B, S)` int64, or None if they aren't known.
        """
        return capture, order

    @abstractmethod
    def tower_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Capture:
        """Start a capture from the arguments of a call of the tower, with `encoder_arguments` added to `kwargs`."""

    def clip_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Capture:
        """Start a capture of clips from a call of the tower: its arguments, and in `kwargs` those of the method.

        Args:
            args: of the tower.
            kwargs: of the tower, and those of `get_video_features`.
        """
        raise NotImplementedError

    def sizes_together(
        self, layouts: Sequence[Layout], sizes: Sequence[tuple[int, int]], inputs: Mapping[str, Any]
    ) -> Sequence[tuple[int, int]]:
        """Return the sizes to which the entries of a call are resized, where some depend on others.

        Args:
            layouts: of the entries of the encoder's output at full size, for families with `resizes_inputs`.
            sizes: rows and columns of visual tokens that a step asks for each of them alone.
            inputs: the arguments of `get_image_features` by name.
        """
        return sizes

    def resized_inputs(
        self, inputs: Mapping[str, Any], layouts: Sequence[Layout], sizes: Sequence[tuple[int, int]], mode: str
    ) -> dict[str, Any]:
        """Resize images among the arguments of `get_image_features`, for families with `resizes_inputs`.

        Args:
            inputs: the arguments by name.
            layouts: of the images at full size.
            sizes: rows and columns of visual tokens, one pair per image.
            mode: one of `resize_modes`.
        """
        raise NotImplementedError

    def shrink(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        capture: Capture,
        sizes: Sequence[tuple[int, int]],
        mode: str,
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Resize the images of a call of the tower to `sizes`: rows and columns of visual tokens, one pair per image.

        Sets `capture.seen`, and returns the tower's new arguments.
        """
        raise NotImplementedError

    def tower_output(self, output: Any, capture: Capture) -> Any:
        """Return the tower's output as the model goes on with it; by default as it is."""
        return output

    def shrunk(self, layout: Layout, size: tuple[int, int]) -> Layout:
        """Return the layout of an image whose first grid was resized to `size` rows and columns.

        Structural tokens keep the order that they have in the full layout. Reads the configuration alone.
        """
        return Layout((Segment(layout.segments[0].t, *size),), times=layout.times)

    def shrunk_by(self, layout: Layout, shrink: Callable[[Layout], tuple[int, int]]) -> Layout:
        """Return the layout of an image that a step at `@pixels` resized; by default its first grid says how.

        Args:
            layout: of the image at full size.
            shrink: tells the rows and columns to which the first grid of a layout is resized.
        """
        return self.shrunk(layout, shrink(layout))

    def grow(self, output: Any, capture: Capture, index: Sequence[Tensor]) -> Any:
        """Repeat rows of the output of `projected_module` up to the full count, after `shrink`.

        The model's own code checks the number of rows before the engine can cut the prompt. `index[i]`, `(N,)` int64,
        is the row of image i for each place.
        """
        raise NotImplementedError

    @abstractmethod
    def features(self, capture: Capture) -> tuple[Tensor, ...]:
        """Return the features at `@features`, per image `(N, D_encoder)`, in token order."""

    @abstractmethod
    def projected(self, capture: Capture) -> tuple[Tensor, ...]:
        """Return the features at `@input`, per image `(N, D)`, in token order."""

    def structural(self, capture: Capture) -> tuple[Tensor, ...]:
        """Return the embeddings of structural tokens that are no text, per image `(S, D)`, in the layout's order.

        They are parameters of the model, with their gradient.
        """
        assert all(token.is_text for layout in capture.layouts for token in layout.structural)
        return (torch.empty(0),) * len(capture.layouts)

    @abstractmethod
    def project(self, features: Tensor) -> Tensor:
        """Project features of `@features` to the decoder: `(..., D_encoder)` -> `(..., D)`."""

    def project_with_companions(self, features: Tensor) -> tuple[Tensor, tuple[Tensor, ...] | None]:
        """Project features as `project` does; also return the companions that the projector makes of them.

        By default companions come from elsewhere, and are None.
        """
        return self.project(features), None

    def output_companions(self, output: Any) -> tuple[Tensor, ...]:
        """Return the other tensors of the output of `projected_module` with one row per visual token.

        Examples are the features of DeepStack. A plan is applied to companions as to features.
        """
        return ()

    def companions(self, capture: Capture) -> tuple[tuple[Tensor, ...], ...]:
        """Return the companions of each image, each `(N, D)` in token order; the same number for every image."""
        return ((),) * len(capture.layouts)

    @classmethod
    def container(
        cls,
        features: Sequence[Tensor],
        companions: Sequence[Sequence[Tensor]] = (),
        stacked: bool = False,
        row_tokens: Sequence[int] = (),
    ) -> dict[str, Any]:
        """Make what the model takes as `mm_encoder_outputs`; new for each call, since `generate` changes it in place.

        Args:
            features: per image `(M, D)`.
            companions: per image, each `(M, D)`.
            stacked: whether the model reads one tensor, as `Capture.stacked` says.
            row_tokens: visual tokens of each row of the prompt; `generate` needs them for beams.
        """
        from foveate.feature_container import image_features  # a class of transformers, which layouts don't need

        return {"image": image_features(features, stacked, row_tokens)}

    # Signals

    def gives(self, signal: Signal) -> bool:
        """Return whether it can compute an encoder signal: by default attention and keys, which every layer gives.

        Pixels count as one. Reads the configuration alone.
        """
        return isinstance(signal, EncoderAttention | EncoderKeys) or (self.gives_pixels and isinstance(signal, Pixels))

    def gives_inside(self, signal: Signal) -> bool:
        """Return whether it can compute a signal: attention and keys only if they are the model's own."""
        if not super().gives_inside(signal):
            return False
        reads_keys = isinstance(signal, DecoderAttention | DecoderKeys | DecoderLogits | RotaryLogits)
        return not (reads_keys and self.has_model) or self.has_own_keys()

    def has_own_keys(self) -> bool:
        """Return whether `keys` gives the keys of the model: its decoder may be one that the family doesn't know."""
        return computes_own_keys(self, self.embed, self.position_axes) is not False

    @abstractmethod
    def encoder_signal(self, signal: Signal, capture: Capture) -> tuple[Tensor, ...]:
        """Compute an encoder signal, per image, in token order."""

    def tower_pixels(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        """Return the pixels among the arguments of a call of the tower."""
        return args[0] if args else kwargs["pixel_values"]

    def pixels(self, capture: Capture) -> tuple[Tensor, ...]:
        """Return what each token is made of, per image `(N, P)`, in token order; for families with `gives_pixels`."""
        raise NotImplementedError

    def encoder_layer(self, layer: int) -> int:
        """Return the index from zero of encoder layer `layer`, which may count from the end.

        Raises:
            FoveateError: the encoder has no such layer.
        """
        try:
            count = len(self.encoder_attentions)
        except AttributeError as error:
            raise FoveateError(
                f"the encoder of this {self.title}, a {type(self.tower).__name__}, has no layers where encoders of "
                f"{self.title} have them, so nothing can be read in them: {error}"
            ) from error
        return self._checked_layer(layer, count)

    @property
    def longest_prompt(self) -> int | None:
        """How many positions the decoder has room for, by its configuration; None if that doesn't say."""
        longest = getattr(self.config.get_text_config(), "max_position_embeddings", None)
        return longest if isinstance(longest, int) else None

    def check_encoder_layer(self, layer: int) -> None:
        """Check that the encoder has a layer, if the configuration says how many it has.

        Raises:
            FoveateError: it has no such layer.
        """
        vision = getattr(self.config, "vision_config", None)
        count = getattr(vision, "num_hidden_layers", None) or getattr(vision, "depth", None)
        if isinstance(count, int):
            self._checked_layer(layer, count)

    def _checked_layer(self, layer: int, count: int) -> int:
        if not -count <= layer < count:
            raise FoveateError(
                f"encoder layer {layer} was asked for, and this {self.title} encoder has {count} layers; "
                f"name one from {-count} to {count - 1}"
            )
        return layer % count


def no_clips(family: Family) -> str:
    """Say that a family takes no clips."""
    why = f": {family.without_clips}" if family.without_clips else ""
    return f"video is not supported yet for {family.title}{why}; pass images, for instance frames of the clip"


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
    """Find the first module of a class of this name inside `model`, or the model itself.

    Raises:
        UnsupportedFamily: there is none.
    """
    for module in model.modules():
        # Compares names of base classes: FSDP2 derives a class of its own from the model's.
        if any(base.__name__ == class_name for base in type(module).__mro__):
            return module
    raise UnsupportedFamily(f"{type(model).__name__} has no {class_name} inside; pass the whole model")


def cls_attention(
    query: Tensor, key: Tensor, scale: float, heads: Literal["mean", "full"] = "mean", bias: Tensor | None = None
) -> Tensor:
    """Compute the attention of one query row to every token.

    Args:
        query: `(B, H, d)`.
        key: `(B, H, T, d)`.
        scale: factor of the scores of one head before the softmax.
        heads: "mean" averages over heads; "full" takes them as one head of width H d, scaled by its own width.
        bias: `(B, T)`, added to the scores of each token, or None.

    Returns:
        `(B, T)` float32, rows sum to 1.
    """
    if heads == "full":
        query, key = query.flatten(1)[:, None], key.transpose(1, 2).flatten(2)[:, None]
        scale = query.shape[-1] ** -0.5
    with without_autocast(query.device):
        # Half precision may not hold scores before they are scaled.
        scores = torch.einsum("bhd,bhtd->bht", query * scale, key)
    if bias is not None:
        scores = scores + bias[:, None]
    return scores.softmax(dim=-1, dtype=torch.float32).mean(dim=1)


def attention_received(
    query: Tensor,
    key: Tensor,
    scale: float,
    rows_at_once: int = 1024,
    heads: Literal["mean", "full"] = "mean",
    bias: Tensor | None = None,
) -> Tensor:
    """Compute the attention that each token receives, summed over all query rows.

    Blocks of `rows_at_once` rows at a time, so memory grows with the number of tokens and not with its square.

    Args:
        query: `(B, H, T, d)`.
        key: `(B, H, T, d)`.
        scale: factor of the scores of one head before the softmax.
        rows_at_once: how many query rows are scored at a time.
        heads: "mean" averages over heads; "full" takes them as one head of width H d, scaled by its own width.
        bias: `(B, T)`, added to the scores of each token, or None.

    Returns:
        `(B, T)` float32, rows sum to T.
    """
    if heads == "full":
        query, key = (states.transpose(1, 2).flatten(2)[:, None] for states in (query, key))
        scale = query.shape[-1] ** -0.5
    received = query.new_zeros(query.shape[0], query.shape[2], dtype=torch.float32)
    for block in query.split(rows_at_once, dim=2):
        with without_autocast(query.device):
            # Half precision may not hold scores before they are scaled.
            scores = torch.matmul(block * scale, key.transpose(-1, -2))
        if bias is not None:
            scores = scores + bias[:, None, None]
        received += scores.softmax(dim=-1, dtype=torch.float32).mean(dim=1).sum(dim=1)
    return received
