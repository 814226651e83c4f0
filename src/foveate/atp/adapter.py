"""The ATP adapter: thresholds that a model learned, as one object that is made, trained, calibrated, used and saved."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import torch
from torch import nn

from foveate.adapters import SHIPPED, downloaded, upload, written
from foveate.atp.soft import soft_masks
from foveate.engine import apply, encode, encoder_outputs
from foveate.errors import FoveateError, KeepError, UnsupportedFamily
from foveate.families import family_of
from foveate.families.fingerprint import fingerprint
from foveate.methods.atp import ATP as Rule
from foveate.methods.atp import ATPLayer
from foveate.methods.thresholds import PARTS, SETTINGS, WEIGHTS, LearnedThresholds, Predictor
from foveate.schedule import scaled_layers
from foveate.spec import Spec, Step
from foveate.tokens import Keep, Text

SHIFTS: Final = (-3.0, -1.5, -0.8, -0.4, -0.2, 0.0, 0.2, 0.4, 0.8, 1.5, 3.0)


class ATP(LearnedThresholds):
    """Budgets that a model learned: per layer, image and question, which tokens may stay.

    Use it by its spec: `foveate.apply(model, adapter.spec(mean=144))`.

    Args:
        model: the base model.
        layers: the decoder layers at whose input it acts; None for the authors' 4, 14 and 24 of 32, as deep.
        question: whether the thresholds look at the question's own hidden state, besides the scores.
        width: of what lies between scores and thresholds.
        parts: which scores count: "self", "cross", "spatial".
        seed: for its start.

    Raises:
        UnsupportedFamily: the model is of no supported family, or its decoder doesn't say what the rule asks for.
        FoveateError: there are no such layers.
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
        family = family_of(model)
        depth = len(family.decoder_layers)
        layers = scaled_layers(Rule.layers, depth) if layers is None else list(layers)
        beyond = [layer for layer in layers if layer >= depth]
        if beyond:
            raise FoveateError(f"layers {layers}: this decoder has {depth} layers; name some from 1 to {depth - 1}")
        lacking = [need for need in (*Rule().needs, Text()) if not family.gives_inside(need)]
        if lacking:
            raise UnsupportedFamily(f"ATP asks for {lacking[0]}, which the decoder of this {family.title} can't tell")
        features = int(family.decoder_config.hidden_size) if question else 0
        super().__init__(layers, features, width=width, parts=parts, base=fingerprint(model), seed=seed)
        self.to(next(family.decoder.parameters()).device)

    # Using it

    def spec(self, mean: int | None = None) -> Spec:
        """The spec that applies it.

        Args:
            mean: tokens of an image per decoder layer, on average over layers and images: the thresholds move along the
                calibrated curve. None leaves them as they were trained.

        Raises:
            KeepError: the adapter was never calibrated.
        """
        if mean is None:
            return Spec((Step(Rule(adapter=self)),))
        if not self.curve:
            self.shift(1.0)
        return Spec((Step(Rule(Keep(mean=mean), adapter=self)),))

    def calibrate(
        self, model: nn.Module, batches: Iterable[Mapping[str, Any]], shifts: Sequence[float] = SHIFTS
    ) -> tuple[tuple[float, float], ...]:
        """Measure how many tokens each shift of the thresholds leaves, and keep the curve.

        Args:
            model: the base model.
            batches: what its processor made of some prompts with images; what they ask for is like what will be asked.
            shifts: of the thresholds, before they are squeezed to 0 to 1; ascending.

        Returns:
            Pairs of shift and share of tokens per layer. The share never grows with the shift.

        Raises:
            FoveateError: the adapter belongs to another model, or no image came.
        """
        ordered = sorted(float(shift) for shift in shifts)
        shares: dict[float, list[float]] = {shift: [] for shift in ordered}
        with torch.no_grad():
            for batch in batches:
                if batch.get("pixel_values") is None:
                    continue
                encoded = encode(model, batch)
                inputs = {name: value for name, value in batch.items() if name != "pixel_values"}
                for shift in ordered:
                    steps = tuple(Step(ATPLayer.of(self, number, shift)) for number in range(len(self.layers)))
                    with apply(model, Spec(steps)) as run:
                        outputs = encoder_outputs(model, encoded)
                        model(**{**inputs, "use_cache": False, "mm_encoder_outputs": outputs})
                    shares[shift] += [image.mean_over_layers / image.before for image in run.report().images]
        found: list[tuple[float, float]] = []
        for shift in ordered:
            if not shares[shift]:
                raise FoveateError("no image came to calibrate on; pass prompts with images")
            share = sum(shares[shift]) / len(shares[shift])
            found.append((shift, min(share, found[-1][1] if found else 1.0)))
        self.curve = tuple(found)
        return self.curve

    # Before training

    def prepare(
        self, model: nn.Module, batches: Iterable[Mapping[str, Any]], share: float, grid: Literal[0, 2, 3, 4] = 0
    ) -> None:
        """Start thresholds where a fixed rule would leave a share of tokens per layer, and learn what scores look like.

        The same fraction of what arrives stays at each layer: first a grid, if one is asked for and the layer keeps
        more tokens than it has, then by redundancy. Without a grid the spatial threshold begins just above the
        sparsest. From there training moves thresholds apart, by image and question.

        Args:
            model: the base model.
            batches: as for `calibrate`.
            share: tokens per decoder layer, of all.
            grid: one of every so many rows and columns stays at first; 0 for no grid.

        Raises:
            KeepError: so few can't be had from these layers, or no layer has room for the grid.
        """
        depth = len(family_of(model).decoder_layers)
        whole = 10_000
        rule = Rule(Keep(mean=max(1, round(share * whole))))
        shares = [budget / whole for budget in rule.budgets(self.layers, whole, depth)]
        scores = {step: 1 - rule.sparsity / step**2 for step in (2, 3, 4)}
        with torch.no_grad(), soft_masks(model, self, 1.0) as masks:
            masks.fade = False
            for batch in batches:
                model(**{**batch, "use_cache": False})
        opened = False
        for number, layer in enumerate(self.layers):
            looks = masks.looks[layer]
            predictor = self.predictors[number]
            assert isinstance(predictor, Predictor)
            each = torch.stack([look.statistics for look in looks])
            predictor.center.copy_(each.mean(dim=0))
            predictor.spread.copy_(each.std(dim=0).clamp(min=1e-3) if len(each) > 1 else torch.ones_like(each[0]))
            first = [look.redundancy for look in looks]
            spatial = 0.9
            if grid:
                stands = [look.spatial >= scores[grid] - 1e-3 for look in looks]
                if max(float(each.float().mean()) for each in stands) < shares[number]:
                    opened = True
                    first = [score.masked_fill(on, 1.0) for score, on in zip(first, stands, strict=True)]
                    # Halfway to the next denser grid.
                    spatial = (scores[grid] + scores.get(grid - 1, 0.0)) / 2
            cut = torch.stack([score.quantile(1 - shares[number]) for score in first])
            with torch.no_grad():
                predictor.redundancy.bias.fill_(float(cut.mean().clamp(0.01, 0.99).logit()))
                predictor.spatial.bias.fill_(float(torch.tensor(spatial).logit()))
        if grid and not opened:
            raise KeepError(
                f"{share:.1%} of the tokens per layer leave no room for one of every {grid} rows and columns at layers "
                f"{', '.join(map(str, self.layers))}; leave grid out, or ask for more tokens"
            )

    # Belonging to a model

    def belongs_to(self, model: nn.Module) -> None:
        """The base model was trained along: from now on this adapter is for it as it is now."""
        self.base = fingerprint(model)

    # On disk

    def save_pretrained(self, directory: str | Path) -> Path:
        """Write the adapter to a directory: settings and safetensors, whole or not at all; what else is there stays.

        Raises:
            FoveateError: the directory can't be written.
        """
        directory = Path(directory)
        with written(directory, (WEIGHTS, SETTINGS)) as folder:
            self._write(folder)
        self.source = str(directory)
        return directory

    def _write(self, folder: Path) -> None:
        from safetensors.torch import save_file

        weights = {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}
        save_file(weights, folder / WEIGHTS)
        (folder / SETTINGS).write_text(json.dumps(self.settings(), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(cls, path: str | Path = SHIPPED, **options: Any) -> ATP:
        """Read what `save_pretrained` wrote: from a directory, or by its name on the Hugging Face hub.

        Args:
            path: "shipped" is the embedded model's.
            **options: for the hub: `revision`, `token`, `cache_dir`.

        Raises:
            FoveateError: there is no whole adapter.
        """
        if str(path) != SHIPPED:
            path = downloaded(path, "ATP adapter", **options)
        return cls.load(cls.home(str(path)), str(path))

    def push_to_hub(self, repository: str, **options: Any) -> Any:
        """Upload the adapter to the Hugging Face hub; `options` go to `huggingface_hub.HfApi.upload_folder`."""
        return upload(repository, self._write, **options)
