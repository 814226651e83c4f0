"""Search the cheapest spec that is good enough on a model and a task, and verify it on questions that are held out."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from foveate.bench.answers import Asker
from foveate.bench.configurations import CLIP_BASELINES, DENSE, IMAGE_BASELINES, name_of
from foveate.bench.front import front
from foveate.bench.results import Prediction
from foveate.bench.runner import CHUNK, Benchmark
from foveate.bench.scoring import Metric
from foveate.bench.tasks import Task
from foveate.costmodel import Device
from foveate.costmodel.device import device as device_of
from foveate.costmodel.device import devices
from foveate.devices import placement_of
from foveate.errors import FoveateError
from foveate.families import family_of
from foveate.files import (
    LIST_LIMIT,
    LOCK,
    OWNER,
    PARTIAL,
    DamagedFile,
    FolderLock,
    check_writable_folder,
    files_in,
    is_file,
    kind_of,
    read_json_object,
    shown_path,
    write_json,
    write_text,
)
from foveate.fingerprint import answering_fingerprint
from foveate.keep import Keep
from foveate.numbers import Between, check_real, check_whole
from foveate.spec import Spec, SpecLike, parse
from foveate.tune.calls import answer_length, at_hand, calls_of, device_like
from foveate.tune.candidates import LeftOut, possible, proposed
from foveate.tune.parts import part_of, parts_of
from foveate.tune.race import Answers, Standing, choice, race, rounds_of
from foveate.tune.tables import markdown
from foveate.tune.verdict import judged, needed, sentences

__all__ = ["FINALISTS", "Search", "check_search_folder"]

FINALISTS: Final = 6
"""How many specs the last round leaves."""
HELD_OUT: Final = "held-out"
RESULT: Final = "tune.json"
_CONFIG: Final = "search.json"

Progress = Callable[[str, int, int], None]


def _quiet(what: str, done: int, whole: int) -> None:
    """Report no progress."""


class Search:
    """Search for the cheapest spec that loses no more than a bound.

    Args:
        model: of a supported family, in evaluation mode.
        processor: its own.
        task: images with questions.
        max_drop: how much of the accuracy may be lost: 0.01 is one point.
        out: the folder of the search; None names it after the task and the config, inside `results`.
        device: what times are predicted for: a name or a `Device` as in `foveate.cost`. Measured times decide if the
            model is there, and predicted ones if it is elsewhere. None is the device that the model is on.
        methods: names, with commas between them; None is every method without weights of its own.
        places: where each is tried, with commas between them; `foveate.tune.candidates.proposed` says how.
        keep: budgets, with commas between them; None is a half, a quarter and a tenth.
        specs: further candidates, also if they are predicted to save no time.
        finalists: how many specs the last round leaves.
        held_out: the share of the images that judge the choice.
        seed: of the draw that parts the images.
        new_tokens: of an answer, for predicted times; None is what the right answers have.
        longest, command, batch, revision, greedy, prompt, score, system: as for `foveate.bench.Benchmark`.

    Raises:
        FoveateError: a number makes no sense, there are too few images, nothing is left to search, the cost model
            doesn't know the model, or the folder holds something else. Nothing is written then.

    >>> import foveate
    >>> from foveate.bench import scenes
    >>> model, processor = foveate.reference()
    >>> search = Search(model, processor, scenes(200), 0.05, device="laptop", methods="cluster,stride", keep="0.5,0.25")
    >>> [name for name in search.candidates]
    ['cluster:0.5', 'cluster:0.25', 'stride:0.5', 'stride:0.25']
    """

    def __init__(
        self,
        model: nn.Module,
        processor: Any,
        task: Task,
        max_drop: float = 0.01,
        out: str | Path | None = None,
        *,
        device: str | Device | None = None,
        methods: str | None = None,
        places: str | None = None,
        keep: str | None = None,
        specs: Iterable[SpecLike] = (),
        finalists: int = FINALISTS,
        held_out: float = 0.5,
        seed: int = 0,
        new_tokens: int | None = None,
        longest: int | None = None,
        command: str = "",
        batch: int | None = None,
        revision: str | None = None,
        greedy: bool = False,
        prompt: str | None = None,
        score: str | Metric | None = None,
        system: str = "",
    ) -> None:
        self.max_drop = check_bound(max_drop)
        check_whole("finalists", finalists, Between(1, 100))
        self.task = task
        self.parts = parts_of(task, held_out, seed)
        self.model, self.processor, self.command = model, processor, command
        self.placement = placement_of(model)
        self.device = device_of(device_like(self.placement, devices()) if device is None else device)
        self.measured = device is None or at_hand(self.device.name, self.placement)
        longest = task.longest if longest is None else longest
        self._options: dict[str, Any] = {
            "longest": longest,
            "batch": batch,
            "revision": revision,
            "greedy": greedy,
            "prompt": prompt,
            "score": score,
            "system": system,
        }
        family = family_of(model)
        given = list(specs)
        self.clips = task.clips == len(task.pictures) and bool(family.clip_places)
        asked, self.left_out = proposed(family.decoder_depth, methods, places, keep, given, self.clips)
        prompt = task.prompt if prompt is None else prompt
        asker = Asker(model, processor, longest, batch, greedy, prompt, system.strip())
        first = asker.prompts(part_of(self.parts.search, 0, 1).pictures[0]).rows[0]
        text = int((~family.placeholders(torch.tensor(first))).sum())
        answer = answer_length(task, processor, longest) if new_tokens is None else new_tokens
        dtype = self.placement.dtype if self.measured else None
        self.calls = calls_of(task, family.config, self.device, text, answer, batch, dtype)
        always = proposed(family.decoder_depth, "none", None, keep, given)[0] if given else ()
        kept, without = possible(asked, self.calls, set(map(name_of, always)))
        self.left_out += without
        self.candidates = {name_of(spec): spec for spec in kept}
        if not self.candidates:
            raise FoveateError(f"nothing is left to search: {left_out_text(self.left_out)}")
        self.seconds = {name_of(DENSE): self.calls.seconds(None)}
        self.seconds |= {name: self.calls.seconds(spec) for name, spec in self.candidates.items()}
        self.rounds = rounds_of(len(self.candidates), len(self.parts.search.pictures), finalists)
        versions = {name: importlib.metadata.version(name) for name in ("foveate", "torch", "transformers")}
        config = {
            "task": task.name,
            "data": task.digest,
            "model": answering_fingerprint(model, processor),
            "max_drop": self.max_drop,
            "held_out": held_out,
            "seed": seed,
            "target": asdict(self.device),
            "measured": self.measured,
            "answer": answer,
            "candidates": list(self.candidates),
            "rounds": [asdict(each) for each in self.rounds],
            **{name: value for name, value in self._options.items() if name != "score"},
            "score": score if isinstance(score, str) or score is None else getattr(score, "__name__", "metric"),
            **self.placement.to_dict(),
            "versions": versions,
        }
        self.config: dict[str, Any] = json.loads(json.dumps(config))
        self.folder = Path(out) if out is not None else Path("results") / f"tune-{task.name}-{_digest(self.config)}"
        check_search_folder(self.folder)
        self._check_config()
        self._metrics: dict[str, Any] = {}

    def run(self, tell: Progress = _quiet) -> dict[str, Any]:
        """Run what is missing of the search, and write its result.

        Args:
            tell: is called with what is measured now, how many parts are done, and how many there are at most.

        Returns:
            What `tune.json` holds.

        Raises:
            FoveateError: a spec doesn't work on one of the images, or the folder can't be written; what is finished
                stays.
        """
        with FolderLock(self.folder, "wait for it, or name another folder with --out"):
            if not is_file(self.folder / _CONFIG):
                write_json(self.folder / _CONFIG, self.config)
            history = race(list(self.candidates), self.seconds, self.rounds, self.max_drop, self._asker(tell))
            result = self._judge(history, self._metrics, tell)
            write_json(self.folder / RESULT, result)
            write_text(self.folder / "table.md", markdown(result))
        return result

    # The rounds

    def _asker(self, tell: Progress) -> Callable[[int, Sequence[str]], Answers]:
        def ask(number: int, names: Sequence[str]) -> Answers:
            benchmark = self._round(number, names)
            self._metrics = self._measured(benchmark, f"round {number + 1} of {len(self.rounds)}:", number, tell)
            return _answers(benchmark.folder.predictions(), number)

        return ask

    def _round(self, number: int, names: Sequence[str]) -> Benchmark:
        each = self.rounds[number]
        task = part_of(self.parts.search, each.begin, each.end)
        return self._benchmark(task, [self.candidates[name] for name in names], f"round-{number + 1}")

    def _benchmark(
        self, task: Task, specs: Sequence[Spec], folder: str, budgets: Mapping[str, float] | None = None
    ) -> Benchmark:
        options = {**self._options, "budgets": dict(budgets or {})}
        return Benchmark(
            self.model, self.processor, task, list(specs), self.folder / folder, command=self.command, **options
        )

    def _measured(self, benchmark: Benchmark, where: str, number: int, tell: Progress) -> dict[str, Any]:
        """Run a benchmark, and tell of its parts among those of the whole search."""
        before, whole = sum(self._sizes[:number]), sum(self._sizes)
        return benchmark.run(lambda what, done, _: tell(f"{where} {what}".strip(": "), before + done, whole))

    @property
    def _sizes(self) -> list[int]:
        """How many parts each round has, and the held-out questions at most: dense, finalists and baselines."""
        size = self._options["batch"] or CHUNK
        fields = [len(self.candidates), *(each.stay for each in self.rounds)]
        fields[-1] += len(CLIP_BASELINES if self.clips else IMAGE_BASELINES)
        images = [each.end - each.begin for each in self.rounds] + [len(self.parts.held_out.pictures)]
        return [(field + 1) * math.ceil(count / size) for field, count in zip(fields, images, strict=True)]

    # The held-out questions

    def _judge(
        self, history: Sequence[Sequence[Standing]], metrics: Mapping[str, Any], tell: Progress
    ) -> dict[str, Any]:
        finalists = [each for each in history[-1] if each.stays]
        rows = {row["spec"]: row for row in metrics["configurations"]}
        chosen = choice(finalists, {each.name: self._ratio(rows, each.name) for each in finalists})
        baselines, lacking = self._baselines(self.candidates[chosen.name], rows[chosen.name]["tokens"])
        specs = {each.name: self.candidates[each.name] for each in finalists} | baselines
        tokens = rows[chosen.name]["tokens"]["mean_over_layers"]
        budgets: dict[str, float] = dict.fromkeys((chosen.name, *baselines), float(tokens))
        benchmark = self._benchmark(self.parts.held_out, list(specs.values()), HELD_OUT, budgets)
        measured = self._measured(benchmark, "held-out questions:", len(self.rounds), tell)
        dense = name_of(DENSE)
        found = []
        predicted = self.seconds | {name: self.calls.seconds(spec) for name, spec in specs.items()}
        for row in measured["configurations"]:
            name = row["spec"]
            ratios = {"predicted": predicted[name] / predicted[dense], "measured": row["time_ratio"]["total"]}
            found.append(
                {
                    "spec": name,
                    "baseline": row["baseline"],
                    "finalist": name in {each.name for each in finalists},
                    "tokens": row["tokens"],
                    "accuracy": row["accuracy"],
                    "difference": row["difference"],
                    "judgement": "within" if name == dense else judged(row["difference"], self.max_drop),
                    "against": row["against"],
                    "seconds": {"predicted": predicted[name], "measured": row["time_ms"]["total"] / 1e3},
                    "ratios": ratios,
                    "time_ratio": ratios["measured" if self.measured else "predicted"],
                }
            )
        (own,) = (row for row in found if row["spec"] == chosen.name)
        on_front = front({row["spec"]: (row["time_ratio"], row["accuracy"]["value"]) for row in found})
        for row in found:
            row["front"] = row["spec"] in on_front
        return {
            "task": self.task.name,
            "max_drop": self.max_drop,
            "device": {"name": self.device.name, "title": self.device.title, "measured": self.device.measured},
            "where": self.placement.title,
            "measured": self.measured,
            "answer": self.config["answer"],
            "search": _size(self.parts.search),
            "held_out": _size(self.parts.held_out),
            "candidates": len(self.candidates),
            "left_out": [asdict(each) for each in (*self.left_out, *lacking)],
            "rounds": [self._told(number, standings) for number, standings in enumerate(history)],
            "chosen": {
                "spec": chosen.name,
                "chance": chosen.chance,
                "difference": chosen.difference.to_dict(),
                "needed": needed(own["difference"], _size(self.parts.held_out), self.max_drop),
            },
            "rows": found,
            "front": list(on_front),
            "command": self.command,
        }

    def _ratio(self, rows: Mapping[str, Any], name: str) -> float:
        """Return the time of a spec relative to dense: what the last round measured, or what is predicted."""
        if self.measured:
            return rows[name]["time_ratio"]["total"]
        return self.seconds[name] / self.seconds[name_of(DENSE)]

    def _baselines(self, chosen: Spec, tokens: Mapping[str, float]) -> tuple[dict[str, Spec], tuple[LeftOut, ...]]:
        """Return the baselines with as many tokens as the chosen spec, and those that the model can't do."""
        keep = _keep_like(chosen, tokens)
        names = CLIP_BASELINES if self.clips else IMAGE_BASELINES
        specs = [parse(f"{name}:{keep}") for name in names]
        found, lacking = possible(specs, self.calls, set(map(name_of, specs)))
        return {name_of(spec): spec for spec in found}, lacking

    def _told(self, number: int, standings: Sequence[Standing]) -> dict[str, Any]:
        whole = part_of(self.parts.search, 0, self.rounds[number].end)
        rows = [
            {
                "spec": each.name,
                "difference": each.difference.to_dict(),
                "chance": each.chance,
                "saving": each.saving,
                "expected": each.expected,
                "stays": each.stays,
            }
            for each in standings
        ]
        return {"round": number + 1, **_size(whole), "candidates": rows}

    def _check_config(self) -> None:
        file = self.folder / _CONFIG
        if not is_file(file):
            return
        try:
            held = read_json_object(file, limit=LIST_LIMIT)
        except DamagedFile as error:
            raise FoveateError(f"{error}; remove its folder, or name another one with --out") from None
        if held != self.config:
            other = sorted(key for key in {*self.config, *held} if held.get(key) != self.config.get(key))
            raise FoveateError(
                f"{shown_path(self.folder)} holds another search (different {', '.join(other)}), and nothing is "
                "overwritten; name another folder with --out, or remove this one"
            )


