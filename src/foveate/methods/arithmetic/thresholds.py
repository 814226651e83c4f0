"""Predict learned thresholds from each image and prompt.  ATP-LLaVA, Eq. 6 to 8 (our reading)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypeVar, cast

import torch
from jaxtyping import Bool, Float, Float32
from torch import nn

from foveate.adapters import SHIPPED, PretrainedAdapter, check_weights, read_settings, shipped
from foveate.arguments import check_kind, listed
from foveate.errors import FoveateError, KeepError, quoted
from foveate.files import FileError, modified
from foveate.fingerprint import check_fingerprint
from foveate.numbers import SEED, Between, check_real, check_whole

if TYPE_CHECKING:
    from torch import Tensor

PARTS: Final = ("self", "cross", "spatial")
"""The scores of the rule: logits from the image, attention from text, and place on nested grids."""

_STATISTICS: Final = 8
"""The number of values that `score_statistics` computes per image."""


_MOST: Final = 1_000_000


_SETTINGS: Final = {
    "base": str,
    "layers": list,
    "features": Between(0, _MOST),
    "width": Between(1, _MOST),
    "parts": list,
    "curve": list,
}


class ThresholdPredictor(nn.Module):
    """Predict both thresholds of one layer from statistics of an image's scores and from the question.

    The network has one hidden layer with tanh, and one sigmoid head for each threshold. The heads start at zero, so
    before training the thresholds are the same for all images.

    Args:
        features: the width of the decoder's hidden states; 0 ignores the question.
        width: the width of the hidden layer.
        generator: the source of the initial weights of the hidden layer.
    """

    center: Tensor
    spread: Tensor

    def __init__(self, features: int, width: int, generator: torch.Generator) -> None:
        super().__init__()
        self.scores = nn.Linear(_STATISTICS, width)
        self.question = nn.Linear(features, width, bias=False) if features else None
        self.redundancy = nn.Linear(width, 1)
        self.spatial = nn.Linear(width, 1)
        self.register_buffer("center", torch.zeros(_STATISTICS))
        self.register_buffer("spread", torch.ones(_STATISTICS))
        with torch.no_grad():
            for layer in (self.scores, *([] if self.question is None else [self.question])):
                layer.weight.normal_(0, layer.in_features**-0.5, generator=generator)
            self.scores.bias.zero_()
            for head in (self.redundancy, self.spatial):
                head.weight.zero_()
                head.bias.zero_()

    def forward(
        self, statistics: Float32[Tensor, "B F"], question: Float[Tensor, "B D"] | None, shift: float = 0.0
    ) -> tuple[Float32[Tensor, "B 1"], Float32[Tensor, "B 1"]]:
        """Return the thresholds of the redundancy and the spatial score, each `(B, 1)` float32 from 0 to 1.

        Args:
            statistics: `(B, 8)` float32, made by `score_statistics`.
            question: `(B, D)`, the hidden state of the prompt's last token; None ignores it.
            shift: added to the logits of both thresholds; a higher shift keeps fewer tokens.
        """
        hidden = self.scores((statistics - self.center) / self.spread)
        if self.question is not None and question is not None:
            question = question.float()
            hidden = hidden + self.question(question * question.square().mean(dim=1, keepdim=True).add(1e-6).rsqrt())
        hidden = hidden.tanh()
        return torch.sigmoid(self.redundancy(hidden) + shift), torch.sigmoid(self.spatial(hidden) + shift)


def check_thresholds(layers: Sequence[int], width: int, parts: Sequence[str]) -> None:
    """Check what `LearnedThresholds` takes, before any is made.

    Raises:
        FoveateError: layers don't ascend from 1, `parts` names no score or an unknown one, or the width is impossible.
    """
    layers = [check_whole("a layer", layer) for layer in listed("layers", layers, "numbers of decoder layers")]
    if not layers or layers != sorted({*layers}) or layers[0] < 1:
        raise FoveateError(f"layers {layers}: name some, ascending, from 1 on; layer 0 has no layer before it")
    parts = listed("parts", parts, f"some of {', '.join(PARTS)}")
    if not parts or any(part not in PARTS for part in parts) or len(parts) != len({*parts}):
        raise FoveateError(f"parts {parts}: name some of {', '.join(PARTS)}, each once")
    check_whole("width", width, Between(1, _MOST))


Thresholds = TypeVar("Thresholds", bound="LearnedThresholds")


class LearnedThresholds(PretrainedAdapter, nn.Module):
    """Predict the thresholds of each layer of an ATP adapter; hold its calibration curve.

    `foveate.ATP` is the subclass for a given model; it adds training and calibration.

    Args:
        layers: the decoder layers at whose input tokens are dropped, ascending from 1.
        features: the width of the decoder's hidden states; 0 ignores the question.
        width: the width of each predictor's hidden layer.
        parts: which scores count: "self", "cross", "spatial".
        base: the fingerprint of the model that the adapter belongs to.
        seed: the random seed of the initial weights.

    Attributes:
        curve: pairs of a shift of the thresholds and the share of an image's tokens per layer that remain with it,
            the mean over calibration images; empty before calibration.
        source: the directory that the adapter was loaded from or saved to, as specs write it.

    Raises:
        FoveateError: layers don't ascend from 1, or `parts` names no score or an unknown one.

    >>> thresholds = LearnedThresholds([4, 14, 24], features=0)
    >>> redundancy, spatial = thresholds.predictors[0](torch.zeros(1, 8), None)
    >>> redundancy.item()
    0.5
    """

    kind: ClassVar[str] = "ATP"

    def __init__(
        self,
        layers: Sequence[int],
        features: int,
        *,
        width: int = 16,
        parts: Sequence[str] = PARTS,
        base: str = "",
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_thresholds(layers, width, parts)
        check_whole("seed", seed, SEED)
        check_whole("features", features, Between(0, _MOST))
        check_kind("base", base, str, "the fingerprint of a model")
        self.layers = tuple(layers)
        self.features, self.width, self.base = features, width, base
        self.parts = tuple(part for part in PARTS if part in parts)
        self.curve: tuple[tuple[float, float], ...] = ()
        self.source = "unsaved"
        generator = torch.Generator().manual_seed(seed)
        self.predictors = nn.ModuleList(ThresholdPredictor(features, width, generator) for _ in layers)

    def __str__(self) -> str:
        return self.source

    # Budgets

    def shift(self, share: float) -> float:
        """Return the shift of the thresholds that keeps this share of an image's tokens per layer, on average.

        The calibrated curve is interpolated.

        Raises:
            KeepError: the adapter was never calibrated, or no calibrated shift keeps this share; the error then names
                the possible shares.
            FoveateError: the share is no number.
        """
        check_real("share", share)
        if not self.curve:
            raise KeepError(f"the adapter {self} was never calibrated, so it can't aim at a mean; write auto")
        least, most = self.curve[-1][1], self.curve[0][1]
        if not least <= share <= most:
            raise KeepError(
                f"the adapter {self} at layers {', '.join(map(str, self.layers))} can't leave a mean of {share:.1%} of "
                f"the tokens per layer; ask for {least:.1%} to {most:.1%}"
            )
        for (low, more), (high, fewer) in zip(self.curve, self.curve[1:]):
            if fewer <= share <= more:
                part = 0.0 if more == fewer else (more - share) / (more - fewer)
                return low + part * (high - low)
        # One point alone has no stretch beside it.
        return self.curve[0][0]

    # Files

    @property
    def title(self) -> str:
        """Return the name of this adapter in errors."""
        return f"the adapter {self}"

    def settings(self) -> dict[str, Any]:
        """Return all settings except the weights, as JSON data."""
        return {
            "base": self.base,
            "layers": list(self.layers),
            "features": self.features,
            "width": self.width,
            "parts": list(self.parts),
            "curve": [list(pair) for pair in self.curve],
        }

    def tensors(self) -> dict[str, Tensor]:
        """Return the weights by name."""
        return self.state_dict()

    @classmethod
    def from_files(
        cls: type[Thresholds], settings: Mapping[str, Any], tensors: Mapping[str, Tensor], folder: Path
    ) -> Thresholds:
        """Build an adapter from its settings and weights; its weights don't require gradients."""
        found = read_settings(settings, _SETTINGS)
        layers: list[Any] = found["layers"]
        try:
            for layer in layers:
                check_whole("a layer", layer, Between(1, 1000))
            curve = _read_curve(found["curve"])
        except FoveateError as error:
            raise ValueError(str(error)) from None
        if any(type(part) is not str for part in found["parts"]):
            raise ValueError(f"parts is {quoted(found['parts'])}, and should be a list of texts")
        check_fingerprint("base", found["base"])
        check_weights(tensors, _weight_shapes(len(layers), found["features"], found["width"]))
        adapter = cls.__new__(cls)
        # The __init__ of subclasses needs a model, which isn't available here.
        LearnedThresholds.__init__(
            adapter, layers, found["features"], width=found["width"], parts=found["parts"], base=found["base"]
        )
        adapter.load_state_dict(tensors)
        adapter.curve = curve
        adapter.source = str(folder)
        return adapter.requires_grad_(False)

    @classmethod
    def read(cls, text: str) -> LearnedThresholds:
        """Return the adapter that a spec names: the same object until its files change.

        Args:
            text: a directory, or "shipped" for the embedded model's adapter.

        Raises:
            FoveateError: there is no such adapter, or its files are damaged.
        """
        folder = shipped("atp") if text == SHIPPED else Path(text)
        names = cls.settings_name(), cls.weights_name()
        try:
            changed = tuple(modified(folder / name) for name in names)
        except FileError as error:
            raise FoveateError(
                f'there is no ATP adapter at {text}; name the directory that save_pretrained wrote, or "{SHIPPED}" for '
                "the embedded model's"
            ) from error
        return _read(text, folder, changed)


