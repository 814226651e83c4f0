"""Train in shards on two processes, forked from this one."""

import json
import multiprocessing
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from foveate.train import run as run_module
from foveate.train.objectives import parse_recipe
from foveate.train.run import run


def one_process(rank: int, port: int, out: Path, given: dict[str, Any]) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    make = run_module.make_trainer

    def watched(*arguments: Any, **options: Any) -> Any:
        """Tell what this process holds of the trained weights when training ends."""
        made = make(*arguments, **options)
        close = made.switch.close

        def closing() -> None:
            weights: list[Any] = [*made.module.parameters()]
            held = [weight.to_local().numel() for weight in weights if hasattr(weight, "to_local")]
            out.with_name(f"{out.name} {rank}").write_text(str(sum(held)))
            close()

        object.__setattr__(made.switch, "close", closing)
        return made

    run_module.make_trainer = watched
    run(parse_recipe(given), out, resume=True, say=lambda _: None, flops=False)


def start(out: Path, given: dict[str, Any]) -> list[Any]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=one_process, args=(rank, port, out, given)) for rank in (0, 1)]
    for process in processes:
        process.start()
    return processes


def sharded(out: Path, given: dict[str, Any], stop: Callable[[], bool] = lambda: False) -> list[int | None]:
    """Train on two processes, and kill both as soon as `stop` says so; return how they ended."""
    processes = start(out, given)
    until = time.monotonic() + 600
    try:
        while any(process.is_alive() for process in processes) and time.monotonic() < until:
            if stop() or any(process.exitcode for process in processes):
                break
            time.sleep(0.002)
    finally:
        for process in processes:
            process.kill()
            process.join()
    return [process.exitcode for process in processes]


def unsharded(out: Path, given: dict[str, Any]) -> None:
    run(parse_recipe(given), out, resume=True, say=lambda _: None, flops=False)


def told(out: Path, name: str) -> list[float]:
    return [each[name] for each in json.loads((out / "run.json").read_text())["history"] if "loss" in each]
