"""Find the vision-language model inside whatever wraps it: DataParallel, DDP, FSDP, Lightning, peft, torch.compile."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Container, Iterator
from typing import TYPE_CHECKING

from foveate.errors import FoveateError, UnsupportedFamily
from foveate.families.config_fields import kind_of
from foveate.transformers_api import is_transformers_model

if TYPE_CHECKING:
    from torch import nn


def find_vlm(model: nn.Module, kinds: Container[str]) -> nn.Module:
    """Find the one vision-language model inside a module; return the module itself if there is none.

    It is the outermost model of transformers whose configuration has one of the `kinds` as `model_type`; else the
    outermost one around a module that takes image features in place of pixels.

    Raises:
        FoveateError: there are several.
    """

    def is_known(module: nn.Module) -> bool:
        return is_transformers_model(module) and kind_of(module.config) in kinds

    known = dict(_outermost(model, is_known))
    inside = {id(part) for found in known.values() for part in found.modules()}
    unknown: dict[str, nn.Module] = {}
    for name, found in _outermost(model, lambda module: is_transformers_model(module) and not is_known(module)):
        if id(found) not in inside and any(id(core) not in inside for core in cores_of(found)):
            unknown[name] = found
    found = known | unknown
    if len(found) > 1:
        listed = ", ".join(f"{type(each).__name__} at {name!r}" for name, each in found.items())
        raise FoveateError(
            f"this {type(model).__name__} has {len(found)} vision-language models inside ({listed}); pass the one that "
            "is meant"
        )
    return next(iter(found.values()), model)


def holds(module: nn.Module, part: nn.Module) -> bool:
    """Return whether a module is, or has inside, another one."""
    return any(each is part for each in module.modules())


def check_decoder(model: nn.Module, core: nn.Module) -> None:
    """Check that the decoder behind a core is the one that all models around it mean.

    Raises:
        UnsupportedFamily: one of them reads images for another decoder.
    """
    if not hasattr(core, "get_decoder"):
        return
    decoder = core.get_decoder()  # pyright: ignore[reportCallIssue]
    for each in model.modules():
        around = hasattr(type(each), "get_decoder") and holds(each, core)
        if around and each.get_decoder() is not decoder:  # pyright: ignore[reportCallIssue]
            raise UnsupportedFamily(f"{type(each).__name__} reads images for another decoder than the one behind them")


def generator_of(model: nn.Module, core: nn.Module) -> nn.Module | None:
    """Find the innermost module around the core that has a `generate`; None if there is none."""
    around = [each for each in model.modules() if hasattr(type(each), "prepare_inputs_for_generation")]
    return next((each for each in reversed(around) if holds(each, core)), None)


def cores_of(model: nn.Module) -> list[nn.Module]:
    """Return the modules that put image features among text and take them in place of pixels; innermost ones alone."""
    cores = [
        module
        for module in model.modules()
        if hasattr(module, "get_image_features")
        and hasattr(module, "config")
        and "mm_encoder_outputs" in inspect.signature(module.forward).parameters
    ]
    return [core for core in cores if not any(other is not core and other in set(core.modules()) for other in cores)]


def _outermost(
    module: nn.Module, fits: Callable[[nn.Module], bool], name: str = "", seen: set[int] | None = None
) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules that fit, by their names, and look no further inside them; each once."""
    seen = set() if seen is None else seen
    if id(module) in seen:
        return
    seen.add(id(module))
    if fits(module):
        yield name, module
        return
    for child_name, child in module.named_children():
        yield from _outermost(child, fits, f"{name}.{child_name}" if name else child_name, seen)
