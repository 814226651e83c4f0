"""Choose which weights of a model a recipe trains."""

from __future__ import annotations

import torch
from torch import nn

from foveate.families import Family, family_of
from foveate.train.recipe import PARTS, Recipe
from foveate.train.settings import RecipeError


def choose_parameters(model: nn.Module, recipe: Recipe) -> nn.Module:
    """Let a recipe train its own parts and nothing else; return the model, or peft's wrapper around it.

    What is trained is float32, whatever precision the products have; the rest is as in `match_precision`.

    Args:
        model: of a supported family; it may be a skeleton.
        recipe: `train` is one of full, projector and lora, or another word, for which all of the model is frozen.

    Raises:
        RecipeError: peft is missing, or finds no linear layer.
    """
    family = family_of(model)
    model.requires_grad_(False)
    if recipe.train == "lora":
        match_precision(model, recipe.precision)
        return _with_lora(model, family, recipe)
    if recipe.train not in PARTS:
        match_precision(model, recipe.precision)
        return model
    trained: list[nn.Module] = list(family.projectors)
    if recipe.train == "full":
        trained.append(family.decoder)
        head = getattr(model, "lm_head", None)
        if head is not None:
            trained.append(head)
        if recipe.train_encoder:
            trained.append(family.tower)
    if not recipe.train_encoder:
        for weight in family.tower.parameters():
            weight.requires_grad_(False)
    for part in trained:
        part.float()
        part.requires_grad_(True)
    # Last, so that what is trained begins as its file has it.
    match_precision(model, recipe.precision)
    return model


def match_precision(model: nn.Module, precision: str) -> None:
    """Let a model's weights go with a recipe's precision: float32 under fp32; under bf16, float16 becomes bfloat16.

    Autocast to bfloat16 doesn't take float16 everywhere. Other weights stay as they are, mostly in 2 bytes.

    Args:
        model: it may be a skeleton.
        precision: of the recipe.
    """
    if precision == "fp32":
        model.float()
    if precision != "bf16":
        return
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.dtype == torch.float16:
            tensor.data = tensor.data.bfloat16()


def _with_lora(model: nn.Module, family: Family, recipe: Recipe) -> nn.Module:
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise RecipeError(
            'train: lora needs peft; install foveate with its train extra (pip install ".[train]" in a clone)'
        ) from None
    inside = {id(module) for module in family.decoder.modules()}
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and id(module) in inside]
    if not names:
        raise RecipeError("train: lora found no linear layer in the decoder of this model")
    config = LoraConfig(
        r=recipe.lora.rank, lora_alpha=recipe.lora.alpha, lora_dropout=recipe.lora.dropout, target_modules=names
    )
    with torch.random.fork_rng(devices=[]):
        # Adapters begin at random, and the Trainer sets its seed later.
        torch.manual_seed(recipe.seed)
        # Adapters of a model without weights have none either.
        bare = any(weight.is_meta for weight in model.parameters())
        return get_peft_model(model, config, low_cpu_mem_usage=bare)  # pyright: ignore[reportArgumentType]
