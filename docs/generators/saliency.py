"""docs/saliency.md, from docs/measured/saliency.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from foveate.bench.formatting import count, direction, points_text, share_text
from generators.folders import MEASURED
from generators.markdown import fill, machine, packages, paragraphs, table

HEAD: Final = """\
# Can attention be trusted to choose tokens?

Many methods keep the tokens that get most attention. [Token Sequence
Compression](https://arxiv.org/abs/2504.17892) doubts that this finds what matters, and
[FEATHER](https://arxiv.org/abs/2412.13180) shows that it favours places. This page repeats the questions of
these studies on the embedded model, whose generated scenes tell exactly where each thing is. It says how one
small model behaves; `foveate saliency` shows the same for yours:

```bash
foveate saliency examples/shapes.png "what colour is the small triangle ?"
```

Add `--picture maps.png` to see the maps.

![The attention of each layer over one picture](pictures/saliency.webp)
"""

AGAIN: Final = """\
## How to measure it again

```text
python benchmarks/saliency.py
python docs/make.py saliency
foveate saliency examples/shapes.png "what colour is the small triangle ?" --picture docs/pictures/saliency.webp
```
"""


def pages() -> dict[str, str]:
    """Return the page; none before something has been measured."""
    file = MEASURED / "saliency.json"
    return {"saliency.md": page(json.loads(file.read_text(encoding="utf-8")))} if file.exists() else {}


def page(found: Mapping[str, Any]) -> str:
    """Return the text of docs/saliency.md."""
    study = Study(found)
    return "\n".join([HEAD, claims(study), maps(study), places(study), answers(study), AGAIN])


class Study:
    """Reads figures of the result of benchmarks/saliency.py."""

    def __init__(self, found: Mapping[str, Any]) -> None:
        self.found = found
        self.chance = found["kept"] / found["tokens"]
        self.rows = {row["spec"]: row for row in found["answers"]["rows"]}
        self.kept = found["kept"]

    def mean(self, name: str) -> Mapping[str, Any]:
        """Return the mean over layers and images of what maps were compared by."""
        return self.found["maps"][name]["mean"]

    def layers(self, name: str) -> list[float]:
        """Return the mean over images, per layer."""
        return self.found["maps"][name]["layers"]

    def encoder(self, name: str) -> Mapping[str, Any]:
        """Return what was found of the encoder's map."""
        return self.found["encoder"][name]

    def difference(self, one: str, other: str) -> dict[str, float]:
        """Return the accuracy of one configuration less that of another, with its interval."""
        pairs = self.found["answers"]["pairs"]
        sign = 1 if other in pairs.get(one, {}) else -1
        value, *ends, _ = pairs[one][other] if sign > 0 else pairs[other][one]
        low, high = sorted(sign * end for end in ends)
        return {"value": sign * value, "low": low, "high": high}

    @property
    def inside(self) -> list[int]:
        """Return the layers at whose input tokens were taken away."""
        return sorted(int(spec.partition("@")[2]) for spec in self.rows if spec.startswith("fastv"))


def claim_rows(study: Study) -> list[list[str]]:
    """Return the claims one by one: the papers', ours, and whether they agree."""
    kept, chance = study.kept, study.chance
    return [
        [
            "attention of text changes from layer to layer",
            f"neighbouring layers share {_share(study.mean('previous_overlap'))} of their {kept} highest tokens "
            f"(chance: {chance:.0%}); rank correlation {_number(study.mean('previous_rank'))}",
            _agree(study.mean("previous_overlap")["high"] < 0.5),
        ],
        [
            "it changes with the question",
            f"two questions about an image share {_share(study.mean('question_overlap'))}; rank correlation "
            f"{_number(study.mean('question_rank'))}",
            _agree(study.mean("question_overlap")["high"] < 0.75),
        ],
        [
            "it is noisy",
            f"noise of {study.found['noise']} of 255 on the pixels leaves {_share(study.mean('noise_overlap'))}",
            _agree(study.mean("noise_overlap")["high"] < 0.9),
        ],
        [
            "it favours a place, the bottom of the picture",
            f"the lowest third of the rows gets {_third(study, 2)} of the image's attention, the middle one "
            f"{_third(study, 1)}, the highest {_third(study, 0)}",
            _agree(_thirds(study)[2] > 0.4),
        ],
        [
            "random and spatial choices keep up with [CLS] attention",
            *_against(study, "cls:{}", ("random:{}", "stride:{}")),
        ],
        *(
            [
                f"random choices keep up with text attention at layer {layer}",
                *_against(study, f"fastv:{{}}@{layer}", (f"random:{{}}@{layer}",)),
            ]
            for layer in study.inside[:3]
        ),
        ["merging is more robust than selection, before the decoder", *_ahead(study, "cluster:{}", "cls:{}")],
        *(
            [f"the same at layer {layer}", *_ahead(study, f"cluster:{{}}@{layer}", f"fastv:{{}}@{layer}")]
            for layer in study.inside[:3]
        ),
        ["the encoder's tokens are redundant", *_redundant(study)],
    ]


def claims(study: Study) -> str:
    """Return the section with all claims."""
    kept, rows = study.kept, claim_rows(study)
    text = f"""\
Intervals are 95 %, over images; differences in accuracy are paired by question. Maps are of
{study.found["images"]} scenes, answers of {study.found["answers"]["questions"]} questions about
{study.found["answers"]["images"]} scenes. "Highest" are the {kept} of {study.found["tokens"]} tokens with the
highest attention, 11 % as in the paper. "Agrees" and "disagrees" follow fixed rules;
`docs/generators/saliency.py` has them.
"""
    return f"## Claim by claim\n\n{paragraphs(' '.join(text.split()))}\n{table(['claim', 'here', ''], rows, 'lll')}"


def maps(study: Study) -> str:
    """Return the table of layers."""
    previous = [None, *study.layers("previous_overlap")]
    third = study.found["thirds"]
    rows = []
    for layer in range(study.found["layers"]):
        cells = [
            study.layers(name)[layer]
            for name in ("share", "question_overlap", "noise_overlap", "encoder_overlap", "things", "asked")
        ]
        before = previous[layer]
        shares = [f"{each:.0%}" for each in cells]
        rows.append(
            [str(layer), shares[0], "" if before is None else f"{before:.0%}", *shares[1:], f"{third[layer][2]:.0%}"]
        )
    columns = [
        "layer",
        "attention to the image",
        "highest as the layer before",
        "as for another question",
        "as with noise",
        "as the encoder's",
        "on a thing",
        "of the thing asked about",
        "lowest third",
    ]
    area = study.encoder("area")["value"]
    text = f"""\
The row of the prompt's last token, mean over heads and images. "As ...": how many of the {study.kept} highest
tokens both maps have; by chance {study.chance:.0%}. "On a thing": how many of the highest lie on something that
is drawn; by chance {area:.0%}. "Of the thing asked about": how many of its tokens are among the highest; by
chance {study.chance:.0%}. "Lowest third": how much of the image's attention is there.

The encoder's map, [CLS] in its last layer but one: {_share(study.encoder("things"))} of its highest tokens are
on a thing, and {_share(study.encoder("asked"))} of the tokens of the thing that is asked about are among them,
though it has not seen the question. Any two layers of the decoder share {_share(study.encoder("any_overlap"))}.
"""
    text = "\n\n".join(" ".join(part.split()) for part in text.split("\n\n"))
    return f"## Layer by layer\n\n{table(columns, rows, 'r' * len(columns))}\n{paragraphs(text)}"


def places(study: Study) -> str:
    """Return which layers look at the thing that is asked about."""
    asked = study.layers("asked")
    order = sorted(range(len(asked)), key=lambda layer: -asked[layer])
    best, worst = order[:3], order[-3:]
    chance = "about chance" if asked[worst[0]] < 1.5 * study.chance else "more than chance"
    text = (
        f"The layers differ more than anything else here. Layers {_listed(sorted(best))} have "
        f"{asked[best[-1]]:.0%} or more of the tokens of the thing asked about among their highest; layers "
        f"{_listed(sorted(worst))} have {asked[worst[0]]:.0%} or less, which is {chance}. "
        "So a method that reads one layer depends on which: `foveate find-layer` and a benchmark on your own questions "
        "tell more than a fixed layer number from a paper."
    )
    return fill(text) + "\n"


def answers(study: Study) -> str:
    """Return the table of accuracy, by where tokens are taken away."""
    kept = study.kept
    rows = []
    for place in ("", *(f"@{layer}" for layer in study.inside)):
        names = (
            {"highest": "cls", "lowest": "uncls", "random": "random", "clusters": "cluster"}
            if not place
            else {"highest": "fastv", "lowest": "unsalient", "random": "random", "clusters": "cluster"}
        )
        cells = {what: study.rows[f"{name}:{kept}{place}"] for what, name in names.items()}
        salient = f"{names['highest']}:{kept}{place}"
        rows.append(
            [
                "before the decoder, by [CLS]" if not place else f"layer {place[1:]}, by text",
                count(cells["random"]["tokens"]["mean_over_layers"]),
                *(f"{row['accuracy']['value']:.1%}" for row in cells.values()),
                points_text(study.difference(salient, f"random:{kept}{place}"), unit=""),
                points_text(study.difference(f"cluster:{kept}{place}", salient), unit=""),
            ]
        )
    dense = study.rows["dense"]
    columns = [
        "where",
        "mean tokens",
        "highest",
        "lowest",
        "random",
        "clusters",
        "highest less random",
        "clusters less highest",
    ]
    text = (
        f"Accuracy with {kept} tokens left from there on. Dense: {share_text(dense['accuracy'])}; answering "
        f"without the image: {study.found['answers']['floor']:.1%}; `stride:{kept}` before the decoder: "
        f"{share_text(study.rows[f'stride:{kept}']['accuracy'])}. The later tokens are taken away, the less it matters "
        "which: text has read by then what it needs. Compare inside a row; rows have different mean tokens over layers."
    )
    environment = study.found["environment"]
    where = f"Measured on {machine(environment)}, {packages(environment)}."
    return (
        f"## Answers from what is left\n\n{table(columns, rows, 'l' + 'r' * (len(columns) - 1))}\n{fill(text)}\n\n"
        f"{fill(where)}\n"
    )


def _against(study: Study, one: str, baselines: tuple[str, ...]) -> list[str]:
    """Return how a choice by attention differs from baselines; the claim holds if it is above none of them."""
    name = one.format(study.kept)
    found = {each: study.difference(name, each) for each in (base.format(study.kept) for base in baselines)}
    text = "; ".join(f"`{name}` less `{other}`: {points_text(each)}" for other, each in found.items())
    return [text, _agree(all(direction(each) <= 0 for each in found.values()))]


def _ahead(study: Study, one: str, other: str) -> list[str]:
    """Return how merging differs from selection; the claim holds if it is clearly above."""
    a, b = one.format(study.kept), other.format(study.kept)
    difference = study.difference(a, b)
    verdict = {1: "agrees", 0: "no clear difference", -1: "disagrees"}[direction(difference)]
    return [f"`{a}` less `{b}`: {points_text(difference)}", verdict]


def _redundant(study: Study) -> list[str]:
    dense, few = study.rows["dense"], study.rows[f"random:{study.kept}"]
    floor = study.found["answers"]["floor"]
    left = (few["accuracy"]["value"] - floor) / (dense["accuracy"]["value"] - floor)
    text = f"{study.kept} random tokens keep {left:.0%} of what the image adds over answering without it"
    return [text, _agree(left > 0.5)]


def _thirds(study: Study) -> list[float]:
    every = study.found["thirds"]
    return [sum(row[third] for row in every) / len(every) for third in range(3)]


def _third(study: Study, number: int) -> str:
    return f"{_thirds(study)[number]:.0%}"


def _share(bounds: Mapping[str, Any]) -> str:
    return f"{bounds['value']:.0%} ({bounds['low']:.0%} to {bounds['high']:.0%})"


def _number(bounds: Mapping[str, Any]) -> str:
    return f"{bounds['value']:.2f} ({bounds['low']:.2f} to {bounds['high']:.2f})"


def _agree(true: bool) -> str:
    return "agrees" if true else "disagrees"


def _listed(numbers: list[int]) -> str:
    *first, last = map(str, numbers)
    return f"{', '.join(first)} and {last}" if first else last
