"""Any model that takes image features where transformers' own models take them; used where no family knows more."""

from __future__ import annotations

import inspect
import warnings
import weakref
from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from foveate.errors import FoveateError, FoveateWarning, UnsupportedFamily
from foveate.families.config_fields import kind_of
from foveate.families.family import Capture, Family
from foveate.tokens import Layout, Segment, Signal

_warned: weakref.WeakSet[type] = weakref.WeakSet()
_SWITCHES = ("self", "kwargs", "vision_feature_layer", "vision_feature_select_strategy", "output_hidden_states")
"""Arguments of `get_image_features` that don't describe images."""
_KINDS = {"full_attention", "sliding_attention", "conv"}
"""What the decoder's layers may do with earlier columns."""
_FIELDS = {"last_hidden_state", "pooler_output", "hidden_states", "attentions"}
"""What `get_image_features` may return; anything else might hold something of each visual token."""


class Generic(Family):
    """A model that no family describes: its visual tokens are known, and nothing else about its images.

    It needs what transformers' own models have: a module with `get_image_features` whose `forward` takes
    `mm_encoder_outputs`, `image_token_id` in its configuration, and one-dimensional position ids. Methods that look at
    features alone work at `@input`; where every layer of the decoder sees all earlier columns, methods work inside the
    decoder, too. Rows and columns are unknown, so a run of placeholders is one row of tokens. Where a model puts text
    between the tiles or the rows of an image, each of those is a run, and a number of tokens to keep is meant for each.
    """

    name = "generic"
    title = "a model that no family describes"
    places = ("input",)
    outside_encoder = "no family tells how its encoder works"
    watches_tower = False
    knows_grids = False

    def __init__(self, model: nn.Module, why: str = "its family is not known") -> None:
        if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
            raise UnsupportedFamily("its decoder reads the image through an encoder of text")
        self.core = _core_of(model)
        self.config: Any = self.core.config
        self.title = type(self.core).__name__.removesuffix("Model")  # pyright: ignore[reportAttributeAccessIssue]
        arguments = inspect.signature(self.core.get_image_features).parameters  # pyright: ignore
        self._encoder_inputs = tuple(each for each in arguments if each not in ("self", "kwargs"))
        self.pixel_inputs = tuple(  # pyright: ignore[reportAttributeAccessIssue]
            each for each in arguments if each not in _SWITCHES
        )
        _refuse(self.core, self.config)
        if self._is_plain():
            self.places = ("input", "decoder")  # pyright: ignore[reportAttributeAccessIssue]
        unknown = sorted(set(self.layer_kinds()) - _KINDS)
        if unknown:
            raise UnsupportedFamily(f"its decoder has layers of {', '.join(unknown)}, which were never tried")
        if type(self.core) not in _warned:
            _warned.add(type(self.core))
            warnings.warn(
                f"{why}. Each run of its image placeholders is taken as one row of visual tokens, and methods that "
                "look at features alone work; compare their answers with the dense model's",
                FoveateWarning,
                stacklevel=2,
            )

    @classmethod
    def of_config(cls, config: Any) -> Self:
        """Make the family of a configuration; steps inside the decoder need layers of full attention alone.

        Raises:
            FoveateError: the configuration doesn't tell how many visual tokens an image has.
        """
        family = super().of_config(config)
        family.title = f"a model of type {kind_of(config)!r}"  # pyright: ignore[reportAttributeAccessIssue]
        family.image_layout(1, 1)
        if set(family.layer_kinds()) == {"full_attention"}:
            family.places = ("input", "decoder")  # pyright: ignore[reportAttributeAccessIssue]
        return family

    def _is_plain(self) -> bool:
        """Whether the decoder is like most: every layer sees all columns before its own, under one rotary embedding."""
        if set(self.layer_kinds()) != {"full_attention"} or not hasattr(self.decoder, "rotary_emb"):
            return False
        takes = inspect.signature(self.decoder_layers[0].forward).parameters
        # Token types tell which columns look in both directions, and only the model itself makes that mask.
        return (
            "position_embeddings" in takes and "token_type_ids" not in inspect.signature(self.core.forward).parameters
        )

    @property
    def tower(self) -> nn.Module:
        """What transformers takes for the vision encoder."""
        return self.core.get_encoder("image")  # pyright: ignore[reportCallIssue]

    @property
    def decoder(self) -> nn.Module:
        """What transformers takes for the language model."""
        return self.core.get_decoder()  # pyright: ignore[reportCallIssue]

    @property
    def encoder_attentions(self) -> Sequence[nn.Module]:
        """None are known."""
        return ()

    @property
    def feature_module(self) -> nn.Module:
        """Not known."""
        raise FoveateError(f"what the projector of {self.title} reads is not known; @input is")

    @property
    def projected_module(self) -> nn.Module:
        """Not known: features are taken from what `get_image_features` returns."""
        raise FoveateError(f"the projector of {self.title} is not known")

    @property
    def encoder_inputs(self) -> tuple[str, ...]:
        """All arguments of `get_image_features`."""
        return self._encoder_inputs

    # Layouts and positions

    def layouts(self, inputs: Mapping[str, Any]) -> tuple[Layout, ...]:
        """One row of tokens for each run of placeholders."""
        return tuple(_row(length) for length in self.runs(inputs["input_ids"]))

    def runs(self, input_ids: Tensor) -> list[int]:
        """How long each run of placeholders is, row by row of the prompt `(B, S)`."""
        held = torch.nn.functional.pad(input_ids == self.image_token, (1, 1)).int().diff(dim=1)
        return ((held < 0).nonzero()[:, 1] - (held > 0).nonzero()[:, 1]).tolist()

    def image_positions(self, layout: Layout) -> Tensor:
        """0, 1, 2, ...: `(1, N)`."""
        return torch.arange(layout.total)[None]

    def image_span(self, layout: Layout) -> int:
        """As many positions as tokens."""
        return layout.total

    # Encoding

    def encoded(self, output: Any) -> Capture:
        """The features of each image, or tile, or sample, as the model groups them."""
        features = getattr(output, "pooler_output", None)
        more = sorted(set(output.keys()) - _FIELDS)
        if more:
            raise FoveateError(
                f"the encoder of {self.title} returns {', '.join(more)} besides features; only a family of its own "
                "can tell what becomes of that"
            )
        if isinstance(features, Tensor) and features.ndim == 3:
            features = features.unbind(0)
        width = self.core.get_input_embeddings().weight.shape[-1]  # pyright: ignore
        if not isinstance(features, Sequence) or any(each.ndim != 2 or each.shape[1] != width for each in features):
            raise FoveateError(
                f"{self.title} keeps the features of its images in no form that is known; supported are a list with "
                f"(tokens, {width}) for each image, and a tensor (images, tokens, {width})"
            )
        rows = tuple(_row(each.shape[0]) for each in features)
        return Capture(layouts=rows, seen=rows, extra={"features": tuple(features)})

    def in_prompt(
        self, capture: Capture, order: Sequence[int], input_ids: Tensor | None
    ) -> tuple[Capture, Sequence[int]]:
        """Cut what the model takes for one image into its runs of placeholders."""
        if input_ids is None:
            return capture, order
        runs = self.runs(input_ids)
        sizes = [layout.total for layout in capture.layouts]
        if sum(runs) != sum(sizes[image] for image in order):
            return capture, order
        pieces: dict[int, list[int]] = {}
        run = left = 0
        for image in order:
            need, mine = sizes[image], []
            while need:
                left = left or runs[run]
                mine.append(min(need, left))
                need, left = need - mine[-1], left - mine[-1]
                run += not left
            pieces[image] = mine
        if all(len(mine) == 1 for mine in pieces.values()):
            return capture, order
        first: dict[int, int] = {}
        for image in sorted(pieces):
            first[image] = sum(len(pieces[earlier]) for earlier in first)
        # The same one for the same prompt: plans are remembered by it.
        cuts = capture.extra.setdefault("cuts", {})
        key = tuple(tuple(pieces[image]) for image in sorted(pieces))
        if key not in cuts:
            rows = tuple(_row(length) for mine in key for length in mine)
            parts = [part for image in sorted(pieces) for part in self.projected(capture)[image].split(pieces[image])]
            cuts[key] = Capture(layouts=rows, seen=rows, extra={"features": tuple(parts)})
        return cuts[key], [first[image] + part for image in order for part in range(len(pieces[image]))]

    def projected(self, capture: Capture) -> tuple[Tensor, ...]:
        """The features of each image, `(N, D)`."""
        return capture.extra["features"]

    # What is not known

    def tower_call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Capture:
        """Nothing is read off a call of the encoder."""
        raise AssertionError("the tower of a generic family is not watched")

    def shrink(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        capture: Capture,
        sizes: Sequence[tuple[int, int]],
        mode: str,
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """No way is known."""
        raise FoveateError(f"how to shrink an image for {self.title} is not known")

    def grow(self, output: Any, capture: Capture, index: Sequence[Tensor]) -> Any:
        """Never needed: nothing is shrunk."""
        raise AssertionError("nothing was shrunk")

    def features(self, capture: Capture) -> tuple[Tensor, ...]:
        """Not known."""
        raise FoveateError(f"what the projector of {self.title} reads is not known; @input is")

    def project(self, features: Tensor) -> Tensor:
        """Not known."""
        raise FoveateError(f"the projector of {self.title} is not known")

    def gives(self, signal: Signal) -> bool:
        """No signal of the encoder."""
        return False

    def encoder_signal(self, signal: Signal, capture: Capture) -> tuple[Tensor, ...]:
        """None is known."""
        raise FoveateError(f"{self.title} gives no {signal}")


def _row(length: int) -> Layout:
    return Layout((Segment(1, 1, length),))


def _core_of(model: nn.Module) -> nn.Module:
    """The innermost module in which image features meet text."""
    found: nn.Module | None = None
    for module in model.modules():
        takes = hasattr(module, "get_image_features") and hasattr(module, "config")
        if takes and "mm_encoder_outputs" in inspect.signature(module.forward).parameters:
            # Wrappers come before what they wrap.
            found = module
    if found is None:
        raise UnsupportedFamily(
            "it has no module with get_image_features whose forward takes mm_encoder_outputs, which is how shorter "
            "features enter"
        )
    return found


def _refuse(core: nn.Module, config: Any) -> None:
    """What the generic family can't do right."""
    if getattr(config, "image_token_id", None) is None:
        raise UnsupportedFamily("its configuration has no image_token_id, so its placeholders are not known")
    if hasattr(core, "get_rope_index") or hasattr(core, "compute_3d_position_ids"):
        raise UnsupportedFamily("its position ids have several axes, which only a family of its own can tell")
    decoder: Any = core.get_decoder()  # pyright: ignore[reportCallIssue]
    if decoder is core or not hasattr(decoder, "layers"):
        raise UnsupportedFamily("its language model is not where transformers has it")
    extra = {"visual_pos_masks", "deepstack_visual_embeds", "deepstack_features"}
    extra &= set(inspect.signature(decoder.forward).parameters)
    if extra:
        raise UnsupportedFamily("its decoder takes image features behind its first layers, too")
