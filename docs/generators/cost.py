"""docs/cost.md, from the cost model itself."""

from __future__ import annotations

import textwrap

from foveate.costmodel import check, cost, devices, published
from foveate.costmodel.device import Device
from foveate.costmodel.model import counted
from foveate.costmodel.papers import decoder_flops, figures
from generators.folders import MEASURED, PICTURES

_UNITS = {"share": " of all", "TFLOPs": " TFLOPs", "GFLOPs": " GFLOPs", "MB": " MB"}
CALIBRATIONS = {"float32": "calibration", "bfloat16": "calibration-bfloat16"}
"""What was measured in each data type: docs/measured/NAME.json, drawn as docs/pictures/NAME.png."""

HEAD = """\
# What a call costs

`foveate cost` and `foveate.cost` compute FLOPs, bytes, KV cache, memory and time of a call before anything runs. They
need a model's configuration only: no weights and no GPU.

* FLOPs agree with torch's own counter within 0.5 % for every family, and the cache's bytes agree exactly.
* Fifteen published figures are reproduced, each with the convention that gives it. Published FLOPs of one model and one
  image differ by a factor of 2.6 because conventions differ.
* Times of built-in devices are lower bounds from data sheets. On a calibrated machine, predicted prefills are between
  RATIOS of measured ones.

```bash
foveate cost --model llava-1.5-7b --spec cluster:64 --spec fastv:0.5@2 --device a100
foveate cost --model qwen2.5-vl-7b --image 1344x1008 --text-tokens 200 --new-tokens 128 --batch 8
foveate cost --devices
```

```python
import foveate

cost = foveate.cost("qwen2.5-vl-7b", "cluster:64", images=[(1344, 1008)], new_tokens=32, device="l4")
print(cost)
print(cost.part("prefill").flops, cost.kv_bytes, cost.first_token, cost.fits)
```

`--model` takes a directory with a config.json, or one of the published configurations that come with the package:
PUBLISHED. Without it, the
embedded model is used. In Python, a transformers configuration works too. An image's size is (width, height) in pixels;
foveate computes what the released processors make of it. `python docs/make.py cost` makes this page.

## What is counted

| part | what is in it |
|---|---|
| encoder | patch embedding and all layers that transformers runs, including those \
after the layer whose features are used; attention windows if the encoder has them; each tile of a tiled image |
| projector | over every token that leaves the encoder, with DeepStack's additional projectors |
| compressor | an estimate for the steps of the spec: making the plan (each method states its \
effort), recomputing queries and keys for signals, moving tokens, a second projection for a step at `@features` |
| prefill | the decoder over the prompt, with the number of tokens that each layer has |
| head | logits of one token, per prompt and step |
| decode | the decoder over the answer from its second token on; the first comes from the prefill |

* One multiply-add is 2 FLOPs. Matrix products, convolutions and attention are counted; norms, activations and rotary
  embeddings count as bytes and kernels but not as FLOPs.
* Attention counts as the full rectangle of queries and keys, including what a causal mask or a window excludes, as in
  torch's counter and most papers. Times use only what the masks leave, unless attention was measured.
* The number of tokens per layer comes from each method's `count`. If the content decides, the maximum is used.
* Grouped key heads, heads of any width, gated and plain MLPs, experts (active ones in FLOPs, all in memory), sliding
  windows and linear attention are counted. Latent attention and state-space layers raise an error.
* If the vision side is unknown, encoder and projector are left out of every figure, with a warning; the decoder is
  counted if the configuration gives the number of visual tokens per image. Known: KNOWN.
* The cache is exact. Peak memory is an estimate: weights, cache and the widest activations. A test compares the
  activations with torch's profiler on small models; they agree within 20 %.

**Accuracy.** `tests/cost/test_flops.py` compares FLOPs with `torch.utils.flop_counter` for every family, dense and
compressed at every place, for answers and batches, and for decoders of thirteen kinds. Cache bytes are compared with
the tensors of real caches, and parameter counts of the published configurations with the real modules at full size.
"""

WHY = """\
## Why published FLOPs differ by a factor of 2.6

Both ends of this table are in print for one model and one image. Each line changes one thing.

| LLaVA-1.5-7B, dense prefill, 576 visual tokens | TFLOPs |
|---|---|
"""

