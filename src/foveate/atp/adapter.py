"""The ATP adapter: learned thresholds of a model, to train, calibrate, use, save and load."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from torch import nn

from foveate.adapters import SHIPPED
from foveate.arguments import check_kind, listed
from foveate.atp.calibration import SHIFTS, measured_curve
from foveate.atp.initial import Grid, initialise_thresholds
from foveate.errors import FoveateError, UnsupportedFamily
from foveate.families import Family, family_of
from foveate.fingerprint import model_fingerprint
from foveate.methods.arithmetic.thresholds import PARTS, LearnedThresholds
from foveate.methods.atp import ATPMethod
from foveate.numbers import check_whole
from foveate.schedule import scaled_layers
from foveate.spec import Spec, Step
from foveate.tokens import Keep, Text


def layers_of(family: Family, layers: Sequence[int] | None) -> list[int]:
    """Return the decoder layers at whose input thresholds act; the model may be a skeleton.

    Args:
        family: of the base model.
        layers: as for `ATP`.

    Raises:
        UnsupportedFamily: the decoder lacks a signal that the method reads.
        FoveateError: the decoder has no such layers.
    """
    depth = len(family.decoder_layers)
    if layers is None:
        layers = scaled_layers(ATPMethod.layers, depth)
    found = [check_whole("a layer", layer) for layer in listed("layers", layers, "numbers of decoder layers")]
    if any(layer >= depth for layer in found):
        raise FoveateError(f"layers {found}: this decoder has {depth} layers; name some from 1 to {depth - 1}")
    missing = [signal for signal in (*ATPMethod().needs, Text()) if not family.gives_inside(signal)]
    if missing:
        raise UnsupportedFamily(f"ATP reads {missing[0]}, which the decoder of this {family.title} doesn't give")
    return found


class ATP(LearnedThresholds):
    """Learned token budgets: which visual tokens stay, decided per layer, image and question.

    ATP-LLaVA, Ye et al. 2024, arXiv 2412.00447; our reading, since neither its text nor code was seen. The rule that
    uses the thresholds is the method `atp`.

    Args:
        model: the base model.
        layers: the decoder layers at whose input tokens are dropped; None takes the authors' 4, 14 and 24 of 32, scaled
            to the model's depth.
        question: whether thresholds depend on the question's hidden state and not only on the scores.
        width: the width of each predictor's hidden layer.
        parts: which scores count: "self", "cross", "spatial".
        seed: draws the initial weights.

    Raises:
        UnsupportedFamily: the model is of no supported family, or its decoder lacks a signal that the method reads.
        FoveateError: the decoder has no such layers.

    >>> import foveate
    >>> adapter = foveate.ATP.from_pretrained("shipped")
    >>> adapter.layers
    (2, 4, 8)
    >>> print(adapter.spec(mean=144))
    atp:mean=144:adapter=shipped
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[int] | None = None,
        *,
        question: bool = True,
        width: int = 16,
        parts: Sequence[str] = PARTS,
        seed: int = 0,
    ) -> None:
        check_kind("question", question, bool, "True or False")
        family = family_of(model)
        layers = layers_of(family, layers)
        features = int(family.decoder_config.hidden_size) if question else 0
        base = model_fingerprint(family.core)
        super().__init__(layers, features, width=width, parts=parts, base=base, seed=seed)
        self.to(family.device)

    def spec(self, mean: int | None = None) -> Spec:
        """Return the spec that applies the adapter: `foveate.apply(model, adapter.spec(mean=144))`.

        Args:
            mean: tokens of an image per decoder layer, averaged over layers and images; thresholds are shifted along
                the calibrated curve. None leaves them as they were trained.

        Raises:
            KeepError: a mean is given, and the adapter was never calibrated.
        """
        if mean is None:
            return Spec((Step(ATPMethod(adapter=self)),))
        if not self.curve:
            self.shift(1.0)
        return Spec((Step(ATPMethod(Keep(mean=mean), adapter=self)),))

    # Training

    def prepare(self, model: nn.Module, batches: Iterable[Mapping[str, Any]], share: float, grid: Grid = 0) -> None:
        """Initialise the adapter before training, so that it begins with a share of the tokens per layer.

        Thresholds start where a fixed rule would leave that share: each layer keeps the same fraction of what arrives.
        With `grid`, a layer that keeps more tokens than the grid has starts with the grid's and adds others by
        redundancy; else the spatial threshold starts above the scores of all grids. Statistics of the scores are
        recorded to normalise them.

        Args:
            model: the base model.
            batches: outputs of the model's processor for prompts with images, like those that will be asked.
            share: the share of tokens per decoder layer.
            grid: start with one of every 2, 3 or 4 rows and columns; 0 starts without a grid.

        Raises:
            KeepError: these layers can't leave so few tokens, or no layer has room for the grid.
            FoveateError: a batch is no output of a processor, no batch has an image, or the adapter belongs to another
                model.
        """
        initialise_thresholds(model, self, batches, share, grid)

    def calibrate(
        self, model: nn.Module, batches: Iterable[Mapping[str, Any]], shifts: Sequence[float] = SHIFTS
    ) -> tuple[tuple[float, float], ...]:
        """Measure the share of tokens that each shift of the thresholds leaves, and keep the curve.

        Args:
            model: the base model.
            batches: outputs of the model's processor for prompts with images, like those that will be asked.
            shifts: added to the logits of both thresholds.

        Returns:
            Pairs of shift and mean share of tokens per layer, shifts ascending; shares never grow.

        Raises:
            FoveateError: the adapter belongs to another model, or no batch has an image.
        """
        self.curve = measured_curve(model, self, batches, shifts)
        return self.curve

    def set_base_model(self, model: nn.Module) -> None:
        """Make the adapter belong to a model that was trained together with it."""
        self.base = model_fingerprint(family_of(model).core)

    # Files

    def save_pretrained(self, directory: str | Path) -> Path:
        """Write the adapter to a directory as `atp.json` and `atp.safetensors`, atomically; other files there stay.

        Raises:
            FoveateError: the directory can't be written.
        """
        self.write(directory)
        self.source = str(directory)
        return Path(directory)

    @classmethod
    def from_pretrained(cls, path: str | Path = SHIPPED, **options: Any) -> Self:
        """Load an adapter from a directory or from the Hugging Face hub.

        Args:
            path: a directory, a name on the hub, or "shipped" for the embedded model's.
            **options: for the hub: `revision`, `token`, `cache_dir`.

        Raises:
            FoveateError: there is no such adapter, its files are damaged, or another version of foveate wrote them.
        """
        adapter = super().from_pretrained(path, **options)
        adapter.source = str(path)
        return adapter
