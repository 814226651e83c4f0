"""Compare published figures with the cost model, each under the convention that it was counted with.

All figures are of LLaVA-1.5-7B. The papers don't give the length of their prompts; where a length had to be found, it
is the same for all figures of a paper.
"""

from __future__ import annotations

from dataclasses import dataclass

from foveate.costmodel.estimate import cost
from foveate.costmodel.model import read_model
from foveate.costmodel.ops import Op, attention
from foveate.schedule import tokens_per_layer
from foveate.spec import Spec

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
        system: that the figure is about.
        what: the figure measures.
        published: the printed figure.
        ours: the cost model's figure under the same convention.
        unit: TFLOPs, GFLOPs, MB or a share.
        convention: of counting.
        tolerance: largest relative difference at which the two are the same; None if the figure can't be reproduced.
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
        """Where the figure was published."""
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
    """Count the FLOPs of a prefill of LLaVA-1.5-7B's decoder under a given convention.

    Args:
        spec: what is applied.
        text: tokens beside the 576 visual ones.
        adds: whether a multiply-add is 2 FLOPs, else 1.
        matrices: of the MLP: 3, as in Llama, or 2, as in some formulas.
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
    layers = tokens_per_layer(Spec(()) if spec is None else spec, model.family, layout)
    return model.decoder.prefill([text + tokens for tokens in layers], 1, 2).ops


def _voco(text: int, past: int) -> float:
    """Count the FLOPs of a prompt of `text` tokens after `past` cached ones."""
    mixer = read_model(_MODEL).decoder.layers[0].mixer
    linear = sum(op.flops * op.times for op in _text_only(text) if op.name != "attention")
    seen = attention(1, mixer.heads, mixer.groups, mixer.head, text, past + text, 2)  # pyright: ignore
    return linear + seen.flops * len(read_model(_MODEL).decoder.layers)


def _text_only(text: int) -> tuple[Op, ...]:
    decoder = read_model(_MODEL).decoder
    return decoder.prefill([text] * len(decoder.layers), 1, 2).ops


def figures() -> list[Figure]:
    """Return all figures, by system."""
    return [*_voco_caches(), *_llavolta(), *_vtw(), *_fastv(), *_pyramiddrop(), *_voco_flops(), *_atp()]


def _llavolta() -> list[Figure]:
    convention = f"2 per multiply-add, attention left out, {_LLAVOLTA_TEXT} text tokens"
    published = (
        ("dense", None, 8.26),
        ("stride 4 from layer 16", "pool:0.25@16", 5.47),
        ("stride 8 from layer 16", "pool:0.125@16", 5.00),
        ("stride 2 from layer 16", "pool:0.5@16", 6.40),
        ("stride 8 from layer 2", "pool:0.125@2", 2.14),
        ("stride 4 from layer 2", "pool:0.25@2", 3.02),
        ("stride 2 from layer 2", "pool:0.5@2", 4.77),
    )
    ours = [decoder_flops(spec, _LLAVOLTA_TEXT, with_attention=False) / 1e12 for _, spec, _ in published]
    return [
        Figure("LLaVolta", what, figure, flops, "TFLOPs", convention)
        for (what, _, figure), flops in zip(published, ours, strict=True)
    ]


def _vtw() -> list[Figure]:
    dense, cut = (decoder_flops(spec, _LLAVOLTA_TEXT) / 1e12 for spec in (None, "vtw@16"))
    convention = f"2 per multiply-add, attention too, {_LLAVOLTA_TEXT} text tokens"
    formula = decoder_flops(None, 46, adds=False, matrices=2) / 1e12
    return [
        Figure("VTW", "dense", 8.48, dense, "TFLOPs", convention),
        Figure("VTW", "all visual tokens dropped at layer 16", 4.68, cut, "TFLOPs", "the same", tolerance=0.01),
        Figure(
            "VTW, a reader's count",
            "dense, by FastV's formula",
            3.23,
            formula,
            "TFLOPs",
            "1 per multiply-add, two MLP matrices, 46 text tokens",
        ),
    ]


def _fastv() -> list[Figure]:
    layers = len(read_model(_MODEL).decoder.layers)
    dense = decoder_flops(None, 36, adds=False, matrices=2) / layers / 1e9
    convention = "1 per multiply-add, two MLP matrices, one layer of 32, 36 text tokens"
    return [Figure("FastV", "dense", 99.3, dense, "GFLOPs", convention)]


def _pyramiddrop() -> list[Figure]:
    dense, stages = (decoder_flops(spec, adds=False) / 1e12 for spec in (None, "pyramiddrop:0.5@8,16,24"))
    convention = "1 per multiply-add, visual tokens alone"
    return [
        Figure("PyramidDrop", "dense", 3.82, dense, "TFLOPs", convention),
        Figure("PyramidDrop", "four stages, half at each", 1.78, stages, "TFLOPs", "the same"),
    ]


def _voco_caches() -> list[Figure]:
    dense = cost(_MODEL, text_tokens=0, new_tokens=1).visual_kv_bytes / 1e6
    return [
        Figure("VoCo-LLaMA", "cache of 576 tokens", 302.4, dense, "MB", "16 bits, MB = 10^6"),
        Figure("VoCo-LLaMA", "cache of one token", 0.525, dense / _TOKENS, "MB", "the same"),
    ]


def _voco_flops() -> list[Figure]:
    dense = cost(_MODEL, text_tokens=0, new_tokens=1)
    encoded = dense.part("encoder").flops + dense.part("projector").flops
    uncached = (encoded + decoder_flops(None, _VOCO_TEXT)) / 1e12
    every, single = (_voco(_VOCO_TEXT, past) / 1e12 for past in (_TOKENS, 1))
    convention = f"encoder, projector, decoder; {_VOCO_TEXT} text tokens"
    return [
        Figure("VoCo-LLaMA", "no cache", 9.6, uncached, "TFLOPs", convention, tolerance=None),
        Figure("VoCo-LLaMA", "576 tokens cached", 1.2, every, "TFLOPs", "the same text", tolerance=None),
        Figure("VoCo-LLaMA", "one token cached", 0.5, single, "TFLOPs", "the same text", tolerance=None),
    ]


def _atp() -> list[Figure]:
    few, every = (sum(op.flops * op.times for op in _text_only(tokens)) for tokens in (144, _TOKENS))
    convention = "144 visual tokens in every layer, visual tokens alone"
    return [
        Figure("ATP-LLaVA", "FLOPs saved at 144 tokens", 0.781, 1 - few / every, "share", convention, tolerance=None)
    ]
