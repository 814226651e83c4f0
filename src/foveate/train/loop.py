"""The training loop: fixed steps, a schedule, safetensors checkpoints written aside and renamed, one or more processes.

Not ``transformers.Trainer``: its checkpoints pickle the optimiser's state, it does not know Muon beside AdamW, and
two processes of one thread each, which on two cores are 1.6 times as fast as one of two threads, need no more than one
all-reduce of nine million numbers per step.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


@dataclass(frozen=True)
class Schedule:
    """Steps and learning rate: a linear warm-up, a plateau, and a linear fall over the last ``fall`` of the steps.

    >>> s = Schedule(steps=100, lr=1.0, warmup=10, fall=0.5)
    >>> [round(s.at(step), 2) for step in (0, 9, 40, 75, 99)]
    [0.1, 1.0, 1.0, 0.5, 0.02]
    """

    steps: int
    lr: float
    warmup: int = 50
    fall: float = 0.3

    def at(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        start = self.steps * (1 - self.fall)
        falling = 1.0 if step < start else (self.steps - step) / (self.steps * self.fall)
        return self.lr * min(1.0, (step + 1) / max(1, self.warmup)) * falling


def optimisers(model: nn.Module, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside layers, AdamW for everything else; both take learning rates of the same scale."""
    matrices, rest = [], []
    for name, p in model.named_parameters():
        if p.requires_grad:
            inner = p.ndim == 2 and "layers." in name
            (matrices if inner else rest).append(p)
    out: list[torch.optim.Optimizer] = []
    if matrices:
        out.append(torch.optim.Muon(matrices, lr=lr, weight_decay=0.02, adjust_lr_fn="match_rms_adamw"))
    if rest:
        # Patch and token embeddings jitter at Muon's rate.
        group = {"params": rest, "scale": 0.4}
        out.append(torch.optim.AdamW([group], lr=lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True))
    return out


def world() -> tuple[int, int]:
    """This process's number and how many there are."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def start_world() -> tuple[int, int]:
    """Join the other processes if ``torchrun`` started some; one thread each then."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        dist.init_process_group("gloo")
        torch.set_num_threads(1)
    return world()


def _average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    _, size = world()
    if size == 1:
        return
    grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
    flat = torch.cat([g.reshape(-1) for g in grads])
    dist.all_reduce(flat)
    flat /= size
    at = 0
    for p, g in zip(parameters, grads):
        p.grad = flat[at : at + g.numel()].view_as(g)
        at += g.numel()


def save_checkpoint(
    folder: Path, step: int, model: nn.Module, opts: list[torch.optim.Optimizer], keep: int = 2
) -> Path:
    """Write a checkpoint aside and rename it; older ones than the last ``keep`` are removed."""
    partial, final = folder / f"step-{step:07d}.partial", folder / f"step-{step:07d}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_file({k: v.contiguous() for k, v in _unshared(model.state_dict()).items()}, partial / "model.safetensors")
    tensors: dict[str, Tensor] = {}
    for i, opt in enumerate(opts):
        for j, state in opt.state_dict()["state"].items():
            for key, value in state.items():
                tensors[f"{i}.{j}.{key}"] = torch.as_tensor(value).contiguous()
    save_file(tensors or {"empty": torch.zeros(1)}, partial / "optimiser.safetensors")
    (partial / "state.json").write_text(json.dumps({"step": step}))
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)
    for old in sorted(p for p in folder.glob("step-*") if p.suffix != ".partial")[:-keep]:
        shutil.rmtree(old)
    return final


def _unshared(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tied tensors once: safetensors stores no shared memory."""
    seen: set[int] = set()
    out = {}
    for name, value in state.items():
        if value.data_ptr() not in seen or value.numel() == 0:
            seen.add(value.data_ptr())
            out[name] = value
    return out


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint of a folder; unfinished ones (``.partial``) don't count."""
    done = sorted(p for p in folder.glob("step-*") if p.suffix != ".partial" and (p / "state.json").exists())
    return done[-1] if done else None


def load_checkpoint(path: Path, model: nn.Module, opts: list[torch.optim.Optimizer]) -> int:
    """Load weights and the optimiser's state; returns the step to go on from."""
    model.load_state_dict(load_file(path / "model.safetensors"), strict=False)
    tensors = load_file(path / "optimiser.safetensors")
    for i, opt in enumerate(opts):
        state: dict[int, dict[str, Any]] = {}
        for name, value in tensors.items():
            if name != "empty" and name.split(".")[0] == str(i):
                _, j, key = name.split(".")
                state.setdefault(int(j), {})[key] = value
        if state:
            opt.load_state_dict({"state": state, "param_groups": opt.state_dict()["param_groups"]})
    return int(json.loads((path / "state.json").read_text())["step"])


def _shown(key: str, sums: dict[str, float], logged: int) -> str:
    """A mean over steps, or the share of a pair ``skill:right`` and ``skill:asked``."""
    skill, _, right = key.partition(":")
    return f"{skill} {sums[key] / (sums[skill + ':asked'] if right else logged):.3f}"


def train(
    name: str,
    model: nn.Module,
    loss_of: Callable[[int], tuple[Tensor, dict[str, float]]],
    schedule: Schedule,
    folder: Path,
    *,
    save_every: int = 200,
    log_every: int = 20,
    clip: float = 1.0,
) -> float:
    """Run one stage to its end, from its latest checkpoint if it has one.

    Args:
        name: what the log lines begin with.
        model: its parameters that require gradients are trained, and its whole state is stored.
        loss_of: gives the loss of a step and the numbers to log; must depend on the step alone, so that a resumed run
            sees what an unbroken one would have seen.
        schedule: steps and learning rate.
        folder: where the checkpoints go.
        save_every: steps between checkpoints.
        log_every: steps between log lines.
        clip: largest norm of the gradient.

    Returns:
        Seconds that this call trained.
    """
    rank, _ = world()
    opts = optimisers(model, schedule.lr)
    parameters = [p for p in model.parameters() if p.requires_grad]
    found = latest_checkpoint(folder)
    step = load_checkpoint(found, model, opts) if found else 0
    began = last = time.time()
    sums: dict[str, float] = {}
    logged = 0
    while step < schedule.steps:
        for opt in opts:
            for group in opt.param_groups:
                group["lr"] = schedule.at(step) * group.get("scale", 1.0)
        loss, numbers = loss_of(step)
        loss.backward()
        _average_gradients(parameters)
        norm = nn.utils.clip_grad_norm_(parameters, clip)
        for opt in opts:
            opt.step()
            opt.zero_grad(set_to_none=True)
        step += 1
        logged += 1
        for key, value in {"loss": loss.item(), "norm": float(norm), **numbers}.items():
            sums[key] = sums.get(key, 0.0) + value
        if rank == 0 and (step % log_every == 0 or step == schedule.steps):
            text = " ".join(_shown(k, sums, logged) for k in sums if not k.endswith(":asked"))
            print(f"{name} {step}/{schedule.steps} {(time.time() - last) / logged:.2f} s/step {text}", flush=True)
            sums, logged, last = {}, 0, time.time()
        if rank == 0 and (step % save_every == 0 or step == schedule.steps):
            save_checkpoint(folder, step, model, opts)
    return time.time() - began
