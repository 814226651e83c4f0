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

`foveate cost` and `foveate.cost` tell FLOPs, bytes, cache, memory and time of a call before anything runs. They need a
model's configuration and nothing else: no weights, no GPU. This page is made by `python docs/make.py cost`; a test
fails when it is out of date.

```text
foveate cost --model llava-1.5-7b --spec cluster:64 --spec fastv:0.5@2 --device a100
foveate cost --model path/to/a/model --image 1344x1008 --text-tokens 200 --new-tokens 128 --batch 8
foveate cost --devices
```

```python
import foveate

told = foveate.cost("qwen2.5-vl-7b", "cluster:64", images=[(1344, 1008)], new_tokens=32, device="l4")
print(told)
print(told.part("prefill").flops, told.kv_bytes, told.first_token, told.fits)
```

The model is a transformers configuration, a directory with a config.json, or one of the published configurations that
come with the package: PUBLISHED. Left out on the command line, it is the embedded model. A
picture's size is (width, height) in pixels; what the model's processor makes of it is followed with the released
processors' settings.

## What is counted

| part | what is in it |
|---|---|
| encoder | patch embedding and all layers, as transformers runs them, also those \
behind the layer whose features are used; attention windows where there are some; each tile of a tiled picture |
| projector | over every token that leaves the encoder; DeepStack's further projectors too |
| compressor | the steps of the spec: what a method says that its plan takes, queries and keys that are \
made again as signals, moving the tokens, a second projection for a step at `@features`. An estimate |
| prefill | the decoder over the prompt, with each layer's own number of tokens |
| head | logits of one token per prompt and step |
| decode | the decoder over the answer, from the second token on: the first comes out of the prefill |

* One multiply-add is 2 FLOPs. Products of matrices, convolutions and attention count; norms, activations and rotary
  embeddings have bytes and kernels, and no FLOPs.
* Attention counts as the whole rectangle of queries and keys, also what a causal mask or a window throws away. That is
  how torch's counter and most papers count. Times only take what the masks leave, unless attention was measured.
* The number of tokens per layer comes from the methods' own `count`. If the content decides, it is the most.
* Grouped key heads, heads of any width, gated and plain MLPs, experts (active ones in FLOPs, all in memory), sliding
  windows and linear attention are counted. Latent attention and state-space layers are refused: no number is better
  than a wrong one.
* Of a vision side that is not known, encoder and projector are left out of every figure, and a warning says so; the
  decoder is counted if the configuration tells how many visual tokens a picture gets. Known are KNOWN.
* The cache is exact. Peak memory is weights, cache and the widest activations: an estimate. A test compares the
  activations with what torch's profiler sees while small models answer; they agree within 20 %.

How right is it? `tests/cost/test_flops.py` compares FLOPs with `torch.utils.flop_counter` for every family, dense and
compressed at every place, for answers and batches, and for decoders of thirteen kinds; all agree within 0.5 %. The
bytes of the cache are those of the real cache's tensors, to the byte. Parameters of the published configurations are
compared with the real modules at full size.
"""

WHY = """\
## Why published FLOPs differ by a factor of 2.6

One model, one picture: two figures that are both in print. Each line changes one thing.

| LLaVA-1.5-7B, dense prefill, 576 visual tokens | TFLOPs |
|---|---|
"""

FIGURES = """\
## Published figures

What the cost model makes of figures that papers print, and under which convention. Lengths of prompts are not printed;
where one was needed, it is one number for all figures of that kind. All are LLaVA-1.5-7B.

| system | figure | published | ours | difference | counted as | from |
|---|---|---|---|---|---|---|
"""

AFTER = """\
What can't be reproduced, and why:

* **VoCo-LLaMA's three TFLOPs** can't come from one prompt. With the image cached, 576 cached tokens or one differ in
  attention alone, which is little of a short prompt's work; the paper has 1.2 and 0.5. Its baseline and its full cache
  fit a prompt of about 92 text tokens, its last line one of less than half that.
* **ATP-LLaVA's 78.1 %** is more than a quarter of the tokens in every layer saves. The paper's text was not seen.
* **PyramidDrop with three or five stages** divides 32 layers by 3 or 5, and how they were rounded isn't told.
* **Cluster & Aggregate** estimated with LLM-Viewer what 10 % of the visual tokens save. The figure was not seen. The
  same kind of estimate from this model, peak rates of one A100, bfloat16, batch 1, 60 text tokens:

"""

TIME = """\
## Time

Every operation has FLOPs, bytes and kernels; a device has rates for them. On a GPU arithmetic, memory and launches
overlap, so a part takes as long as the slowest of the three. On a CPU they add up. Built-in devices have the peak
rates of data sheets, so their times are lower bounds; the time that a kernel takes to start is no data-sheet figure and
is assumed. Compare their times with each other, not with a clock.

For times that a clock shows, measure your machine. It takes less than a minute:

```text
foveate calibrate                          writes a device called this-machine into your configuration folder
foveate calibrate --device cuda            measures a GPU
foveate calibrate --threads 1 --check      also measures prefills, and predicts them
foveate cost --device this-machine
```

Calibration times products of matrices, attention, what a layer does between its products, and a decoder too small for
anything but starting kernels to matter. All are timed in turn, again and again, and the shortest time counts. With one
CPU thread, time is the thread's own, so a busy machine disturbs little.

CALIBRATION

The GPU side of calibration has not been tried on a GPU yet.

## From how many tokens on does it pay?

`foveate cost` ends with a line per spec: from how many visual tokens of one square picture on the whole call is faster
than dense, for every larger one up to 16,384. Small models on fast devices wait for kernels to start; there, fewer
tokens save memory and no time, and the line says so.

## Devices

"""


def pages() -> dict[str, str]:
    """Return the page."""
    return {"cost.md": page()}


def page() -> str:
    """Return the text of docs/cost.md."""
    head = HEAD.replace("PUBLISHED", ", ".join(f"`{name}`" for name in published()))
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
        ("the MLP's third matrix, which Llama has", _tera(46, adds=False)),
        ("2 per multiply-add", _tera(46)),
        ("62 text tokens", _tera(62)),
    ]
    dense = cost("llava-1.5-7b", text_tokens=62, new_tokens=1)
    steps.append(("encoder, projector and head: what `foveate cost` says", dense.flops / 1e12))
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
        ("cache behind the answer", "MB", *(each.kv_bytes / 1e6 for each in (dense, short))),
        ("peak memory", "GB", *(each.peak_bytes / 1e9 for each in (dense, short))),
    ]
    lines = [f"| {what}, {unit} | {old:.3g} | {new:.3g} | {new / old:.0%} |" for what, unit, old, new in rows]
    return "\n".join(["| | 576 tokens | 58 tokens | left |", "|---|---|---|---|", *lines]) + "\n"


def calibrations() -> dict[str, tuple[Device, list[check.Point]]]:
    """What was measured on one machine, in each data type."""
    return {dtype: check.read(MEASURED / f"{name}.json") for dtype, name in CALIBRATIONS.items()}


def _calibrations() -> str:
    found = calibrations()
    device = next(iter(found.values()))[0]
    ratios = [point.ratio for _, points in found.values() for point in points]
    text = (
        f"Prefills of two decoders on one machine ({device.title}), as `--check` prints them. What was predicted is "
        f"between {min(ratios):.2f} and {max(ratios):.2f} of what was measured:"
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
    text += "The bands in the pictures are 15 %. Measured, and drawn, by:\n\n```text\n"
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
