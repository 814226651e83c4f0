"""VoCo tokens: an image as the keys and values of a few tokens.  VoCo-LLaMA, Ye et al. 2024, arXiv 2406.12275."""

from __future__ import annotations

from foveate.voco.adapter import VoCo
from foveate.voco.mask import voco_mask
from foveate.voco.memory import VoCoMemory
from foveate.voco.store import MemoryStore

__all__ = ["MemoryStore", "VoCo", "VoCoMemory", "voco_mask"]
