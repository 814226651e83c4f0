"""What methods are told inside the decoder, against what eager attention really did."""

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from rows import Row
from test_contract import dense_positions
from test_depth import keeps_of, masked_inside
from torch import Tensor

from foveate.engine import apply
from foveate.methods import Method
from foveate.models import family_of
from foveate.plan import Plan
from foveate.spec import Spec, Step, parse
from foveate.tokens import (
    Behind,
    DecoderAttention,
    DecoderInput,
    DecoderKeys,
    DecoderLogits,
    RotaryLogits,
    Signal,
    Text,
    VisualTokens,
)

PROMPTS = ("t6 A t5", "t2 B t9 C t3", "t11", "t3 C t4")
NEEDS = (
    *(
        DecoderAttention(rows, layer, heads)
        for rows in ("last", "text")
        for layer in ("here", "previous")
        for heads in ("mean", "each")
    ),
    *(DecoderLogits(layer) for layer in ("here", "previous")),
    *(DecoderKeys(of, layer) for of in ("visual", "text") for layer in ("here", "previous")),
    Text(),
    DecoderInput("visual"),
    DecoderInput("text"),
    RotaryLogits(),
    Behind(),
)


@dataclass(frozen=True)
class Probe(Method):
    """Keeps everything and remembers what it was told."""

    seen: list[VisualTokens] = field(default_factory=list, hash=False)
    name = "probe"

    @property
    def needs(self) -> tuple[Signal, ...]:
        return NEEDS

    def plan(self, tokens: VisualTokens) -> Plan:
        self.seen.append(tokens)
        count = tokens.features.shape[1]
        return Plan(slot=torch.arange(count).expand(tokens.features.shape[0], -1))


def told(model: Any, inputs: dict[str, Any], layer: int, before: str = "", **extra: Any) -> dict[Any, list[Tensor]]:
    """What a probe at a layer is told, per image in prompt order."""
    probe = Probe()
    steps = parse(before).steps if before else ()
    with apply(model, Spec((*steps, Step(probe, (layer,))))):
        model(**inputs, **extra)
    every: list[dict[Any, Tensor]] = []
    for tokens in probe.seen:
        for image in range(tokens.features.shape[0]):
            every.append({need: tokens.signals[need][image] for need in NEEDS} | {"features": tokens.features[image]})
    return every


def attentions(model: Any, inputs: dict[str, Tensor], keeps: dict[int, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Eager attention weights `(B, H, S, S)` and inputs `(B, S, D)` of all layers of the dense model."""
    hidden: list[Tensor] = []

    def remember(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        hidden.append(args[0] if args else kwargs["hidden_states"])

    handles = [layer.register_forward_pre_hook(remember, with_kwargs=True) for layer in family_of(model).decoder_layers]
    try:
        out = masked_inside(model, inputs, keeps, output_attentions=True)
    finally:
        for handle in handles:
            handle.remove()
    return list(out.attentions), hidden


def images_of(row: Row, inputs: dict[str, Tensor]) -> list[tuple[int, Tensor]]:
    """Row and content columns of each image."""
    found: list[tuple[int, Tensor]] = []
    for number, prompt in enumerate(PROMPTS):
        columns = (inputs["input_ids"][number] == row.image_token).nonzero().squeeze(1)
        for piece in prompt.split():
            if piece[0] != "t":
                layout = row.pictures[piece]
                found.append((number, columns[: layout.total][layout.places]))
                columns = columns[layout.total :]
    return found


@pytest.mark.parametrize("before", ["", "random:6@1"])
@torch.no_grad()
def test_attention_is_what_eager_attention_does(row: Row, before: str) -> None:
    model = row.model("eager")
    inputs = row.inputs(*PROMPTS)
    keep = keeps_of(row, model, inputs, "random:6") if before else torch.ones_like(inputs["input_ids"]).bool()
    maps, hidden = attentions(model, inputs, {1: keep})
    given = {**inputs, "position_ids": dense_positions(model, inputs)}
    real = inputs["attention_mask"].bool()
    every = told(model, given, 2, before)
    placed = images_of(row, inputs)
    assert len(every) == len(placed)
    # The probe sees images of one layout and text length at a time: match them by their hidden states.
    for number, columns in placed:
        columns = columns[keep[number, columns]]
        image = next(
            each
            for each in every
            if each["features"].shape[0] == len(columns)
            and torch.allclose(each["features"], hidden[2][number, columns], atol=1e-5)
        )
        text = (real[number] & (inputs["input_ids"][number] != row.image_token)).nonzero().squeeze(1)
        for where, layer in (("here", 2), ("previous", 1)):
            weights = maps[layer][number][:, :, columns]
            for rows, expected in (("last", weights[:, -1]), ("text", weights[:, text])):
                got = image[DecoderAttention(rows, where, "each")]
                torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
                torch.testing.assert_close(
                    image[DecoderAttention(rows, where, "mean")], expected.mean(dim=0), atol=1e-5, rtol=1e-5
                )
        torch.testing.assert_close(image[Text()], hidden[2][number, text], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(image[DecoderInput("text")], hidden[0][number, text], atol=1e-5, rtol=1e-5)
        assert torch.equal(image[Behind()], text > columns[0])
