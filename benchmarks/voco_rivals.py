"""Two rivals of VoCo tokens, which make one token of an image before the decoder, and how they are trained.

Rivals see the same images and questions as VoCo tokens, and train the same LoRA weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import DynamicCache

from foveate.families import Family
from foveate.files import write_tensors
from foveate.tokens import Layout
from foveate.train import checkpoint
from foveate.train.prepared import prepare
from foveate.train.recipe import Recipe
from foveate.train.run import make_trainer
from foveate.transformers_api import cache_argument
from foveate.voco import VoCoMemory
from foveate.voco.embeddings import embedding_table
from foveate.voco.objective import VoCoSettings, VoCoTrainee
from foveate.voco.prompt_rows import PromptRow

RIVALS = ("pool", "qformer")
WEIGHTS = "rival.safetensors"
"""The file of a trained rival, in its run's folder."""


class Rival(VoCoTrainee):
    """A model that answers from one token per image, which a module before the decoder makes of its visual tokens.

    Args:
        trainee: the model to train, with VoCo tokens, which stay unused.
        kind: of `RIVALS`.
    """

    def __init__(self, trainee: VoCoTrainee, kind: str) -> None:
        super().__init__(trainee.model, trainee.voco, VoCoSettings(shared=False, apart=True))
        width = trainee.voco.embedding.shape[1]
        torch.manual_seed(1)
        self.presser = MeanPooling(width) if kind == "pool" else QFormer(width)
        self.voco.requires_grad_(False)

    def memories(self, family: Family, features: Sequence[Tensor], layouts: Sequence[Layout]) -> list[VoCoMemory]:
        """Return the keys and values of [BOS] and the one token, per image: all that text sees."""
        token = self.presser(torch.stack(list(features)))
        bos = embedding_table(family)(torch.tensor([family.config.get_text_config().bos_token_id]))
        return prefix_memories(family, torch.cat([bos.expand(len(token), -1, -1), token], dim=1))

    def held(self, row: PromptRow, memories: Sequence[VoCoMemory], count: int) -> VoCoMemory | None:
        """Return the memory of a row's image, if it has one."""
        return memories[row.images[0]] if row.images else None


class MeanPooling(nn.Module):
    """The mean of the visual tokens and a linear layer, initialised as the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        nn.init.eye_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, features: Tensor) -> Tensor:
        return self.linear(features.mean(dim=1, keepdim=True))


class QFormer(nn.Module):
    """A learned query that attends to the visual tokens in two layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(1, 1, width) * 0.1)
        layer = nn.TransformerDecoderLayer(width, 3, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        self.layers = nn.TransformerDecoder(layer, 2, nn.LayerNorm(width))
        self.linear = nn.Linear(width, width)

    def forward(self, features: Tensor) -> Tensor:
        return self.linear(self.layers(self.query.expand(len(features), -1, -1), features))


def prefix_memories(family: Family, embeddings: Tensor) -> list[VoCoMemory]:
    """Return the keys and values of all of `(B, P, D)` embeddings, one memory per row."""
    config: Any = family.decoder.config
    cache: Any = DynamicCache(config=config)
    rows, length = embeddings.shape[:2]
    family.decoder(
        inputs_embeds=embeddings,
        attention_mask=torch.ones(rows, length, dtype=torch.int64),
        position_ids=torch.arange(length).expand(rows, -1),
        use_cache=True,
        **cache_argument(family.decoder.forward, cache),
    )
    keys = torch.stack([layer.keys for layer in cache.layers], dim=1)
    values = torch.stack([layer.values for layer in cache.layers], dim=1)
    return [VoCoMemory(k, v, 0, length, length, "", "", torch.ones(k.shape[-1] // 2)) for k, v in zip(keys, values)]


def train_rival(kind: str, recipe: Recipe, out: Path, before: Path | None, say: Callable[[str], None]) -> None:
    """Train a rival; an interrupted run resumes, and a finished one is skipped.

    Args:
        kind: of `RIVALS`.
        recipe: has one VoCo token, which the rival's token takes the place of.
        out: the run's folder.
        before: the folder of an earlier run to continue from.
        say: reports progress.
    """
    if (out / WEIGHTS).exists():
        return
    training = make_trainer(prepare(recipe), out, say, flops=False)
    trainer: Any = training.trainer
    trainee: Any = trainer.model
    rival = Rival(trainee, kind)
    if before is not None:
        load_rival(rival, before)
    trainer.model = trainer.model_wrapped = rival
    kept = checkpoint.checkpoints(out)
    try:
        trainer.train(resume_from_checkpoint=str(kept[-1]) if kept else None)
    finally:
        training.switch.close()
    trained = {name: weight.detach().contiguous() for name, weight in rival.named_parameters() if weight.requires_grad}
    write_tensors(out / WEIGHTS, trained)


def load_rival(rival: Rival, folder: Path) -> None:
    """Load what a rival has learned."""
    stored = load_file(folder / WEIGHTS)
    missing = {name for name, weight in rival.named_parameters() if weight.requires_grad} ^ stored.keys()
    assert not missing, missing
    rival.load_state_dict(stored, strict=False)
