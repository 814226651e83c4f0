"""Two processes that shard families by FSDP and compare it with the same model unsharded; see test_sharded.py."""

import itertools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from rows import ROWS, Row
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.fsdp.wrap import ModuleWrapPolicy

from foveate.engine import apply, compress, encode
from foveate.errors import FoveateError
from foveate.families import Family, family_of
from foveate.schedule import schedule
from foveate.spec import parse

SPECS = (
    "pool2d:6",  # features alone
    "cls:6", "visionzip:6@features", "prumerge:6", "cls:9@encoder", "resize:0.5",  # with signals of the encoder
    "fastv:4@2", "pyramiddrop:0.5@1,2", "sparsevlm:6@2", "dart:4@2",  # inside the decoder
)  # fmt: skip
TRAINED = ("cls:6@features", "fastv:4@2")
"""Their loss and gradients are compared, too."""


def shard(model: Any, how: str) -> Any:
    """Shard by layers, or the encoder as one group with its projector; what is left is the root's."""
    family = family_of(model)
    if how == "wrapper":
        policy = ModuleWrapPolicy({type(family.decoder_layers[0])})
        return FullyShardedDataParallel(
            model, auto_wrap_policy=policy, use_orig_params=True, device_id=torch.device("cpu")
        )
    encoder: Any = family.encoder_attentions
    for group in [family.tower] if how == "encoder" else [layer_of(family.tower, each) for each in encoder]:
        fully_shard(group)
    for layer in family.decoder_layers:
        fully_shard(layer)
    return fully_shard(model)


def layer_of(tower: nn.Module, attention: nn.Module) -> nn.Module:
    return next(each for each in tower.modules() if any(part is attention for part in each.children()))


def works(spec: str, family: Family) -> bool:
    """Whether a family takes a spec."""
    return not refusal(lambda: schedule(parse(spec), family))


def outcome(model: Any, inputs: dict[str, Tensor], spec: str) -> tuple[Tensor, list[list[int]]]:
    with torch.no_grad(), apply(model, spec) as run:
        logits = model(**inputs).logits
    return logits, [image.kept(layer).tolist() for image in run.plans for layer in range(3)]


def gradients(model: Any, inputs: dict[str, Tensor], spec: str) -> dict[str, Tensor]:
    model.zero_grad()
    labels = inputs["input_ids"].where(inputs["input_ids"] >= 20, -100)
    with apply(model, spec):
        model(**inputs, labels=labels, use_cache=False).loss.backward()
    whole: Callable[[Tensor], Tensor] = lambda grad: grad.full_tensor() if hasattr(grad, "full_tensor") else grad  # noqa: E731
    found = {name: weight.grad for name, weight in model.named_parameters()}
    return {name: whole(grad.detach()).clone() for name, grad in found.items() if grad is not None}


def refusal(call: Callable[[], Any]) -> str:
    try:
        call()
    except FoveateError as error:
        return str(error)
    return ""


def compare(row: Row, how: str) -> list[str]:
    """Everything in which a sharded model differs."""
    wrong: list[str] = []
    inputs = row.inputs("t3 C t4", "t6 A t5")
    model = row.model()
    specs, trained = (tuple(spec for spec in each if works(spec, family_of(model))) for each in (SPECS, TRAINED))
    expected = {spec: outcome(model, inputs, spec) for spec in specs}
    learned = {spec: gradients(model, inputs, spec) for spec in trained}
    model.zero_grad()
    model = shard(model, how)
    for call in (lambda: compress(model, inputs, "pool2d:6"), lambda: encode(model, inputs)):
        if "sharded (FSDP)" not in refusal(call):
            wrong.append("the encoder runs by itself")
    for spec in specs:
        logits, kept = outcome(model, inputs, spec)
        if kept != expected[spec][1]:
            wrong.append(f"{spec} keeps {kept}, not {expected[spec][1]}")
        if not torch.allclose(logits, expected[spec][0], atol=1e-5):
            wrong.append(f"{spec}: logits are off by {(logits - expected[spec][0]).abs().max()}")
    # FSDP1 keeps gradients in shards of a form of its own.
    for spec in trained if how != "wrapper" else ():
        got = gradients(model, inputs, spec)
        if got.keys() != learned[spec].keys():
            wrong.append(f"{spec} trains {sorted(got.keys() ^ learned[spec].keys())} in one of both alone")
        for name, grad in got.items():
            if not torch.allclose(grad, learned[spec][name], atol=1e-5):
                wrong.append(f"{spec}: the gradient of {name} differs")
    return [f"{row.name}, sharded by {how}: {each}" for each in wrong]


def main(rank: int, rendezvous: str, out: str, families: list[str]) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    cases = [
        (row, how)
        for row, how in itertools.product(ROWS, ("layers", "encoder", "wrapper"))
        if row.name in families
        # The dense model fails there: FSDP2 rebuilds the outputs of the tower, and its hidden states are lost.
        and not (how == "encoder" and (hasattr(row.model().config, "vision_feature_layer") or row.name == "molmo2"))
    ]
    wrong = [line for case in cases for line in compare(*case)]
    Path(f"{out}{rank}").write_text(json.dumps({"cases": len(cases), "wrong": wrong}))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4:])
