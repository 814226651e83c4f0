"""Pictures of what is kept, with the token that each place is and where it went; and of saliency."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from foveate.engine.report import ImagePlans
from foveate.errors import FoveateError
from foveate.images import data_url
from foveate.plan import Plan
from foveate.play.pictures import Picture
from foveate.play.player import Player, Reply
from foveate.saliency import watched
from foveate.schedule import last_layer, schedule
from foveate.spec import Spec, as_spec
from foveate.tokens import DecoderAttention, EncoderAttention
from foveate.view import Panel, Strip, draw, draw_frames, draw_grids, draw_strips, draw_values

__all__ = [
    "Figure",
    "Kept",
    "data_uri",
    "encoder_layers",
    "kept_figures",
    "saliency_figures",
    "saliency_values",
    "sheet",
]

_SIDE: Final = 576
_FRAME: Final = 288


@dataclass(frozen=True, eq=False)
class Figure:
    """One grid of tokens over its picture.

    Attributes:
        picture: mode "RGB".
        title: what stands under it.
        tokens: `(rows, columns)`, the number of the token at each place; None where it has no grid.
    """

    picture: Image.Image
    title: str
    tokens: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Kept:
    """What is kept of a picture or clip.

    Attributes:
        figures: one for each grid or frame.
        into: for each token, the token that it has flowed into; itself if kept, -1 if dropped.
        merges: whether any token holds others.
        tokens: how many there are.
        kept: how many are left.
    """

    figures: tuple[Figure, ...]
    into: tuple[int, ...]
    merges: bool
    tokens: int
    kept: int


def data_uri(picture: Image.Image, lossless: bool = False) -> str:
    """Return a picture as text that pages can show without another request.

    >>> data_uri(Image.new("RGB", (8, 8)))[:23]
    'data:image/webp;base64,'
    """
    if lossless:
        return data_url(picture, "png", optimize=True)
    return data_url(picture, "webp", quality=82, method=2)


def kept_figures(player: Player, picture: Picture, reply: Reply, layer: int = -1, side: int | None = None) -> Kept:
    """Draw what a reply has kept in a decoder layer.

    Args:
        player: that gave the reply.
        picture: what was asked about.
        reply: to any question about it.
        layer: of the decoder; -1 is after the last step.
        side: the longer side of the largest grid, in pixels.
    """
    plans = player.plans(picture, reply, layer)
    frames = player.frames(picture)
    figures: list[Figure] = []
    if picture.is_clip:
        layouts, seen, made = zip(*plans, strict=True)
        strip = Strip(layouts, plans=made, seen=seen, patch=player.patch)
        times: Sequence[float] = getattr(picture.visual, "times", ())
        for each in draw_frames(frames, strip, side or _FRAME):
            figures.append(Figure(each.picture, f"{times[each.frame]:.1f} s: {each.kept} of {each.count}", each.tokens))
    else:
        ((layout, small, plan),) = plans
        panel = Panel(layout, plan=plan, seen=small, patch=player.patch)
        grids = draw_grids(frames[0], panel, side or _SIDE)
        for each in sorted(grids, key=lambda grid: -grid.full):
            rows, columns = each.tokens.shape
            figures.append(Figure(each.picture, f"{rows} x {columns} tokens", each.tokens))
    into = _into(player, plans)
    kept = sum(1 for token, target in enumerate(into) if token == target)
    return Kept(tuple(figures), into, max(Counter(each for each in into if each >= 0).values()) > 1, len(into), kept)


def _into(player: Player, plans: Sequence[tuple[Any, Any, Plan | None]]) -> tuple[int, ...]:
    """Return where each token went, over all images of a prompt, numbered one after the other."""
    found: list[int] = []
    for layout, seen, plan in plans:
        steps = {} if plan is None else {0: plan}
        targets = ImagePlans(layout, seen, steps, player.depth).into().tolist()
        begin = len(found)
        found += [target + begin if target >= 0 else -1 for target in targets]
    return tuple(found)


def sheet(
    player: Player, picture: Picture, question: str, replies: Sequence[Reply], side: int | None = None
) -> Image.Image:
    """Draw all replies side by side with captions, as `foveate ask --picture` does."""
    strips: list[Strip] = []
    for reply in replies:
        layouts, seen, plans = zip(*player.plans(picture, reply), strict=True)
        note = f'{reply.after} of {reply.before} tokens: "{reply.text}"'
        strips.append(Strip(layouts, reply.spec, note, plans, seen, player.patch))
    frames = player.frames(picture)
    if picture.is_clip:
        return draw_strips(frames, getattr(picture.visual, "times", ()), strips, question, side)
    panels = [Panel(each.layouts[0], each.title, each.note, each.plans[0], each.seen[0], each.patch) for each in strips]
    return draw(frames[0], panels, question, side)


# Saliency


def encoder_layers(player: Player) -> int:
    """Return how many encoder layers can tell what they attend to; 0 for a family that doesn't know its encoder."""
    try:
        schedule(as_spec("cls:0.5:layer=0"), player.family)
        return len(player.family.encoder_attentions)
    except (FoveateError, NotImplementedError):
        return 0


