"""Check a loaded model and its processor: weights against the configuration, the processor against both."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch

from foveate.errors import FoveateError, quoted

__all__ = ["buffer_names", "check_finite", "check_generation", "check_loaded", "check_processor"]

_LONGEST_EDGE: Final = 32_768
"""In pixels, of what an encoder sees; a larger image takes over 12 GB."""


def buffer_names(network: Any) -> set[str]:
    """Return the last parts of the names of a model's buffers; older versions saved them with the weights."""
    return {name.rsplit(".", 1)[-1] for name, _ in network.named_buffers()}


def check_loaded(title: str, network: Any, loading: Mapping[str, Any]) -> None:
    """Check that all weights of a model were in its files, and nothing else.

    Args:
        title: what errors call the model.
        network: the model.
        loading: what `from_pretrained` returns beside the model under `output_loading_info`. Names that transformers
            ignores are not in it.

    Raises:
        FoveateError: weights were missing, left over, or of another shape; the text names one and counts them.
    """
    buffers = buffer_names(network)
    reshaped = sorted((name, tuple(stored), tuple(built)) for name, stored, built in loading["mismatched_keys"])
    missing = sorted({*loading["missing_keys"]} - {name for name, _, _ in reshaped})
    extra = sorted(name for name in loading["unexpected_keys"] if name.rsplit(".", 1)[-1] not in buffers)
    wrong: list[str] = []
    if missing:
        wrong.append(f"lacks {_counted(missing)} of its own model ({_first(missing)})")
    if extra:
        wrong.append(f"has {_counted(extra)} that its configuration has no place for ({_first(extra)})")
    if reshaped:
        name, stored, built = reshaped[0]
        wrong.append(
            f"has {_counted(reshaped)} of another shape ({name} is {stored} in the files and {built} by the "
            "configuration)"
        )
    if wrong:
        raise FoveateError(
            f"{title} {', and '.join(wrong)}: its weights and its config.json are not of one model; download it again"
        )


def check_finite(title: str, network: Any) -> None:
    """Check that no weight is NaN or infinite, and that not all are zero. The host waits for the device once.

    Args:
        title: what errors call the model.
        network: the model; quantised and offloaded weights are not looked at.

    Raises:
        FoveateError: some are, or all are zero.
    """
    weights = {
        name: weight
        for name, weight in network.named_parameters()
        if weight.is_floating_point() and weight.itemsize > 1 and not weight.is_meta and weight.numel()
    }
    if not weights:
        return
    with torch.no_grad():
        # A sum is not finite if any summand is not; float32 holds the sum of any sensible weights.
        sums = [weight.sum(dtype=torch.promote_types(weight.dtype, torch.float32)) for weight in weights.values()]
        totals = dict(zip(weights, torch.stack([each.double().cpu() for each in sums]).tolist(), strict=True))
        doubtful = [name for name, total in totals.items() if not math.isfinite(total)]
        wrong = [name for name in doubtful if not bool(weights[name].isfinite().all())]
    if wrong:
        raise FoveateError(
            f"{title} has NaN or infinite numbers in {_counted(wrong)} ({_first(wrong)}); its training failed, or its "
            "files are damaged: get the model again"
        )
    if not any(totals.values()):
        raise FoveateError(f"all weights of {title} are zero, so its files are damaged; get the model again")


def check_generation(title: str, network: Any) -> None:
    """Check the numbers of a generation configuration that `generate` would stumble over in the middle of an answer.

    Args:
        title: what errors call the model.
        network: the model.

    Raises:
        FoveateError: a penalty is no number above 0, a token is not in the vocabulary, or it asks for a way to decode
            that needs more than the model.
    """
    config = getattr(network, "generation_config", None)
    if config is None:
        return
    vocabulary = getattr(network.config.get_text_config(), "vocab_size", None)
    for name in ("repetition_penalty", "encoder_repetition_penalty"):
        value = getattr(config, name, None)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e9):
            raise _no_generation(title, name, value, "a number above 0")
    for name in ("forced_bos_token_id", "forced_eos_token_id", "suppress_tokens", "begin_suppress_tokens"):
        value = getattr(config, name, None)
        tokens: Any = value if isinstance(value, list) else () if value is None else (value,)
        for token in tokens:
            if type(token) is not int or not 0 <= token < (vocabulary or token + 1):
                raise _no_generation(title, name, token, "tokens of the vocabulary")
    for name in ("penalty_alpha", "assistant_early_exit", "dola_layers", "is_assistant"):
        if (value := getattr(config, name, None)) not in (None, False):
            raise _no_generation(title, name, value, "left out: foveate decodes with the model alone")
    value = getattr(config, "prompt_lookup_num_tokens", None)
    if value is not None and (type(value) is not int or value < 1):
        raise _no_generation(title, "prompt_lookup_num_tokens", value, "a whole number of 1 or more")


