"""Load models and processors from directories of this machine, without running code from them."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from foveate.embedded import PATH
from foveate.errors import FoveateError, first_line

__all__ = ["load", "load_model", "load_processor", "skeleton"]

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def load(path: str | Path | None = None) -> tuple[Any, Any]:
    """Load a vision-language model and its processor from a local directory.

    Reads safetensors only, never downloads, and never runs code from the directory.

    Args:
        path: a Hugging Face model directory; None is the embedded model.

    Returns:
        The model on the CPU in evaluation mode, and its processor. The embedded model is float32; others keep the
        dtype that they were saved in.

    Raises:
        FoveateError: the directory is missing, damaged or incomplete, or its weights are pickles.
        UnsupportedFamily: the model is of no supported family.

    >>> model, processor = load()
    >>> model.config.model_type
    'llava'
    """
    return load_model(path), load_processor(path)


def load_model(path: str | Path | None = None) -> Any:
    """Load the model of a directory without its processor; see `load`."""
    import torch
    from transformers import AutoModelForImageTextToText

    from foveate.families import family_of

    directory = _checked(path)
    _check_weights(directory)
    ours = directory.resolve() == PATH.resolve()
    try:
        loaded: Any = AutoModelForImageTextToText.from_pretrained(
            directory,
            dtype=torch.float32 if ours else "auto",
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except MemoryError:
        raise
    except Exception as error:
        raise _broken(directory, "model", error) from error
    model, loading = loaded
    missing = sorted(loading["missing_keys"])
    if missing:
        raise FoveateError(
            f"{directory} lacks {len(missing)} weights of its own model ({missing[0]}, ...); download it again"
        )
    family_of(model)
    return model.eval()


def load_processor(path: str | Path | None = None) -> Any:
    """Load the processor of a directory without its model; see `load`."""
    from transformers import AutoProcessor

    directory = _checked(path)
    try:
        processor: Any = AutoProcessor.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except ImportError as error:
        # Processors of Qwen and of video need torchvision, some tokenizers sentencepiece; foveate depends on neither.
        raise FoveateError(
            f"the processor of {directory} needs a package that is missing: {first_line(error)}"
        ) from error
    except Exception as error:
        raise _broken(directory, "processor", error) from error
    if not hasattr(processor, "image_processor") or not hasattr(processor, "tokenizer"):
        raise FoveateError(
            f"{directory} has no complete processor; it needs preprocessor_config.json (or processor_config.json) and "
            "the tokenizer's files"
        )
    return processor


def skeleton(path: str | Path | None = None) -> Any:
    """Build the model of a directory on the meta device, without its weights: enough for layouts and schedules.

    The directory needs a config.json, but no weights.

    Raises:
        FoveateError: the directory is missing or damaged.
        UnsupportedFamily: the model is of no supported family.
    """
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    from foveate.families import family_of

    directory = _checked(path)
    try:
        config = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
        with torch.device("meta"):
            model = AutoModelForImageTextToText.from_config(config, trust_remote_code=False)
    except Exception as error:
        raise _broken(directory, "config.json", error) from error
    family_of(model)
    return model


def _checked(path: str | Path | None) -> Path:
    """Return the directory, if it holds a model of a supported family."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    from foveate.families import family_class

    directory = PATH if path is None else Path(path)
    if not directory.exists():
        raise FoveateError(
            f"there is no model directory {directory}; foveate reads local folders; download a model from the hub "
            "first: hf download NAME --local-dir DIR"
        )
    if not directory.is_dir():
        raise FoveateError(f"{directory} is a file; name the directory that holds the model's config.json")
    settings = directory / "config.json"
    if not settings.is_file():
        raise FoveateError(f"{directory} has no config.json, so it is not a Hugging Face model directory")
    try:
        config = json.loads(settings.read_text(encoding="utf-8"))
        kind = config.get("model_type")
    except (ValueError, AttributeError, OSError) as error:
        raise FoveateError(f"{settings} cannot be read ({error}); download the model again") from error
    # A model without a family of its own may still work, if it takes images and text.
    if kind not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        family_class(SimpleNamespace(model_type=kind))
    return directory


def _check_weights(directory: Path) -> None:
    names = sorted(file.name for file in directory.iterdir() if file.is_file())
    if any(name.endswith(".safetensors") for name in names):
        return
    pickles = [name for name in names if name.endswith(_PICKLES)]
    if pickles:
        raise FoveateError(
            f"{directory} holds pickled weights ({pickles[0]}), which can run code when they are opened; foveate reads "
            "safetensors only: get the model in that format, or convert it where you trust it (save_pretrained)"
        )
    raise FoveateError(f"{directory} holds no weights (*.safetensors); download the model again")


def _broken(directory: Path, what: str, error: Exception) -> FoveateError:
    return FoveateError(f"the {what} of {directory} cannot be loaded ({first_line(error)}); is the download complete?")
