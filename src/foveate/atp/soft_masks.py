"""Soft masks on a model's attention, for training: nothing is dropped, so the loss reaches the thresholds.

Tokens that thresholds would drop fade from the attention of all later layers. The loss reaches the thresholds through
each of these layers, and for large temperatures the masked model equals the one whose tokens are dropped.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

import torch
from jaxtyping import Float32
from torch import Tensor, nn

from foveate.arguments import check_kind
from foveate.atp.prompt_images import PromptImage, column_log_masks, find_prompt_images
from foveate.engine.modalities import refuse_clips
from foveate.engine.prompt import WantedPredictions
from foveate.engine.signals import LayerInput, answer
from foveate.engine.visibility import visibility
from foveate.errors import FoveateError, shown
from foveate.families import Family, family_of, vlm_of
from foveate.methods.arithmetic.thresholds import LearnedThresholds
from foveate.methods.atp import ATPLayer
from foveate.numbers import Between, check_real
from foveate.precision import without_autocast
from foveate.tokens import Signals, VisualTokens
from foveate.transformers_api import cache_of_call, refuse_checkpointing

ActsOn = Literal["keys", "values"]

VALUES_REPEATED: Final = (
    "acts_on: values can't be trained with activation checkpointing, whose backward pass runs layers again when "
    "nothing masks their values any more; turn checkpointing off, or write acts_on: keys"
)


@dataclass(frozen=True)
class LayerScores:
    """The scores of one image at one layer.

    Attributes:
        redundancy: `(N,)` float32, from 0 to 1.
        spatial: `(N,)` float32, by each token's place.
        statistics: `(8,)` float32, what thresholds are predicted from.
    """

    redundancy: Float32[Tensor, "N"]
    spatial: Float32[Tensor, "N"]
    statistics: Float32[Tensor, "8"]


class SoftMasks:
    """Mask a model's attention by an adapter's thresholds; `soft_masks` makes it.

    Attributes:
        shares: `(images, steps)` float32 with gradient: of the last call, the share of each image's tokens that is left
            after each layer of the adapter.
        scores_only: mask nothing, and record the scores instead.
        scores: per layer of the adapter the recorded scores of each image so far.
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
        self.scores_only = False
        self.scores: dict[int, list[LayerScores]] = {layer: [] for layer in adapter.layers}
        self._model = vlm_of(model)
        self._signature = inspect.signature(self.family.core.forward)
        self._wanted = WantedPredictions()
        # What the call in progress has brought so far.
        self._images: list[PromptImage] = []
        self._mask = torch.zeros(0, 0)
        self._causal_mask = torch.zeros(0)
        self._blocks: Tensor | None = None
        self._log_masks: Tensor | None = None
        self._inputs: dict[int, LayerInput] = {}
        self._shares: list[Tensor] = []

    # Hooks

    def register(self) -> list[Any]:
        """Register the hooks, and return their handles.

        Raises:
            FoveateError: the decoder's attention takes no additive mask.
        """
        implementation = getattr(self.family.decoder_config, "_attn_implementation", None)
        if implementation not in ("eager", "sdpa"):
            raise FoveateError(f"{implementation} attention takes no soft masks; load the model with eager or sdpa")
        layers = self.family.decoder_layers
        refuse_checkpointing(layers, "decoder")
        if self.acts_on == "values" and any(
            layer.training and getattr(layer, "gradient_checkpointing", False) for layer in layers
        ):
            raise FoveateError(VALUES_REPEATED)
        handles: list[Any] = []
        if self._model is not self.family.core:
            handles.append(self._model.register_forward_pre_hook(self._read_labels, with_kwargs=True))
        handles.append(self.family.core.register_forward_pre_hook(self._begin_call, with_kwargs=True))
        first = min(self.methods)
        for layer, module in enumerate(self.family.decoder_layers):
            if layer >= first - 1:
                handles.append(module.register_forward_pre_hook(self._layer_hook(layer), with_kwargs=True))
            if layer >= first and self.acts_on == "values":
                attention: Any = module.self_attn
                handles.append(attention.v_proj.register_forward_hook(self._mask_values))
        return handles

    def _read_labels(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._wanted = WantedPredictions(kwargs.get("labels"))

    def _begin_call(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Find the images of a call."""
        call = self._signature.bind_partial(*args, **kwargs).arguments
        call = {**call, **call.pop("kwargs", {})}
        self._images, self._log_masks, self._inputs, self._shares = [], None, {}, []
        self.shares = torch.zeros(0, len(self.methods))
        ids, cache = call.get("input_ids"), cache_of_call(call)
        refuse_clips("soft masks", self.family, call)
        if call.get("pixel_values") is None:
            return
        if ids is None or (cache is not None and cache.get_seq_length()):
            raise FoveateError("soft masks are for whole prompts: pass input_ids and pixel_values, and no filled cache")
        window = self.family.window
        if window is not None and ids.shape[1] > window:
            raise FoveateError(
                f"a prompt of {ids.shape[1]} tokens is longer than the sliding window of {window}; pass a shorter one"
            )
        mask = call.get("attention_mask")
        self._mask = torch.ones_like(ids) if mask is None else mask
        self._causal_mask = causal_mask(self._mask)
        types = next((call[name] for name in self.family.block_types if call.get(name) is not None), None)
        self._blocks = None if types is None else self.family.attention_blocks(types)
        self._images = find_prompt_images(self.family, ids, self._mask, self.family.layouts(call), self._wanted)

    def _layer_hook(self, layer: int) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if not self._images:
                return None
            hidden: Tensor = args[0] if args else kwargs["hidden_states"]
            rotary = kwargs["position_embeddings"]
            if layer in self.methods:
                self._act(layer, hidden, self._layer_input(layer, hidden, rotary))
            if layer + 1 in self.methods:
                self._inputs[layer] = self._layer_input(layer, hidden, rotary)
            if self._log_masks is None or self.acts_on == "values":
                return None
            mask = self._layer_mask(kwargs.get("attention_mask")) + self._log_masks[:, None, None, :]
            return args, {**kwargs, "attention_mask": mask.to(hidden.dtype)}

        return hook

    def _layer_input(self, layer: int, hidden: Tensor, rotary: Any) -> LayerInput:
        rows, width = self._mask.shape
        places = torch.arange(width, device=hidden.device).expand(rows, -1)
        seen = visibility(self.family, layer, places, width, None, self._blocks)
        tables = self.family.cos_sin(rotary)
        return LayerInput(self.family, layer, hidden, tables, self._mask, None, self._log_masks, seen)

    def _layer_mask(self, given: Any) -> Tensor:
        """Return the mask that the model passes a layer, as numbers to add; where it passes none, the causal one."""
        if not isinstance(given, Tensor) or given.ndim != 4:
            return self._causal_mask
        if given.dtype != torch.bool:
            return given
        return torch.zeros_like(given, dtype=torch.float32).masked_fill(~given, torch.finfo(torch.bfloat16).min)

    def _mask_values(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        return None if self._log_masks is None else output * self._log_masks.exp()[..., None].to(output.dtype)

    # At a layer of the adapter

    def _act(self, layer: int, hidden: Tensor, here: LayerInput) -> None:
        """Lower the masks of all images by the thresholds of one layer, or record the scores."""
        method, previous = self.methods[layer], self._inputs.pop(layer - 1)
        shares: list[Tensor] = []
        for image in self._images:
            signals = Signals({need: answer(need, image.columns, here, previous, None) for need in method.needs})
            tokens = VisualTokens(hidden[image.row, image.content][None], image.layout, signals)
            # As in `make_plan`, so that training under autocast keeps what evaluation keeps.
            with without_autocast(hidden.device):
                if self.scores_only:
                    redundancy, statistics = method.scores(tokens)
                    self.scores[layer].append(LayerScores(redundancy[0], method.spatial(tokens)[0], statistics[0]))
                    continue
                margin = method.margin(tokens, image.gates.alive[None])[0]
            shares.append(image.gates.close(margin, self.temperature, self.hard))
        if shares:
            self._shares.append(torch.stack(shares))
            self.shares = torch.stack(self._shares, dim=1)
            self._log_masks = column_log_masks(self._images, *hidden.shape[:2])


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
    """Mask a model's attention by an adapter's thresholds inside the block, in calls on whole prompts.

    Args:
        model: a model of a supported family, with eager or SDPA attention.
        adapter: has layers and thresholds.
        temperature: the larger, the closer masks are to 0 and 1.
        hard: use masks of 0 and 1 in the forward pass, with the gradient of the soft ones.
        acts_on: "keys" weighs keys and renormalises; "values" weighs values alone, which loses the attention that a
            masked token receives (for comparison).
        shift: added to the logits of the thresholds.

    Yields:
        The masks; after each call, `shares` has the share of tokens left, with gradient.

    Raises:
        FoveateError: the attention takes no additive mask, or activation checkpointing would lose the masks. Calls in
            the block raise it if they aren't for whole prompts, or if an image has no text.

    >>> import foveate
    >>> from PIL import Image
    >>> model, processor = foveate.reference()
    >>> image = Image.new("RGB", (192, 192))
    >>> inputs = processor(text=["<bos>USER:<image>what is this ?"], images=[image], return_tensors="pt")
    >>> with soft_masks(model, foveate.ATP.from_pretrained("shipped"), temperature=10.0) as masks:
    ...     output = model(**inputs)
    >>> masks.shares.shape
    torch.Size([1, 3])
    """
    check_kind("adapter", adapter, LearnedThresholds, "an adapter, such as foveate.ATP.from_pretrained returns")
    check_real("temperature", temperature, Between(0))
    check_kind("hard", hard, bool, "True or False")
    if acts_on not in get_args(ActsOn):
        raise FoveateError(f"acts_on must be keys or values, not {shown(acts_on)}")
    check_real("shift", shift)
    masks = SoftMasks(model, adapter, temperature, hard, acts_on, shift)
    handles = masks.register()
    try:
        yield masks
    finally:
        for handle in handles:
            handle.remove()


def causal_mask(mask: Tensor) -> Float32[Tensor, "B 1 S S"]:
    """Return the additive causal mask of whole prompts, `(B, 1, S, S)` float32; padding attends to itself.

    Args:
        mask: `(B, S)`, 0 at padding.
    """
    length = mask.shape[1]
    visible = torch.ones(length, length, dtype=torch.bool, device=mask.device).tril() & mask.bool()[:, None, :]
    visible |= torch.eye(length, dtype=torch.bool, device=mask.device)
    blocked = torch.full(visible.shape, torch.finfo(torch.bfloat16).min, device=mask.device)
    return blocked.masked_fill(visible, 0.0)[:, None]
