"""Thresholds that a model learned, read off each image and prompt.  ATP-LLaVA, Eq. 6 to 8 (our reading)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, TypeVar

import torch
from jaxtyping import Bool, Float, Float32
from torch import Tensor, nn

from foveate.adapters import SHIPPED, shipped
from foveate.errors import FoveateError, KeepError

SETTINGS: Final = "atp.json"
WEIGHTS: Final = "atp.safetensors"

PARTS: Final = ("self", "cross", "spatial")
"""The scores of the rule: logits from the image, attention from text, the place on nested grids."""

_STATISTICS: Final = 8


class Predictor(nn.Module):
    """Both thresholds of one layer, from what the scores of an image look like and from the question.

    Args:
        features: the width of the decoder's hidden states; 0 if the question isn't looked at.
        width: of what lies in between.
        generator: for the start of what lies in between. The thresholds themselves start equal for all images.
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
        """The thresholds of redundancy and of spatial score, each `(B, 1)` float32 from 0 to 1.

        Args:
            statistics: `(B, 8)` float32, of the scores.
            question: `(B, D)`, the hidden state of the prompt's last token; None if it isn't looked at.
            shift: added to both before they are squeezed to 0 to 1: the higher, the less stays.
        """
        inner = self.scores((statistics - self.center) / self.spread)
        if self.question is not None and question is not None:
            question = question.float()
            inner = inner + self.question(question * question.square().mean(dim=1, keepdim=True).add(1e-6).rsqrt())
        inner = inner.tanh()
        return torch.sigmoid(self.redundancy(inner) + shift), torch.sigmoid(self.spatial(inner) + shift)


Learned = TypeVar("Learned", bound="LearnedThresholds")


