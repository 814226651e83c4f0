"""Save a model together with the spec that it is used with, and load it so that it compresses from then on."""

from __future__ import annotations

import os
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from foveate.adapters import SHIPPED, PretrainedAdapter
from foveate.arguments import check_kind
from foveate.engine import attach, attached_spec
from foveate.errors import FoveateError
from foveate.families import Family, family_of
from foveate.files import (
    PARTIAL,
    check_new_folder,
    files_in,
    kind_of,
    make_folder,
    others_write,
    read_json_object,
    read_text,
    remove_folder,
    replace_folder,
    shown_path,
    write_text,
)
from foveate.fingerprint import answering_fingerprint
from foveate.hub import is_hub_name
from foveate.loading import load
from foveate.schedule import schedule, tokens_per_layer
from foveate.serving import CONFIG_KEY, DENSE, saved_spec
from foveate.spec import Spec, SpecLike, as_spec

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["from_pretrained", "save"]

_EXAMPLE: Final = (768, 1024)
"""Height and width of the image that the card counts the tokens of, in pixels."""
_TAGS: Final = ["foveate", "visual-token-compression"]
_CARD: Final = """# {title}

This model is saved with a [foveate](https://pypi.org/project/foveate/) spec, `{spec}`: {does}. The weights are the
base model's own. Where foveate isn't installed, the model runs dense, as the base model does.

## Use it

```python
import foveate

model, processor = foveate.from_pretrained("{name}")  # {spec} is attached for good
```

`foveate.detach(model)` gives the dense model back, and `foveate.from_pretrained("{name}", spec="dense")` loads it so.
With `pip install "foveate[vllm]"`, vLLM serves the folder with the same spec and needs no flag.

## What it costs

{measured}
"""
_UNMEASURED: Final = """Nobody has measured it yet. To compare it with the dense model on your questions:

```
foveate bench --model {name} --data questions.jsonl --spec {spec} --out results
```

`foveate.save(..., results="results")` writes the table here.
"""


def save(
    model: PreTrainedModel,
    directory: str | Path,
    spec: SpecLike | None = None,
    *,
    processor: Any = None,
    results: str | Path | None = None,
) -> Path:
    """Save a model with the spec that it is used with: `save_pretrained`, a field of config.json, and a model card.

    `foveate.from_pretrained` attaches the spec again, and vLLM serves the folder with it where `foveate[vllm]` is
    installed. Everything else loads the folder as any model, and runs it dense.

    Args:
        model: a model of transformers, of a supported family. Adapters of peft must be merged.
        directory: a new or empty folder; it is there when all files are.
        spec: the steps, as for `apply`. None is what is attached to the model.
        processor: is saved along, so that the folder is complete.
        results: the folder of a `foveate bench` of this model and this spec, whose table becomes part of the card.

    Returns:
        The folder.

    Raises:
        FoveateError: the model can't run the spec, the spec needs an adapter from another place, the results are those
            of another model or spec, or the folder can't be written.
        SpecError: the spec is malformed or names an unknown method.
        UnsupportedFamily: the model is of no supported family.

    >>> import foveate, tempfile
    >>> model, processor = foveate.reference()
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     saved = foveate.save(model, f"{folder}/small", "cluster:64", processor=processor)
    ...     again, _ = foveate.from_pretrained(saved)
    >>> print(foveate.attached_spec(again))
    cluster:64
    """
    from transformers import PreTrainedModel

    check_kind("model", model, PreTrainedModel, "a model of transformers; merge adapters of peft: merge_and_unload()")
    family = family_of(model)
    chosen = attached_spec(model) if spec is None else as_spec(spec)
    if chosen is None:
        raise FoveateError('nothing is attached to this model; say which spec to save, such as "cluster:64"')
    schedule(chosen, family)
    _check_adapters(chosen)
    folder = check_new_folder(directory)
    if kind_of(folder) == "folder" and files_in(folder):
        raise FoveateError(f"{shown_path(directory)} holds files already; name a new folder")
    card = _card(model, family, folder.name, chosen, _measured(model, processor, chosen, folder.name, results))
    partial = make_folder(folder.with_name(f".{folder.name}.{os.getpid()}{PARTIAL}"))
    before = getattr(model.config, CONFIG_KEY, None)
    try:
        setattr(model.config, CONFIG_KEY, {"spec": str(chosen)})
        with others_write(folder):
            model.save_pretrained(partial)
            if processor is not None:
                processor.save_pretrained(partial)
        write_text(partial / "README.md", card)
        replace_folder(partial, folder)
    finally:
        # The model in memory is as it was.
        if before is None:
            delattr(model.config, CONFIG_KEY)
        else:
            setattr(model.config, CONFIG_KEY, before)
        remove_folder(partial)
    return folder


