"""Load a model's configuration: published, from a directory, or as a mapping."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from foveate.embedded import PATH
from foveate.embedded.clips import CLIP_PATH
from foveate.errors import FoveateError, first_line
from foveate.families import vlm_config
from foveate.families.config_fields import PlainConfig, check_sizes, kind_of
from foveate.files import files_in, is_folder, read_json_object
from foveate.hub import is_hub_name
from foveate.loading import find_config

PUBLISHED = Path(__file__).parent / "published"
"""Configurations of released models: only their sizes, and where these were read."""


_SOURCE: Final = "foveate_source"
"""The field of theirs that says where the sizes were read."""


def published() -> tuple[str, ...]:
    """Return the names of the configurations that come with the package."""
    return tuple(path.stem for path in files_in(PUBLISHED, "*.json"))


def published_sizes(model: str) -> dict[str, Any] | None:
    """Return the configuration that comes with the package of a model on the hub; None if there is none.

    Args:
        model: its name, "organisation/name".

    >>> published_sizes("llava-hf/llava-1.5-7b-hf")["model_type"], published_sizes("mine/model")
    ('llava', None)
    """
    for path in files_in(PUBLISHED, "*.json"):
        data = read_json_object(path, "configuration")
        if str(data.pop(_SOURCE, "")).split()[:1] == [model]:
            return data
    return None


def load_config(source: Any, revision: str | None = None) -> Any:
    """Return a model's configuration as an object.

    Args:
        source: a transformers configuration, which is returned unchanged; a mapping, as config.json holds it; the name
            of a published configuration; a model directory or a config.json; a model of the Hugging Face hub, of which
            only config.json is downloaded, unless it is a published one; or None for the embedded model.
        revision: of a model on the hub.

    Raises:
        FoveateError: there is no such file, name or revision, the hub can't be reached, or it is no configuration of a
            vision-language model.
    """
    source = PATH if source is None else source
    if isinstance(source, str | Path):
        source = _read(source, revision)
    source = vlm_config(source)
    if not isinstance(source, Mapping):
        return _checked(source)
    from transformers import AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    data = {name: value for name, value in source.items() if name != _SOURCE}
    kind = data.pop("model_type", None)
    if kind is None:
        raise FoveateError("the configuration has no model_type, so it does not say which architecture it is for")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        raise FoveateError(f"models of type {kind!r} are unknown to the installed transformers")
    # transformers would fill in default sizes for a missing part; older files have the decoder's fields at the top.
    lacking = [part for part in ("vision_config", "text_config") if not data.get(part)]
    if "hidden_size" in data and "text_config" in lacking:
        lacking.remove("text_config")
    _complain(kind, lacking)
    try:
        config = AutoConfig.for_model(kind, **data)
    except Exception as error:
        raise FoveateError(f"the configuration of {kind} is damaged ({first_line(error)})") from error
    return _checked(config)


def own_config(source: str | Path | None) -> PlainConfig:
    """Return a configuration that comes with foveate as it is written, without what transformers would fill in.

    >>> own_config("llava-1.5-7b").text_config.hidden_size
    4096

    Args:
        source: for which `comes_along` holds.
    """
    data = _read(PATH if source is None else source, None)
    return _checked(PlainConfig.of({name: value for name, value in data.items() if name != _SOURCE}))


def comes_along(source: Any) -> bool:
    """Return whether a configuration comes with foveate: then all that is counted stands in it.

    Of others, transformers fills in what they leave out.

    Args:
        source: as `load_config` takes it.

    >>> comes_along(None), comes_along("llava-1.5-7b"), comes_along("llava-hf/llava-1.5-7b-hf")
    (True, True, True)
    """
    if source is None:
        return True
    if not isinstance(source, str | Path):
        return False
    return str(source) in published() or Path(source) in (PATH, CLIP_PATH) or published_sizes(str(source)) is not None


def _checked(config: Any) -> Any:
    missing = [name for name in ("vision_config", "text_config") if getattr(config, name, None) is None]
    _complain(kind_of(config), missing)
    check_sizes(config)
    return config


def _complain(kind: str, missing: list[str]) -> None:
    if missing:
        raise FoveateError(
            f"the configuration of {kind} has no {' and no '.join(missing)}; the cost model counts vision-language "
            "models, whose configuration has both"
        )


def _read(source: str | Path, revision: str | None) -> dict[str, Any]:
    path = PUBLISHED / f"{source}.json" if str(source) in published() else Path(source)
    if revision is None and (sizes := published_sizes(str(source))) is not None:
        return sizes
    if revision is not None or is_hub_name(source):
        path = find_config(source, revision=revision)
    if is_folder(path):
        path = path / "config.json"
    advice = (
        "name a model directory, a config.json, a model of the Hugging Face hub as organisation/name, or one of "
        f"{', '.join(published())}"
    )
    return read_json_object(path, "configuration", advice)
