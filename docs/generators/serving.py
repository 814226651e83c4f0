"""docs/serving.md, from docs/measured/serving.json, which `nox -s vllm` writes, and load.json of `foveate load`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from generators.folders import MEASURED
from generators.markdown import fill, table

MEASUREMENTS = MEASURED / "serving.json"
LOAD = MEASURED / "load.json"

COMMANDS = """\
export VLLM_CPU_KVCACHE_SPACE=1 VLLM_CPU_OMP_THREADS_BIND=nobind
foveate serve src/foveate/embedded/model --spec dense --allow cluster:144 --allow cluster:64 --allow cluster:16 \\
    -- --dtype float32 --enforce-eager --block-size 32 --max-model-len 1024 --max-num-seqs 32 \\
    --gpu-memory-utilization 0.3
foveate load http://localhost:8000 --spec cluster:144 --spec cluster:64 --spec cluster:16 --concurrency 1,4,8,32 \\
    --requests 8 --new-tokens 4 --image 336x336 --out results/load
"""

HEAD = """\
# Serve with vLLM

A plugin for [vLLM](https://docs.vllm.ai) comes with foveate. A server then answers with fewer visual tokens: each image
and each clip takes fewer places in the prompt, in the KV cache and in the cache of encoded images. Answers are those of
`foveate.apply` with the same spec.

```text
pip install ".[vllm]"                       # from a clone
foveate serve MODEL --spec cluster:0.25     # a quarter of the visual tokens
```

`foveate serve` starts vLLM's OpenAI-compatible server. Before that it reads the model's configuration, refuses a spec
that can't be served, and prints how many tokens images of usual sizes will have. What follows two dashes goes to vLLM;
`--dry-run` shows the command and starts nothing.

```text
foveate serve MODEL --spec cluster:64 --allow cluster:16 --allow dense -- --max-model-len 8192
```

The extra brings vLLM 0.32 or 0.33 and a transformers that it takes. vLLM finds the plugin by itself, so any other way
to start it works too: `FOVEATE_SPEC=cluster:0.25 vllm serve MODEL`. `VLLM_PLUGINS=""` leaves the plugin out.

| model | steps act at | encoder attention and keys | clips |
|:--|:--|:--|:--|
| LLaVA with CLIP | `@features`, `@input` | yes | |
| LLaVA-NeXT with CLIP | `@features`, `@input` | yes, but see below | |
| InternVL (`-hf`) | `@features`, `@input` | yes | each frame is an image |
| Qwen2-VL, Qwen2.5-VL, Qwen3-VL | `@input` | no | yes |

Other models are served as without foveate.

## Which spec an image gets

| where | for | example |
|:--|:--|:--|
| `mm_processor_kwargs` of a request | this request | `{"mm_processor_kwargs": {"foveate": "cluster:16"}}` |
| `--mm-processor-kwargs` | the server | `--mm-processor-kwargs '{"foveate": "cluster:64"}'` |
| `foveate serve --spec`, or `FOVEATE_SPEC` | the server | `FOVEATE_SPEC=cluster:64` |
| `foveate` in the model's config.json | the model, wherever it is served | `"foveate": {"spec": "cluster:64"}` |

The first that is given counts; without any, the model is dense. `dense` is also a spec that a request may name.
`foveate.save(model, folder, "cluster:64")` writes the last one.

Requests may name a spec only if `foveate serve --allow` lists it. Without `--allow` the server refuses all
`mm_processor_kwargs`, as vLLM does on its own. The same in other words:

```text
FOVEATE_SPEC=cluster:64 FOVEATE_SPECS="cluster:16;dense" vllm serve MODEL --trust-request-mm-kwargs
```

Without `FOVEATE_SPECS`, requests to such a server may name any spec. vLLM's Python class `LLM` always takes them.

A server whose own spec, or one in the list, can't be done does not start, and says why. A request with such a spec gets
status 400 with the reason, and the server goes on.

## Which specs can be served

A server counts the tokens of an image before its encoder runs, and keeps the encoded image for the next question about
it. So every step must act between encoder and decoder, leave a number of tokens that the layout tells, and not read the
question. Refused, with the reason:

* `resize` and other steps at `@pixels`; give the processor a smaller size instead.
* Steps at `@encoder`, and at decoder layers.
* `auto` as keep, and other rules that let the content decide how many tokens remain.
* Methods that read the question, such as `cdpruner`, unless [the server is told so](#methods-that-read-the-question).
* `positions=keep` where vLLM would have to know positions before tokens are chosen: everywhere on LLaVA, and on Qwen
  unless the layout alone decides (`stride`). Methods that keep positions by default, such as `pool`, need
  `positions=pack` there.
* Encoder attention of a layer after the one that is read: vLLM doesn't load it.
* On LLaVA-NeXT, specs that let the content decide which rows of tiles keep a token and so their newline. Grids such as
  `pool2d:0.25:positions=pack` can be served.
* An image with fewer tokens than the spec keeps. A fraction fits every image.
* Methods that work on the frames of a clip, such as `evs`, in a request with pictures alone. Pictures beside a clip
  keep all tokens at such a step.

## Clips

A clip has one budget, or with `per=frame` one for each frame. `evs:0.5:positions=pack` keeps the tokens that vLLM's
`--video-pruning-rate 0.5` keeps, and numbers them anew; that option must be left out.

* Qwen3-VL writes the time of each frame before it. Where the content decides how many tokens of each frame stay, vLLM
  is given the embeddings of these times together with what is left, and `prompt_token_ids` of the answer show all
  placeholders in the first frame. Answers are right.
* Text after a clip of more frames than rows and columns of tokens comes after its last frame in vLLM, with any spec and
  without; transformers goes on after its rows and columns. Such clips get other answers from the two, whole or not,
  unless the spec numbers tokens anew. The table has none of them.
* vLLM normalises frames of clips with the numbers for images. Released models have the same for both.

## Methods that read the question

`foveate serve MODEL --spec cdpruner:64 --per-question`, or `FOVEATE_PER_QUESTION=1`, lets methods read the text of the
prompt. What is left of an image then belongs to one question, so vLLM knows the image in all its caches by its pixels,
the spec and the whole text of the prompt: another question about it is another image, which is prepared and encoded
anew. The first answer to each question costs an encoder run; the same prompt again costs none. Requests with other
specs share images as before.

Refused all the same: methods that read attention or keys of the decoder, which run inside it; InternVL, and any request
with a clip, whose processors write text of their own that the plugin isn't given in time.

## What it saves, while it serves

`/metrics` has three counters beside those of vLLM, by the spec that was applied. Specs that requests made up, on a
server that allows any, are called "other".

| counter | counts |
|:--|:--|
| `foveate_images_total` | images and clips of requests, also those that come again |
| `foveate_visual_tokens_before_total` | the tokens that they would have had whole |
| `foveate_visual_tokens_after_total` | the tokens that they had in the prompt |

At most every ten seconds a line of the log says the mean:

```text
foveate: 120 images since the start, each with 64.0 of 576.0 visual tokens on average: 512.0 saved (89%)
```

## Measure your server

`foveate load` sends a bounded load to a server on this machine, and prints throughput and the time to the first token:

```text
foveate load http://localhost:8000 --spec cluster:64 --spec cluster:16 --concurrency 1,4,8,32 --out results/load
```

Requests without a spec take turns with compressed ones, wave by wave and about the same generated images, so what slows
the machine slows both; no image comes twice to the same spec, so no cache helps. The folder gets a plot and every time.
The server must allow the specs that are named, `dense` included. If it dies, the command says after how many answers,
keeps what it has measured, and ends with an error. `--remote` is for a server on another machine, whose owner agrees.
"""

TAIL = """\
## How this is measured

```text
nox -s vllm                    installs vLLM's build for CPUs, runs tests/serving_vllm, writes measured/serving.json
python docs/make.py serving    makes this page of it
```

Tables compare vLLM and transformers in one process, in float32, greedy. They say that answers are right, not how fast
they come. Nothing here has been measured on a GPU. Models called tiny have random weights.

## A plugin for another server

`foveate.serving` has what such a plugin needs, and no vLLM. It imports no transformers either.

```python
from foveate.serving import ServedModel, SpecChoice

clip = {"model_type": "clip_vision_model", "image_size": 336, "patch_size": 14, "num_hidden_layers": 24}
config = {"model_type": "llava", "vision_config": clip}  # what config.json holds

served = ServedModel(config, server="my server")
choice = SpecChoice(served, "cluster:64")  # the server's own spec, the environment, or what config.json names
spec = choice.of_request("cluster:16")
print(spec.count(served.image_layout(480, 640)))  # 16, before any pixel is seen
```

`ServedModel.bind` takes the modules of the server's model, a `foveate.families.Capture` what its encoder gave, and
`foveate.serving.compress_each` returns what is left of each image of a batch, each with the spec of its request.
"""


def pages() -> dict[str, str]:
    """Return the page."""
    found, sent = (json.loads(path.read_text(encoding="utf-8")) for path in (MEASUREMENTS, LOAD))
    return {"serving.md": page(found, sent)}


def page(found: Mapping[str, Any], sent: Mapping[str, Any]) -> str:
    """Return the text of docs/serving.md."""
    ran, tables = found["environment"], found["tables"]
    packages = ran["packages"]
    where = fill(
        f"Measured on {ran['finished'][:10]} with vLLM {found['vllm']}, transformers {packages['transformers']} and "
        f"torch {packages['torch']}, on {ran['processor']}, without a GPU."
    )
    parts = [HEAD, equality(tables["equality"]), ranks(tables["ranks"])]
    parts += [caches(tables["caches"]), refused(tables["refused"]), faults(tables.get("faults", ())), load(sent), TAIL]
    return "\n".join([parts[0], "## Answers are those of transformers\n", where + "\n", *filter(None, parts[1:])])


def equality(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the table of answers."""
    questions = sum(row["questions"] for row in rows)
    equal = {way: sum(row[way] for row in rows) for way in ("single", "batch", "mixed")}
    largest = max(row["difference"] for row in rows)
    text = fill(
        "Each question was asked with each spec: one by one, in a batch per spec, and in one batch with all specs of "
        f"the model mixed. Equal to `foveate.apply` on transformers are {equal['single']}, {equal['batch']} and "
        f"{equal['mixed']} of {questions} answers; the largest difference of a logprob is {largest:.0e}."
    )
    cells = (
        (
            *(row["model"], f"`{row['spec']}`", _span(row["prompt"]), str(row["questions"])),
            *(str(row[way]) for way in equal),
            f"{row['difference']:.0e}",
        )
        for row in rows
    )
    columns = ("model", "spec", "prompt tokens", "questions", "one by one", "batch", "mixed", "logprobs differ by")
    return text + "\n\n" + table(columns, cells, "llrrrrrr")


def ranks(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return what was tried with tensor parallelism."""
    models: dict[str, list[str]] = {}
    for row in rows:
        models.setdefault(row["model"], []).append(f"`{row['spec']}`")
    tried = "; ".join(f"a tiny {model} with {', '.join(specs)}" for model, specs in models.items())
    largest = max(row["difference"] for row in rows)
    return (
        fill(
            "With tensor parallelism a rank has some of the encoder's heads. Those of all ranks are gathered, so that "
            "every rank chooses the same tokens. On two ranks these answered as transformers: "
            f"{tried}. Logprobs differ by {largest:.0e} at most."
        )
        + "\n"
    )


def caches(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the table of caches."""
    cells = (
        (row["request"], str(row["prompt"]), str(row["cached"]), "yes" if row["encoder"] else "no") for row in rows
    )
    columns = ("request, in this order", "tokens of the prompt", "from the prefix cache", "encoder runs")
    text = fill(
        "vLLM knows an image in its caches by its pixels and by the spec in its canonical form. So the same image with "
        "another spec is another image, and two spellings of one spec are the same. Blocks of the prefix cache have 32 "
        "tokens here."
    )
    return f"## Caches know specs\n\n{text}\n\n{table(columns, cells, 'lrrl')}"


def refused(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the table of refused requests. A mark under the place of an error has no use in a cell."""
    cells = (
        (f"`{row['spec']}`" if row["spec"] else "empty", str(row["status"]), row["text"].lstrip("^ ")) for row in rows
    )
    text = fill(
        'A server with `FOVEATE_SPEC=cluster:64` and `FOVEATE_SPECS="cluster:16;dense"` answered these requests so:'
    )
    return f"## What a bad request gets\n\n{text}\n\n{table(('spec', 'status', 'text'), cells, 'lrl')}"


def faults(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the table of what servers survive; nothing if it wasn't measured."""
    if not rows:
        return ""
    cells = ((row["what"], row["happened"]) for row in rows)
    text = fill(
        "Each was tried on a server, or on an engine in one process, and the next request had the right answer:"
    )
    return f"## What a server survives\n\n{text}\n\n{table(('what came', 'what happened'), cells, 'll')}"


def load(found: Mapping[str, Any]) -> str:
    """Return the table of throughput and times to the first token."""
    ran, sent, rows = found["environment"], found["load"], found["rows"]
    width, height = sent["size"]
    answers = sum(row["requests"] for row in rows)
    failed = sum(row["failed"] for row in rows)
    busy = ran["load"] is not None and ran["load"] > 1.5 * ran["processors"]
    text = fill(
        f"The embedded model in float32 by vLLM on a CPU ({ran['processor']}, {ran['processors']} cores), "
        f"{ran['finished'][:10]}; images of {width} x {height} pixels, answers of {sent['new_tokens']} tokens. "
        f"{answers:,} requests were answered, {failed or 'none'} failed. Ratios are those of two waves of one round: "
        f"the median of {sent['rounds']} rounds, and the least and the greatest. "
        + (
            f"Other programs used the machine at the same time (load {ran['load']:.0f}), so the times say little, and "
            "ratios what their spread allows. "
            if busy
            else ""
        )
        + "The model has 8 million parameters; a model of usual size on a GPU has not been measured."
    )
    cells = (
        (
            *(str(row["concurrency"]), f"`{row['spec']}`", f"{row['prompt_tokens']:.0f}"),
            *(f"{row['throughput']:.2f}", _ratio(row["throughput_ratio"])),
            *(f"{row[name] * 1e3:,.0f} ms" for name in ("first_p50", "first_p95")),
            _ratio(row["first_ratio"]),
        )
        for row in rows
    )
    columns = ("requests at once", "spec", "prompt tokens", "answers per second", "x dense", "first token, median")
    columns += ("95th percentile", "median / dense")
    repeat = f"It was measured by\n\n```text\n{COMMANDS}```\n"
    picture = "![Answers per second and seconds to the first token, by requests at once](pictures/load.png)\n"
    return "\n".join(
        [
            "## Throughput, and the time to the first token\n",
            text + "\n",
            table(columns, cells, "rlrrlrrl"),
            picture,
            repeat,
        ]
    )


def _ratio(spread: Mapping[str, float]) -> str:
    median, least, greatest = (f"{spread[name]:.2f}" for name in ("median", "least", "greatest"))
    return median if least == greatest else f"{median} ({least} to {greatest})"


def _span(numbers: Sequence[int]) -> str:
    return str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"
