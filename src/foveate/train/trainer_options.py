"""What a recipe's `trainer` may pass on to transformers: names and values that the Trainer takes without a surprise.

`TrainingArguments` has a hundred more. Some are decided by other keys of a recipe, some would break what foveate
promises (whole checkpoints, an order of the data that depends on the seed alone), and most fail after the model is
loaded, deep in transformers, if their value is wrong.
"""

from __future__ import annotations

import importlib.util
from typing import Any, Final, Literal

from pydantic import Field, model_validator

from foveate.errors import nearest
from foveate.train.settings import Count, Number, RecipeError, Settings

OPTIMISERS: Final[dict[str, tuple[str, float]]] = {
    "adamw_torch": ("", 8),
    "adamw_torch_fused": ("", 8),
    "adafactor": ("", 0),
    "sgd": ("", 0),
    "adagrad": ("", 4),
    "rmsprop": ("", 4),
    "adamw_bnb_8bit": ("bitsandbytes", 2),
    "paged_adamw_8bit": ("bitsandbytes", 2),
    "paged_adamw_32bit": ("bitsandbytes", 8),
    "lion_8bit": ("bitsandbytes", 1),
    "lion_32bit": ("bitsandbytes", 4),
    "paged_lion_8bit": ("bitsandbytes", 1),
    "paged_lion_32bit": ("bitsandbytes", 4),
    "rmsprop_bnb_8bit": ("bitsandbytes", 1),
}
"""transformers' names of optimisers, the package that each needs, and the bytes that it stores for a weight.

Adafactor keeps a row and a column of a matrix, which is next to nothing. Those that are missing need packages that
foveate has not been tried with.
"""

DECIDED: Final[dict[str, str]] = {
    "output_dir": "the option --out",
    "max_steps": "steps",
    "num_train_epochs": "epochs",
    "per_device_train_batch_size": "per_device",
    "gradient_accumulation_steps": "batch and per_device",
    "learning_rate": "lr",
    "warmup_steps": "warmup",
    "lr_scheduler_type": "decay",
    "weight_decay": "weight_decay",
    "max_grad_norm": "clip",
    "seed": "seed",
    "data_seed": "seed",
    "save_steps": "save_every",
    "save_total_limit": "keep_checkpoints",
    "logging_steps": "log_every",
    "dataloader_num_workers": "workers",
    "report_to": "trackers",
    "bf16": "precision",
    "fp16": "precision",
}
"""Names of `TrainingArguments` that a key of the recipe decides, and that key."""

_UNUSED: Final = (
    "rows of text alone leave parts of the model unused, and processes would wait for each other; foveate decides by "
    "the data, so leave it out"
)
_SHARDS: Final = "shards: true in the recipe shares weights among processes (FSDP2)"

REFUSED: Final[dict[str, str]] = {
    "fsdp": _SHARDS,
    "fsdp_config": _SHARDS,
    "deepspeed": _SHARDS,
    "parallelism_config": _SHARDS,
    "ddp_find_unused_parameters": _UNUSED,
    "ddp_static_graph": _UNUSED,
    "label_smoothing_factor": (
        "the Trainer would smooth over labels that aren't shifted, so the model would learn to repeat each token; "
        "leave it out"
    ),
}
"""Names of `TrainingArguments` that would do something else than people expect of them, and why or what to do."""


class Recomputing(Settings):
    """How activations are computed again in the backward pass."""

    place = "trainer: activation_checkpointing_kwargs"

    use_reentrant: bool


class TrainerOptions(Settings):
    """What a recipe passes on to `transformers.TrainingArguments`; what is None is left to transformers."""

    place = "trainer"

    activation_checkpointing: bool | None = None
    activation_checkpointing_kwargs: Recomputing | None = None
    gradient_checkpointing: bool | None = None
    gradient_checkpointing_kwargs: Recomputing | None = None
    optim: str | None = None
    """A key of `OPTIMISERS`."""
    adam_beta1: Number | None = Field(None, ge=0, lt=1)
    adam_beta2: Number | None = Field(None, ge=0, lt=1)
    adam_epsilon: Number | None = Field(None, gt=0, le=1)
    neftune_noise_alpha: Number | None = Field(None, gt=0, le=1000)
    tf32: bool | None = None
    use_cpu: bool | None = None
    full_determinism: bool | None = None
    torch_empty_cache_steps: Count | None = None
    dataloader_pin_memory: bool | None = None
    dataloader_persistent_workers: bool | None = None
    dataloader_prefetch_factor: Count | None = None
    ddp_backend: Literal["nccl", "gloo", "mpi", "ccl", "hccl", "cncl", "mccl"] | None = None
    ddp_broadcast_buffers: bool | None = None
    ddp_bucket_cap_mb: Count | None = None
    ddp_timeout: Count | None = None
    """In seconds."""
    logging_first_step: bool | None = None
    run_name: str | None = None
    project: str | None = None

    @model_validator(mode="after")
    def _optimiser(self) -> TrainerOptions:
        if self.optim is None:
            return self
        if self.optim not in OPTIMISERS:
            raise ValueError(f'no optimiser is called "{self.optim}"; {nearest(self.optim, OPTIMISERS)}')
        package = OPTIMISERS[self.optim][0]
        if package and importlib.util.find_spec(package) is None:
            raise ValueError(f"optim: {self.optim} needs {package}, which is not installed: pip install {package}")
        return self


def trainer_options(given: Any) -> dict[str, Any]:
    """Check what a recipe passes on, and return it.

    Args:
        given: names and values.

    Raises:
        RecipeError: a name is unknown, is decided by another key, or isn't passed on; or a value is impossible.

    >>> trainer_options({"optim": "adafactor", "adam_beta1": None})
    {'optim': 'adafactor'}
    """
    if not isinstance(given, dict):
        raise RecipeError(f"trainer is a mapping of names and values, not {type(given).__name__}", placed=True)
    for name in given:
        if name in DECIDED:
            raise RecipeError(
                f"trainer: {name} is decided by other keys of the recipe ({DECIDED[name]}); leave it out", placed=True
            )
        if name in REFUSED:
            raise RecipeError(f"trainer: {name} is not passed on; {REFUSED[name]}", placed=True)
    return TrainerOptions.model_validate(given).model_dump(exclude_none=True)


def check_workers(given: dict[str, Any], workers: int) -> None:
    """Check that what is said of processes that read data has such processes.

    Raises:
        RecipeError: there are none.
    """
    for name in ("dataloader_persistent_workers", "dataloader_prefetch_factor"):
        if given.get(name) and not workers:
            raise RecipeError(f"trainer: {name} needs processes that read data; set workers to 1 or more")


def check_trackers(trackers: tuple[str, ...]) -> None:
    """Check that transformers knows these trackers, and that their packages are installed.

    Raises:
        RecipeError: one is unknown, or its package is missing.
    """
    if not trackers:
        return
    from transformers import integrations

    # "all" and "none" are transformers' own words for a list.
    known = sorted(integrations.INTEGRATION_TO_CALLBACK)
    installed = integrations.get_available_reporting_integrations()
    for name in trackers:
        if name not in known:
            raise RecipeError(f'trackers: transformers knows no tracker "{name}"; {nearest(name, known)}')
        if name not in installed:
            raise RecipeError(f"trackers: {name} is not installed here; install its package, or leave {name} out")
