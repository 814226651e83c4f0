"""Published figures, and what the cost model makes of them: which convention gives which number.

Everything is LLaVA-1.5-7B. The papers don't say how long their prompts are; where a length had to be found, it is one
number for all figures of a paper.
"""

from __future__ import annotations

from dataclasses import dataclass

from foveate.costmodel.estimate import cost
from foveate.costmodel.model import read_model
from foveate.costmodel.ops import Op, attention
from foveate.schedule import tokens_per_layer

_MODEL = "llava-1.5-7b"
_TOKENS = 576
_SOURCES = {
    "VoCo-LLaMA": "arXiv 2406.12275, table 7",
    "LLaVolta": "arXiv 2406.20092, tables 2 and 5",
    "VTW": "arXiv 2405.05803, as quoted beside its code",
    "VTW, a reader's count": "beside VTW's code",
    "FastV": "arXiv 2403.06764, as quoted beside VTW's code",
    "PyramidDrop": "arXiv 2410.17247, version 2",
    "ATP-LLaVA": "arXiv 2412.00447, second-hand",
}
_LLAVOLTA_TEXT = 62
_VOCO_TEXT = 92


@dataclass(frozen=True)
class Figure:
    """One published figure.

    Attributes:
        system: whose it is.
        what: what it says.
        published: the figure as it is printed.
        ours: what the cost model gives under the convention named.
        unit: TFLOPs, GFLOPs, MB or a share.
        convention: how it must be counted.
        tolerance: how far apart the two may be to count as the same, as a share; None: it can't be reproduced.
    """

    system: str
    what: str
    published: float
    ours: float
    unit: str
    convention: str
    tolerance: float | None = 0.005

    @property
    def source(self) -> str:
        """Where the figure stands."""
        return _SOURCES[self.system]

    @property
    def same(self) -> bool:
        """Whether the figure is reproduced."""
        return self.tolerance is not None and abs(self.ours / self.published - 1) <= self.tolerance


def decoder_flops(
    spec: str | None,
    text: int = 0,
    *,
    adds: bool = True,
    matrices: int = 3,
    with_attention: bool = True,
) -> float:
    """FLOPs of the prefill of LLaVA-1.5-7B's decoder under a convention of somebody's.

    Args:
        spec: what is applied.
        text: tokens beside the 576 visual ones.
        adds: whether a multiply-add is 2 or 1.
        matrices: of the MLP: 3, as Llama has, or 2, as some formulas have.
        with_attention: whether products of queries with keys, and of scores with values, are counted.
    """
    ops = _prefill(spec, text)
    total = sum(op.flops * op.times for op in ops if with_attention or op.name != "attention")
    if matrices == 2:
        total -= sum(op.flops * op.times for op in ops if op.name == "into the MLP") / 2
    return total if adds else total / 2


def _prefill(spec: str | None, text: int) -> tuple[Op, ...]:
    model = read_model(_MODEL)
    layout = model.family.image_layout(336, 336)
    layers = (
        [layout.total] * len(model.decoder.layers) if spec is None else tokens_per_layer(spec, model.family, layout)
    )
    return model.decoder.prefill([text + tokens for tokens in layers], 1, 2).ops


def _voco(text: int, past: int) -> float:
    """A prompt of `text` tokens behind `past` cached ones."""
    mixer = read_model(_MODEL).decoder.layers[0].mixer
    linear = sum(op.flops * op.times for op in _text_only(text) if op.name != "attention")
    seen = attention(1, mixer.heads, mixer.groups, mixer.head, text, past + text, 2)  # pyright: ignore
    return linear + seen.flops * len(read_model(_MODEL).decoder.layers)


def _text_only(text: int) -> tuple[Op, ...]:
    decoder = read_model(_MODEL).decoder
    return decoder.prefill([text] * len(decoder.layers), 1, 2).ops


