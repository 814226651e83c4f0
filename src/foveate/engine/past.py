"""The past of a stream: the tokens of its frames under a budget, the oldest thinned most."""

from __future__ import annotations

from dataclasses import dataclass, replace

from foveate.engine.images import KeptTokens
from foveate.keep import Keep
from foveate.methods import Method


@dataclass(frozen=True)
class PastFrame:
    """A frame that is held.

    Attributes:
        number: of the frame in the stream, from 0.
        span: how many frames it stands for: itself, and those after it that are no longer held.
        kept: its tokens.
    """

    number: int
    span: int
    kept: KeptTokens


class Past:
    """Frames of a stream, the oldest first, with no more content tokens than a budget.

    The density of a place in time is its tokens per frame of the stream. While there are too many tokens, the place
    whose density times age would still be the largest afterwards is thinned: a frame keeps half of its tokens, which
    the method chooses among those that are left; a frame that would have fewer than `least` goes as a whole, and the
    frame before it stands for its time. So the density halves with each doubling of age. The first frame always stays,
    and the newest one is thinned last.

    Args:
        method: chooses among the tokens of a frame.
        budget: the most tokens of all frames together.
        least: the fewest tokens of a frame.
    """

    def __init__(self, method: Method, budget: int, least: int) -> None:
        self.method, self.budget, self.least = method, budget, least
        self.frames: list[PastFrame] = []

    @property
    def tokens(self) -> int:
        """Tokens of all frames."""
        return sum(len(frame.kept) for frame in self.frames)

    def add(self, number: int, kept: KeptTokens, span: int = 1) -> None:
        """Add the newest frame.

        Args:
            number: of the frame.
            kept: its tokens.
            span: how many frames of the stream they are made of.
        """
        self.frames.append(PastFrame(number, span, kept))
        excess = self.tokens - self.budget
        while excess > 0:
            excess -= self._thin()

    def _thin(self) -> int:
        """Thin one place in time; return how many tokens went."""
        place = max(range(len(self.frames) - 1), key=self._density_after, default=0)
        if not self._density_after(place):
            place = len(self.frames) - 1
        frame = self.frames[place]
        half = self._half(frame)
        if half:
            kept = frame.kept.thinned(replace(self.method, keep=Keep(tokens=half), per="image"))
            self.frames[place] = replace(frame, kept=kept)
            return len(frame.kept) - len(kept)
        before = self.frames[place - 1]
        self.frames[place - 1] = replace(before, span=before.span + frame.span)
        del self.frames[place]
        return len(frame.kept)

    def _half(self, frame: PastFrame) -> int:
        """Return how many tokens a frame has after it is thinned; 0 if it can't be."""
        return max(self.least, len(frame.kept) // 2) if len(frame.kept) > self.least else 0

    def _density_after(self, place: int) -> float:
        """Return density times age of a place after it is thinned; 0 for the first frame if it can't be."""
        frame = self.frames[place]
        age = self.frames[-1].number - frame.number
        if half := self._half(frame):
            return half / frame.span * age
        if not place:
            return 0.0
        before = self.frames[place - 1]
        return len(before.kept) / (before.span + frame.span) * age
