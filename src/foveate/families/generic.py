"""The fallback for models that no family describes: any model that takes `mm_encoder_outputs`."""

from __future__ import annotations

import inspect
import warnings
import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self, get_args

import torch

from foveate.errors import FoveateError, FoveateWarning, UnsupportedFamily
from foveate.families.config_fields import kind_of
from foveate.families.family import Capture, Family
from foveate.families.own_keys import computes_own_keys
from foveate.families.wrappers import check_decoder, cores_of, generator_of
from foveate.layout import Layout, one_row
from foveate.tokens import Signal
from foveate.transformers_api import block_types, passes_position_ids, passes_types_from_start, refuse_blocks

if TYPE_CHECKING:
    from torch import Tensor, nn

_warned: weakref.WeakKeyDictionary[type, set[str]] = weakref.WeakKeyDictionary()
"""Per class of models the reasons that were told, each of them once."""
_SWITCHES = ("self", "kwargs", "vision_feature_layer", "vision_feature_select_strategy", "output_hidden_states")
"""Arguments of `get_image_features` that don't describe images."""
_ATTENTION = {"full_attention", "sliding_attention"}
"""The kinds of decoder layers between which steps can act."""
_KINDS = {*_ATTENTION, "conv"}
"""The kinds of decoder layers that are supported."""
_FIELDS = {
    "last_hidden_state",
    "pooler_output",
    "hidden_states",
    "attentions",
    # Of a second encoder (DeepSeek-VL hybrid) or a second call of it (DeepSeek-OCR 2), which the decoder doesn't read.
    *(f"{part}_{name}" for part in ("high_res_vision", "local") for name in ("last_hidden_state", "hidden_states")),
    "high_res_vision_attentions",
    "local_attentions",
}
"""The fields that `get_image_features` may return; any other might have one row per visual token."""
_TRIED = {"FuyuModel": "it reads image features from last_hidden_state, where other models have the encoder's output"}
"""Models that were tried and can't be right, by class, and why: their signatures and configurations don't tell."""


