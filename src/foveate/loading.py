"""Load models and processors from folders and from the Hugging Face hub, without running code from them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import NoneType, SimpleNamespace
from typing import TYPE_CHECKING, Any, Final

from foveate.arguments import check_kind
from foveate.embedded import PATH
from foveate.embedded.clips import CLIP_PATH, clip_processor
from foveate.errors import FoveateError, UnsupportedFamily, first_line, quoted, shortened
from foveate.files import FileError, files_in, is_file, kind_of, open_file, read_json_object, shown_path
from foveate.hub import explain, fetch_config, is_hub_name
from foveate.model_checks import buffer_names, check_finite, check_generation, check_loaded, check_processor
from foveate.weight_files import SAFETENSORS_ONLY, check_depth, check_kinds, check_size, stored_tensors

if TYPE_CHECKING:
    import torch

    from foveate.families import Family

__all__ = [
    "commit_of",
    "embedded_family",
    "family_without_weights",
    "find_config",
    "known_types",
    "load",
    "load_model",
    "load_processor",
    "model_of_type",
    "skeleton",
]


def load(
    model: str | Path | None = None,
    *,
    revision: str | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    device_map: str | Mapping[str, Any] | None = None,
    quantize: str | None = None,
) -> tuple[Any, Any]:
    """Load a vision-language model and its processor.

    Reads safetensors only, and never runs code that comes with a model. Models of the hub are downloaded into
    transformers' own cache; its variables count: HF_TOKEN, HF_HOME, HF_HUB_OFFLINE, HF_ENDPOINT.

    Args:
        model: a folder, or a name on the Hugging Face hub, "organisation/name"; a folder of that name wins. A `Path` is
            always a folder. None is the embedded model.
        revision: of a model on the hub: a branch, a tag or a commit. None is its main branch.
        device: where the model goes, such as "cuda:0"; "auto" is the GPU if there is one. None is the CPU, as in
            transformers.
        dtype: "float32", "bfloat16", "float16", a torch dtype, or "auto": as saved. None is float32 for the embedded
            model and "auto" for others.
        device_map: spread the model over devices instead: "auto", "balanced", "balanced_low_0", "sequential", or a
            mapping as accelerate takes it.
        quantize: "4bit" (nf4, computed in bfloat16 unless dtype says otherwise) or "8bit", by bitsandbytes.

    Returns:
        The model in evaluation mode, and its processor.

    Raises:
        FoveateError: there is no such model or revision, it is gated, damaged or incomplete, its weights are pickles,
            the hub can't be reached; or this machine lacks the device, the dtype on it, or bitsandbytes.
        UnsupportedFamily: the model is of no supported family.

    >>> model, processor = load()
    >>> model.config.model_type, model.dtype
    ('llava', torch.float32)
    """
    # Both come from one commit, even if the branch moves in between.
    commit = commit_of(model, revision)
    processor = load_processor(model, revision=commit)
    loaded = load_model(model, revision=commit, device=device, dtype=dtype, device_map=device_map, quantize=quantize)
    return loaded, processor


def load_model(
    model: str | Path | None = None,
    *,
    revision: str | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    device_map: str | Mapping[str, Any] | None = None,
    quantize: str | None = None,
) -> Any:
    """Load a model without its processor; see `load`."""
    from transformers import AutoModelForImageTextToText

    from foveate.devices import load_arguments
    from foveate.families import family_of

    source = _found(model, revision)
    config = _read_config(source)
    # What is on the hub is known when it is loaded.
    if not source.hub:
        _check_files(source, config)
    if dtype is None:
        dtype = "float32" if source.embedded else "auto"
    arguments = load_arguments(device, dtype, device_map, quantize)
    if isinstance(device_map, Mapping):
        _check_device_map(_bare(source, config), device_map)
    try:
        loaded: Any = AutoModelForImageTextToText.from_pretrained(
            source.location,
            **source.arguments,
            **arguments,
            **({"config": config} if source.part else {}),
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            # Reported by name below, where transformers says only that there are some.
            ignore_mismatched_sizes=True,
        )
    except MemoryError:
        raise
    except Exception as error:
        raise _broken(source, "model", error) from error
    network, loading = loaded
    check_loaded(source.name, network, loading)
    if source.hub and getattr(config, "quantization_config", None) is None:
        check_kinds(source.name, stored_tensors(source.config.parent), buffer_names(network))
    check_finite(source.name, network)
    check_generation(source.name, network)
    family_of(network)
    return network.eval()


def load_processor(model: str | Path | None = None, *, revision: str | None = None) -> Any:
    """Load a processor without its model; see `load`."""
    source = _found(model, revision)
    config = _read_config(source)
    try:
        from transformers import AutoProcessor

        processor: Any = (
            clip_processor(Path(source.location))
            if source.for_clips
            else AutoProcessor.from_pretrained(source.location, **source.arguments, trust_remote_code=False)
        )
    except ImportError as error:
        # Processors of Qwen and of video need torchvision, some tokenizers sentencepiece; foveate depends on neither.
        raise FoveateError(f"the processor of {source.name} can't be made: {_lacking(error)}") from error
    except Exception as error:
        raise _broken(source, "processor", error) from error
    if not hasattr(processor, "image_processor") or not hasattr(processor, "tokenizer"):
        raise FoveateError(
            f"{source.name} has no complete processor; it needs preprocessor_config.json (or processor_config.json) "
            "and the tokenizer's files"
        )
    check_processor(source.name, processor, config)
    return processor


def skeleton(model: str | Path | None = None, *, revision: str | None = None) -> Any:
    """Build a model on the meta device, without its weights: enough for layouts and schedules.

    Only config.json is read, or downloaded.

    Raises:
        FoveateError: there is no such model or revision, or its configuration is damaged.
        UnsupportedFamily: the model is of no supported family.
    """
    from foveate.families import family_of

    source = _found(model, revision)
    network = _bare(source, _read_config(source))
    family_of(network)
    return network


def family_without_weights(model: str | Path | None = None, *, revision: str | None = None) -> Family:
    """Return the family of a model: enough for layouts and schedules.

    Only config.json is read, or downloaded. Where it is enough, no code of the model is imported; where no family
    describes the model, a `skeleton` tells how it takes images.

    Raises:
        FoveateError: there is no such model or revision, or its configuration is damaged.
        UnsupportedFamily: the model is of no supported family.

    >>> family_without_weights().name
    'llava'
    """
    from foveate.families import family_class, family_of
    from foveate.transformers_api import check_version

    check_version()
    source = _found(model, revision)
    config = _read_config(source)
    try:
        return family_class(config).of_config(config)
    except UnsupportedFamily:
        return family_of(_bare(source, config))


def embedded_family(folder: Path = PATH) -> Family:
    """Return the family of an embedded model, for layouts and schedules alone: nothing of transformers is imported.

    Its configuration is complete as config.json has it, but for names that transformers gives to its fields.

    Args:
        folder: of the embedded model, or of the one for clips.

    >>> embedded_family().image_layout(480, 640).content
    576
    """
    from foveate.families import family_class
    from foveate.families.config_fields import PlainConfig

    config = PlainConfig.of(read_json_object(folder / "config.json", "configuration"))
    return family_class(config).of_config(config)


def model_of_type(kind: str, values: Mapping[str, Any] | None = None) -> Any:
    """Build a model of a type on the meta device, with its default configuration and no weights.

    Args:
        kind: the `model_type`, as transformers knows it.
        values: what its configuration has besides.

    Raises:
        FoveateError: the default configuration can't be built.

    >>> model_of_type("llava").device.type
    'meta'
    """
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    try:
        with torch.device("meta"):
            return AutoModelForImageTextToText.from_config(AutoConfig.for_model(kind, **(values or {})))
    except Exception as error:  # whatever a model's own code raises
        raise FoveateError(
            f"a model of type {kind!r} can't be built with its default configuration ({first_line(error)}); name a "
            "model of it, or its folder"
        ) from error


def known_types() -> frozenset[str]:
    """Return the `model_type` of all models that transformers loads by its class for images and text.

    >>> "llava" in known_types()
    True
    """
    from transformers import AutoModelForImageTextToText

    return frozenset(kind.model_type for kind in AutoModelForImageTextToText._model_mapping)


def find_config(model: str | Path | None = None, *, revision: str | None = None) -> Path:
    """Return the config.json of a model; nothing else of a model on the hub is downloaded.

    Raises:
        FoveateError: there is no such model or revision.
    """
    return _located(model, revision).config


def commit_of(model: str | Path | None = None, revision: str | None = None) -> str | None:
    """Return the commit of a model on the hub that a revision stands for now; None for a folder.

    Raises:
        FoveateError: there is no such model or revision, or the model is a folder and a revision is given.

    >>> commit_of(None) is None
    True
    """
    return _located(model, revision).commit


@dataclass(frozen=True)
class _Source:
    """Where the files of a model come from.

    Attributes:
        name: what errors call it.
        location: the folder, or the name on the hub.
        config: the file config.json on this machine.
        commit: of a model on the hub; None for a folder.
        hub: whether it is on the hub.
        answers: whether the hub can be reached.
        part: whether the model is a part of a larger one, whose files these are.
    """

    name: str
    location: str
    config: Path
    commit: str | None = None
    hub: bool = False
    answers: bool = False
    part: bool = False

    @property
    def embedded(self) -> bool:
        return self.for_clips or (not self.hub and Path(self.location).resolve() == PATH.resolve())

    @property
    def for_clips(self) -> bool:
        """Whether this is the embedded model for clips, whose processor transformers has only with torchvision."""
        return not self.hub and Path(self.location).resolve() == CLIP_PATH.resolve()

    @property
    def arguments(self) -> dict[str, Any]:
        """What `from_pretrained` needs besides the location."""
        return {"local_files_only": not self.answers, **({"revision": self.commit} if self.hub else {})}


def _located(model: str | Path | None, revision: str | None) -> _Source:
    """Find a model's config.json.

    Raises:
        FoveateError: there is none.
    """
    check_kind("model", model, (str, Path, NoneType), "a folder, or a name on the Hugging Face hub")
    check_kind("revision", revision, (str, NoneType), "a branch, a tag or a commit as text")
    if model is not None and is_hub_name(model):
        file = fetch_config(str(model), revision)
        return _Source(str(model), str(model), file.path, file.commit or revision, hub=True, answers=file.answers)
    folder = PATH if model is None else Path(model)
    if revision is not None:
        embedded = model is None or folder == CLIP_PATH
        what = "the embedded model has none" if embedded else f"{folder} is not named by the hub"
        raise FoveateError(f"only models on the hub have revisions, and {what}; leave out the revision {revision!r}")
    kind = kind_of(folder)
    if kind == "missing":
        raise FoveateError(
            f"there is no model directory {shown_path(folder)}; name a folder with a model, or a model of the "
            f"Hugging Face hub as organisation/name{_such_as(str(model), lambda own, name: own.startswith(name))}"
        )
    if kind != "folder":
        raise FoveateError(f"{shown_path(folder)} is a file; name the directory that holds the model's config.json")
    config = folder / "config.json"
    _check_texts(folder)
    if not is_file(config):
        raise FoveateError(f"{shown_path(folder)} has no config.json, so it is not a Hugging Face model directory")
    return _Source(str(folder), str(folder), config)


def _found(model: str | Path | None, revision: str | None) -> _Source:
    """Find a model, and check that it is of a supported family and has a configuration of both its parts.

    Raises:
        FoveateError: there is none, or its config.json can't be read or lacks a part.
        UnsupportedFamily: it is of no supported family.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    from foveate.families import family_class, model_types, vlm_config
    from foveate.families.config_fields import check_parts

    source = _located(model, revision)
    try:
        data = read_json_object(source.config, "configuration", strict=False)
    except FileError as error:
        raise FoveateError(f"{error}; download the model again") from None
    inner = vlm_config(data)
    kind = inner.get("model_type")
    # A model without a family of its own may still work, if it takes images and text.
    if not isinstance(kind, str) or kind not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        if isinstance(kind, str) and kind not in CONFIG_MAPPING_NAMES:
            raise _unknown(source, data, kind)
        family_class(SimpleNamespace(model_type=kind))
    if kind in model_types():
        check_parts(inner)
    return replace(source, part=inner is not data)