def figures() -> list[Figure]:
    """All figures, by system."""
    dense = cost(_MODEL, text_tokens=0, new_tokens=1)
    layers = len(dense.layers)
    one = dense.visual_kv_bytes / _TOKENS / 1e6
    rows = [
        Figure("VoCo-LLaMA", "cache of 576 tokens", 302.4, dense.visual_kv_bytes / 1e6, "MB", "16 bits, MB = 10^6"),
        Figure("VoCo-LLaMA", "cache of one token", 0.525, one, "MB", "the same"),
    ]
    invisible = f"2 per multiply-add, attention left out, {_LLAVOLTA_TEXT} text tokens"
    for what, spec, published in (
        ("dense", None, 8.26),
        ("stride 4 from layer 16", "pool:0.25@16", 5.47),
        ("stride 8 from layer 16", "pool:0.125@16", 5.00),
        ("stride 2 from layer 16", "pool:0.5@16", 6.40),
        ("stride 8 from layer 2", "pool:0.125@2", 2.14),
        ("stride 4 from layer 2", "pool:0.25@2", 3.02),
        ("stride 2 from layer 2", "pool:0.5@2", 4.77),
    ):
        ours = decoder_flops(spec, _LLAVOLTA_TEXT, with_attention=False) / 1e12
        rows.append(Figure("LLaVolta", what, published, ours, "TFLOPs", invisible))
    rows += [
        Figure(
            "VTW",
            "dense",
            8.48,
            decoder_flops(None, _LLAVOLTA_TEXT) / 1e12,
            "TFLOPs",
            f"2 per multiply-add, attention too, {_LLAVOLTA_TEXT} text tokens",
        ),
        Figure(
            "VTW",
            "all visual tokens dropped at layer 16",
            4.68,
            decoder_flops("vtw@16", _LLAVOLTA_TEXT) / 1e12,
            "TFLOPs",
            "the same",
            tolerance=0.01,
        ),
        Figure(
            "VTW, a reader's count",
            "dense, by FastV's formula",
            3.23,
            decoder_flops(None, 46, adds=False, matrices=2) / 1e12,
            "TFLOPs",
            "1 per multiply-add, two MLP matrices, 46 text tokens",
        ),
        Figure(
            "FastV",
            "dense",
            99.3,
            decoder_flops(None, 36, adds=False, matrices=2) / layers / 1e9,
            "GFLOPs",
            "1 per multiply-add, two MLP matrices, one layer of 32, 36 text tokens",
        ),
        Figure(
            "PyramidDrop",
            "dense",
            3.82,
            decoder_flops(None, adds=False) / 1e12,
            "TFLOPs",
            "1 per multiply-add, visual tokens alone",
        ),
        Figure(
            "PyramidDrop",
            "four stages, half at each",
            1.78,
            decoder_flops("pyramiddrop:0.5@8,16,24", adds=False) / 1e12,
            "TFLOPs",
            "the same",
        ),
    ]
    whole = dense.part("encoder").flops + dense.part("projector").flops + decoder_flops(None, _VOCO_TEXT)
    rows += [
        Figure(
            "VoCo-LLaMA",
            "no cache",
            9.6,
            whole / 1e12,
            "TFLOPs",
            f"encoder, projector, decoder; {_VOCO_TEXT} text tokens",
            tolerance=None,
        ),
        Figure(
            "VoCo-LLaMA", "576 tokens cached", 1.2, _voco(_VOCO_TEXT, _TOKENS) / 1e12, "TFLOPs", "the same text", None
        ),
        Figure("VoCo-LLaMA", "one token cached", 0.5, _voco(_VOCO_TEXT, 1) / 1e12, "TFLOPs", "the same text", None),
        Figure(
            "ATP-LLaVA",
            "FLOPs saved at 144 tokens",
            0.781,
            1 - _layerwise(144) / _layerwise(_TOKENS),
            "share",
            "144 visual tokens in every layer, visual tokens alone",
            None,
        ),
    ]
    return rows


def _layerwise(tokens: int) -> float:
    return sum(op.flops * op.times for op in _text_only(tokens))