def check_bound(max_drop: float, name: str = "max_drop") -> float:
    """Check the most that may be lost, which errors call by this name.

    Raises:
        FoveateError: it is no share of the accuracy.

    >>> check_bound(5)
    Traceback (most recent call last):
    foveate.errors.FoveateError: max_drop is 5; give a share of the accuracy above 0 and below 1: 0.01 is one point
    """
    value = check_real(name, max_drop)
    if not 0 < value < 1:
        raise FoveateError(f"{name} is {value:g}; give a share of the accuracy above 0 and below 1: 0.01 is one point")
    return value


def check_search_folder(path: Path) -> Path:
    """Check that a search can be written to a folder, or was.

    Raises:
        FoveateError: it holds something else, or can't be written.
    """
    check_writable_folder(path)
    if kind_of(path) != "folder" or is_file(path / _CONFIG):
        return path
    names = {file.name for file in files_in(path)} - {LOCK, OWNER}
    # A kill may have left a file that was being written, and no more.
    if any(not name.endswith(PARTIAL) for name in names):
        raise FoveateError(f"{shown_path(path)} holds something that is no search; name another folder with --out")
    return path


def read_result(folder: Path) -> dict[str, Any] | None:
    """Return what a finished search has found; None if a folder holds none.

    Raises:
        FoveateError: the search isn't finished, or its result is damaged.
    """
    if not is_file(folder / _CONFIG):
        return None
    if not is_file(folder / RESULT):
        raise FoveateError(f"the search in {shown_path(folder)} isn't finished; finish it by the command that began it")
    try:
        found = read_json_object(folder / RESULT, limit=LIST_LIMIT)
        sentences(found)
    except (DamagedFile, LookupError, TypeError, ValueError, AttributeError):
        raise FoveateError(
            f"{shown_path(folder / RESULT)} is damaged; give the command that began the search again, to write it anew"
        ) from None
    return found


