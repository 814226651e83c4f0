"""What benchmarks/atp.py trains and measures: recipes, fixed rules, trained adapters, other readings of the scores."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import foveate
from foveate.methods.atp import ATPMethod

LEARNED = ("144-tokens", "86-tokens", "144-tokens-lora", "86-tokens-lora", "fixed-lora")
"""Recipes in recipes/atp, and the folders of their runs."""
VARIANTS: dict[str, dict[str, Any]] = {
    "open": {"grid": 4},
    "no-spatial": {"parts": ["self", "cross"]},
    "no-cross": {"parts": ["self", "spatial"]},
    "no-self": {"parts": ["cross", "spatial"]},
    "values": {"acts_on": "values"},
    "soft": {"hard": 0.0},
    "blind": {"question": False},
}
"""What runs change about the recipe 144-tokens, and their folders."""
FIXED = {
    144: (
        "pyramiddrop:mean=144@2,4,8",
        "pyramiddrop:58@2",
        "fastv:58@2",
        "pool:58@2",
        "stride:58@2",
        "atp:mean=144:theta_s=1.0@2,4,8",
        "atp:58:theta_s=1.0@2",
    ),
    86: (
        "pyramiddrop:mean=86@1,2,6",
        "fastv:42@1",
        "pool:42@1",
        "stride:42@1",
        "stride:192@1+fastv:27@2",
        "stride:0.5+fastv:49@2",
        "atp:mean=86:theta_s=1.0@1,2,6",
    ),
}
"""Specs without training, by tokens per layer."""
STARTS: dict[str, tuple[str, ...]] = {"start": ("self", "cross", "spatial")}
"""Adapters before training, with the scores that count."""
JOINT = ("144-tokens-lora", "86-tokens-lora", "halved-lora")
"""Adapters on a model that was trained along with them."""
MEANS: dict[int, tuple[str, ...]] = {
    144: ("144-tokens", *STARTS, *VARIANTS, "144-tokens-lora"),
    86: ("86-tokens", "halved", "86-tokens-lora", "halved-lora"),
}
"""Adapters by the tokens per layer that they are asked for."""
HALVED: dict[str, str] = {"halved": "144-tokens", "halved-lora": "144-tokens-lora"}
"""Adapters that act after half of the tokens are gone, and the adapters that they are."""
OTHER_MEANS = (120, 200)
"""Further tokens per layer that the adapter trained for 144 is asked for."""
CONTROL = "atp:58:theta_s=1.0@2"
"""The fixed rule under which LoRA was trained for comparison."""
COMPARED = ("learned 144 144-tokens", "learned 144 144-tokens-lora", "learned 86 86-tokens")
"""Configurations that are compared with others, paired, and whose budgets are described."""
READINGS = ("received", "given", "softmax", "self", "cross", "grid")
"""Readings of the paper's scores."""


@dataclass(frozen=True)
class Configuration:
    """What is applied to which model.

    Attributes:
        spec: None for the dense model.
        model: a folder; None for the embedded model.
        logits_given: score tokens by the logits that they give, instead of those that they receive.
    """

    spec: foveate.Spec | None
    model: Path | None = None
    logits_given: bool = False


def configurations(work: Path) -> dict[str, Configuration]:
    """Return the dense model, fixed rules, and the trained adapters that are there, by name."""
    found = {"dense": Configuration(None)}
    for specs in FIXED.values():
        found |= {spec: Configuration(foveate.parse(spec)) for spec in specs}
    for mean, names in MEANS.items():
        for name in names:
            folder = work / HALVED.get(name, name) / "atp"
            if (folder / "atp.json").exists():
                steps = foveate.ATP.from_pretrained(folder).spec(mean=mean).steps
                if name in HALVED:
                    steps = (*foveate.parse("stride:0.5").steps, *steps)
                model = folder.parent / "model" if name in JOINT else None
                found[f"learned {mean} {name}"] = Configuration(foveate.Spec(steps), model)
    if (work / "144-tokens" / "atp" / "atp.json").exists():
        adapter = foveate.ATP.from_pretrained(work / "144-tokens" / "atp")
        found |= {f"learned {mean} 144-tokens": Configuration(adapter.spec(mean=mean)) for mean in OTHER_MEANS}
    control = work / "fixed-lora" / "model"
    if control.exists():
        found |= {
            "fixed-lora": Configuration(foveate.parse(CONTROL), control),
            "fixed-lora dense": Configuration(None, control),
        }
    return found


def readings() -> dict[str, Configuration]:
    """Return the rule with each reading of the scores, untrained: 58 tokens from layer 2 on."""
    found = {}
    for name in READINGS:
        method_class = type(f"Reading{name}", (Reading,), {"reading": name})
        # With the grid, tokens of the sparsest grid come first, and the others by redundancy.
        theta_s, theta_r = (0.0, 1.0) if name == "grid" else (1.0, 0.0)
        method = method_class(keep=foveate.Keep.of(58), theta_s=theta_s, theta_r=theta_r)
        step = foveate.Step(method, (2,))
        found[f"point {name}"] = Configuration(foveate.Spec((step,)), logits_given=name == "given")
    return found


class Reading(ATPMethod):
    """The rule with another reading of its scores; specs can't name it."""

    reading = "received"

    def scores(self, tokens: Any, alive: Any = None) -> Any:
        logits = tokens.signals[self.needs[0]].float()
        attention = tokens.signals[self.needs[1]].float().mean(dim=1)
        if self.reading == "softmax":
            return (logits.softmax(dim=1) + attention) / 2, logits
        stretched = [(x - x.amin(1, True)) / (x.amax(1, True) - x.amin(1, True)) for x in (logits, attention)]
        chosen = {"self": stretched[:1], "cross": stretched[1:]}.get(self.reading, stretched)
        return torch.stack(chosen).mean(dim=0), logits


def file_stem(name: str) -> str:
    """Return a configuration's name as file names and the result have it."""
    return name.replace(":", "_").replace("@", "_at_").replace("/", "-")
