"""What a method reads: features, a layout and signals.  No model in here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import NoneType
from typing import TYPE_CHECKING, Any, Final, Literal

import torch
from jaxtyping import Float, Int64

from foveate.arguments import check_kind, listed
from foveate.deferred import is_deferred
from foveate.errors import FoveateError, SignalError, shown
from foveate.keep import Keep, spread
from foveate.layout import Layout, Segment, Structural
from foveate.options import check_options

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "Behind",
    "DecoderAttention",
    "DecoderInput",
    "DecoderKeys",
    "DecoderLogits",
    "EncoderAttention",
    "EncoderKeys",
    "Keep",
    "Layout",
    "Origin",
    "PLACES",
    "Pixels",
    "Place",
    "RotaryLogits",
    "Segment",
    "Signal",
    "Signals",
    "Structural",
    "Text",
    "VisualTokens",
    "spread",
    "token_axis",
]

Place = str | int
"""Where a step acts: "pixels", "encoder", "features", "input", or the number of a decoder layer."""

PLACES = ("pixels", "encoder", "features", "input")
"""The places that have names, in the order that a model reaches them."""


# Signals: what a method may look at besides the features, requested by type.


class _Chosen:
    """A signal with fields, each checked against its declared type."""

    def __post_init__(self) -> None:
        # What torch.compile records asks for what was asked for, and checked, before.
        if is_deferred() or not torch.compiler.is_compiling():
            check_options(self)


@dataclass(frozen=True)
class EncoderAttention(_Chosen):
    """Attention that each token gets in encoder layer `layer`: `(B, N)`, the average over heads ("mean").

    From [CLS], or where the encoder has none, from all tokens. With "full" the heads stand side by side as one wide
    head: one softmax over the sum of their scores, scaled by the whole width.
    """

    layer: int = -2
    heads: Literal["mean", "full"] = "mean"


@dataclass(frozen=True)
class EncoderKeys(_Chosen):
    """Keys of encoder layer `layer`: `(B, N, D_key)`, heads averaged ("mean") or side by side ("full")."""

    layer: int = -2
    heads: Literal["mean", "full"] = "mean"


@dataclass(frozen=True)
class Pixels:
    """The pixels that each token is made of, as the encoder gets them: `(B, N, P)`, P numbers per token."""


@dataclass(frozen=True)
class DecoderAttention(_Chosen):
    """Attention that visual tokens get from text in a decoder layer, mean over heads.

    A row's softmax is over every column that it sees, text included, so rows sum to less than 1 over the visual tokens.

    Attributes:
        rows: "last" is the last token of the prompt: `(B, N)`; "text" is every text token of the prompt, in order, 0
            where it stands before the image: `(B, T, N)`.
        layer: "here" is the layer whose input is compressed; "previous" is the one before it.
        heads: "mean", or "each" with an axis of heads after the first: `(B, H, N)` or `(B, H, T, N)`.
    """

    rows: Literal["last", "text"] = "last"
    layer: Literal["here", "previous"] = "here"
    heads: Literal["mean", "each"] = "mean"


@dataclass(frozen=True)
class DecoderLogits(_Chosen):
    """Mean pre-softmax attention logit that each visual token gets from itself and later visual tokens: `(B, N)`."""

    layer: Literal["here", "previous"] = "here"


@dataclass(frozen=True)
class DecoderKeys(_Chosen):
    """Keys, after rotary embedding, heads side by side: `(B, N, D_key)` of visual, `(B, T, D_key)` of text tokens."""

    of: Literal["visual", "text"] = "visual"
    layer: Literal["here", "previous"] = "here"


@dataclass(frozen=True)
class Text:
    """The prompt's text tokens at the place of the method, in order, padding left out: `(B, T, D)`.

    At `@input` they are embeddings, at a decoder layer its hidden states.
    """


@dataclass(frozen=True)
class DecoderInput(_Chosen):
    """What entered the decoder, at whatever layer the method acts.

    `(B, N_0, D)` of visual: all tokens of the image, also those that steps inside the decoder have dropped since.
    `(B, T, D)` of text: the embeddings of the tokens that `Text` gives.
    """

    of: Literal["visual", "text"] = "visual"


@dataclass(frozen=True)
class RotaryLogits:
    """What rotary position embedding alone adds to attention: `(B, T, N)`, of text tokens to visual tokens.

    The pre-softmax logit between a query and a key of ones, scaled as attention is, at their position ids.
    """


@dataclass(frozen=True)
class Behind:
    """Which of the tokens that `Text` gives come after the image, and so attend to it: `(B, T)` bool."""


Signal = (
    EncoderAttention
    | EncoderKeys
    | Pixels
    | DecoderAttention
    | DecoderLogits
    | DecoderKeys
    | Text
    | DecoderInput
    | RotaryLogits
    | Behind
)


def token_axis(kind: type) -> int | None:
    """The axis of an answer that counts visual tokens, which a method sees part of; None if it has none.

    Keys of text have none either, but share their type with keys of visual tokens: whoever asks looks at `of`.
    """
    return {EncoderAttention: -1, DecoderAttention: -1, DecoderLogits: -1, RotaryLogits: -1}.get(
        kind, 1 if kind in {EncoderKeys, Pixels, DecoderKeys} else None
    )


_AXES: Final[Mapping[type, tuple[tuple[int, ...], str]]] = {
    EncoderAttention: ((2,), "images, tokens"),
    EncoderKeys: ((3,), "images, tokens, width"),
    Pixels: ((3,), "images, tokens, numbers of pixels"),
    DecoderAttention: ((2, 3, 4), "images, ..., tokens"),
    DecoderLogits: ((2,), "images, tokens"),
    DecoderKeys: ((3,), "images, tokens of the image or of text, width"),
    Text: ((3,), "images, tokens of text, width"),
    DecoderInput: ((3,), "images, tokens of text, width"),
    RotaryLogits: ((3,), "images, tokens of text, tokens"),
    Behind: ((2,), "images, tokens of text"),
}
"""Per kind of signal, how many axes it may have, and what they count."""


class Signals(Mapping[Any, "Tensor"]):
    """Answers to requests.

    Args:
        answers: per request, its tensor.
        of_kind: per type of request, a tensor that answers any request of that type (for tests and notebooks).
    """

    def __init__(
        self, answers: Mapping[Any, Tensor] | None = None, of_kind: Mapping[type, Tensor] | None = None
    ) -> None:
        self._answers = dict(answers or {})
        self._of_kind = dict(of_kind or {})

    def __getitem__(self, request: Any) -> Tensor:
        """The answer to a request.

        Raises:
            SignalError: it was not captured.
        """
        if request in self._answers:
            return self._answers[request]
        if type(request) in self._of_kind:
            return self._of_kind[type(request)]
        known = ", ".join(str(each) for each in self._answers) or "none"
        raise SignalError(f"{request} was not captured (captured: {known}); list it in the method's `needs`")

    def parts(self, indices: Sequence[Int64[Tensor, "B n"]], tokens: int) -> Signals:
        """Take the answers for equally large parts of the tokens, one part after the other: B images become P * B.

        Args:
            indices: per part `(B, n)` int64, which tokens are its own.
            tokens: how many there are in all.
        """

        def of(request: Any, answer: Tensor) -> Tensor:
            axis = token_axis(request if isinstance(request, type) else type(request))
            # By hand, one tensor answers for keys of visual and of text tokens.
            if axis is None or getattr(request, "of", "visual") == "text" or answer.shape[axis] != tokens:
                return answer.repeat(len(indices), *(1,) * (answer.ndim - 1))
            return _taken(answer, indices, axis % answer.ndim)

        return Signals(
            {request: of(request, answer) for request, answer in self._answers.items()},
            {kind: of(kind, answer) for kind, answer in self._of_kind.items()},
        )

    def __iter__(self) -> Iterator[Any]:
        return iter(self._answers)

    def __len__(self) -> int:
        return len(self._answers)


def _described(value: Tensor) -> str:
    return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"


def _taken(values: Tensor, indices: Sequence[Int64[Tensor, "B n"]], axis: int) -> Tensor:
    """For each part, of each image, the tokens that its row of the part's index names, along `axis`."""
    if axis == 1:
        # Whole rows, many times as fast as a gather of each number in them.
        first = torch.arange(values.shape[0], device=values.device)[:, None] * values.shape[1]
        rows = torch.cat([index + first for index in indices])
        return values.flatten(0, 1).index_select(0, rows.flatten()).view(*rows.shape, *values.shape[2:])
    shape = [values.shape[0], *(1,) * (values.ndim - 2), -1]
    wide = [*values.shape[:-1], -1]
    return torch.cat([values.gather(axis, index.reshape(shape).expand(wide)) for index in indices])


