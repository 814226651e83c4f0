"""The embedded model: a small LLaVA that comes with the package, to try everything without a download.

A plain Hugging Face directory (CLIP-style encoder with a trained [CLS], projector, Llama-style decoder; 576 visual
tokens per image) that ``AutoModelForImageTextToText.from_pretrained`` loads like any other. Its card is
``model/README.md``; ``recipes/reference.yaml`` trains it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from transformers import LlavaForConditionalGeneration, LlavaProcessor

__all__ = ["PATH", "reference"]

PATH: Final = Path(__file__).parent / "model"
"""The directory of the embedded model."""


def reference() -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """Load the embedded model in float32, and its processor.

    Returns:
        The model in evaluation mode, a new one at each call, and its processor.

    Raises:
        FileNotFoundError: the package was installed without the weights.

    >>> model, processor = reference()
    >>> model.config.image_seq_length, len(model.model.language_model.layers)
    (576, 12)
    """
    from foveate.files import is_file

    if not is_file(PATH / "model.safetensors"):
        raise FileNotFoundError(f"the weights of the embedded model are missing from {PATH}; install foveate again")
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model: Any = AutoModelForImageTextToText.from_pretrained(PATH, dtype=torch.float32, local_files_only=True)
    return model.eval(), AutoProcessor.from_pretrained(PATH, local_files_only=True)
