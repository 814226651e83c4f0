"""The measured parts of docs/voco.md, from three files in docs/measured; the rest of that page is written by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from foveate.bench.formatting import points_text, share_text
from foveate.costmodel import read_model
from generators.folders import DOCS, MEASURED
from generators.markdown import fill, table, with_measured_part, with_part

RIVALS = {
    "pool": "average pooling and a linear layer, one token",
    "qformer": "Q-Former, one token",
}
DENSE = {
    "dense:dense": "dense, 576 visual tokens",
    "dense:left": "dense, the visual tokens that VoCo reads; not trained for them",
    "dense:none": "dense, no image",
    "untrained": "one VoCo token, not trained: the lower bound",
}
LONGER = "-longer"
"""How names of runs end that continued the training."""
STREAM_QUESTIONS = {
    "way": "where it moves",
    "first": "which comes first",
    "change": "what has changed",
    "glimpse": "one moment",
}
SHORT = ("1", "8", "32")
"""Numbers of tokens that the tables of short runs show."""
TARGETS = {"1": 0.7, "8": 0.9}
"""By the number of tokens, the retention that the page asks for."""
CLIP_QUESTIONS = {"way": "where it moves", "first": "which comes first", "often": "in how many frames"}


def pages() -> dict[str, str]:
    """Return the page."""
    found = json.loads((MEASURED / "voco.json").read_text(encoding="utf-8"))
    streams = json.loads((MEASURED / "voco-stream.json").read_text(encoding="utf-8"))
    short = json.loads((MEASURED / "voco-binding.json").read_text(encoding="utf-8"))
    text = with_measured_part((DOCS / "voco.md").read_text(encoding="utf-8"), measured_part(found))
    parts = {
        "streams": stream_part(streams),
        "short runs": binding_part(short),
        "size": size_part(found),
        "growth": growth_part(found, short),
    }
    for name, part in parts.items():
        text = with_part(text, name, "\n" + part)
    return {"voco.md": text}


def measured_part(found: Mapping[str, Any]) -> str:
    """Return the tables of a result of benchmarks/voco.py; what wasn't measured is left out."""
    parts = [_accuracy(found), *_differences(found)]
    if found.get("further"):
        parts.append(_distillation(found))
    if found.get("clips"):
        parts.append(_clips(found["clips"]))
    if found.get("times"):
        parts.append(_times(found["times"]))
    return "\n".join(parts)


def binding_part(found: Mapping[str, Any]) -> str:
    """Return the tables of a result of benchmarks/voco_binding.py: new tokens, then tokens that go on."""
    recipe, rows = found["recipe"], {row["name"]: row for row in found["rows"]}
    parts = [
        fill(
            f"Each run makes {recipe['steps']} steps of {recipe['batch']} images, where nothing else is said, and "
            f"answers {found['questions']} questions. The differences are paired, in points, with 95 % intervals from "
            "resampling images; they don't cover other seeds."
        )
        + "\n"
    ]
    for beside, title in (("base", "new tokens"), ("shipped", "the shipped tokens, trained on")):
        own = [rows[beside], *(row for row in rows.values() if row["beside"] == beside and row["name"] != beside)]
        if len(own) < 2 and beside != "base":
            continue
        cells = [
            [
                row["what"],
                f"{row['loss'][-1][1]:.2f}" if "loss" in row else "",
                *(f"{row['tokens'][count]['accuracy']['value']:.1%}" for count in SHORT),
                *(
                    points_text(difference, unit="") if (difference := row["tokens"][count]["difference"]) else ""
                    for count in SHORT[:2]
                ),
            ]
            for row in own
        ]
        tokens = [_tokens(count) for count in SHORT]
        columns = [title, "last loss", *tokens, *(f"difference, {each}" for each in tokens[:2])]
        parts.append(table(columns, cells, "l" + "r" * (len(columns) - 1)))
    return "\n".join(parts)


def size_part(found: Mapping[str, Any]) -> str:
    """Return what a token holds in the paper's model and in ours, and how retention compares at as many bytes."""
    theirs, ours = (_bytes_of_a_token(model) for model in ("llava-1.5-7b", None))
    rows = _rows(found)
    run = f"press{LONGER}" if found.get("longer") else "press"
    most = max(int(name.partition(":")[2]) for name in rows if name.startswith(f"{run}:"))
    one, many = (rows[f"{run}:{count}"]["retention"]["value"] for count in (1, most))
    return (
        fill(
            f"One token of LLaVA-1.5-7B has {theirs / 1024:,.0f} KB of keys and values in 16 bits, and one of the "
            f"embedded model {ours / 1024:,.0f} KB (twice that in the 32 bits of the table above), "
            f"{theirs / ours:.0f} times less: fewer layers, and fewer numbers in "
            f"each. One of ours keeps {one:.1%}, and {most} of ours, {most * ours / 1024:,.0f} KB together, "
            f"{many:.1%}. The paper's one token keeps 83.7 %."
        )
        + "\n"
    )


