"""Decoding without sampling under a model's own generation configuration, one step at a time.

Every row of a table is decoded by this module. Which token comes next depends on the logits and on the ids so far:
those of the uncompressed prompt, one placeholder per visual token, without padding, and those of the answer. So
penalties, forbidden n-grams and minimum lengths act alike on a dense prompt, on a compressed one, and on one whose
beginning comes from a cache, whatever else is in the batch: as in `generate` with the dense model and this prompt
alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from foveate.errors import FoveateError, first_line
from foveate.transformers_api import generation_settings, logits_processors, stop_criteria

__all__ = ["Answers", "Decoding"]

_CHANGES: Final = {
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "bad_words_ids": None,
    "sequence_bias": None,
    "min_length": 0,
    "min_new_tokens": 0,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "exponential_decay_length_penalty": None,
    "remove_invalid_values": False,
    "stop_strings": None,
}
"""Settings that change answers without sampling, each with the value that changes nothing."""
_BEAMS: Final = "follows several beams"
_REFUSED: Final = {
    "num_beams": (1, _BEAMS),
    "num_beam_groups": (1, _BEAMS),
    "constraints": (None, _BEAMS),
    "force_words_ids": (None, _BEAMS),
    "num_return_sequences": (1, "gives several answers"),
    "penalty_alpha": (0.0, "compares hidden states"),
    "dola_layers": (None, "compares layers"),
    "guidance_scale": (1.0, "runs the model twice"),
    "watermarking_config": (None, "marks answers"),
    "token_healing": (False, "changes the prompt"),
    "max_time": (None, "ends answers by the clock"),
}
"""Settings that can't act alike on all rows, each with the value that changes nothing, and what it does."""
_SAMPLING: Final = ("temperature", "top_k", "top_p", "top_h", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")
"""Settings that only sampling reads."""
_OUTPUT: Final = {
    "return_dict_in_generate": False,
    "output_attentions": False,
    "output_hidden_states": False,
    "output_scores": False,
    "output_logits": False,
    "use_cache": True,
    "cache_implementation": None,
    "prompt_lookup_num_tokens": None,
    "assistant_early_exit": None,
    "prefill_chunk_size": None,
    "use_mtp": None,
    "compile_config": None,
    "cache_config": None,
    "max_length": None,
}
"""Settings that change how `generate` works and what it returns, but not the answer."""
_ROW_BY_ROW: Final = ("encoder_repetition_penalty", "encoder_no_repeat_ngram_size")
"""Settings whose processors hold one prompt for each row of their batch."""


class Decoding:
    """How a model's next token is chosen: the likeliest, after what its generation configuration does to the logits.

    Settings that only sampling reads (temperature, top_p, top_k) have no effect.

    Args:
        model: with `generate` and a `generation_config`.
        device: where its inputs go; weights that are offloaded are nowhere.
        tokenizer: its own; None if no string may end an answer.
        longest: the most tokens that an answer may have.
        greedy: leave the configuration out; only its ids of padding and end are read.
        beams: take several beams, which `generate` follows (`generate_arguments`) and `answers` doesn't.

    Raises:
        FoveateError: the configuration sets what can't be obeyed alike for every row, or can't be used.
    """

    def __init__(
        self,
        model: Any,
        device: torch.device,
        tokenizer: Any,
        longest: int = 16,
        greedy: bool = False,
        beams: bool = False,
    ) -> None:
        self.model = model
        self.device = device
        self.tokenizer = tokenizer
        self._beams = beams
        self.longest = longest
        self.greedy = greedy
        settings = generation_settings(model)
        if greedy:
            settings = type(settings)(
                eos_token_id=settings.eos_token_id, pad_token_id=settings.pad_token_id, do_sample=False
            )
        self.settings: Any = settings
        self._refuse()
        self.set_values = {
            name: getattr(settings, name, None)
            for name, neutral in _CHANGES.items()
            if getattr(settings, name, None) not in (None, neutral)
        }
        try:
            self._criteria: Any = stop_criteria(model, settings, tokenizer, device)
            head = model.get_output_embeddings()
            self._columns: int = model.config.get_text_config().vocab_size if head is None else head.weight.shape[0]
            self._try()
            ends = settings.eos_token_id
            self.ends: list[int] = [] if ends is None else list(ends) if isinstance(ends, list | tuple) else [int(ends)]
            pad = settings.pad_token_id
            pad = int(pad) if pad is not None else (self.ends or [0])[0]
            # Padding is masked, so every id that has an embedding will do.
            self.pad: int = pad if 0 <= pad < self._columns else 0
        except (ValueError, TypeError, LookupError, RuntimeError, OverflowError, AttributeError) as error:
            raise FoveateError(
                f"the model's generation configuration can't be used ({first_line(error)}); repair its "
                "generation_config.json, or decode without it: bench takes --greedy"
            ) from error
        # Beside the end's own id, words may end answers; `generate` leaves those in the text.
        special = set(getattr(tokenizer, "all_special_ids", None) or ())
        self.silent_ends = frozenset(special & set(self.ends) or self.ends)
        self.ends_by_text = bool(settings.stop_strings)
        self._alone = any(name in self.set_values for name in _ROW_BY_ROW)

    def _refuse(self) -> None:
        for name, (neutral, effect) in _REFUSED.items():
            value = getattr(self.settings, name, None)
            if value not in (None, neutral) and not (self._beams and name == "num_beams"):
                raise FoveateError(
                    f"the model's generation configuration sets {name} to {_short(value)}, which {effect}: this can't "
                    "be done alike for every row; take it out of generation_config.json, or decode without the "
                    "configuration: bench takes --greedy"
                )
        if getattr(self.settings, "cache_implementation", None) == "quantized":
            raise FoveateError(
                "the model's generation configuration sets cache_implementation to quantized, which not every row can "
                "use; take it out of generation_config.json, or decode without the configuration: bench takes --greedy"
            )

        beams = self.settings.num_beams
        if beams is not None and not (isinstance(beams, int) and not isinstance(beams, bool) and beams >= 1):
            raise FoveateError(
                f"the model's generation configuration sets num_beams to {_short(beams)}; it must be a number from 1 on"
            )

    def _try(self) -> None:
        """Use the configuration once, since some of its values are checked only then."""
        self.settings.validate()
        ids = torch.zeros(1, 2, dtype=torch.int64, device=self.device)
        processors = logits_processors(self.model, self.settings, ids, self.longest)
        self.changes_logits = len(processors) > 0
        if self.changes_logits:
            logits = torch.zeros(1, self._columns, device=ids.device)
            # The first step and the last one.
            for length in {2, 1 + self.longest}:
                processors(ids.new_zeros(1, length), logits.clone())
        if len(self._criteria):
            self._criteria(ids, None)

    @property
    def title(self) -> str:
        """What tables say."""
        if self.greedy:
            return "greedy, without the model's own configuration"
        said = ", ".join(
            f"{name} {value:g}" if isinstance(value, int | float) and not isinstance(value, bool) else name
            for name, value in self.set_values.items()
        )
        return f"the model's own configuration{f' ({said})' if said else ''}, without sampling"

    def to_dict(self) -> dict[str, Any]:
        """Return everything that decides an answer, as plain data."""
        values = {
            name: sorted(map(str, value.items())) if isinstance(value, dict) else value
            for name, value in self.set_values.items()
        }
        return {"greedy": self.greedy, **values, "eos_token_id": self.ends, "pad_token_id": self.pad}

    def generate_arguments(self) -> dict[str, Any]:
        """Return what makes `generate` decode like this, whatever else the model's configuration says."""
        arguments: dict[str, Any] = {
            **_CHANGES,
            **{name: value for name, (value, _) in _REFUSED.items()},
            **dict.fromkeys(_SAMPLING),
            **_OUTPUT,
            # Not 0, which would take the place of `min_length`.
            "min_new_tokens": None,
            **self.set_values,
        }
        arguments["num_beams"] = (self._beams and self.settings.num_beams) or 1
        known = {name: value for name, value in arguments.items() if hasattr(self.settings, name)}
        tokenizer = {"tokenizer": self.tokenizer} if self.ends_by_text else {}
        return {**known, **tokenizer, "do_sample": False, "pad_token_id": self.pad, "max_new_tokens": self.longest}

    def processed(self, prompt: Int64[Tensor, "R S"], logits: Float[Tensor, "R V"]) -> Float[Tensor, "R V"]:
        """Return the logits of the first token after prompts of one length, float32, as decoding sees them."""
        processors = logits_processors(self.model, self.settings, prompt, self.longest)
        return processors(prompt, logits.float().clone())

    def answers(self, prompts: Sequence[Sequence[int]], device: torch.device) -> Answers:
        """Begin the answers to a batch of prompts, each the ids of the uncompressed prompt without padding."""
        return Answers(self, prompts, device)


class Answers:
    """The answers to a batch of prompts while they grow; `ids(row)` are those of one.

    Args:
        decoding: how tokens are chosen.
        prompts: per row, the ids of the uncompressed prompt, without padding.
        device: where logits come from.
    """

    def __init__(self, decoding: Decoding, prompts: Sequence[Sequence[int]], device: torch.device) -> None:
        self._decoding = decoding
        self._steps = 0
        lengths = [len(prompt) for prompt in prompts]
        # The prompt of each row, and its answer behind it.
        width = max(lengths) + decoding.longest
        self._ids = torch.full((len(prompts), width), decoding.pad, device=device)
        for row, prompt in enumerate(prompts):
            self._ids[row, : len(prompt)] = torch.tensor(prompt, device=device)
        self._lengths = torch.tensor(lengths, device=device)
        self._new = torch.full((len(prompts),), decoding.longest, device=device)
        self._ended = torch.zeros(len(prompts), dtype=torch.bool, device=device)
        self._groups: list[tuple[int, Tensor, Any]] = []
        self._ends = torch.tensor(decoding.ends, dtype=torch.int64, device=device)
        if decoding.changes_logits or decoding.ends_by_text:
            self._group(lengths)

    def _group(self, lengths: Sequence[int]) -> None:
        """Put rows with prompts of one length together: what acts on logits counts the tokens before them."""
        decoding = self._decoding
        keys = [(length, row if decoding._alone else 0) for row, length in enumerate(lengths)]
        for key in dict.fromkeys(keys):
            rows = torch.tensor([row for row, own in enumerate(keys) if own == key], device=self._ids.device)
            prompt = self._ids[rows, : key[0]]
            made = None
            if decoding.changes_logits:
                made = logits_processors(decoding.model, decoding.settings, prompt, decoding.longest)
            self._groups.append((key[0], rows, made))

    def next(self, logits: Float[Tensor, "R V"], rows: Int64[Tensor, " R"]) -> Int64[Tensor, " R"]:
        """Choose the next token of some rows, and note it.

        Args:
            logits: of these rows.
            rows: which these are; rows that have ended may be left out.
        """
        step, ids = self._steps, self._ids
        self._steps += 1
        logits = logits.to(ids.device)
        scores = logits.float().clone() if self._groups else logits
        groups = []
        for length, members, processors in self._groups:
            at = torch.isin(rows, members).nonzero().squeeze(1)
            if len(at):
                groups.append((length, at))
                if processors is not None:
                    scores[at] = processors(ids[rows[at], : length + step], scores[at])
        chosen = scores.argmax(dim=-1)
        ids[rows, self._lengths[rows] + step] = chosen
        ended = torch.isin(chosen, self._ends)
        if self._decoding.ends_by_text:
            for length, at in groups:
                ended[at] |= self._decoding._criteria(ids[rows[at], : length + step + 1], None)
        known = self._ended[rows]
        self._new[rows] = torch.where(ended & ~known, step + 1, self._new[rows])
        self._ended[rows] = known | ended
        return chosen

    def open(self, rows: Int64[Tensor, " R"]) -> Bool[Tensor, " R"]:
        """Return which of these rows go on."""
        return ~self._ended[rows] if self._steps < self._decoding.longest else torch.zeros_like(self._ended[rows])

    @property
    def cut(self) -> list[bool]:
        """Whether each answer was cut at the most tokens, and not ended by the model."""
        decoding = self._decoding
        cut = ~self._ended
        if decoding.settings.forced_eos_token_id is not None:
            # The end was forced there, too.
            cut |= self._new == decoding.longest
        return cut.tolist()

    def ids(self) -> list[list[int]]:
        """Return the ids of the answers; the one that ended an answer is left out unless it is a word of it."""
        found = []
        ends = self._decoding.silent_ends
        for row, (length, new) in enumerate(zip(self._lengths.tolist(), self._new.tolist())):
            ids = self._ids[row, length : length + min(new, self._steps)].tolist()
            found.append(ids[:-1] if ids and ids[-1] in ends else ids)
        return found


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
