"""Soft masks for training: nothing is dropped, and what the thresholds would drop fades from all later attention.

A token with margin m above its threshold has the mask sigmoid(T m) for a temperature T, and masks multiply from layer
to layer. Attention of all later layers weighs each key with its mask and renormalises; that is the same as adding the
mask's logarithm to the key's logits, and that is how it is done. So the loss reaches the thresholds through every later
layer, and for large T the masked model is the one from which the tokens are gone.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate.engine.signals import Asked, LayerInput, Places, answer
from foveate.errors import FoveateError
from foveate.families import Family, family_of
from foveate.methods.atp import ATPLayer
from foveate.methods.thresholds import LearnedThresholds
from foveate.tokens import Layout, Signal, Signals, VisualTokens
from foveate.transformers_api import cache_of_call

ActsOn = Literal["keys", "values"]

_GONE: Final = -1e4
"""Added to the logit of a key that is dropped: its weight is 0 in every dtype."""


@dataclass
class _Image:
    """One image of a batch.

    Attributes:
        row: of the batch.
        layout: its own.
        places: `(N,)` int64, the columns of its content tokens.
        marks: `(S,)` int64, those of its structural tokens.
        at: where it and its prompt stand.
        gate: `(N,)` float32, the logarithm of each token's mask so far.
        soft: `(N,)` float32, the same with the gradient of the soft mask, where `gate` is hard.
    """

    row: int
    layout: Layout
    places: Tensor
    marks: Tensor
    at: Places
    gate: Tensor
    soft: Tensor


@dataclass(frozen=True)
class Look:
    """The scores of one image at one layer.

    Attributes:
        redundancy: `(N,)` float32, from 0 to 1.
        spatial: `(N,)` float32, by where each token stands.
        statistics: `(8,)` float32, what thresholds are predicted from.
    """

    redundancy: Tensor
    spatial: Tensor
    statistics: Tensor


class SoftMasks:
    """Soft masks on a model for as long as a `with` lasts, and what the last call told of them.

    Attributes:
        shares: `(images, layers of the adapter)` float32 with gradient, the share of each image's tokens behind it.
        looks: per layer of the adapter the scores of each image so far, where nothing is faded (`fade` is False).
    """

    def __init__(
        self,
        model: nn.Module,
        adapter: LearnedThresholds,
        temperature: float,
        hard: bool,
        acts_on: ActsOn,
        shift: float,
    ) -> None:
        self.family: Family = family_of(model)
        self.methods = {layer: ATPLayer.of(adapter, number, shift) for number, layer in enumerate(adapter.layers)}
        self.temperature, self.hard, self.acts_on = temperature, hard, acts_on
        self.shares = torch.zeros(0, len(adapter.layers))
        self.fade = True
        self.looks: dict[int, list[Look]] = {layer: [] for layer in adapter.layers}
        self._model = model
        self._signature = inspect.signature(self.family.core.forward)
        self._asked = Asked()
        self._images: list[_Image] = []
        self._mask = torch.zeros(0, 0)
        self._base = torch.zeros(0)
        self._gate: Tensor | None = None
        self._inputs: dict[int, LayerInput] = {}
        self._shares: list[Tensor] = []

    # Hooks

    def open(self) -> list[Any]:
        """Put the hooks on; returns what takes them off.

        Raises:
            FoveateError: the decoder's attention takes no mask of numbers.
        """
        implementation = getattr(self.family.decoder_config, "_attn_implementation", None)
        if implementation not in ("eager", "sdpa"):
            raise FoveateError(f"{implementation} attention takes no soft masks; load the model with eager or sdpa")
        handles: list[Any] = []
        if self._model is not self.family.core:
            handles.append(self._model.register_forward_pre_hook(self._ask, with_kwargs=True))
        handles.append(self.family.core.register_forward_pre_hook(self._begin, with_kwargs=True))
        first = min(self.methods)
        for layer, module in enumerate(self.family.decoder_layers):
            if layer >= first - 1:
                handles.append(module.register_forward_pre_hook(self._enter(layer), with_kwargs=True))
            if layer >= first and self.acts_on == "values":
                attention: Any = module.self_attn
                handles.append(attention.v_proj.register_forward_hook(self._fade))
        return handles

    def _ask(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._asked = Asked(kwargs.get("labels"))

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A call begins: where its images are."""
        call = self._signature.bind_partial(*args, **kwargs).arguments
        call = {**call, **call.pop("kwargs", {})}
        self._images, self._gate, self._inputs, self._shares = [], None, {}, []
        self.shares = torch.zeros(0, len(self.methods))
        ids, cache = call.get("input_ids"), cache_of_call(call)
        if call.get("pixel_values") is None:
            return
        if ids is None or (cache is not None and cache.get_seq_length()):
            raise FoveateError("soft masks are for whole prompts: pass input_ids and pixel_values, and no filled cache")
        window = self.family.window
        if window is not None and ids.shape[1] > window:
            raise FoveateError(f"a prompt of {ids.shape[1]} tokens is longer than the {window} that layers see")
        real = call.get("attention_mask")
        self._mask = torch.ones_like(ids) if real is None else real
        layouts = self.family.layouts(call)
        self._base = _causal(self._mask)
        self._find(ids, layouts)

    def _find(self, ids: Tensor, layouts: Sequence[Layout]) -> None:
        sizes = [layout.total for layout in layouts]
        visual = (ids == self.family.image_token).cpu()
        if int(visual.sum()) != sum(sizes):
            raise FoveateError(
                f"{int(visual.sum())} placeholders came for images of {sum(sizes)} tokens; pass the processor's output"
            )
        ends = self._asked.ends(ids, self.family.image_token, sizes)
        row_of, column_of = visual.nonzero().unbind(1)
        plain = self._mask.cpu().bool() & ~visual
        device, after = ids.device, 0
        for layout, size, end in zip(layouts, sizes, ends, strict=True):
            columns, row = column_of[after : after + size], int(row_of[after])
            after += size
            text = plain[row, : end + 1].nonzero().squeeze(1)
            if not len(text):
                raise FoveateError(f"row {row} has an image and no text; the thresholds read the question")
            content = columns[layout.places]
            marks = columns[[each.place for each in layout.structural]]
            last, rows = torch.tensor([end]), torch.tensor([row])
            at = Places(*(each.to(device) for each in (rows, content[None], text[None], last)))
            zero = torch.zeros(layout.content, device=device)
            self._images.append(_Image(row, layout, content.to(device), marks.to(device), at, zero, zero))

    def _enter(self, layer: int) -> Any:
        def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if not self._images:
                return None
            hidden: Tensor = args[0] if args else kwargs["hidden_states"]
            if layer in self.methods:
                self._fade_out(layer, hidden, kwargs["position_embeddings"])
            if layer + 1 in self.methods:
                self._inputs[layer] = self._input(layer, hidden, kwargs["position_embeddings"])
            if self._gate is None or self.acts_on == "values":
                return None
            mask = self._base + self._gate[:, None, None, :]
            return args, {**kwargs, "attention_mask": mask.to(hidden.dtype)}

        return enter

    def _input(self, layer: int, hidden: Tensor, rotary: Any) -> LayerInput:
        return LayerInput(self.family, layer, hidden, rotary, self._mask, None, self._gate)

    def _fade(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        return None if self._gate is None else output * self._gate.exp()[..., None].to(output.dtype)

    # A layer of the adapter

    def _fade_out(self, layer: int, hidden: Tensor, rotary: Any) -> None:
        method, previous = self.methods[layer], self._inputs.pop(layer - 1)
        here = self._input(layer, hidden, rotary)
        shares: list[Tensor] = []
        for image in self._images:
            answers: dict[Signal, Tensor] = {
                need: answer(need, image.at, here, previous, None) for need in method.needs
            }
            tokens = VisualTokens(hidden[image.row, image.places][None], image.layout, Signals(answers))
            alive = image.gate.detach() > _HALF
            if not self.fade:
                redundancy, told = method.scores(tokens)
                self.looks[layer].append(Look(redundancy[0], method.spatial(tokens)[0], told[0]))
                continue
            margin = method.margin(tokens, alive[None])[0]
            best = margin.detach().masked_fill(~alive, float("-inf")).argmax()
            # The best token stays in any case, as the rule has it.
            stays = torch.zeros_like(alive).index_fill(0, best, True)
            step = F.logsigmoid(margin * self.temperature).masked_fill(stays, 0.0)
            image.soft = image.soft + step
            if self.hard:
                dropped = torch.where((margin > 0) | stays, 0.0, _GONE)
                step = dropped + step - step.detach()
            image.gate = image.gate + step
            left = image.soft.exp()
            if self.hard:
                left = left + (image.gate.detach().exp() - left).detach()
            shares.append(left.mean())
        if not shares:
            return
        self._shares.append(torch.stack(shares))
        self.shares = torch.stack(self._shares, dim=1)
        self._gate = self._gates(hidden)

    def _gates(self, hidden: Tensor) -> Tensor:
        """The logarithm of every column's mask: `(B, S)` float32."""
        width = hidden.shape[1]
        where: list[Tensor] = []
        values: list[Tensor] = []
        for image in self._images:
            where.append(image.row * width + image.places)
            values.append(image.gate)
            if len(image.marks):
                # A newline stays as long as a token of its row does.
                where.append(image.row * width + image.marks)
                values.append(torch.stack([image.gate[s.begin : s.end].amax() for s in image.layout.structural]))
        flat = torch.zeros(hidden.shape[0] * width, device=hidden.device)
        return flat.index_put((torch.cat(where),), torch.cat(values)).view(-1, width)


_HALF: Final = -0.6931471805599453


@contextmanager
def soft_masks(
    model: nn.Module,
    adapter: LearnedThresholds,
    temperature: float,
    *,
    hard: bool = False,
    acts_on: ActsOn = "keys",
    shift: float = 0.0,
) -> Iterator[SoftMasks]:
    """Let an adapter's thresholds fade tokens out of a model's attention, for calls on whole prompts.

    Args:
        model: of a family with ordinary attention, eager or SDPA.
        adapter: says layers and thresholds.
        temperature: of the masks; the larger, the harder.
        hard: masks of 0 and 1 on the way forward, with the gradient of the soft ones on the way back.
        acts_on: "keys" weighs keys and renormalises; "values" weighs values alone, and attention to a faded token is
            lost (for comparison).
        shift: added to what the adapter predicts.

    Yields:
        What the last call told: after each, `shares` has the tokens left, with gradient.

    Raises:
        FoveateError: the attention takes no mask of numbers.
    """
    masks = SoftMasks(model, adapter, temperature, hard, acts_on, shift)
    handles = masks.open()
    try:
        yield masks
    finally:
        for handle in handles:
            handle.remove()


def mean_share(shares: Tensor, layers: Sequence[int], depth: int) -> Tensor:
    """Tokens of each image per decoder layer, as a share of all: `(images, layers)` float32 -> `(images,)`.

    >>> mean_share(torch.tensor([[0.5, 0.25]]), (2, 4), 8).tolist()
    [0.5]
    """
    spans = [end - begin for begin, end in zip(layers, (*layers[1:], depth), strict=True)]
    weights = torch.tensor(spans, dtype=shares.dtype, device=shares.device)
    return (layers[0] + (shares * weights).sum(dim=1)) / depth


def budget_loss(
    shares: Tensor, layers: Sequence[int], depth: int, target: float, *, later: float, mean: float
) -> Tensor:
    """What tokens cost: later layers more, and a mean beside the target.  Eq. 12 and 13, in shares; a scalar.

    Args:
        shares: `(images, layers)` float32, tokens left behind each layer of the adapter.
        layers: of the adapter.
        depth: layers of the decoder.
        target: the share of tokens per decoder layer, averaged over layers and images, that is wanted.
        later: the weight of what the tokens that are left cost: share times depth, averaged.
        mean: the weight of the distance to the target.
    """
    depths = torch.tensor(layers, dtype=shares.dtype, device=shares.device) / depth
    off = (mean_share(shares, layers, depth).mean() - target).abs()
    return later * (shares * depths).mean() + mean * off


def _causal(real: Tensor) -> Tensor:
    """The additive mask of a whole prompt, `(B, 1, S, S)` float32; padding sees itself."""
    length = real.shape[1]
    seen = torch.ones(length, length, dtype=torch.bool, device=real.device).tril() & real.bool()[:, None, :]
    seen |= torch.eye(length, dtype=torch.bool, device=real.device)
    blocked = torch.full(seen.shape, torch.finfo(torch.bfloat16).min, device=real.device)
    return blocked.masked_fill(seen, 0.0)[:, None]