def growth_part(found: Mapping[str, Any], short: Mapping[str, Any]) -> str:
    """Return accuracy by how many images were trained on, and how many more would be needed at the last pace."""
    rows, tried = _rows(found), {row["name"]: row for row in short["rows"]}
    batch, first, longer = short["recipe"]["batch"], found["recipe"], found["longer"]["recipe"]
    made = {
        tried[name]["steps"] * batch: {count: tried[name]["tokens"][count]["accuracy"] for count in SHORT}
        for name in ("base", "twice")
        if name in tried
    }
    images = 0
    for run, recipe in (("press", first), (f"press{LONGER}", longer)):
        images += recipe["steps"] * recipe["batch"]
        made[images] = {count: rows[f"{run}:{count}"]["accuracy"] for count in SHORT}
    columns = ["images trained on", *map(_tokens, SHORT)]
    cells = [[f"{n:,}", *(share_text(each[count]) for count in SHORT)] for n, each in sorted(made.items())]
    before, last = sorted(made)[-2:]
    pace = {
        count: (made[last][count]["value"] - made[before][count]["value"]) / math.log2(last / before) for count in SHORT
    }
    bounds = [rows[name]["accuracy"]["value"] for name in ("untrained", "dense:dense")]
    text = (
        f"From {before:,} to {last:,} images, each doubling added "
        + ", ".join(f"{100 * pace[count]:.1f} points with {_tokens(count)}" for count in SHORT)
        + ". "
    )
    for count, target in TARGETS.items():
        needed = bounds[0] + target * (bounds[1] - bounds[0])
        doublings = (needed - made[last][count]["value"]) / pace[count]
        text += (
            f"For {target:.0%} retention, {_tokens(count)} would have to answer {needed:.1%}: at "
            f"that pace, {doublings:.1f} more doublings, {last * 2**doublings / 1e6:.1f} million images. "
        )
    text += "Both are extrapolations."
    return table(columns, cells, "r" * len(columns)) + "\n" + fill(text) + "\n"


def _tokens(count: str) -> str:
    return f"{count} token{'s' * (count != '1')}"


def _bytes_of_a_token(model: str | None) -> int:
    """Return the bytes of keys and values of one token in 16 bits; None is the embedded model."""
    decoder = read_model(model).decoder
    return decoder.cache([1] * len(decoder.layers), 1, 2)


def _rows(found: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["what"]: row for row in found["rows"]}


def _accuracy(found: Mapping[str, Any]) -> str:
    """Return the table of accuracy and retention: the dense model, the last runs, then the first ones."""
    rows = _rows(found)
    trained = [name for name in rows if _run(name).removesuffix(LONGER) in ("press", *RIVALS)]
    first = [name for name in trained if not _run(name).endswith(LONGER)]
    last = [name for name in trained if name not in first]
    size = (found.get("times") or {}).get("bytes", {})
    cells: list[list[str]] = []
    for name in [*(name for name in rows if name in DENSE), *last, *first]:
        row, title = rows[name], _title(name)
        if found.get("longer") and name in first:
            steps = found["recipe"]["steps"] if _run(name) == "press" else found["rival_steps"]
            title += f", after its first {steps:,} steps"
        count = "dense" if name == "dense:dense" else name.partition(":")[2] or "1"
        kv = f"{size[count] / 1024:,.0f} KB" if count in size else ""
        shares = [row.get(key) for key in ("accuracy", "retention", "ratio")]
        cells.append([title, kv, *("" if share is None else share_text(share) for share in shares)])
    return table(["what", "KV of an image", "accuracy", "retention", "ratio"], cells, "lrrrr")


def _run(name: str) -> str:
    return name.partition(":")[0]


def _title(name: str) -> str:
    if name in DENSE:
        return DENSE[name]
    rival = _run(name).removesuffix(LONGER)
    if rival in RIVALS:
        return f"{RIVALS[rival]}, trained on as many questions"
    count = name.partition(":")[2]
    return f"VoCo, {_tokens(count)}"


