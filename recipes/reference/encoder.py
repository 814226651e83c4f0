"""Train the encoder alone: dense targets at every patch, and what is present in the image on [CLS].

Scenes are cut into windows of 12 x 12 patches first (a fifth of the cost of a whole image in attention and a quarter in
everything else), each with the rows of the 24 x 24 position table that it was cut from; whole images come later.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from recipes.reference.pixels import Pixels
from recipes.reference.targets import (
    GRID,
    IGNORE,
    LETTERS,
    PATCH,
    PRESENCE,
    TARGETS,
    dense_targets,
    letter_targets,
    presence,
)
from torch import Tensor, nn
from transformers import CLIPVisionModel

from foveate.scenes import Scene, scene

WEIGHTS: dict[str, float] = {
    "kind": 1.0, "centre": 1.5, "colour": 1.0, "shape": 1.5, "size": 0.5, "word": 1.0,
    "tens": 1.0, "units": 1.5, "mark": 1.0, "photo": 1.0, "column": 0.1, "row": 0.1,
}  # fmt: skip


def pixel_values(picture: object) -> np.ndarray:
    """Turn an RGB image into what the processor gives: (3, H, W) float32 from -1 to 1."""
    array = np.asarray(picture, dtype=np.float32)
    return np.ascontiguousarray((array / 127.5 - 1.0).transpose(2, 0, 1))


@dataclass(frozen=True)
class Mixture:
    """Draws the training scene of an index: real pixels in a share of the scenes, where there are any."""

    pixels: Pixels
    share: float
    seed: int
    kinds: tuple[tuple[str, float], ...] = ()
    """Kinds of scenes and how often each is drawn; empty: as the scenes have it."""
    boost: int = 1
    """How many times ten questions to ask about a scene."""

    def __call__(self, index: int) -> Scene:
        """Draw one scene."""
        rng = random.Random(f"mixture {self.seed} {index}")
        number = rng.randrange(1 << 40)
        if self.pixels.kinds and rng.random() < self.share:
            return self.pixels.scene(number)
        kind = rng.choices([k for k, _ in self.kinds], [w for _, w in self.kinds])[0] if self.kinds else None
        return scene(number, kind=kind, boost=self.boost)


@dataclass(frozen=True)
class Windows:
    """A batch for the encoder: images, the rows of the position table, dense targets, presence."""

    images: Tensor  # (B, 3, H, W) float32
    rows: Tensor  # (B, N) int64, 0 is the first patch
    dense: Tensor  # (B, N, len(TARGETS)) int64
    present: Tensor  # (B, PRESENCE) float32
    letters: Tensor  # (B, N) int64


def windows(draw: Mixture, start: int, count: int, side: int, per_scene: int) -> Windows:
    """Draw ``count`` windows of ``side`` x ``side`` patches, ``per_scene`` per scene, from scene ``start`` on."""
    images, rows, dense, present, letters = [], [], [], [], []
    table = np.arange(GRID * GRID).reshape(GRID, GRID)
    for i in range(count // per_scene):
        one = draw(start + i)
        picture, whole, read = pixel_values(one.image), dense_targets(one.things), letter_targets(one.things)
        rng = random.Random(f"window {draw.seed} {start + i}")
        for _ in range(per_scene):
            r, c = rng.randint(0, GRID - side), rng.randint(0, GRID - side)
            images.append(picture[:, r * PATCH : (r + side) * PATCH, c * PATCH : (c + side) * PATCH])
            rows.append(table[r : r + side, c : c + side].reshape(-1))
            cut = whole[r : r + side, c : c + side]
            dense.append(cut.reshape(side * side, -1))
            present.append(presence(cut))
            letters.append(read[r : r + side, c : c + side].reshape(-1))
    return Windows(*(torch.from_numpy(np.stack(x)) for x in (images, rows, dense, present, letters)))


class EncoderTrainer(nn.Module):
    """The encoder with linear heads: dense targets on the last layer but one, presence on the final [CLS]."""

    def __init__(self, encoder: CLIPVisionModel) -> None:
        super().__init__()
        self.encoder = encoder
        width = encoder.config.hidden_size
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, sum(TARGETS.values()))
        self.presence = nn.Linear(width, PRESENCE)
        self.letters = nn.Linear(width, len(LETTERS))

    def features(self, images: Tensor, rows: Tensor) -> Tensor:
        """The last hidden states but one, [CLS] first: (B, 1 + N, D)."""
        e = self.encoder
        patches = e.embeddings.patch_embedding(images).flatten(2).transpose(1, 2)
        table = e.embeddings.position_embedding.weight
        cls = (e.embeddings.class_embedding + table[0]).expand(len(images), 1, -1)
        h = e.pre_layrnorm(torch.cat([cls, patches + table[rows + 1]], 1))
        for layer in e.encoder.layers[:-1]:
            h = layer(h, attention_mask=None)
        return h

    def told(self, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """From features (B, 1 + N, D): logits of dense targets, of letters, and of presence (a quarter of B)."""
        # [CLS] costs a whole layer more, so only a quarter of the batch pays for it.
        quarter = h[: max(1, len(h) // 4)]
        cls = self.encoder.post_layernorm(self.encoder.encoder.layers[-1](quarter, attention_mask=None)[:, 0])
        patches = self.norm(h[:, 1:])
        return self.head(patches), self.letters(patches), self.presence(cls)


def encoder_loss(
    told: tuple[Tensor, Tensor, Tensor], dense: Tensor, letters: Tensor, present: Tensor
) -> tuple[Tensor, dict[str, float]]:
    """The encoder's whole objective, and the share of things that their middle patch tells right."""
    loss, numbers = dense_loss(told[0], dense)
    read = F.cross_entropy(told[1].float().transpose(1, 2), letters, ignore_index=IGNORE, reduction="sum")
    known = letters != IGNORE
    read = read / known.sum().clamp(min=1)
    numbers["letter"] = ((told[1].argmax(-1) == letters) & known).sum().item() / max(1, int(known.sum()))
    cls = F.binary_cross_entropy_with_logits(told[2].float(), present[: len(told[2])])
    numbers["cls"] = cls.item()
    return loss + 1.5 * read + 5.0 * cls, numbers