def _unknown(source: _Source, data: Mapping[str, Any], kind: str) -> UnsupportedFamily:
    """Say that transformers has no models of a type, and what to take instead."""
    import transformers

    if data.get("auto_map"):
        name = Path(source.name).name
        return UnsupportedFamily(
            f"models of type {shortened(kind)!r} are not supported: their code comes with {source.name} and is not in "
            "transformers, and foveate never runs such code; take a version of the model for transformers"
            + _such_as(name, lambda own, name: own == f"{name}-hf")
        )
    return UnsupportedFamily(
        f"models of type {shortened(kind)!r} are not supported: transformers {transformers.__version__} doesn't know "
        "them. A later version may  (foveate families lists those that work)"
    )


def _such_as(name: str, fits: Callable[[str, str], bool]) -> str:
    """Name the first released model that fits a name without its organisation, in any capitals; "" for none."""
    from foveate.families import families

    released = (each for family in families() for each in family.checkpoints)
    return next((f", such as {each}" for each in released if fits(each.casefold().split("/")[-1], name.casefold())), "")


def _read_config(source: _Source) -> Any:
    """Return the configuration of a model as transformers reads it.

    Raises:
        FoveateError: it is damaged.
    """
    from transformers import AutoConfig

    from foveate.families import vlm_config
    from foveate.families.config_fields import check_sizes

    try:
        config: Any = AutoConfig.from_pretrained(source.location, **source.arguments, trust_remote_code=False)
    except Exception as error:
        raise _broken(source, "config.json", error) from error
    config = vlm_config(config)
    try:
        check_sizes(config)
    except FoveateError as error:
        raise FoveateError(f"{source.config} is damaged: {error}") from None
    return config