def saliency_values(
    player: Player, picture: Picture, question: str, part: str, layer: int
) -> Sequence[Float[Tensor, " N"]]:
    """Return the attention that the tokens of each image of a prompt get in one layer.

    Args:
        player: the model.
        picture: what is asked about.
        question: whose last token attends, in the decoder.
        part: "encoder": from [CLS], or from all tokens where there is none; or "decoder": from the prompt's last token.
        layer: of that part, from zero.

    Raises:
        FoveateError: the family can't tell, or there is no such layer.
    """
    if part != "encoder":
        return _decoder_attention(player, picture, question, layer)
    # All layers at once, so that the encoder runs once for all of them.
    every = [schedule(as_spec(f"cls:0.5:layer={each}"), player.family) for each in range(encoder_layers(player))]
    if not 0 <= layer < len(every):
        raise FoveateError(f"encoder layer {layer} can't be watched; this model shows {len(every)} layers, from 0 on")
    return player.encoded(picture, question, every).signals[EncoderAttention(layer=layer)]


def saliency_figures(player: Player, picture: Picture, question: str, part: str, layer: int) -> tuple[Figure, ...]:
    """Light a picture by what `saliency_values` returns; arguments and errors are the same."""
    values = saliency_values(player, picture, question, part, layer)
    frames, layouts = player.frames(picture), player.layouts(picture)
    figures: list[Figure] = []
    for number, (layout, each) in enumerate(zip(layouts, values, strict=True)):
        found = each.float().cpu().numpy()
        if not layout.is_clip:
            side = _FRAME if len(layouts) > 1 else _SIDE
            drawn = draw_values(frames[number], layout, found, side)
            figures += [Figure(picture_, "") for picture_ in drawn]
            continue
        (segment,) = layout.segments
        per_grid = -(-len(frames) // segment.t)
        for at, part_ in enumerate(found.reshape(segment.t, -1)):
            one = type(layout)((type(segment)(1, segment.h, segment.w),))
            figures += [Figure(picture_, "") for picture_ in draw_values(frames[at * per_grid], one, part_, _FRAME)]
    return tuple(figures)


@torch.inference_mode()
def _decoder_attention(player: Player, picture: Picture, question: str, layer: int) -> list[Float[Tensor, " N"]]:
    """Return the attention that the tokens of each image get from the prompt's last token in a decoder layer.

    The step that watches stands at that layer, or at the one after the first.
    """
    last = last_layer(player.family)
    if not 0 <= layer <= last:
        raise FoveateError(f"decoder layer {layer} can't be watched; choose one from 0 to {last}")
    step = ((DecoderAttention(layer="here" if layer else "previous"),), (max(1, layer),))
    prompt = player.prompt(picture, question)
    encoded = player.encoded(picture, question, [schedule(Spec(()), player.family)])
    with player.alone():
        (seen,) = watched(player.model, {**player.encoded_inputs(prompt, encoded), "use_cache": False}, [step])
    return seen
