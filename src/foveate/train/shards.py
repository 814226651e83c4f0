"""Share weights, gradients and the optimiser's state among processes: FSDP2, which accelerate sets up.

Each decoder layer is a group of its own, and all that is left is one more: encoder, projector, embeddings, head, and an
objective's own weights. So a batch without an image gathers what a batch with one does, and processes never wait for
each other. Checkpoints hold whole tensors in the form of one process, so a run may go on with other processes, with
shards or without.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn

from foveate.families import Family
from foveate.train.processes import process_variable
from foveate.train.settings import RecipeError

OPTIMISERS: Final = ("adamw_torch", "adamw_torch_fused", "sgd")
"""Optimisers that were tried on shards: each treats every number of a weight by itself."""

_OTHER: Final = {
    "FSDP_OFFLOAD_PARAMS": ", or use more processes",
    "FSDP_ACTIVATION_CHECKPOINTING": ", and write trainer: {activation_checkpointing: true} in the recipe",
}
"""Options of the launcher that change weights' places or names, and what to do instead."""

_YES: Final = ("true", "1", "yes")


def asked_by_launcher() -> bool:
    """Return whether `accelerate launch` asked for shards.

    Raises:
        RecipeError: it asked for shards of another kind than FSDP2.
    """
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() in _YES:
        raise RecipeError("DeepSpeed was not tried with our checkpoints; shard with FSDP2: shards: true in the recipe")
    if os.environ.get("ACCELERATE_USE_FSDP", "").lower() not in _YES:
        return False
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise RecipeError("FSDP1 was not tried with our checkpoints; add --fsdp_version 2 to accelerate launch")
    for name, instead in _OTHER.items():
        if os.environ.get(name, "").lower() in _YES:
            raise RecipeError(f"accelerate launch sets {name}, which was not tried here; leave it out{instead}")
    return True


def is_sharded(shards: bool) -> bool:
    """Return whether a run is sharded: its recipe or the launcher asks for it, and there are several processes."""
    asked = asked_by_launcher()
    return (asked or shards) and process_variable("WORLD_SIZE") > 1


def check_shards(recipe: Any) -> None:
    """Check that a recipe can be trained in shards.

    Args:
        recipe: a `Recipe`.

    Raises:
        RecipeError: its optimiser, precision, features or objective can't.
    """
    optimiser = recipe.trainer.get("optim", OPTIMISERS[0])
    if optimiser not in OPTIMISERS:
        raise RecipeError(f"shards go with optim: {', '.join(OPTIMISERS)}, not with {optimiser}")
    if recipe.precision == "fp16":
        raise RecipeError("shards go with precision: bf16 or fp32, not with fp16")
    if recipe.data.features is not None:
        raise RecipeError("shards exclude data.features: the model must be whole to keep features; leave one out")
    if recipe.objective is not None and recipe.objective.unsharded:
        raise RecipeError(f"{recipe.objective.name} can't be trained in shards: {recipe.objective.unsharded}")


def ask_accelerate(family: Family) -> None:
    """Ask accelerate for FSDP2, by the variables that `accelerate launch --use_fsdp --fsdp_version 2` sets.

    Args:
        family: of the model; its decoder's layers are sharded each by itself.
    """
    os.environ |= {
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_VERSION": "2",
        "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
        "FSDP_TRANSFORMER_CLS_TO_WRAP": ",".join(sorted({type(layer).__name__ for layer in family.decoder_layers})),
        # Checkpoints are ours; this only decides which backends torch starts.
        "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
        # foveate checks weights when it loads them, which needs them in every process.
        "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
    }


def prepare_accelerator(accelerator: Any, precision: str) -> None:
    """Have the model sharded when accelerate prepares it.

    Weights are gathered in the format of products, and gradients are summed over processes in float32.

    Args:
        accelerator: accelerate's, made after `ask_accelerate`, before it has prepared the model.
        precision: `fp32` or `bf16`.
    """
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
    from torch.distributed.fsdp import MixedPrecisionPolicy

    state = accelerator.state
    if getattr(state, "fsdp_plugin", None) is None:
        # On CPUs accelerate reads the variables and doesn't shard.
        state.fsdp_plugin = FullyShardedDataParallelPlugin()
    state.distributed_type = DistributedType.FSDP
    gathered = {"param_dtype": torch.bfloat16, "reduce_dtype": torch.float32} if precision == "bf16" else {}
    state.fsdp_plugin.mixed_precision_policy = MixedPrecisionPolicy(**gathered, cast_forward_inputs=False)


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor on the CPU, gathered if it is in shards; then all processes have to ask for it."""
    value: Any = tensor.detach()
    if hasattr(value, "full_tensor"):
        value = value.full_tensor()
    return value.cpu()


def local(tensor: Tensor) -> Tensor:
    """Return what this process has of a tensor."""
    value: Any = tensor.detach()
    return value.to_local() if hasattr(value, "to_local") else value


def like(value: Tensor, model: Tensor) -> Tensor:
    """Return a whole tensor as another one is: in the same shards, of the same type, on the same device.

    Every process has the whole tensor, and nothing is sent.
    """
    place: Any = model
    value = value.to(dtype=model.dtype)
    if not hasattr(place, "full_tensor"):
        return value.to(model.device)
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(place.device), place.device_mesh, place.placements, src_data_rank=None)


def optimiser_state(optimiser: Any) -> dict[str, Any]:
    """Return the state of an optimiser with whole tensors, in the form that it has in one process.

    All processes have to call this.
    """
    state = optimiser.state_dict()
    held = {
        number: {name: whole(value) if isinstance(value, Tensor) else value for name, value in values.items()}
        for number, values in state["state"].items()
    }
    return {"state": held, "param_groups": state["param_groups"]}


def load_optimiser_state(optimiser: Any, state: Mapping[str, Any]) -> None:
    """Load what `optimiser_state` returned, or the state of an optimiser in one process, into shards.

    Args:
        optimiser: of weights in shards.
        state: whole tensors by the number of their weight.
    """
    weights = [weight for group in optimiser.param_groups for weight in group["params"]]
    held = {
        number: {
            name: like(value, weights[number])
            if isinstance(value, Tensor) and value.shape == weights[number].shape and value.ndim
            else value
            for name, value in values.items()
        }
        for number, values in state["state"].items()
    }
    optimiser.load_state_dict({"state": held, "param_groups": state["param_groups"]})


def align_backward(model: nn.Module) -> None:
    """Have the gradients of layers summed in the same order in all processes.

    FSDP2 sums those of a layer when the gradient of its input is there; if the input needs none, at the end. A frozen
    embedding gives text alone such an input, and an image whose tokens are trained another.

    Args:
        model: the vision-language model, without wrappers.
    """
    embeddings: Any = model
    embeddings.get_input_embeddings().register_forward_hook(lambda module, inputs, output: output.requires_grad_())


def reduce_unused(model: nn.Module) -> None:
    """Let weights that a process has no gradient of count as zero: a batch of text alone leaves out the projector.

    Raises:
        RecipeError: the installed torch can't.
    """
    group: Any = model
    if not hasattr(group, "set_reduce_scatter_unused_params"):
        raise RecipeError(
            f"shards need a torch that reduces gradients of unused weights, and {torch.__version__} doesn't; install "
            "a newer torch, or leave shards out"
        )
    group.set_reduce_scatter_unused_params(True)