def dense_loss(logits: Tensor, dense: Tensor) -> tuple[Tensor, dict[str, float]]:
    """Weighted sum of cross entropies; patches with the centre of a thing count four times."""
    total, accuracy = logits.new_zeros((), dtype=torch.float32), {}
    centre = dense[..., 1] == 1
    weight = 1.0 + 3.0 * centre.float()
    for i, (name, part) in enumerate(zip(TARGETS, logits.float().split(list(TARGETS.values()), -1))):
        target = dense[..., i]
        known = target != IGNORE
        w = weight * known
        if name == "centre":
            w = 1.0 + 7.0 * centre.float()
        loss = F.cross_entropy(part.transpose(1, 2), target, reduction="none", ignore_index=IGNORE)
        total = total + WEIGHTS[name] * (loss * w).sum() / w.sum().clamp(min=1)
        here = known & centre
        accuracy[name] = ((part.argmax(-1) == target) & here).sum().item() / max(1, int(here.sum()))
    return total, accuracy


def _frequencies(count: int) -> Tensor:
    """Angles per patch, from the finest that a grid of patches can tell down to a slow one."""
    return 2.8 * (0.12 ** (torch.arange(count) / (count - 1)))


def position_table(width: int, grid: int = GRID) -> Tensor:
    """Sines and cosines of row and column: (1 + grid x grid, width), the first row ([CLS]) zero.

    >>> position_table(192).shape
    torch.Size([577, 192])
    """
    angle = torch.arange(grid)[:, None] * _frequencies(width // 4)
    one = torch.stack([angle.sin(), angle.cos()], -1).flatten(1)  # pairs: a shift by one patch turns each pair
    table = torch.cat([one[:, None].expand(-1, grid, -1), one[None].expand(grid, -1, -1)], -1).reshape(grid * grid, -1)
    return torch.cat([torch.zeros(1, width), table])


_OFFSETS = (
    ((0, -1), (0, 1), (-1, 0)),
    ((1, 0), (-1, -1), (1, 1)),
    ((1, -1), (-1, 1), (0, 0)),
    ((0, -2), (0, 2), (0, 0)),
)
"""Where the heads of the first layers look at first: (rows, columns) away."""


def _looking(width: int, dim: int, head: int, heads: int, offset: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Query and key weights (dim, width) of a head that looks ``offset`` away, by turning the position's pairs."""
    pairs = width // 4
    omega = _frequencies(pairs)
    chosen = torch.arange(head, pairs, heads)[: dim // 4]
    query, key = torch.zeros(dim, width), torch.zeros(dim, width)
    at = 0
    for axis in (0, 1):
        for j in chosen.tolist():
            turn, base = omega[j] * offset[axis], axis * (width // 2) + 2 * j
            key[at, base] = key[at + 1, base + 1] = 1.0
            query[at, base], query[at, base + 1] = turn.cos(), turn.sin()
            query[at + 1, base], query[at + 1, base + 1] = -turn.sin(), turn.cos()
            at += 2
    return query, key


@torch.no_grad()
def initialise(encoder: CLIPVisionModel) -> None:
    """Start the encoder as something like a small convolutional network.

    Positions are sines and cosines, and each head of the first layers looks at one neighbour of its patch, which a turn
    of the position's pairs does. A transformer of this size spends its first hundred thousand images to find as much.
    """
    width, heads = encoder.config.hidden_size, encoder.config.num_attention_heads
    e: Any = encoder.embeddings
    e.position_embedding.weight.copy_(position_table(width, int(e.num_patches**0.5)))
    nn.init.normal_(e.patch_embedding.weight, std=(3 * PATCH * PATCH) ** -0.5 * 0.6)
    nn.init.normal_(e.class_embedding, std=0.5)
    layers: Any = encoder.encoder.layers
    for number, layer in enumerate(layers):
        a = layer.self_attn
        for p in (a.q_proj, a.k_proj, a.v_proj, a.out_proj, layer.mlp.fc1, layer.mlp.fc2):
            nn.init.normal_(p.weight, std=width**-0.5 * 0.7)
            nn.init.zeros_(p.bias)
        if number < len(_OFFSETS):
            dim = width // heads
            for head in range(heads):
                query, key = _looking(width, dim, head, heads, _OFFSETS[number][head % 3])
                rows = slice(head * dim, (head + 1) * dim)
                a.q_proj.weight[rows] = 1.6 * query + 0.1 * a.q_proj.weight[rows]
                a.k_proj.weight[rows] = 1.6 * key + 0.1 * a.k_proj.weight[rows]
        a.out_proj.weight.mul_(0.6)
        layer.mlp.fc2.weight.mul_(0.35)