def _read_curve(pairs: Sequence[Any]) -> tuple[tuple[float, float], ...]:
    """Read a calibration curve.

    Raises:
        ValueError: it holds something else than pairs of a shift, ascending, and a share, which never grows.
    """
    for pair in pairs:
        if not isinstance(pair, list) or len(cast("list[Any]", pair)) != 2:
            raise ValueError(f"curve holds {quoted(cast('Any', pair))}, and should hold pairs of a shift and a share")
        check_real("a shift of the curve", pair[0])
        check_real("a share of the curve", pair[1], Between(0, 1))
    curve = tuple((float(shift), float(share)) for shift, share in pairs)
    if any(low >= high or more < fewer for (low, more), (high, fewer) in pairwise(curve)):
        raise ValueError("the shifts of its curve must ascend, and the shares must not grow")
    return curve


def _weight_shapes(layers: int, features: int, width: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all weights of an adapter by name, before anything of that size is made."""
    of_layer: dict[str, tuple[int, ...]] = {
        "center": (_STATISTICS,),
        "spread": (_STATISTICS,),
        "scores.weight": (width, _STATISTICS),
        "scores.bias": (width,),
        "redundancy.weight": (1, width),
        "redundancy.bias": (1,),
        "spatial.weight": (1, width),
        "spatial.bias": (1,),
    }
    if features:
        of_layer["question.weight"] = (width, features)
    return {f"predictors.{layer}.{name}": shape for layer in range(layers) for name, shape in of_layer.items()}


@lru_cache(maxsize=8)
def _read(text: str, folder: Path, changed: tuple[int, ...]) -> LearnedThresholds:
    adapter = LearnedThresholds.load(folder)
    adapter.source = text
    return adapter


def score_statistics(
    logits: Float32[Tensor, "B N"],
    attention: Float32[Tensor, "B N"],
    stretched: Sequence[Float32[Tensor, "B N"]],
    alive: Bool[Tensor, "B N"],
) -> Float32[Tensor, "B 8"]:
    """Summarise the scores of an image of any number of tokens in eight numbers: `(B, 8)` float32.

    They are the mean and standard deviation of each scaled score, the mean and standard deviation of the logits, the
    logarithm of the attention that text gives to the whole image, and the entropy of its distribution over tokens.

    Args:
        logits: `(B, N)` float32, the mean logit that a token receives from the image's tokens.
        attention: `(B, N)` float32, the mean attention that a token receives from text.
        stretched: both scores, scaled to 0 to 1.
        alive: `(B, N)` bool, which tokens count; at least one per image.
    """
    weight = alive.float() / alive.sum(dim=1, keepdim=True)

    def mean(values: Tensor) -> Tensor:
        return (values * weight).sum(dim=1)

    def deviation(values: Tensor) -> Tensor:
        return (mean(values.square()) - mean(values).square()).clamp(min=1e-12).sqrt()

    received = attention * alive
    total = received.sum(dim=1)
    share = received / total[:, None].clamp(min=1e-12)
    entropy = -(share * share.clamp(min=1e-12).log()).sum(dim=1)
    columns = [statistic(values) for values in stretched for statistic in (mean, deviation)]
    return torch.stack([*columns, mean(logits), deviation(logits), total.clamp(min=1e-6).log(), entropy], dim=1)
