"""Generate answers to questions after VoCo memories, with the model's own `generate`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from jaxtyping import Int64
from torch import Tensor

from foveate.devices import on_cpu
from foveate.engine.inputs import check_ids
from foveate.errors import FoveateError
from foveate.families import Family
from foveate.numbers import Between, check_whole
from foveate.prompts import chat_ids, question_messages
from foveate.transformers_api import cache_argument
from foveate.voco.embeddings import embedding_table
from foveate.voco.memory import VoCoMemory
from foveate.voco.prompt_rows import padded_text, prompt_rows, without_bos
from foveate.voco.two_pass import memory_cache

_SET_HERE: Final = (
    "inputs",
    "input_ids",
    "inputs_embeds",
    "attention_mask",
    "position_ids",
    "past_key_values",
    "cache",
    "cache_position",
    "assistant_model",
)
"""Options of `generate` that VoCo sets itself, or that can't work on a cache with more tokens than there are ids."""
_ONLY: Final = {
    "num_beams": 1,
    "num_return_sequences": 1,
    "cache_implementation": None,
    "prompt_lookup_num_tokens": None,
}
"""Options with the only value that works with memories."""


def check_options(model: Any, options: Mapping[str, Any]) -> None:
    """Check that answers from memories can be generated with these options.

    Args:
        model: its `generation_config` has the defaults.
        options: for its `generate`.

    Raises:
        FoveateError: VoCo sets an option itself, an option asks for several answers or another cache, or answers would
            have no token.
    """
    own = [name for name in _SET_HERE if options.get(name) is not None]
    if own:
        raise FoveateError(f"{', '.join(own)}: VoCo sets what a memory needs itself; leave it out")
    if options.get("max_new_tokens") is not None:
        check_whole("max_new_tokens", options["max_new_tokens"], Between(1))
    config = options.get("generation_config") or model.generation_config
    given = {name: options.get(name, getattr(config, name, None)) for name in _ONLY}
    # The model's own use_cache is overridden; the caller's isn't.
    given["use_cache"] = options.get("use_cache")
    for name, value in given.items():
        if value is not None and value != _ONLY.get(name, True):
            hint = "pass a question as often as you want it answered" if name.startswith("num_") else "leave it out"
            raise FoveateError(f"{name}={value} doesn't work with memories; {hint}")


def check_question_ids(family: Family, ids: Tensor) -> None:
    """Check that a tensor holds the ids of questions, `(B, T)`: their type and shape, and on the CPU their values.

    Raises:
        FoveateError: they are no whole numbers of that shape, or the model doesn't know one.
    """
    check_ids(ids, "questions")
    known = int(embedding_table(family).num_embeddings)
    # An accelerator would be waited for.
    if on_cpu(ids) and not bool(((ids >= 0) & (ids < known)).all()):
        raise FoveateError(
            f"questions hold ids from {int(ids.min())} to {int(ids.max())}, and the model's are from 0 to {known - 1}; "
            "pass those of its own tokenizer"
        )


def question_ids(
    model: Any, family: Family, questions: Sequence[str] | Tensor, processor: Any, device: torch.device
) -> tuple[Int64[Tensor, "B T"], Int64[Tensor, "B T"]]:
    """Return the ids of questions, padded on the left, and their mask, both `(B, T)` int64.

    Args:
        model: its `generation_config` says which id is padding.
        family: bound to the model.
        questions: texts, or ids `(B, T)` int64. The mask leaves out [BOS] before them, since a memory has one.
        processor: the model's processor, for texts; else None.
        device: where the ids go.

    Raises:
        FoveateError: texts came without a processor.
    """
    if isinstance(questions, Tensor):
        ids = questions.to(device)
        return ids, without_bos(family, ids, _real_mask(model, ids).bool()).long()
    if processor is None:
        raise FoveateError("questions as texts need the model's processor; pass it, or pass token ids")
    rows = []
    for question in questions:
        rows += prompt_rows(family, {"input_ids": chat_ids(processor, question_messages(question, images=0))}, ())
    ids, mask, _ = padded_text(rows)
    return ids.to(device), mask.to(device)


def _real_mask(model: Any, ids: Int64[Tensor, "B T"]) -> Int64[Tensor, "B T"]:
    """Return 1 from the first id on that isn't the padding id of `generate`, else 0: `(B, T)` int64."""
    pad = model.generation_config.pad_token_id
    return torch.ones_like(ids) if pad is None else ((ids != pad).cumsum(dim=1) > 0).long()


def paired(
    memories: Sequence[VoCoMemory], ids: Int64[Tensor, "B T"], mask: Int64[Tensor, "B T"]
) -> tuple[list[VoCoMemory], Int64[Tensor, "B T"], Int64[Tensor, "B T"]]:
    """Pair memories with questions: as many of both, or one of either, which is repeated.

    Raises:
        FoveateError: there are several of both, and not equally many.
    """
    pairs = list(memories)
    if len(pairs) == 1:
        pairs *= ids.shape[0]
    elif ids.shape[0] == 1:
        ids, mask = ids.expand(len(pairs), -1), mask.expand(len(pairs), -1)
    if len(pairs) != ids.shape[0]:
        raise FoveateError(f"{len(pairs)} memories don't go with {ids.shape[0]} questions; give one, or as many")
    return pairs, ids, mask


@torch.no_grad()
def generate_after_memories(
    model: Any,
    family: Family,
    memories: Sequence[VoCoMemory],
    ids: Int64[Tensor, "B T"],
    mask: Int64[Tensor, "B T"],
    options: Mapping[str, Any],
) -> Any:
    """Run `generate` on questions after one memory each.

    Args:
        model: the base model.
        family: bound to the model.
        memories: B of them.
        ids: `(B, T)` int64, the questions, padded on the left.
        mask: `(B, T)` int64, 0 at padding.
        options: for `generate`.

    Returns:
        New ids `(B, new)` int64, or what `generate` returns under `return_dict_in_generate`, with `sequences` the new
        ids.
    """
    cache, memory_mask, positions = memory_cache(family, memories, mask, ids.device)
    generated: Any = model.generate(
        input_ids=ids,
        attention_mask=torch.cat([memory_mask, mask], dim=1),
        position_ids=positions,
        **{**options, **cache_argument(model.forward, cache), "use_cache": True},
    )
    if isinstance(generated, Tensor):
        return generated[:, ids.shape[1] :]
    generated.sequences = generated.sequences[:, ids.shape[1] :]
    return generated
