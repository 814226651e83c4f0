"""What is left to do when the core has run: every output gets one value for each column that the caller passed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from foveate.engine.columns import gather_columns
from foveate.engine.decoder import DecoderPass
from foveate.engine.known import KnownImages, UncachedPrompt
from foveate.engine.state import CachedPrefix, CacheState
from foveate.errors import FoveateError


@dataclass
class PendingCall:
    """What is left to do for the call that is under way.

    Attributes:
        restore: `(B, S)` int64, for each column that the core was to see the place whose hidden state stands for it.
        prefix: what the cache held before.
        state: what the cache will hold when the call is done, as layer 0 sees it; None leaves its state as it is.
        decoder_pass: what happens inside the decoder; None for nothing.
        known: the images that came.
        order: the number of each image of the call among them.
        prompt: what to remember of the call if it leaves no cache.
        seen: how many tokens were passed that the conversation held already.
        last_alone: whether the core may return the hidden state of the last column alone.
    """

    restore: Tensor | None
    prefix: CachedPrefix
    state: CacheState | None
    decoder_pass: DecoderPass | None = None
    known: KnownImages | None = None
    order: Sequence[int] = ()
    prompt: UncachedPrompt | None = None
    seen: int = 0
    last_alone: bool = False

    def ends_alike(self, last: Any, columns: int) -> bool:
        """Note and return whether the core can be asked for the last column alone, as its caller was.

        Args:
            last: `logits_to_keep` of the call.
            columns: of the shorter call, `M`.
        """
        self.last_alone = isinstance(last, int) and last == 1 and columns > 1 and self.decoder_pass is None
        if self.last_alone and self.restore is not None:
            # A row may end with padding, for which another column stands.
            self.last_alone = bool((self.restore[:, -1] == columns - 1).all())
        return self.last_alone

    def state_after(self) -> CacheState | None:
        """Return what the cache holds when the call is done, in every layer; None leaves its state as it is."""
        if self.state is None or self.decoder_pass is None:
            return self.state
        return self.decoder_pass.state_after(self.state)

    def restored_output(self, output: Any, state: CacheState | None) -> Any:
        """Return the core's output with one value for every column that the caller passed.

        Args:
            output: a tuple, or an output of transformers, which is changed in place.
            state: what `state_after` returns.

        Raises:
            FoveateError: attention maps came that can't be spread over the full conversation.
        """
        hidden = output[0]
        if self.last_alone and hidden.shape[1] == 1:
            return output
        restored = self.restored(hidden)
        if isinstance(output, tuple):
            rest = (self._restored_field(_kind(value, hidden), value, state) for value in output[1:])
            return (restored, *rest)
        output.last_hidden_state = restored
        for name in ("hidden_states", "attentions", "router_logits"):
            if getattr(output, name, None) is not None:
                setattr(output, name, self._restored_field(name, getattr(output, name), state))
        return output

    def _restored_field(self, name: str, values: Any, state: CacheState | None) -> Any:
        """Restore what comes from each layer: a tuple of tensors."""
        if name == "hidden_states":
            return tuple(self.restored(each, layer) for layer, each in enumerate(values, start=-1))
        if name == "attentions":
            return tuple(self._restored_attention(each, layer, state) for layer, each in enumerate(values))
        if name == "router_logits":
            inside = self.decoder_pass
            layers = [None] * len(values) if inside is None else inside.layers_of_routers(len(values))
            return tuple(self._restored_router(each, layer) for each, layer in zip(values, layers, strict=True))
        return values

    def restored(self, hidden: Float[Tensor, "B M D"], layer: int | None = None) -> Float[Tensor, "B S D"]:
        """Return hidden states with one for every column that the caller passed.

        Args:
            hidden: what comes out of a decoder layer.
            layer: which one; None for the last one, -1 for what enters the first.
        """
        restore = self.restore
        if self.decoder_pass is not None and (inside := self.decoder_pass.restore(layer)) is not None:
            restore = inside
        if self.seen:
            if restore is None:
                restore = torch.arange(hidden.shape[1], device=hidden.device).expand(hidden.shape[0], -1)
            restore = torch.cat([restore[:, :1].expand(-1, self.seen), restore], dim=1)
        return hidden if restore is None else gather_columns(hidden, restore)

    def _restored_attention(self, attention: Tensor | None, layer: int, state: CacheState | None) -> Tensor | None:
        """Return `(B, H, S, F)` over the full conversation: 0 at columns that aren't there, for `(B, H, M, K)`."""
        if attention is None:
            return None
        rows, heads, count, keys = attention.shape
        by_row = attention.transpose(1, 2).flatten(2)
        attention = self.restored(by_row, layer).unflatten(2, (heads, keys)).transpose(1, 2)
        if state is not None:
            columns, length = state.at(layer).columns, state.full_length
        else:
            past = self.prefix.state
            assert past is not None
            columns = past.at(layer).extended(past.full_length, self.prefix.tail + count)
            length = past.full_length + self.prefix.tail + count
        if columns.shape != (rows, keys):
            raise FoveateError(
                f"attention maps of {keys} columns came where {columns.shape[1]} are held, so they can't be spread "
                "over the conversation; leave output_attentions out, or use a plain dynamic cache"
            )
        columns = columns.to(attention.device)[:, None, None]
        attention = attention.masked_fill(columns < 0, 0)
        full = attention.new_zeros(*attention.shape[:3], length)
        return full.scatter_add(3, columns.clamp(min=0).expand_as(attention), attention)

    def _restored_router(self, logits: Tensor, layer: int | None) -> Tensor:
        """Restore what a router of experts says of each column: `(B M, experts)` or `(B, M, experts)`."""
        rows = self._rows
        if rows is None:
            return logits
        by_row = logits if logits.ndim == 3 else logits.unflatten(0, (rows, -1))
        restored = self.restored(by_row, layer)
        return restored if logits.ndim == 3 else restored.flatten(0, 1)

    @property
    def _rows(self) -> int | None:
        """Rows of the batch, where something is to be restored."""
        if self.restore is not None:
            return self.restore.shape[0]
        if self.decoder_pass is not None and (inside := self.decoder_pass.restore()) is not None:
            return inside.shape[0]
        return self.prefix.state.first.columns.shape[0] if self.seen and self.prefix.state is not None else None


def _kind(value: Any, hidden: Float[Tensor, "B M D"]) -> str:
    """Return the name that a member of an output has which came as a tuple; "" for one that has no columns.

    From transformers 5.24 on, what the encoder returned may be among them: its last sizes are not those of `hidden`.
    """
    rows, count, _ = hidden.shape
    if not isinstance(value, tuple | list) or not all(isinstance(each, Tensor) for each in value):
        return ""
    dimensions = {each.ndim for each in value}
    if dimensions == {2}:
        return "router_logits" if all(each.shape[0] % rows == 0 for each in value) else ""
    if dimensions == {3} and value[-1].shape == hidden.shape:
        return "hidden_states"
    return "attentions" if dimensions == {4} and value[-1].shape[0] == rows and value[-1].shape[2] == count else ""
