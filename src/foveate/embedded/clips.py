"""The embedded model for clips: the weights of the embedded model, trained on, as a LLaVA-NeXT-Video."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image
    from transformers import BatchFeature, LlavaNextVideoForConditionalGeneration

__all__ = ["CLIP_PATH", "ClipProcessor", "clip_processor", "clip_reference"]

CLIP_PATH: Final = Path(__file__).parent / "clip_model"
"""The directory of the embedded model for clips."""


class ClipProcessor:
    """Makes inputs of clips for the embedded model: frames as pixels, and a placeholder for each token of a clip.

    transformers' own processor for clips needs torchvision; this one doesn't.

    Args:
        folder: the model's directory.
        tokens: visual tokens of a frame.
    """

    def __init__(self, folder: Path, tokens: int) -> None:
        from transformers import AutoImageProcessor, AutoTokenizer

        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.image_processor: Any = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
        self.video_processor: Any = self.image_processor
        self.tokens = tokens
        self.video_token = "<video>"
        self.chat_template: str = self.tokenizer.chat_template

    def __call__(
        self,
        text: str | Sequence[str],
        videos: Sequence[Sequence[Image.Image] | np.ndarray] = (),
        return_tensors: str = "pt",
        add_special_tokens: bool = True,
    ) -> BatchFeature:
        """Return `input_ids` and `attention_mask`, padded on the left, and `pixel_values_videos`.

        Args:
            text: one prompt, or several; each has one `<video>` for each of its clips.
            videos: per clip its frames, as images or as an array `(frames, height, width, 3)` uint8; or lists of such
                arrays. All clips of a call have the same number of frames.
            return_tensors: "pt".
            add_special_tokens: whether the tokenizer writes a [BOS] at the beginning.

        Raises:
            FoveateError: prompts have more clips or fewer, or clips differ in their number of frames.
        """
        import torch
        from PIL import Image
        from transformers import BatchFeature

        from foveate.errors import FoveateError

        prompts = [text] if isinstance(text, str) else list(text)
        clips: list[Any] = [clip for each in videos for clip in (each if _is_list_of_clips(each) else [each])]
        placed, lengths = sum(each.count(self.video_token) for each in prompts), {len(clip) for clip in clips}
        if placed != len(clips):
            raise FoveateError(f"the prompts have {placed} places for clips, and there are {len(clips)} clips")
        options: dict[str, Any] = {"return_tensors": return_tensors, "add_special_tokens": add_special_tokens}
        if not lengths:
            return BatchFeature({**self.tokenizer(prompts, padding=True, **options)})
        if len(lengths) != 1 or not min(lengths):
            raise FoveateError(f"all clips of a call have the same number of frames, at least one, not {lengths}")
        wide = [each.replace(self.video_token, self.video_token * self.tokens * max(lengths)) for each in prompts]
        inputs = self.tokenizer(wide, padding=True, **options)
        # As images, so that nobody takes a side of 3 pixels for the colours of an array.
        shown = [
            frame if isinstance(frame, Image.Image) else Image.fromarray(frame) for clip in clips for frame in clip
        ]
        frames = self.image_processor(shown, return_tensors="pt")
        pixels = torch.stack(list(frames["pixel_values"])).unflatten(0, (len(clips), -1))
        return BatchFeature({**inputs, "pixel_values_videos": pixels})

    def apply_chat_template(self, messages: Any, **options: Any) -> Any:
        """Write messages as the prompt that the model knows; see `transformers.PreTrainedTokenizer`."""
        return self.tokenizer.apply_chat_template(messages, **{"tokenize": False, **options})

    def batch_decode(self, *args: Any, **options: Any) -> list[str]:
        """Return the text of ids; see `transformers.PreTrainedTokenizer`."""
        return self.tokenizer.batch_decode(*args, **options)

    def decode(self, *args: Any, **options: Any) -> str:
        """Return the text of ids; see `transformers.PreTrainedTokenizer`."""
        return self.tokenizer.decode(*args, **options)


def clip_processor(folder: Path = CLIP_PATH) -> ClipProcessor:
    """Load the processor of the embedded model for clips without its model.

    Args:
        folder: another directory that `recipes/reference-clips.yaml` made.

    >>> clip_processor().tokens
    36
    """
    from transformers import AutoConfig

    config: Any = AutoConfig.from_pretrained(folder, local_files_only=True)
    side = config.vision_config.image_size // config.vision_config.patch_size
    return ClipProcessor(folder, (side // config.spatial_pool_stride) ** 2)


def clip_reference(folder: Path = CLIP_PATH) -> tuple[LlavaNextVideoForConditionalGeneration, ClipProcessor]:
    """Load the embedded model for clips in float32, and its processor.

    Args:
        folder: another directory that `recipes/reference-clips.yaml` made.

    Returns:
        The model in evaluation mode, a new one at each call, and its processor.

    Raises:
        FileNotFoundError: the package was installed without the weights.
    """
    from foveate.files import is_file

    if not is_file(folder / "model.safetensors"):
        raise FileNotFoundError(f"the weights of the embedded model are missing from {folder}; install foveate again")
    import torch
    from transformers import LlavaNextVideoForConditionalGeneration

    model: Any = LlavaNextVideoForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True
    )
    return model.eval(), clip_processor(folder)


def _is_list_of_clips(videos: Any) -> bool:
    """Return whether this is a list of arrays of frames, the clips of one prompt, and not one clip."""
    return isinstance(videos, list | tuple) and all(getattr(each, "ndim", 0) == 4 for each in videos)