@dataclass(frozen=True)
class Origin:
    """Where tokens that earlier steps have left stand in the whole image.

    Attributes:
        layout: of the whole image, before any step.
        slot: `(B, N)` int64: the place of each token in it, counted without structural tokens.
        left: how many tokens of each of its tiles there are; None if that differs, or wasn't kept track of.
    """

    layout: Layout
    slot: Int64[Tensor, "B N"]
    left: tuple[int, ...] | None = None


@dataclass(frozen=True)
class VisualTokens:
    """What a method sees: B images of one layout.

    Attributes:
        features: `(B, N, D)`, at the method's place.
        layout: the images' layout; N is its `content`.
        signals: answers to what the method `needs`.
        origin: where tokens stand in the image, if earlier steps left some out; None: they are `layout`, in order.
    """

    features: Float[Tensor, "B N D"]
    layout: Layout
    signals: Signals = field(default_factory=Signals)
    origin: Origin | None = None

    def __post_init__(self) -> None:
        check_kind("features", self.features, torch.Tensor, "a tensor (images, tokens, width)")
        check_kind("layout", self.layout, Layout, "a Layout")
        check_kind("signals", self.signals, Signals, "Signals")
        check_kind("origin", self.origin, (Origin, NoneType), "an Origin or None")
        features, tokens = self.features, self.layout.content
        if features.ndim != 3 or features.shape[1] != tokens or not features.is_floating_point():
            raise FoveateError(
                f"features are {_described(features)}, and don't fit a layout of {tokens} tokens; they must be floats "
                "(images, tokens, width)"
            )

    @classmethod
    def of(
        cls,
        features: Float[Tensor, "B N D"],
        grid: tuple[int, int] | tuple[int, int, int] | Layout,
        *,
        encoder_attention: Float[Tensor, "B N"] | None = None,
        encoder_keys: Float[Tensor, "B N D_key"] | None = None,
        decoder_attention: Float[Tensor, "B *rows"] | None = None,
        decoder_logits: Float[Tensor, "B N"] | None = None,
        decoder_keys: Float[Tensor, "B _ D_key"] | None = None,
        text: Float[Tensor, "B T D"] | None = None,
        signals: Mapping[Signal, Tensor] | None = None,
    ) -> VisualTokens:
        """Tokens by hand, for tests and notebooks; each signal answers any request of its kind.

        Args:
            features: `(B, N, D)`.
            grid: `(h, w)`, `(t, h, w)` or a layout, with N tokens.
            encoder_attention: `(B, N)`.
            encoder_keys: `(B, N, D_key)`.
            decoder_attention: `(B, N)` or `(B, T, N)`.
            decoder_logits: `(B, N)`.
            decoder_keys: `(B, N, D_key)`, or `(B, T, D_key)` of text.
            text: `(B, T, D)`.
            signals: answers to exact requests, where one tensor per kind is not enough.

        Raises:
            FoveateError: features and grid don't fit together.
            SignalError: a signal has other sizes.
        """
        if isinstance(grid, Layout):
            layout = grid
        else:
            sides = listed("grid", grid, "(h, w), (t, h, w) or a Layout")
            if len(sides) not in (2, 3):
                raise FoveateError(f"grid must be (h, w), (t, h, w) or a Layout, not {shown(grid)}")
            t, h, w = [1, *sides] if len(sides) == 2 else sides
            layout = Layout((Segment(t, h, w),))
        kinds = {
            EncoderAttention: encoder_attention,
            EncoderKeys: encoder_keys,
            DecoderAttention: decoder_attention,
            DecoderLogits: decoder_logits,
            DecoderKeys: decoder_keys,
            Text: text,
        }
        of_kind = {kind: value for kind, value in kinds.items() if value is not None}
        exact: Mapping[Signal, Tensor] = {} if signals is None else signals
        check_kind("signals", exact, Mapping, "a mapping of requests, such as EncoderAttention(), to tensors")
        tokens = cls(features, layout, Signals(exact, of_kind))
        for kind, value in of_kind.items():
            tokens._check_signal(kind, None, value)
        for request, value in exact.items():
            check_kind("a request among the signals", request, tuple(_AXES), "one such as EncoderAttention()")
            tokens._check_signal(type(request), request, value)
        return tokens

    def _check_signal(self, kind: type, request: Signal | None, value: object) -> None:
        """Check that a signal is about these images and tokens.

        Args:
            kind: of the signal.
            request: exactly what it answers; None if it answers all of its kind.
            value: the signal.

        Raises:
            SignalError: it is no tensor, or has other sizes.
        """
        images, tokens, width = self.features.shape
        axes, words = _AXES[kind]
        axis = token_axis(kind)
        # Keys may be those of text, and of those there may be any number.
        if kind is DecoderKeys and getattr(request, "of", "text") == "text":
            axis = None
        if kind is DecoderInput and getattr(request, "of", "text") == "visual":
            words = "images, tokens that entered the decoder, width"
        name = kind.__name__ if request is None else str(request)
        if not isinstance(value, torch.Tensor):
            raise SignalError(f"{name} must be a tensor ({words}), not {shown(value)}")
        fits = value.ndim in axes and value.shape[0] == images and (axis is None or value.shape[axis] == tokens)
        fits = fits and (kind is not Text or value.shape[2] == width)
        if not fits or value.is_floating_point() == (kind is Behind):
            raise SignalError(
                f"{name} is {_described(value)} for {images} images of {tokens} tokens of width {width}; it must be "
                f"{'bool' if kind is Behind else 'floats'} ({words})"
            )

    def parts(self, indices: Sequence[Int64[Tensor, "B n"]], layout: Layout) -> VisualTokens:
        """Take parts of these tokens as images of their own, one part after the other: B images become P * B.

        Args:
            indices: per part `(B, n)` int64, which tokens are its own.
            layout: of each part.
        """
        origin = self.origin
        slot = torch.cat([index if origin is None else origin.slot.gather(1, index) for index in indices])
        return VisualTokens(
            _taken(self.features, indices, 1),
            layout,
            self.signals.parts(indices, self.features.shape[1]),
            Origin(self.layout if origin is None else origin.layout, slot),
        )