def from_pretrained(
    model: str | Path | None = None, spec: SpecLike | None = None, **options: Any
) -> tuple[PreTrainedModel, Any]:
    """Load a model and its processor as `foveate.load` does, with a spec attached for good.

    Args:
        model: a folder, or a name on the Hugging Face hub. None is the embedded model.
        spec: the steps, as for `apply`; "dense" is none. None is what the model was saved with.
        **options: of `foveate.load`: revision, device, dtype, device_map, quantize.

    Returns:
        The model in evaluation mode, and its processor. `foveate.detach(model)` makes the model dense.

    Raises:
        FoveateError: as `load` says; or no spec is given, and the model was saved without one.
        SpecError: the spec is malformed or names an unknown method.
        UnsupportedFamily: the model is of no supported family.

    >>> model, processor = from_pretrained(spec="cluster:64")
    >>> print(attached_spec(model))
    cluster:64
    """
    given = None if spec is None or _is_dense(spec) else as_spec(spec)
    loaded, processor = load(model, **options)
    if spec is None:
        given = saved_spec(loaded.config)
        if given is None:
            raise FoveateError(
                'this model was saved without a spec; give one, such as from_pretrained(..., spec="cluster:64"), or '
                "load it dense with foveate.load"
            )
    if given is not None and not _is_dense(given):
        attach(loaded, given)
    return loaded, processor


def _is_dense(spec: SpecLike) -> bool:
    return isinstance(spec, str) and spec.strip() == DENSE


def _check_adapters(spec: Spec) -> None:
    """Check that whoever loads the model finds the adapters of its spec: they come with foveate, or are on the hub.

    Raises:
        FoveateError: one lies in a folder of this machine.
    """
    for step in spec.steps:
        for field in fields(step.method):
            adapter = getattr(step.method, field.name)
            if isinstance(adapter, PretrainedAdapter) and str(adapter) != SHIPPED and not is_hub_name(str(adapter)):
                raise FoveateError(
                    f"{step} names an adapter that lies on this machine, so nobody else could load the model; push the "
                    "adapter to the hub, and write its name there in the spec"
                )


def _measured(model: PreTrainedModel, processor: Any, spec: Spec, name: str, results: str | Path | None) -> str:
    """Return what the card says of accuracy and time: the table of a benchmark, or how to make one.

    Raises:
        FoveateError: the folder holds no finished benchmark of this model and spec.
    """
    if results is None:
        return _UNMEASURED.format(name=name, spec=spec)
    folder = Path(results)
    config = read_json_object(folder / "config.json", "benchmark", "name the folder that foveate bench wrote")
    if processor is None:
        raise FoveateError("whether the results are of this model hangs on its processor, too; give processor=")
    if config.get("model") != answering_fingerprint(model, processor):
        raise FoveateError(f"{shown_path(folder)} holds the results of another model; measure this one: foveate bench")
    if str(spec) not in config.get("specs", ()):
        known = ", ".join(map(str, config.get("specs", ())))
        raise FoveateError(f"{shown_path(folder)} has no results of {spec}, but of {known}; measure it: foveate bench")
    return read_text(folder / "table.md", "table of a benchmark").strip()


def _card(model: PreTrainedModel, family: Family, name: str, spec: Spec, measured: str) -> str:
    """Return the text of README.md: a model card of the hub."""
    from huggingface_hub import ModelCardData

    base = str(getattr(model.config, "_name_or_path", "") or "")
    known = base if is_hub_name(base) else None
    data = ModelCardData(
        base_model=known, library_name="transformers", pipeline_tag="image-text-to-text", tags=list(_TAGS)
    )
    layout = family.image_layout(*_EXAMPLE)
    layers = tokens_per_layer(spec, family, layout)
    height, width = _EXAMPLE
    does = (
        f"of an image of {width} x {height} pixels, a layer of the decoder reads {sum(layers) / len(layers):.4g} "
        f"visual tokens on average instead of {layout.total}"
    )
    body = _CARD.format(
        title=f"{known or family.title} with {spec}", spec=spec, does=does, name=name, measured=measured
    )
    return f"---\n{data.to_yaml()}\n---\n\n{body}"
