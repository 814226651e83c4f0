"""Train the decoder: first on symbols (what a perfect encoder would say of each patch), then on the encoder's tokens.

A row of a batch is one image and all its questions. Every question sees the image and itself, nothing of the others,
at the positions that it would have alone: the image is paid for once.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F
from recipes.reference.build import build_tokenizer
from recipes.reference.targets import GRID, IGNORE, TARGETS
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from foveate.scenes import Question, Scene, caption

PREFIX: Final = 2
"""Tokens before the image: <bos> and USER:"""

CAPTION: Final = "describe the image"


@functools.lru_cache(maxsize=1)
def _tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer()


@functools.lru_cache(maxsize=8192)
def _word(word: str) -> tuple[int, ...]:
    return tuple(_tokenizer()(word, add_special_tokens=False)["input_ids"])


def encode(text: str) -> list[int]:
    """Tokenize words parted by spaces, each word once and for all.

    >>> encode("47 ?") == build_tokenizer()("47 ?")["input_ids"]
    True
    """
    return [i for word in text.split() for i in _word(word)]


@dataclass(frozen=True)
class Text:
    """The packed questions of a batch of images; everything (B, T)."""

    ids: Tensor  # int64
    positions: Tensor  # int64, as if each question came alone after the whole image
    segment: Tensor  # int64: 1, 2, ... one per question, 0 for padding
    label: Tensor  # int64: the next token where it belongs to an answer, else -100
    weight: Tensor  # float32: of each label in the loss
    skill: Tensor  # int64: index of the question's skill, per segment's first answer token, else -1


def pack(
    scenes: Sequence[Scene],
    length: int,
    skills: Sequence[str],
    rng: random.Random,
    *,
    captions: float = 0.5,
    vary: bool = True,
    visual: int = GRID * GRID,
) -> Text:
    """Pack the questions of each scene into rows of ``length`` tokens; what does not fit is left out.

    ``captions`` is the share of the images that are also described; ``vary`` now and then writes "color" and leaves
    out question marks; ``visual`` is how many visual tokens come before.
    """
    user, assistant, eos = 5, 6, 3
    del user
    rows: list[np.ndarray] = []
    for one in scenes:
        row = np.zeros((6, length), np.float64)
        row[3], row[5] = IGNORE, -1
        asked: list[Question] = list(one.questions)
        rng.shuffle(asked)
        if one.kind != "easy" and rng.random() < captions:
            asked.insert(0, Question(CAPTION, caption(one.things), "caption"))
        at, segment = 0, 0
        for q in asked:
            text = q.text
            if vary:
                if rng.random() < 0.12:
                    text = text.replace("colour", "color")
                if rng.random() < 0.08:
                    text = text.removesuffix(" ?")
            question, answer = [*encode(text), assistant], [*encode(q.answer), eos]
            ids = question + answer[:-1]
            if at + len(ids) > length:
                continue
            segment += 1
            span = slice(at, at + len(ids))
            row[0, span] = ids
            row[1, span] = PREFIX + visual + np.arange(len(ids))
            row[2, span] = segment
            first = at + len(question) - 1
            row[3, first : at + len(ids)] = answer
            row[4, first : at + len(ids)] = 0.25 if q.skill == "caption" else 1.0
            row[5, first : at + len(ids)] = skills.index(q.skill) if q.skill in skills else -1
            at += len(ids)
        rows.append(row)
    stack = torch.from_numpy(np.stack(rows, 1))
    whole = stack.long()
    return Text(whole[0], whole[1], whole[2], whole[3], stack[4].float(), whole[5])


def attention_mask(segment: Tensor, image: int, dtype: torch.dtype) -> Tensor:
    """Build the additive mask of packed rows: (B, 1, S, S) with S = PREFIX + image + T, -inf as a large number."""
    batch, length = segment.shape
    size = PREFIX + image + length
    full = torch.cat([segment.new_full((batch, PREFIX + image), -1), segment], 1)
    same = (full[:, :, None] == full[:, None, :]) | (full[:, None, :] == -1)
    causal = torch.ones(size, size, dtype=torch.bool).tril()
    return torch.zeros(batch, 1, size, size, dtype=dtype).masked_fill_(~(same & causal)[:, None], -1e4)


class SymbolTable(nn.Module):
    """A token for every patch, made of what the patch shows: the sum of one learned vector per known value."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.start: Tensor
        self.none: Tensor
        sizes = [n + 1 for n in TARGETS.values()]  # one more each: not known, or the question does not arise
        self.register_buffer("start", torch.tensor([0, *np.cumsum(sizes)[:-1].tolist()]), persistent=False)
        self.register_buffer("none", torch.tensor(list(TARGETS.values())), persistent=False)
        self.table = nn.Embedding(sum(sizes), width)
        nn.init.normal_(self.table.weight, std=0.06)

    def forward(self, dense: Tensor) -> Tensor:
        """(B, N, len(TARGETS)) int64 to (B, N, D)."""
        index = torch.where(dense == IGNORE, self.none, dense) + self.start
        flat = index.reshape(-1, index.shape[-1])
        return F.embedding_bag(flat, self.table.weight, mode="sum").view(*dense.shape[:-1], -1)


def pick_patches(dense: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Choose ``count`` patches of dense targets (576, T): those with centres first, then any; sorted."""
    order = rng.random(len(dense)) + (dense[:, 1] == 1)
    return np.sort(np.argpartition(-order, count - 1)[:count])


class DecoderTrainer(nn.Module):
    """The language model, fed with visual tokens from outside; gives the logits at the packed text."""

    def __init__(self, model: LlavaForConditionalGeneration) -> None:
        super().__init__()
        self.model = model

    def forward(self, visual: Tensor, places: Tensor, ids: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        """Logits (B, T, vocabulary) of visual tokens (B, M, D) at ``places`` (B, M) and packed text (B, T)."""
        language = self.model.model.language_model
        batch = len(ids)
        start = ids.new_tensor([2, 5]).expand(batch, PREFIX)
        embeds = language.embed_tokens(torch.cat([start, ids], 1))
        embeds = torch.cat([embeds[:, :PREFIX], visual.to(embeds.dtype), embeds[:, PREFIX:]], 1)
        where = torch.cat([start.new_tensor([0, 1]).expand(batch, PREFIX), places + PREFIX, positions], 1)
        out = language(inputs_embeds=embeds, attention_mask=mask, position_ids=where, use_cache=False)
        return self.model.lm_head(out.last_hidden_state[:, -ids.shape[1] :])


def answer_loss(logits: Tensor, text: Text, skills: Sequence[str]) -> tuple[Tensor, dict[str, float]]:
    """Cross entropy at the answers, and the share of answers that are right in full, per skill."""
    label = text.label
    known = label != IGNORE
    chosen = logits[known].float()
    loss = F.cross_entropy(chosen, label[known], reduction="none")
    weight = text.weight[known]
    total = (loss * weight).sum() / weight.sum()
    wrong = torch.zeros_like(label, dtype=torch.bool)
    wrong[known] = chosen.argmax(-1) != label[known]
    # A question is right when none of its answer's tokens is wrong.
    key = torch.arange(len(label))[:, None] * 64 + text.segment
    counts: dict[str, float] = {}
    bad = torch.zeros(len(label) * 64, dtype=torch.bool)
    bad[key[wrong]] = True
    for i, name in enumerate(skills):
        mine = key[text.skill == i].unique()
        if len(mine):
            counts[f"{name}:right"] = float((~bad[mine]).sum())
            counts[f"{name}:asked"] = float(len(mine))
    return total, counts


Draw = Callable[[int], Scene]