def _differences(found: Mapping[str, Any]) -> list[str]:
    """Return one sentence per rival: by how much one VoCo token is ahead."""
    row = _rows(found).get(f"press{LONGER}:1" if found.get("longer") else "press:1", {})
    titles = {"over_pool": "average pooling", "over_qformer": "the Q-Former"}
    return [
        f"One VoCo token less {title}, paired by question: {points_text(row[key])}.\n"
        for key, title in titles.items()
        if key in row
    ]


def _distillation(found: Mapping[str, Any]) -> str:
    """Return the table of runs that continued with and without the dense model's distribution."""
    rows = _rows(found)
    counts = [name.partition(":")[2] for name in rows if _run(name) == "distil"]
    cells = [
        [
            count,
            *(f"{rows[f'{run}:{count}']['accuracy']['value']:.1%}" for run in ("press", "plain", "distil")),
            points_text(rows[f"distil:{count}"]["over_plain"], unit=""),
        ]
        for count in counts
    ]
    columns = ["tokens", "before", "cross-entropy", "half cross-entropy, half distillation", "difference"]
    return (
        f"{found['further']} more steps after the first {found['recipe']['steps']:,}, at a quarter of the learning "
        f"rate:\n\n{table(columns, cells, 'rrrrr')}"
    )


def _clips(found: Mapping[str, Any]) -> str:
    """Return the table of questions about clips, with frames in order and shuffled."""
    cells = [
        [
            str(row["tokens"]),
            title,
            *(f"{row[skill][order]['value']:.1%}" for order in ("in_order", "shuffled")),
            points_text(row[skill]["difference"], unit=""),
            f"{found['commonest_answer'][skill]:.1%}",
        ]
        for row in found["rows"]
        for skill, title in CLIP_QUESTIONS.items()
    ]
    columns = ["tokens per frame", "question", "in order", "shuffled", "difference", "most common answer"]
    return (
        f"{found['clips']} test clips of {found['frames']} frames; an answer counts if it is exactly right:\n\n"
        + table(columns, cells, "rlrrrr")
    )


def stream_part(found: Mapping[str, Any]) -> str:
    """Return the tables of memories of streams: answers, then bytes and times beside all visual tokens."""
    memories = {"1": "1 token", "8": "8 tokens", "visual": f"{found['visual_tokens']} visual tokens"}
    cells = [
        [
            str(row["segments"]),
            STREAM_QUESTIONS[row["skill"]],
            *(share_text(row[name]["in_order"]) for name in memories),
            *(points_text(row[name]["difference"], unit="") for name in memories),
            f"{row['commonest_answer']:.0%}",
        ]
        for row in found["answers"]
    ]
    titles = [*memories.values(), *(f"{name}: in order less shuffled" for name in memories.values())]
    columns = ["segments", "question", *titles, "most common answer"]
    sizes = [[str(row["segments"]), *(_kilobytes(row[name]) for name in ("dense", "1", "8"))] for row in found["bytes"]]
    heads = ["segments", "all visual tokens", "1 token per segment", "8 tokens per segment"]
    parts = [
        f"{found['clips']} clips of each kind and length; an answer counts if it is exactly right:\n",
        table(columns, cells, "rl" + "r" * (len(columns) - 2)),
        "Keys and values of a stream that grew by `append`; every segment takes as much as the first:\n",
        table(heads, sizes, "r" * len(heads)),
    ]
    if found.get("times"):
        parts += [
            "Processor time, as a share of that with all visual tokens in the cache: to the first token of an answer,\n"
            "and to read one more segment, the encoder left out:\n",
            _stream_times(found["times"]),
        ]
    return "\n".join(parts)


def _stream_times(found: Mapping[str, Any]) -> str:
    """Return the table of processor times beside those with all visual tokens in the cache."""
    cells = [
        [str(row["segments"]), *(f"{row['question'][name]:.1%}" for name in ("1", "8")), f"{row['segment']:.0%}"]
        for row in found["rows"]
    ]
    heads = ["segments", "a question, 1 token per segment", "8 tokens per segment", "one more segment"]
    return table(heads, cells, "r" * len(heads))


def _kilobytes(size: float) -> str:
    return f"{size / 1024:,.0f} KB"


def _times(found: Mapping[str, Any]) -> str:
    took, share = found["milliseconds"], found["second_question_over_cached"]
    cells = [
        ["dense, nothing cached", f"{took['dense']:.1f} ms"],
        ["dense, the image's 576 keys and values cached", f"{took['cached']:.1f} ms"],
        ["one VoCo token cached", f"{took['voco']:.1f} ms, {share:.0%} of the row above (median of turns)"],
        ["one VoCo token, on the first question", f"{took['voco_first']:.1f} ms"],
    ]
    return table(["to the first token of an answer", "processor time"], cells, "lr")
