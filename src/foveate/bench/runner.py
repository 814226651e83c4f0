"""Run a benchmark: all configurations on a chunk of images, then the next, so that all share the machine's load."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import time
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import NoneType
from typing import Any

import torch
from torch import nn

from foveate.arguments import check_kind
from foveate.bench.answers import Asker, Prompts
from foveate.bench.configurations import DENSE, name_of
from foveate.bench.environment import environment
from foveate.bench.metrics import measure, metrics_text
from foveate.bench.processes import Place, chunks_of, places, share_folder, wait_for
from foveate.bench.report import markdown
from foveate.bench.results import Part, Prediction, ResultsFolder
from foveate.bench.scoring import Metric, scoring_of
from foveate.bench.tasks import Task, TaskClip, TaskImage
from foveate.bench.times import comparable_parts
from foveate.devices import placement_of
from foveate.engine import Encoded
from foveate.engine.timing import now
from foveate.errors import FoveateError, KeepError
from foveate.families.prompt_check import prompt_layouts
from foveate.files import remove_folder
from foveate.fingerprint import answering_fingerprint, learned_fingerprint
from foveate.numbers import Between, check_real, check_whole
from foveate.schedule import count_tokens, schedule
from foveate.spec import Spec, SpecLike, as_spec, spec_list

CHUNK = 8
"""Images that are encoded and answered together if no batch is set; few, so that an interruption loses little."""

Progress = Callable[[str, int, int], None]
"""A callback for progress: what runs now, how many parts are done, and how many there are."""


def _quiet(what: str, done: int, whole: int) -> None:
    """Report no progress."""


class Benchmark:
    """Measure configurations of one model on one task, and write a results folder.

    Args:
        model: of a supported family, in evaluation mode.
        processor: its own.
        task: images with questions.
        specs: one configuration, or a list with one per item; each as text, a `Spec`, a method object, or a list of
            these whose steps act one after another. Dense is always measured.
        out: the results folder; None names it after the task and the config, inside `results`.
        longest: the most tokens that an answer may have; None is the task's own number.
        command: the command line, for the report.
        budgets: by configuration, the budget that tables show it under if its keep isn't it.
        batch: how many images and prompts the model gets at once, padded on the left to one length. None is 8 images,
            of which those whose prompts are equally long go together, and their questions with little padding.
        revision: the commit of a model on the hub, for the results.
        greedy: decode without the model's own generation configuration, which every row obeys otherwise.
        prompt: what is asked: a text in which `{question}` stands for the question; None is the task's own.
        score: the name of a metric (`foveate.bench.scoring`), or a function of a `Response`; None is the task's own.
        system: what the model is told before each picture, as its chat template puts it; "" for nothing.

    Raises:
        FoveateError: a configuration doesn't work on this model or on these images, or the folder holds something
            else. Nothing is written then.
        UnsupportedFamily: the model is of no supported family.

    >>> import foveate
    >>> from foveate.bench import scenes
    >>> from foveate.methods import Cluster
    >>> model, processor = foveate.reference()
    >>> benchmark = Benchmark(model, processor, scenes(20), [Cluster(keep=64), "fastv:0.5@2"])
    >>> list(benchmark.specs), benchmark.parts
    (['dense', 'cluster:64', 'fastv:0.5@2'], 3)

    `benchmark.run()` then answers all questions, writes the folder and returns what metrics.json holds.
    """

    def __init__(
        self,
        model: nn.Module,
        processor: Any,
        task: Task,
        specs: SpecLike | Iterable[SpecLike],
        out: str | Path | None = None,
        longest: int | None = None,
        command: str = "",
        budgets: Mapping[str, float] | None = None,
        batch: int | None = None,
        revision: str | None = None,
        greedy: bool = False,
        prompt: str | None = None,
        score: str | Metric | None = None,
        system: str = "",
    ) -> None:
        check_kind("task", task, Task, "a task, such as foveate.bench.jsonl returns")
        prompt, score = task.prompt if prompt is None else prompt, task.score if score is None else score
        longest = task.longest if longest is None else longest
        check_kind("prompt", prompt, str, 'text with "{question}" in it')
        check_kind("system", system, str, "text")
        check_kind("command", command, str, "text")
        check_kind("revision", revision, (str, NoneType), "the commit of a model, as text")
        check_kind("budgets", budgets, (Mapping, NoneType), "a mapping of configurations to budgets")
        for name, budget in (budgets or {}).items():
            check_real(f"the budget of {name}", budget, Between(0))
        check_kind("greedy", greedy, bool, "True or False")
        longest = check_whole("longest", longest, Between(1))
        batch = None if batch is None else check_whole("batch", batch, Between(1))
        check_kind("out", out, (str, Path, NoneType), "the path of a folder")
        out = None if out is None else Path(out)
        every = [asked for picture in task.pictures for asked in picture.questions]
        self.scoring = scoring_of(score).ready(asked.response() for asked in every)
        self.scoring.score(every[0].response(every[0].answers[0]))
        self.asker = Asker(model, processor, longest, batch, greedy, prompt, system.strip())
        self._others = {
            "longest": longest,
            "budgets": budgets,
            "batch": batch,
            "revision": revision,
            "greedy": greedy,
            "prompt": prompt,
            "score": score,
            "system": system,
        }
        self.placement = placement_of(model)
        self.model = model
        self.task = task
        self.command = command
        self.budgets = dict(budgets or {})
        read = [DENSE, *(as_spec(spec) for spec in spec_list(specs))]
        self.specs = {name_of(spec): spec for spec in read}
        if unknown := sorted(map(str, self.budgets.keys() - self.specs.keys())):
            raise FoveateError(f"budgets name {', '.join(unknown)}, and the specs are {', '.join(self.specs)}")
        self.encoding = {name: schedule(spec, self.asker.family).encoding for name, spec in self.specs.items()}
        found = {name: [learned_fingerprint(step.method) for step in spec.steps] for name, spec in self.specs.items()}
        learned = {name: prints for name, prints in found.items() if any(prints)}
        self.config = {
            "task": task.name,
            "data": task.digest,
            "images": len(task.pictures),
            "questions": task.questions,
            "model": answering_fingerprint(model, processor),
            "specs": list(self.specs),
            **({"budgets": self.budgets} if self.budgets else {}),
            "longest_answer": longest,
            "decoding": self.asker.decoding.to_dict(),
            "prompt": self.asker.prompt,
            **({"system": self.asker.system} if self.asker.system else {}),
            "scoring": self.scoring.name,
            **({"scoring_code": self.scoring.code} if self.scoring.code else {}),
            **({"adapters": learned} if learned else {}),
            **self.placement.to_dict(),
            "batch": batch,
            "revision": revision,
            "versions": {name: importlib.metadata.version(name) for name in ("foveate", "torch", "transformers")},
        }
        digest = hashlib.sha256(json.dumps(self.config, sort_keys=True).encode()).hexdigest()[:8]
        self.folder = ResultsFolder(out or Path("results") / f"{task.name}-{task.questions}-{digest}", self.config)
        self._numbers: list[int] = []
        total = 0
        for picture in task.pictures:
            self._numbers.append(total)
            total += len(picture.questions)
        self._size = size = batch or CHUNK
        self._chunks = [task.pictures[start : start + size] for start in range(0, len(task.pictures), size)]
        self.done = len(self.folder.parts())
        first = task.pictures[0]
        self._first = [self.asker.prompts(replace(first, questions=first.questions[:1]))]
        if not self.folder.whole:
            self._refuse_more_than_there_is()
            self.asker.check(task.pictures)

    @property
    def parts(self) -> int:
        """The number of parts: each configuration on each chunk of images."""
        return len(self.specs) * len(self._chunks)

    def run(self, tell: Progress = _quiet) -> dict[str, Any]:
        """Measure the parts that are missing, and write the results folder.

        Args:
            tell: is called with the progress.

        Returns:
            What metrics.json holds.

        Raises:
            FoveateError: a configuration doesn't work on one of the images; finished parts stay on the disk.
        """
        with self.folder:
            return self.folder.metrics() if self.folder.whole else self._measure(tell)

    def share(self, place: Place) -> Benchmark | None:
        """Return the benchmark of what one of several processes measures; None if it has no chunk.

        It has a results folder of its own beside this one; `gather` reads it.
        """
        own = chunks_of(place, len(self._chunks))
        pictures = tuple(picture for number in own for picture in self._chunks[number])
        if not pictures:
            return None
        digest = f"{self.task.digest}, share {place.rank} of {place.world}"
        task = replace(self.task, pictures=pictures, digest=digest, floor=None)
        specs = [spec for spec in self.specs.values() if spec.steps]
        out = share_folder(self.folder.path, place)
        return Benchmark(self.model, self.asker.processor, task, specs, out, command=self.command, **self._others)

    def gather(self, world: int, tell: Progress = _quiet) -> dict[str, Any]:
        """Wait for all processes, put what they measured together, and write the results folder.

        Returns:
            What metrics.json holds.
        """
        busy = [place for place in places(world) if chunks_of(place, len(self._chunks))]
        folders = [share_folder(self.folder.path, place) for place in busy]
        wait_for(folders)
        with self.folder:
            if self.folder.whole:
                return self.folder.metrics()
            there = {(part.spec, part.chunk) for part in self.folder.parts()}
            for place in busy:
                share = self.share(place)
                assert share is not None
                self._take(share, chunks_of(place, len(self._chunks)), there)
            metrics = self._measure(tell)
        for folder in folders:
            remove_folder(folder)
        return metrics

    def _take(self, share: Benchmark, numbers: Sequence[int], there: Container[tuple[str, int]]) -> None:
        """Add the parts of one process to this run, chunk by chunk, with the numbers that they have here."""
        answers: dict[tuple[str, int], Prediction] = {
            (each.spec, each.number): each for each in share.folder.predictions()
        }
        for part in share.folder.parts():
            whole = numbers[part.chunk]
            if (part.spec, whole) in there:
                continue
            begin = share._numbers[part.chunk * self._size]
            first = self._numbers[whole * self._size]
            count = sum(len(picture.questions) for picture in self._chunks[whole])
            own = [replace(answers[part.spec, begin + n], number=first + n) for n in range(count)]
            self.folder.add(replace(part, chunk=whole), own)

    def _measure(self, tell: Progress) -> dict[str, Any]:
        began = time.monotonic()
        done = {(part.spec, part.chunk) for part in self.folder.parts()}
        self._warm_up()
        for chunk, pictures in enumerate(self._chunks):
            missing = [name for name in self.specs if (name, chunk) not in done]
            self._chunk(chunk, pictures, missing, len(done), tell)
            done |= {(name, chunk) for name in missing}
        if not comparable_parts(self.folder.parts(), self.specs):
            # Each chunk was interrupted, so no times belong together: the first chunk is timed again as a whole.
            self._chunk(0, self._chunks[0], list(self.specs), len(done) - len(self.specs), tell)
        floor = self._floor(tell)
        order = {name: number for number, name in enumerate(self.specs)}
        predictions = sorted(self.folder.predictions(), key=lambda each: (order[each.spec], each.number))
        parts = self.folder.parts()
        metrics = measure(self.task, self.specs, predictions, parts, floor, self.budgets, self.scoring.figures)
        flops = self._flops()
        for row in metrics["configurations"]:
            row["flops"] = flops.get(row["spec"])
        metrics |= {**self.placement.to_dict(), "batch": self.asker.batch}
        metrics |= {
            "decoding": self.asker.decoding.title,
            "prompt": self.asker.prompt,
            **({"system": self.asker.system} if self.asker.system else {}),
            "scoring": {"name": self.scoring.name, "title": self.scoring.title},
            "longest_answer": self.asker.longest,
        }
        where = environment(self.asker.device, time.monotonic() - began)
        texts = {
            "metrics.json": metrics_text(metrics),
            "environment.json": json.dumps(where, indent=1) + "\n",
            "table.md": markdown(metrics, self.command),
        }
        self.folder.finish(predictions, texts)
        return metrics

    def _floor(self, tell: Progress) -> dict[str, float] | None:
        if self.task.floor is None:
            return None
        tell("question-only floor", self.parts, self.parts)
        return self.task.floor()

    def _flops(self) -> dict[str, float]:
        """Return the FLOPs of the prefill of the first question, by configuration; those that the cost model knows."""
        from foveate.costmodel import cost, read_model

        found: dict[str, float] = {}
        first = self.task.pictures[0]
        if isinstance(first, TaskClip):
            return found
        try:
            model = read_model(self.asker.family.config)
        except FoveateError:
            return found
        text = int((~self.asker.family.placeholders(torch.tensor(self._first[0].rows[0]))).sum())
        size = first.load().size
        for name, spec in self.specs.items():
            with suppress(FoveateError):
                given = cost(model, spec, images=[size], text_tokens=text, new_tokens=1)
                found[name] = given.part("prefill").flops
        return found

    # The work

    def _chunk(
        self, chunk: int, pictures: Sequence[TaskImage | TaskClip], missing: Sequence[str], done: int, tell: Progress
    ) -> None:
        """Measure the missing configurations on some images; each way of encoding runs once."""
        if not missing:
            return
        prompts = [self.asker.prompts(picture) for picture in pictures]
        # Each chunk begins with another configuration, so that none is always timed first.
        turn = chunk * (len(missing) // len(self._chunks) + 1) % len(missing)
        missing = [*missing[turn:], *missing[:turn]]
        for encoding in dict.fromkeys(self.encoding[name] for name in missing):
            names = [name for name in missing if self.encoding[name] == encoding]
            encoded, signals = self._encode(prompts, [self.specs[name] for name in names])
            for name in names:
                tell(name, done, self.parts)
                self._part(name, chunk, pictures, prompts, encoded, signals)
                done += 1
        tell("", done, self.parts)

    def _encode(self, prompts: Sequence[Prompts], specs: Sequence[Spec]) -> tuple[Encoded, float]:
        """Return the encoded images, and the milliseconds that signals took beside the encoder."""
        began = now(self.asker.devices)
        with torch.inference_mode():
            encoded = self.asker.encode(prompts, specs)
        return encoded, max(0.0, (now(self.asker.devices) - began) * 1e3 - encoded.milliseconds)

    def _part(
        self,
        name: str,
        chunk: int,
        pictures: Sequence[TaskImage | TaskClip],
        prompts: Sequence[Prompts],
        encoded: Encoded,
        signals: float,
    ) -> None:
        spec = self.specs[name]
        try:
            answered = self.asker.answer(prompts, spec, encoded)
        except FoveateError as error:
            raise FoveateError(f"{name} on {pictures[0].name} to {pictures[-1].name}: {error}") from None
        answered.spent.encoder = encoded.milliseconds
        if schedule(spec, self.asker.family).encoder_signals:
            # A method is charged for its signals; with several signals in one run this is an upper bound.
            answered.spent.compressor += signals
        predictions = []
        for offset, picture in enumerate(pictures):
            first = self._numbers[chunk * self._size + offset]
            said = zip(picture.questions, answered.texts[offset], answered.cut[offset], strict=True)
            for number, (asked, text, cut) in enumerate(said, start=first):
                score = self.scoring.score(asked.response(text.strip()))
                answer = " | ".join(dict.fromkeys(asked.answers))
                predictions.append(
                    Prediction(
                        name,
                        number,
                        picture.name,
                        asked.skill,
                        asked.text,
                        answer,
                        text.strip(),
                        score == 1,
                        score,
                        cut,
                        asked.id,
                    )
                )
        before, after, mean = (sum(each) for each in (answered.before, answered.after, answered.mean))
        self.folder.add(Part(name, chunk, before, after, answered.spent, mean), predictions)

    def _refuse_more_than_there_is(self) -> None:
        """Check budgets against the first image, before the encoder runs and anything is written."""
        first = self._first[0]
        layouts = prompt_layouts(self.asker.family, {**first.pixels, "input_ids": torch.tensor([first.rows[0]])})
        for name, spec in self.specs.items():
            try:
                count_tokens(schedule(spec, self.asker.family), self.asker.family, layouts[0])
            except KeepError:
                # It names the spec.
                raise
            except FoveateError as error:
                raise FoveateError(f"{name}: {error}") from None

    def _warm_up(self) -> None:
        """Answer one question dense, so that one-time costs aren't charged to the first part."""
        encoded, _ = self._encode(self._first, [DENSE])
        self.asker.answer(self._first, DENSE, encoded)