def _no_generation(title: str, name: str, value: object, expected: str) -> FoveateError:
    return FoveateError(
        f"{name} in the generation_config.json of {title} is {quoted(value)}, and must be {expected}; correct the file"
    )


def check_processor(title: str, processor: Any, config: Any) -> None:
    """Check that a processor writes an image into the prompt as the model reads it.

    Args:
        title: what errors call the model.
        processor: with a tokenizer.
        config: of the model.

    Raises:
        FoveateError: image token, size of patches or choice of features differ, or a size, mean or deviation is
            out of range.
    """
    token, wanted = getattr(processor, "image_token", None), getattr(config, "image_token_id", None)
    if isinstance(token, str) and isinstance(wanted, int):
        found = getattr(processor, "image_token_id", None)
        # Some processors put other tokens in place of the one that a template writes.
        if not isinstance(found, int) or found == processor.tokenizer.unk_token_id:
            found = processor.tokenizer.convert_tokens_to_ids(token)
        if found is None or (found != wanted and found == processor.tokenizer.unk_token_id):
            raise FoveateError(
                f"the tokenizer of {title} has no token {token!r}, which stands for an image in prompts; take the "
                "tokenizer that came with the model"
            )
        # A processor may know an image by the mark before it, and its tokenizer knows what the image itself is.
        known = [
            getattr(processor.tokenizer, "image_token_id", None),
            *(getattr(processor, "image_token_ids", None) or ()),
            processor.tokenizer.convert_tokens_to_ids(getattr(processor, "img_patch_token", token)),
        ]
        if found != wanted and wanted not in known:
            raise FoveateError(
                f"an image is token {found} ({token!r}) for the tokenizer of {title} and {wanted} for its config.json; "
                "take both from one model"
            )
    _check_images(title, processor.image_processor)
    if not (hasattr(processor, "vision_feature_select_strategy") and hasattr(config, "vision_feature_select_strategy")):
        return
    for name, own in (("patch_size", config.vision_config), ("vision_feature_select_strategy", config)):
        theirs, ours = getattr(processor, name, None), getattr(own, name, None)
        if hasattr(processor, name) and theirs != ours:
            raise FoveateError(
                f"{name} is {theirs!r} for the processor of {title} and {ours!r} for the model, so the tokens of an "
                "image don't fit; correct processor_config.json"
            )


def _check_images(title: str, rules: Any) -> None:
    """Check the numbers by which a processor resizes and scales images.

    Raises:
        FoveateError: an edge is no whole number from 1 to 32,768, a mean is not finite, or a deviation or factor is 0
            or not finite.
    """
    for name in ("size", "crop_size"):
        # A mapping in some versions of transformers, and its own type in others.
        sizes: Any = getattr(rules, name, None)
        # Other keys are numbers of pixels, not edges.
        for edge in ("height", "width"):
            value = sizes.get(edge) if isinstance(sizes, Mapping) else getattr(sizes, edge, None)
            if value is not None and (type(value) is not int or not 1 <= value <= _LONGEST_EDGE):
                wanted = f"a whole number from 1 to {_LONGEST_EDGE:,}"
                raise _no_processor(title, f"{name}.{edge}", value, wanted)
    for name, divides in (("image_mean", False), ("image_std", True), ("rescale_factor", True)):
        given: Any = getattr(rules, name, None)
        for value in given if isinstance(given, list | tuple) else () if given is None else (given,):
            number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            if not number or (divides and not value):
                wanted = "finite and not 0" if divides else "finite"
                raise _no_processor(title, name, value, f"numbers that are {wanted}")


def _no_processor(title: str, name: str, value: object, expected: str) -> FoveateError:
    return FoveateError(
        f"{name} is {quoted(value)} for the image processor of {title}, and must be {expected}; correct "
        "preprocessor_config.json or processor_config.json"
    )


def _counted(names: Sequence[Any]) -> str:
    return f"{len(names)} weight{'' if len(names) == 1 else 's'}"


def _first(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]}, ..."