def left_out_text(left_out: Iterable[LeftOut]) -> str:
    """Return how many candidates were left out and why, with an example of each kind.

    >>> left_out_text([LeftOut("tome:0.5@encoder", "can't act on this model", "no encoder layers")])
    "1 can't act on this model (tome:0.5@encoder: no encoder layers)"
    """
    kinds: dict[str, list[LeftOut]] = {}
    for each in left_out:
        kinds.setdefault(each.kind, []).append(each)
    return "; ".join(
        f"{len(each)} {kind} ({'such as ' if len(each) > 1 else ''}{each[0].name}: {each[0].why})"
        for kind, each in kinds.items()
    )


def _keep_like(spec: Spec, tokens: Mapping[str, float]) -> Keep:
    """Return the keep of baselines with as many tokens as a spec: its own, or the share of tokens over layers."""
    if len(spec.steps) == 1:
        (step,) = spec.steps
        keep, method = step.method.keep, step.method
        inside = any(isinstance(place, int) for place in step.places)
        plain = not (keep.auto or keep.layers or keep.mean is not None)
        if plain and not inside and method.takes_keep and method.per == "image":
            return keep
    return Keep.of(f"{max(0.0001, tokens['mean_over_layers'] / tokens['before']):.4f}")


def _answers(predictions: Sequence[Prediction], number: int) -> Answers:
    scores: dict[str, list[float]] = {}
    for each in sorted(predictions, key=lambda each: each.number):
        scores.setdefault(each.spec, []).append(each.score)
    dense = sorted((each for each in predictions if each.spec == name_of(DENSE)), key=lambda each: each.number)
    return Answers(scores, [(number, each.image) for each in dense])


def _size(task: Task) -> dict[str, int]:
    return {"images": len(task.pictures), "questions": task.questions}


def _digest(config: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:8]