def _bare(source: _Source, config: Any) -> Any:
    """Build a model on the meta device, without its weights.

    Raises:
        FoveateError: its configuration is damaged.
    """
    import warnings

    import torch
    from transformers import AutoModelForImageTextToText

    try:
        # torch warns of weights without numbers, which are refused.
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return AutoModelForImageTextToText.from_config(config, trust_remote_code=False)
    except Exception as error:
        raise _broken(source, "config.json", error) from error


def _check_device_map(bare: Any, device_map: Mapping[str, Any]) -> None:
    """Check that a device map names modules of a model, and all of its weights.

    Raises:
        FoveateError: it doesn't.
    """
    weights = [name for name, _ in (*bare.named_parameters(), *bare.named_buffers())]
    known = {"", *weights, *(name for name, _ in bare.named_modules())}
    if unknown := [name for name in device_map if name not in known]:
        raise FoveateError(
            f"the model has no module {quoted(unknown[0])}, which the device map names; its parts are "
            f"{', '.join(name for name, _ in bare.named_children())}"
        )
    for weight in weights:
        if not any(name in ("", weight) or weight.startswith(f"{name}.") for name in device_map):
            raise FoveateError(f'the device map says nothing of {weight}; name a module around it, or "" for the rest')


def _check_files(source: _Source, config: Any) -> None:
    """Check what a folder's weight files say of themselves, before anything is loaded.

    Raises:
        FoveateError: there are no safetensors, or they don't fit the configuration.
    """
    stored = stored_tensors(Path(source.location))
    if getattr(config, "quantization_config", None) is not None:
        return
    bare = _bare(source, config)
    check_kinds(source.name, stored, buffer_names(bare))
    check_size(source.name, stored, sum(weight.numel() for weight in bare.parameters()))
    check_depth(source.name, stored, bare.state_dict())