class Generic(Family):
    """A model that no family describes: only its visual tokens are known.

    The model must have what models of transformers have: a module with `get_image_features` whose `forward` takes
    `mm_encoder_outputs`, and `image_token_id` in its configuration. Methods that need features alone work at `@input`,
    and also inside the decoder if every layer attends to all earlier columns or to a window of them. Rows and columns
    are unknown, so a run of placeholders is one row of tokens. Where a model puts text between the tiles or the rows of
    an image, each of those is a run, and a number of tokens to keep is for each run.

    Position ids with three axes are supported where the model's own `get_rope_index` gives those of Qwen2-VL: then
    `image_grid_thw` has the rows and columns of each image.
    """

    name = "generic"
    title = "a model that no family describes"
    places = ("input",)
    outside_encoder = "no family tells how its encoder works"
    watches_tower = False
    knows_grids = False
    taken_as: ClassVar[str] = "Each run of its image placeholders is taken as one row of visual tokens"
    """What it makes of an image, for the warning."""
    position_types: ClassVar[frozenset[str]] = frozenset()
    """Token types that the model reads for position ids alone."""

    def __init__(self, model: nn.Module, why: str = "its family is not known") -> None:
        if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
            raise UnsupportedFamily("its decoder reads the image through an encoder of text")
        self.core = _core_of(model)
        self.config: Any = self.core.config
        self.title = type(self.core).__name__.removesuffix("Model")  # pyright: ignore[reportAttributeAccessIssue]
        arguments = inspect.signature(self.core.get_image_features).parameters  # pyright: ignore
        self._encoder_inputs = tuple(name for name in arguments if name not in ("self", "kwargs"))
        self.pixel_inputs = tuple(  # pyright: ignore[reportAttributeAccessIssue]
            name for name in arguments if name not in _SWITCHES
        )
        if "pixel_values" not in self.pixel_inputs:
            raise UnsupportedFamily(f"its encoder takes {', '.join(self.pixel_inputs)} and no pixel_values")
        _refuse(model, self.core, self.config)
        self.check_positions()
        generator = generator_of(model, self.core)
        self.takes_positions = generator is None or passes_position_ids(generator)  # pyright: ignore
        self.block_types = block_types(generator)  # pyright: ignore[reportAttributeAccessIssue]
        self.blocks_after_cache = all(  # pyright: ignore[reportAttributeAccessIssue]
            passes_types_from_start(generator, name) for name in self.block_types
        )
        if self._is_plain():
            self.places = ("input", "decoder")  # pyright: ignore[reportAttributeAccessIssue]
        unknown = sorted(set(self.layer_kinds()) - _KINDS)
        if unknown:
            raise UnsupportedFamily(f"its decoder has layers of {', '.join(unknown)}, which were never tried")
        self.note = (  # pyright: ignore[reportAttributeAccessIssue]
            f"{why}. {self.taken_as}, and methods that look at features alone work; compare their answers with the "
            "dense model's"
        )
        told = _warned.setdefault(type(self.core), set())
        if why not in told:
            told.add(why)
            warnings.warn(self.note, FoveateWarning, stacklevel=2)

    @classmethod
    def of_config(cls, config: Any) -> Self:
        """Make the family of a configuration; steps inside the decoder need layers of attention alone.

        Raises:
            FoveateError: the configuration doesn't tell how many visual tokens an image has.
        """
        family = super().of_config(config)
        family.title = f"a model of type {kind_of(config)!r}"  # pyright: ignore[reportAttributeAccessIssue]
        family.note = "no family describes it"  # pyright: ignore[reportAttributeAccessIssue]
        family.image_layout(1, 1)
        if set(family.layer_kinds()) <= _ATTENTION:
            family.places = ("input", "decoder")  # pyright: ignore[reportAttributeAccessIssue]
        return family

    def check_positions(self) -> None:
        """Check that position ids have one axis.

        Raises:
            UnsupportedFamily: they have several.
        """
        if has_position_axes(self.core):
            raise UnsupportedFamily("its position ids have several axes, which only a family of its own can tell")

    def _is_plain(self) -> bool:
        """Return whether every layer attends to all earlier columns or the last of them, by rotary embedding."""
        if not set(self.layer_kinds()) <= _ATTENTION or not hasattr(self.decoder, "rotary_emb"):
            return False
        takes = inspect.signature(self.decoder_layers[0].forward).parameters
        # With token types, some columns may attend in both directions, and only the model makes that mask.
        types = {"token_type_ids", "mm_token_type_ids"} & set(inspect.signature(self.core.forward).parameters)
        types -= self.position_types
        # Experts that read token types would have to get those of the columns that are left.
        inside = {*takes, *inspect.signature(self.decoder.forward).parameters}
        types |= {name for name in inside if name.endswith("type_ids")}
        causal = getattr(self.decoder_config, "is_causal", True) is not False
        return causal and not types and not self.block_types and "position_embeddings" in takes

    @property
    def tower(self) -> nn.Module:
        """The vision encoder, as transformers finds it."""
        return self.core.get_encoder("image")  # pyright: ignore[reportCallIssue]

    @property
    def decoder(self) -> nn.Module:
        """The language model, as transformers finds it."""
        return self.core.get_decoder()  # pyright: ignore[reportCallIssue]

    @property
    def encoder_attentions(self) -> Sequence[nn.Module]:
        """Unknown."""
        return ()

    @property
    def feature_module(self) -> nn.Module:
        """Unknown."""
        raise FoveateError(f"what the projector of {self.title} reads is not known; @input is")

    @property
    def projected_module(self) -> nn.Module:
        """Unknown: features are those that `get_image_features` returns."""
        raise FoveateError(f"the projector of {self.title} is not known")

    @property
    def encoder_inputs(self) -> tuple[str, ...]:
        """All arguments of `get_image_features`."""
        return self._encoder_inputs

    # Layouts and positions

    def layouts(self, inputs: Mapping[str, Any]) -> tuple[Layout, ...]:
        """Return one row of tokens for each run of placeholders."""
        return tuple(one_row(length) for length in self.placeholder_runs(inputs["input_ids"]))

    # Encoding

    def encoded(self, output: Any, arguments: Mapping[str, Any]) -> Capture:
        """Make a capture with the features of each image, tile or sample, as the model groups them."""
        features = getattr(output, "pooler_output", None)
        more = _unknown_fields(output.keys())
        if more:
            raise FoveateError(f"the encoder of {self.title} returns {more}")
        if isinstance(features, torch.Tensor) and features.ndim == 3:
            features = features.unbind(0)
        width = int(self.decoder_config.hidden_size)
        if not isinstance(features, Sequence) or any(rows.ndim != 2 or rows.shape[1] != width for rows in features):
            raise FoveateError(
                f"the features that {self.title} returns have an unknown form; supported are a list with "
                f"(tokens, {width}) for each image, and a tensor (images, tokens, {width})"
            )
        layouts = tuple(one_row(rows.shape[0]) for rows in features)
        return Capture(layouts, layouts, extra={"features": tuple(features)})

    def in_prompt(
        self, capture: Capture, order: Sequence[int], input_ids: Tensor | None
    ) -> tuple[Capture, Sequence[int]]:
        """Split the features of one image into its runs of placeholders."""
        if input_ids is None:
            return capture, order
        runs = self.placeholder_runs(input_ids)
        sizes = [layout.total for layout in capture.layouts]
        if sum(runs) != sum(sizes[image] for image in order):
            return capture, order
        lengths = runs_by_image(order, sizes, runs)
        if all(len(pieces) == 1 for pieces in lengths.values()):
            return capture, order
        first: dict[int, int] = {}
        for image in sorted(lengths):
            first[image] = sum(len(lengths[earlier]) for earlier in first)
        # One object for equal prompts: plans are cached by it.
        captures = capture.extra.setdefault("by_runs", {})
        key = tuple(tuple(lengths[image]) for image in sorted(lengths))
        if key not in captures:
            layouts = tuple(one_row(length) for pieces in key for length in pieces)
            features = self.projected(capture)
            parts = tuple(part for image in sorted(lengths) for part in features[image].split(lengths[image]))
            captures[key] = Capture(layouts, layouts, extra={"features": parts}, stacked=capture.stacked)
        return captures[key], [first[image] + part for image in order for part in range(len(lengths[image]))]

    def projected(self, capture: Capture) -> tuple[Tensor, ...]:
        """Return the features of each image, `(N, D)`."""
        return capture.extra["features"]

    # What is not known

    def tower_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Capture:
        """Never called: the tower is not hooked."""
        raise AssertionError("the tower of a generic family is not watched")

    def shrink(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        capture: Capture,
        sizes: Sequence[tuple[int, int]],
        mode: str,
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Refuse: the encoder is unknown."""
        raise FoveateError(f"how to shrink an image for {self.title} is not known")

    def grow(self, output: Any, capture: Capture, index: Sequence[Tensor]) -> Any:
        """Never called: nothing is resized."""
        raise AssertionError("nothing was shrunk")

    def features(self, capture: Capture) -> tuple[Tensor, ...]:
        """Unknown."""
        raise FoveateError(f"what the projector of {self.title} reads is not known; @input is")

    def project(self, features: Tensor) -> Tensor:
        """Unknown."""
        raise FoveateError(f"the projector of {self.title} is not known")

    def gives(self, signal: Signal) -> bool:
        """Return False: the encoder is unknown."""
        return False

    def has_own_keys(self) -> bool:
        """Return whether `keys` gives the keys of the model, as far as its layers can be asked."""
        return bool(computes_own_keys(self, self.embed, self.position_axes))

    def encoder_signal(self, signal: Signal, capture: Capture) -> tuple[Tensor, ...]:
        """Refuse: the encoder is unknown."""
        raise FoveateError(f"{self.title} gives no {signal}")


def has_position_axes(core: nn.Module) -> bool:
    """Return whether the position ids of a model have several axes."""
    return hasattr(core, "get_rope_index") or hasattr(core, "compute_3d_position_ids")


def runs_by_image(order: Sequence[int], sizes: Sequence[int], runs: Sequence[int]) -> dict[int, list[int]]:
    """Split the tokens of images into runs of placeholders, which follow one another in a prompt.

    >>> runs_by_image([0, 1], [5, 2], [3, 2, 2])
    {0: [3, 2], 1: [2]}

    Args:
        order: the images of the prompt.
        sizes: tokens of each image.
        runs: lengths of the runs; they add up to the tokens of the images in `order`.
    """
    lengths: dict[int, list[int]] = {}
    number = rest = 0
    for image in order:
        missing, pieces = sizes[image], []
        while missing:
            rest = rest or runs[number]
            pieces.append(min(missing, rest))
            missing, rest = missing - pieces[-1], rest - pieces[-1]
            number += not rest
        lengths[image] = pieces
    return lengths


def _core_of(model: nn.Module) -> nn.Module:
    """Find the innermost module that puts image features among text."""
    cores = cores_of(model)
    if not cores:
        raise UnsupportedFamily(
            "it has no module with get_image_features whose forward takes mm_encoder_outputs, which is how shorter "
            "features enter"
        )
    return cores[-1]


def _unknown_fields(names: Iterable[str]) -> str:
    """Return what is wrong with an encoder's output that has these fields; "" for nothing."""
    more = sorted(set(names) - _FIELDS)
    return f"{', '.join(more)} besides features, which only a family of its own can handle" if more else ""


def _annotated_fields(core: nn.Module) -> set[str]:
    """Return the fields that `get_image_features` may return, as its annotation has them."""
    annotation = inspect.signature(core.get_image_features).return_annotation  # pyright: ignore
    classes = get_args(annotation) or (annotation,)
    return {each.name for found in classes if is_dataclass(found) for each in fields(found)}


def _refuse(model: nn.Module, core: nn.Module, config: Any) -> None:
    """Refuse models on which the generic family would be wrong.

    Raises:
        UnsupportedFamily: it is one of these.
    """
    if getattr(config, "image_token_id", None) is None:
        raise UnsupportedFamily("its configuration has no image_token_id, so its placeholders are not known")
    refuse_blocks(core)
    if hasattr(core, "lm_head"):
        raise UnsupportedFamily(
            "the head of its language model is inside the module that reads images, so logits can't be put back to the "
            "places of tokens that were left out"
        )
    decoder: Any = core.get_decoder()  # pyright: ignore[reportCallIssue]
    if decoder is core or not hasattr(decoder, "layers"):
        raise UnsupportedFamily("its language model is not where transformers has it")
    check_decoder(model, core)
    extra = {"visual_pos_masks", "deepstack_visual_embeds", "deepstack_features"}
    extra &= set(inspect.signature(decoder.forward).parameters)
    if extra:
        raise UnsupportedFamily("its decoder also takes image features after its first layers")
    if more := _unknown_fields(_annotated_fields(core)):
        raise UnsupportedFamily(f"its encoder returns {more}")
    for base in type(core).__mro__:
        if base.__name__ in _TRIED:
            raise UnsupportedFamily(_TRIED[base.__name__])
