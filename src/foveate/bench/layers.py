"""Find the decoder layer from which on a method may act: measure how much it changes the next token, by layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div

from foveate.bench.answers import Asker
from foveate.bench.tasks import TaskClip, TaskImage, TaskQuestion
from foveate.engine import apply
from foveate.errors import FoveateError
from foveate.scenes import scene
from foveate.schedule import last_layer
from foveate.spec import Spec, SpecLike, Step, as_spec


@dataclass(frozen=True)
class LayerEffect:
    """The effect of a method on the first token of the answer if it acts at the input of one layer.

    Attributes:
        layer: of the decoder, counted from zero.
        divergence: KL(compressed, dense) between the two distributions of that token under the model's own generation
            configuration, in nats, mean over questions.
        same: share of questions for which the likeliest token stays the same.
    """

    layer: int
    divergence: float
    same: float


@dataclass(frozen=True)
class LayerSearch:
    """The result of a search.

    Attributes:
        rule: the method as a spec without a layer.
        below: the largest mean divergence that counts as no effect, in nats.
        questions: how many were asked.
        effects: of every layer that was tried, first layer first.
    """

    rule: str
    below: float
    questions: int
    effects: tuple[LayerEffect, ...]

    @property
    def layer(self) -> int | None:
        """The first layer from which on the divergence stays at most `below`; None if there is none."""
        found = None
        for effect in reversed(self.effects):
            if not effect.divergence <= self.below:
                break
            found = effect.layer
        return found

    @property
    def spec(self) -> str | None:
        """The method at that layer, as a spec; None if there is none."""
        return None if self.layer is None else f"{self.rule}@{self.layer}"

    def to_dict(self) -> dict[str, Any]:
        """Return the search as JSON data."""
        return {**asdict(self), "layer": self.layer, "spec": self.spec}


def rule_of(spec: SpecLike) -> Step:
    """Return the step of a spec that has one method and no place.

    Raises:
        SpecError: the spec can't be read.
        FoveateError: it has several steps, or names a place.
    """
    spec = as_spec(spec)
    (step, *more) = spec.steps
    if more:
        raise FoveateError(f"{spec} has several steps; the search takes one rule, for instance vtw")
    if step.places != (step.method.place,):
        raise FoveateError(f"{spec} names its place already; leave it out: {step.method}")
    if step.method.place == "pixels":
        raise FoveateError(f"{step.method.name} acts before the encoder; the search is for rules inside the decoder")
    return step


@torch.inference_mode()
def find_layer(
    model: nn.Module,
    processor: Any,
    rule: SpecLike,
    pictures: Sequence[TaskImage | TaskClip],
    below: float = 0.003,
    step: Callable[[int, int], None] = lambda done, whole: None,
) -> LayerSearch:
    """Try a rule at the input of every decoder layer but the first, on one question about each picture.

    Layers behind one whose keys a later layer reads are left out: no step can drop tokens there.

    Visual Tokens Withdrawal (arXiv 2405.05803) finds its layer like this, on twenty questions. Its authors stop at the
    first layer that is low enough; here all later ones must be, too.

    Args:
        model: of a supported family.
        processor: its processor.
        rule: a spec of one step without a place, such as "vtw", "pool:0.25" or `VTW()`.
        pictures: one question is asked about each: the first about the first, the second about the second, and so on.
        below: the largest mean divergence that counts as no effect, in nats.
        step: is called with the number of finished prefills and of all.

    Raises:
        UnsupportedFamily: the model is of no supported family.
        FoveateError: a question can't be asked, the rule names a place, there is no picture, or the model can't do it.
    """
    method = rule_of(rule).method
    if not pictures:
        raise FoveateError("there is no picture to ask about")
    if not 0 <= below < float("inf"):
        raise FoveateError(f"the divergence must be at least 0 and finite, not {below}")
    asker = Asker(model, processor, longest=1)
    asked = [
        replace(picture, questions=(picture.questions[number % len(picture.questions)],))
        for number, picture in enumerate(pictures)
    ]
    asker.check(asked)
    layers = range(1, last_layer(asker.family) + 1)
    if not layers:
        raise FoveateError("there is no layer to try: later layers of this decoder read the keys of its first one")
    away = torch.zeros(len(layers), dtype=torch.float64)
    same = torch.zeros(len(layers), dtype=torch.float64)
    whole = len(pictures) * (1 + len(layers))
    for number, picture in enumerate(asked):
        prompts = asker.prompts(picture)
        inputs = {**asker.pixels([prompts]), **asker.padded(prompts.rows)}
        ids: Tensor = inputs["input_ids"]
        dense = _next_token(asker, inputs, ids)
        step(number * (1 + len(layers)) + 1, whole)
        for at, layer in enumerate(layers):
            with apply(model, Spec((Step(method, (layer,)),))):
                short = _next_token(asker, inputs, ids)
            away[at] += _divergence(dense, short)
            same[at] += int(dense.argmax()) == int(short.argmax())
            step(number * (1 + len(layers)) + at + 2, whole)
    away, same = away / len(pictures), same / len(pictures)
    effects = (LayerEffect(layer, float(away[at]), float(same[at])) for at, layer in enumerate(layers))
    return LayerSearch(str(method), below, len(pictures), tuple(effects))


def _next_token(asker: Asker, inputs: dict[str, Any], ids: Tensor) -> Tensor:
    """Return the log-probabilities of the first token of the answer, as decoding sees them: `(V,)` float32."""
    logits: Tensor = asker.model(**inputs, use_cache=False, logits_to_keep=1).logits[:, -1]
    return asker.decoding.processed(ids, logits)[0].log_softmax(dim=-1)


def _divergence(dense: Tensor, short: Tensor) -> float:
    """Return KL(short, dense) in nats; tokens that decoding rules out in both count nothing."""
    possible = ~dense.isneginf()
    return float(kl_div(dense[possible], short[possible], reduction="sum", log_target=True).clamp(min=0))


def practice(questions: int) -> Iterator[TaskImage]:
    """Yield scenes of the training split, which no test asks about, one for each question.

    Raises:
        FoveateError: fewer than one is asked for.
    """
    if questions < 1:
        raise FoveateError(f"--questions {questions} asks nothing; ask at least 1")
    for seed in range(questions):
        one = scene(seed)
        yield TaskImage(one.id, one.image, tuple(TaskQuestion(q.text, q.answer, q.skill) for q in one.questions))