def _check_texts(folder: Path) -> None:
    """Check that what transformers reads as text in a model's folder are files of a sensible size.

    It takes a folder or a pipe for a file that is missing, such as the model's own generation configuration, and reads
    a file as a whole, however large it is.

    Raises:
        FoveateError: one is something else, or too large.
    """
    for path in sorted({path for pattern in _TEXTS for path in files_in(folder, pattern)}):
        try:
            with open_file(path) as file:
                size = file.seek(0, os.SEEK_END)
        except FileError as error:
            raise FoveateError(f"{error}; download the model again") from None
        if size > _LARGEST_TEXT:
            raise FoveateError(
                f"{shown_path(path)} has {size:,} bytes, and such a file of a model has at most {_LARGEST_TEXT:,}; "
                "download the model again"
            )


_TEXTS: Final = ("*.json", "*.jinja", "*.txt", "*.model")
_LARGEST_TEXT: Final = 256 * 2**20
"""In bytes; the largest vocabularies have about 40 MB."""


_REQUIRED: Final = re.compile(r"requires the (\S+) library")


def _lacking(error: ImportError) -> str:
    """Say which package an import failed for, and what to do."""
    required = _REQUIRED.search(str(error))
    if required is not None:
        package = required[1].lower()
        return f"it needs {package}, which is missing; install it (torchvision from the same index as torch)"
    cause: Exception = error
    while isinstance(cause.__cause__, Exception):
        cause = cause.__cause__
    return f"{first_line(cause)}; install the version of that package that fits your torch"


def _broken(source: _Source, what: str, error: Exception) -> FoveateError:
    """Return the error of one line for what transformers raised."""
    if isinstance(error, ImportError) and _REQUIRED.search(str(error)):
        return FoveateError(f"the model of {source.name} can't be made: {_lacking(error)}")
    if source.hub:
        lacking = "does not appear to have a file named model.safetensors" in str(error)
        reason = _why_unreachable(source) if lacking else error
        if reason is None:
            return FoveateError(f"{source.name} on the hub has no weights in safetensors; {SAFETENSORS_ONLY}")
        if (known := explain(reason, source.name, source.commit)) is not None:
            return known
    if type(error).__name__ == "OutOfMemoryError":
        return FoveateError(
            f"the model of {source.name} does not fit on the device ({first_line(error)}); use bfloat16, 4bit, or the "
            "device map auto"
        )
    todo = "correct it, or download it again" if what == "config.json" else "is the download complete?"
    return FoveateError(f"the {what} of {source.name} cannot be loaded ({first_line(error)}); {todo}")


def _why_unreachable(source: _Source) -> Exception | None:
    """Return why the hub can't be asked for weights, which transformers reports as if they didn't exist."""
    from huggingface_hub import file_exists

    try:
        file_exists(source.location, "model.safetensors", revision=source.commit)
    except Exception as error:
        return error
    return None
