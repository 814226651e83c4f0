"""What the thinkers of Qwen's Omni models share: images among text and audio, frames that are apart in time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from foveate.families.config_fields import read_number
from foveate.families.qwen import QwenVL
from foveate.layout import Layout

if TYPE_CHECKING:
    from torch import Tensor


class OmniThinker(QwenVL):
    """The part of an Omni model that reads and answers; audio passes it untouched, and counts as text.

    A whole Omni model has its thinker inside, and steps act there; its talker gets a hidden state for every token of
    the prompt, those of left-out tokens being the ones that stand for them.
    """

    all_logits = True
    clip_places = ()
    since = (5, 21)  # before, the head of the language model is in the same module as the encoder

    def image_positions(self, layout: Layout) -> Tensor:
        """Return frame, row and column of each token, `(3, N)`; frames are a second apart."""
        positions = super().image_positions(layout)
        positions[0] *= read_number(self.config, "position_id_per_seconds")
        return positions

    def image_spans(self, layout: Layout) -> tuple[int, ...]:
        """Return one more than the largest position on any axis: text continues after all of them."""
        return (int(self.image_positions(layout).max()) + 1,)