FIGURES = """\
## Published figures

Figures from papers, all for LLaVA-1.5-7B, beside the cost model's, with the convention that reproduces them. Papers
don't print prompt lengths; where one was needed, all figures of that kind use the same.

| system | figure | published | ours | difference | counted as | from |
|---|---|---|---|---|---|---|
"""

AFTER = """\
What can't be reproduced, and why:

* **VoCo-LLaMA's three TFLOPs** can't come from one prompt. With the image cached, 576 cached tokens and one differ only
  in attention, a small part of a short prompt's work; the paper has 1.2 and 0.5. Its baseline and its full cache fit a
  prompt of about 92 text tokens, its last line a prompt of less than half that.
* **ATP-LLaVA's 78.1 %** is more than keeping a quarter of the tokens in every layer saves. We haven't seen the paper's
  text.
* **PyramidDrop with three or five stages** divides 32 layers by 3 or 5, and the paper doesn't say how it rounds.
* **Cluster & Aggregate** estimated with LLM-Viewer what keeping 10 % of the visual tokens saves. We haven't seen the
  figure. The same kind of estimate from this model, with peak rates of one A100, bfloat16, batch 1, 60 text tokens:

"""

TIME = """\
## Time

Every operation has FLOPs, bytes and kernels, and a device has a rate for each. On a GPU, arithmetic, memory traffic and
launches overlap, so a part takes as long as the slowest of the three; on a CPU they add up. Built-in devices have the
peak rates of their data sheets, so their times are lower bounds. Data sheets don't give the time to start a kernel; it
is assumed. Compare such times with each other, not with a stopwatch.

For real times, measure your machine. It takes less than a minute:

<!-- skip: next "takes a minute" -->
```bash
foveate calibrate                        # writes a device named this-machine into your configuration folder
foveate calibrate --device cuda          # measures a GPU
foveate calibrate --threads 1 --check    # also measures prefills and compares them with predictions
foveate cost --device this-machine
```

Calibration times matrix products, attention, the work between a layer's products, and a decoder so small that only
kernel starts matter. These are timed in turn, repeatedly, and the shortest time counts. With one CPU thread the
thread's own time is measured, so other work on the machine hardly disturbs it.

CALIBRATION

Calibration has not been run on a GPU yet.

## From how many tokens on does it pay off?

For each spec, `foveate cost` prints from how many visual tokens of one square image on the whole call is faster than
dense, for that size and every larger one up to 16,384. Small models on fast devices spend their time starting kernels;
there, fewer tokens save memory but no time, and the line says so.

## Devices

"""


def pages() -> dict[str, str]:
    """Return the page."""
    return {"cost.md": page()}


def page() -> str:
    """Return the text of docs/cost.md."""
    ratios = [point.ratio for _, points in calibrations().values() for point in points]
    head = HEAD.replace("RATIOS", f"{min(ratios):.2f} and {max(ratios):.2f}")
    head = head.replace("PUBLISHED", ", ".join(f"`{name}`" for name in published()))
    head = head.replace("KNOWN", ", ".join(f"`{name}`" for name in counted()))
    return "\n".join(
        [
            head,
            WHY + _why(),
            FIGURES + _figures(),
            AFTER + _tenth(),
            TIME.replace("CALIBRATION\n", _calibrations()) + _devices(),
        ]
    )


def _why() -> str:
    steps = [
        ("FastV's formula: 1 per multiply-add, two MLP matrices; 46 text tokens", _tera(46, adds=False, matrices=2)),
        ("with the MLP's third matrix, which Llama has", _tera(46, adds=False)),
        ("2 per multiply-add", _tera(46)),
        ("62 text tokens", _tera(62)),
    ]
    dense = cost("llava-1.5-7b", text_tokens=62, new_tokens=1)
    steps.append(("with encoder, projector and head: what `foveate cost` prints", dense.flops / 1e12))
    steps.append(("62 text tokens, but attention in a fused kernel that a profiler does not see", _tera(62, False)))
    return "\n".join(f"| {what} | {value:.2f} |" for what, value in steps) + "\n"