class LearnedThresholds(nn.Module):
    """What predicts the thresholds of the rule at each layer where it acts, and how many tokens that leaves.

    Args:
        layers: the decoder layers at whose input it acts, ascending.
        features: the width of the decoder's hidden states; 0 if the question isn't looked at.
        width: of what lies between scores and thresholds.
        parts: which scores count: "self", "cross", "spatial".
        base: the fingerprint of the model that it belongs to.
        seed: for its start.

    Raises:
        FoveateError: layers don't ascend from 1, or no score counts.
    """

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
        if not layers or list(layers) != sorted({*layers}) or layers[0] < 1:
            raise FoveateError(f"layers {list(layers)}: name some, ascending, from 1 on; layer 0 has no layer before")
        unknown = sorted({*parts} - {*PARTS})
        if unknown or not parts:
            raise FoveateError(f"parts {list(parts)}: name some of {', '.join(PARTS)}")
        self.layers = tuple(layers)
        self.features, self.width, self.base = features, width, base
        self.parts = tuple(part for part in PARTS if part in parts)
        self.curve: tuple[tuple[float, float], ...] = ()
        """Pairs of a shift of the thresholds and the share of an image's tokens per layer that it left on average."""
        self.source = "unsaved"
        generator = torch.Generator().manual_seed(seed)
        self.predictors = nn.ModuleList(Predictor(features, width, generator) for _ in layers)

    def __str__(self) -> str:
        return self.source

    # Budgets

    def shift(self, share: float) -> float:
        """How far thresholds must move so that an image keeps this share of its tokens per layer, on average.

        Raises:
            KeepError: no shift that was tried leaves so many, or so few; the text says what can be asked for.
        """
        if not self.curve:
            raise KeepError(f"the adapter {self} was never calibrated, so it has no means to offer; write auto")
        least, most = self.curve[-1][1], self.curve[0][1]
        if not least <= share <= most:
            raise KeepError(
                f"a mean of {share:.1%} of the tokens per layer can't be had of the adapter {self} at layers "
                f"{', '.join(map(str, self.layers))}: ask for {least:.1%} to {most:.1%}"
            )
        for (low, more), (high, fewer) in zip(self.curve, self.curve[1:]):
            if fewer <= share <= more:
                part = 0.0 if more == fewer else (more - share) / (more - fewer)
                return low + part * (high - low)
        return 0.0

    # On disk

    def settings(self) -> dict[str, Any]:
        """All of it but the weights, as plain data."""
        return {
            "format": 1,
            "base": self.base,
            "layers": list(self.layers),
            "features": self.features,
            "width": self.width,
            "parts": list(self.parts),
            "curve": [list(pair) for pair in self.curve],
        }

    @classmethod
    def read(cls, text: str) -> LearnedThresholds:
        """The adapter in a directory, as a spec names it; the same one as long as its files stay the same.

        Raises:
            FoveateError: there is none, or it isn't whole.
        """
        directory = cls.home(text)
        try:
            changed = (directory / SETTINGS).stat().st_mtime_ns, (directory / WEIGHTS).stat().st_mtime_ns
        except OSError as error:
            raise FoveateError(
                f'there is no ATP adapter at {text}; name the directory that save_pretrained wrote, or "{SHIPPED}" for '
                "the embedded model's"
            ) from error
        return _read(text, directory, changed)

    @staticmethod
    def home(text: str) -> Path:
        """The directory that a spec means."""
        return shipped("atp") if text == SHIPPED else Path(text)

    @classmethod
    def load(cls: type[Learned], directory: Path, source: str) -> Learned:
        """What `settings` and weights in a directory say; `source` is what it will be called.

        Raises:
            FoveateError: they aren't whole.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file  # pyright: ignore[reportUnknownVariableType]

        try:
            given = json.loads((directory / SETTINGS).read_text(encoding="utf-8"))
            learned = cls.__new__(cls)
            LearnedThresholds.__init__(
                learned,
                [int(layer) for layer in given["layers"]],
                int(given["features"]),
                width=int(given["width"]),
                parts=given["parts"],
                base=str(given["base"]),
            )
            learned.load_state_dict(load_file(directory / WEIGHTS))
            learned.curve = tuple((float(shift), float(share)) for shift, share in given["curve"])
        except (OSError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
            raise FoveateError(
                f"{directory} holds no whole ATP adapter ({str(error).splitlines()[0]}); save it again"
            ) from error
        learned.source = source
        return learned.requires_grad_(False)


@lru_cache(maxsize=8)
def _read(text: str, directory: Path, changed: tuple[int, int]) -> LearnedThresholds:
    return LearnedThresholds.load(directory, text)


def statistics(
    logits: Float32[Tensor, "B N"],
    attention: Float32[Tensor, "B N"],
    stretched: Sequence[Float32[Tensor, "B N"]],
    alive: Bool[Tensor, "B N"],
) -> Float32[Tensor, "B 8"]:
    """What the scores of an image look like, whatever the number of its tokens: `(B, 8)` float32.

    Mean and spread of both stretched scores; mean of the logits and their spread; how much text looks at the image at
    all, and how evenly.

    Args:
        logits: `(B, N)` float32, what tokens get from the image's tokens.
        attention: `(B, N)` float32, what they get from text.
        stretched: both, from 0 to 1.
        alive: `(B, N)`, which tokens count; at least one of each image.
    """
    weight = alive.float() / alive.sum(dim=1, keepdim=True)

    def mean(values: Tensor) -> Tensor:
        return (values * weight).sum(dim=1)

    def spread(values: Tensor) -> Tensor:
        return (mean(values.square()) - mean(values).square()).clamp(min=1e-12).sqrt()

    given = attention * alive
    whole = given.sum(dim=1)
    share = given / whole[:, None].clamp(min=1e-12)
    evenness = -(share * share.clamp(min=1e-12).log()).sum(dim=1)
    columns = [each(values) for values in stretched for each in (mean, spread)]
    return torch.stack([*columns, mean(logits), spread(logits), whole.clamp(min=1e-6).log(), evenness], dim=1)