def _tera(text: int, with_attention: bool = True, adds: bool = True, matrices: int = 3) -> float:
    return decoder_flops(None, text, adds=adds, matrices=matrices, with_attention=with_attention) / 1e12


def _figures() -> str:
    rows = []
    for each in figures():
        difference = f"{each.ours / each.published - 1:+.1%}" if each.same else "**not reproduced**"
        rows.append(
            f"| {each.system} | {each.what} | {each.published:g}{_UNITS[each.unit]} | {each.ours:.3g} | {difference} "
            f"| {each.convention} | {each.source} |"
        )
    return "\n".join(rows) + "\n"


def _tenth() -> str:
    dense = cost("llava-1.5-7b", device="a100")
    short = cost("llava-1.5-7b", "stride:58", device="a100")
    rows = [
        ("prefill", "TFLOPs", *(each.part("prefill").flops / 1e12 for each in (dense, short))),
        ("prefill", "ms", *(each.part("prefill").seconds * 1e3 for each in (dense, short))),
        ("decode, per token", "ms", *(each.per_token * 1e3 for each in (dense, short))),
        ("cache after the answer", "MB", *(each.kv_bytes / 1e6 for each in (dense, short))),
        ("peak memory", "GB", *(each.peak_bytes / 1e9 for each in (dense, short))),
    ]
    lines = [f"| {what}, {unit} | {old:.3g} | {new:.3g} | {new / old:.0%} |" for what, unit, old, new in rows]
    return "\n".join(["| | 576 tokens | 58 tokens | remains |", "|---|---|---|---|", *lines]) + "\n"


def calibrations() -> dict[str, tuple[Device, list[check.Point]]]:
    """Return the measured device and its points, in each data type."""
    return {dtype: check.read(MEASURED / f"{name}.json") for dtype, name in CALIBRATIONS.items()}


def _calibrations() -> str:
    found = calibrations()
    device = next(iter(found.values()))[0]
    ratios = [point.ratio for _, points in found.values() for point in points]
    text = (
        f"Prefills of two decoders on one machine ({device.title}), as `--check` prints them. Predictions are between "
        f"{min(ratios):.2f} and {max(ratios):.2f} of the measured times:"
    )
    text = textwrap.fill(text, 120) + "\n\n"
    rows = [
        "| decoder | tokens | " + " | ".join(f"{dtype}, ms | ratio" for dtype in found) + " |",
        "|---|---:" + "|---:|---:" * len(found) + "|",
    ]
    for line in zip(*(points for _, points in found.values()), strict=True):
        cells = " | ".join(f"{point.measured * 1e3:.1f} | {point.ratio:.2f}" for point in line)
        rows.append(f"| {line[0].decoder} | {line[0].tokens} | {cells} |")
    text += "\n".join(rows) + "\n\n"
    for dtype, name in CALIBRATIONS.items():
        text += f"![Predicted and measured prefill times, {dtype}](pictures/{name}.png)\n\n"
    text += "The bands in the pictures are 15 %. Measured and drawn by:\n\n```text\n"
    for dtype, name in CALIBRATIONS.items():
        text += (
            f"foveate calibrate --threads 1 --check --seconds 90 --dtype {dtype} --json > docs/measured/{name}.json\n"
        )
    return text + "python docs/make.py cost\n```\n"


def _devices() -> str:
    lines = ["| device | bfloat16 TFLOP/s | float32 | GB/s | memory GB | source |", "|---|---|---|---|---|---|"]
    for each in devices().values():
        if each.measured:
            continue
        rates = (f"{each.rates[kind] / 1e12:g}" for kind in ("bfloat16", "float32"))
        lines.append(
            f"| `{each.name}`: {each.title} | {' | '.join(rates)} | {each.bandwidth / 1e9:,.0f} "
            f"| {each.memory / 1e9:,.0f} | {each.source} |"
        )
    return "\n".join(lines) + "\n"


def draw() -> None:
    """Draw predicted and measured times of each data type."""
    for dtype, (device, points) in calibrations().items():
        check.draw(device, points, PICTURES / f"{CALIBRATIONS[dtype]}.png")
