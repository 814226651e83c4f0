"""Makes the files that cases need; a case names a builder and its arguments."""

from __future__ import annotations

import io
import json
import os
import shutil
import struct
from functools import cache
from pathlib import Path
from typing import Any

HOME = Path()
"""A folder that lasts as long as the worker."""


def _text(text: Any) -> str:
    """Return a text; {"times": [text, n]} is a long one."""
    if isinstance(text, dict):
        part, times = text["times"]
        return part * times
    if isinstance(text, list):
        return "".join(map(_text, text))
    return text


def _ready(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


# Plain files


def text(path: Path, *parts: Any, encoding: str = "utf-8") -> None:
    """A text file; lone surrogates are written as they are."""
    _ready(path).write_bytes(_text(list(parts)).encode(encoding, "surrogatepass"))


def raw(path: Path, hexadecimal: str) -> None:
    """A file of bytes."""
    _ready(path).write_bytes(bytes.fromhex(hexadecimal))


def lines(path: Path, *values: Any) -> None:
    """A JSONL file of these values, texts as they are."""
    texts = [each if isinstance(each, str) else json.dumps(each, ensure_ascii=False) for each in values]
    _ready(path).write_bytes("".join(f"{each}\n" for each in texts).encode("utf-8", "surrogatepass"))


def fifo(path: Path) -> None:
    """A pipe that nobody writes to."""
    os.mkfifo(_ready(path))


def folder(path: Path, mode: int = 0o777) -> None:
    """An empty folder."""
    path.mkdir(parents=True)
    path.chmod(mode)


def link(path: Path, target: str) -> None:
    """A symbolic link; to itself for a loop."""
    _ready(path).symlink_to(target)


def mode(path: Path, mode: int) -> None:
    """Change the access rights of what an earlier builder made; `path/.` keeps names in a case apart."""
    Path(path).chmod(mode)


def copy(path: Path, source: str) -> None:
    """A copy of an example picture."""
    from cases import EXAMPLES

    shutil.copy(EXAMPLES / source, _ready(path))


def sparse(path: Path, size: int) -> None:
    """A file of zeros that takes no space."""
    with _ready(path).open("wb") as file:
        file.truncate(size)


# Questions


def questions(path: Path, *changes: Any, count: int = 2, picture: str = "shapes.png") -> None:
    """A JSONL file of questions about a picture beside it; `changes` replace keys of its first lines."""
    copy(path.parent / picture, picture)
    rows = [
        {"image": picture, "question": f"what colour is the large star {'? ' * (number + 1)}".strip(), "answer": "red"}
        for number in range(max(count, len(changes)))
    ]
    for row, change in zip(rows, changes, strict=False):
        row.update(change)
    lines(path, *rows)


# Pictures


def picture(
    path: Path,
    mode: str = "RGB",
    size: tuple[int, int] = (64, 64),
    value: Any = None,
    format: str | None = None,
    **options: Any,
) -> None:
    """A picture of one colour in a mode and a format of Pillow."""
    from PIL import Image

    made = Image.new(
        mode, (size[0], size[1]), tuple(value) if isinstance(value, list) else (0 if value is None else value)
    )
    kind = format or {".jpg": "JPEG", ".tif": "TIFF", ".jp2": "JPEG2000"}.get(path.suffix, path.suffix[1:].upper())
    made.save(_ready(path), kind, **options)


def float_picture(
    path: Path, low: float = 0.0, high: float = 1.0, size: int = 64, special: float | None = None
) -> None:
    """A 32-bit float TIFF with a ramp from `low` to `high`."""
    import numpy as np
    from PIL import Image

    ramp = np.linspace(low, high, size * size, dtype=np.float32).reshape(size, size)
    if special is not None:
        ramp[0, 0] = special
    Image.fromarray(ramp).save(_ready(path), "TIFF")


def integer_picture(path: Path, low: int = 0, high: int = 2**31 - 1, size: int = 64, bits: int = 32) -> None:
    """A 32-bit or 16-bit integer picture with a ramp from `low` to `high`."""
    import numpy as np
    from PIL import Image

    kind = np.int32 if bits == 32 else np.uint16
    ramp = np.linspace(low, high, size * size).astype(np.int64).astype(kind).reshape(size, size)
    Image.fromarray(ramp).save(_ready(path))


def animation(path: Path, frames: int = 3) -> None:
    """A picture of several frames."""
    from PIL import Image

    made = [Image.new("RGB", (64, 64), colour) for colour in ("red", "green", "blue")] * frames
    made[0].save(_ready(path), save_all=True, append_images=made[1:frames], duration=10)


def damaged(path: Path, source: str = "shapes.png", keep: float = 0.5, flip: int | None = None) -> None:
    """A picture whose file ends early, or with one byte changed."""
    from cases import EXAMPLES

    data = bytearray((EXAMPLES / source).read_bytes())
    if flip is not None:
        data[flip % len(data)] ^= 0xFF
    _ready(path).write_bytes(bytes(data[: int(len(data) * keep)]))


def bomb(path: Path, width: int, height: int) -> None:
    """A BMP whose header promises more pixels than there are."""
    from PIL import Image

    made = io.BytesIO()
    Image.new("RGB", (8, 8)).save(made, "BMP")
    data = bytearray(made.getvalue())
    data[18:26] = struct.pack("<ii", width, height)
    _ready(path).write_bytes(bytes(data))


def exif(path: Path, tag: int = 0x0112, value: int = 6) -> None:
    """A JPEG with one EXIF tag."""
    from PIL import Image

    made = Image.new("RGB", (64, 32), "red")
    tags = made.getexif()
    tags[tag] = value
    made.save(_ready(path), "JPEG", exif=tags)


# Clips; frames tell their numbers by their grey level


def clip(
    path: Path,
    frames: int = 20,
    keep: float = 1.0,
    flip: float | None = None,
    write: dict[str, str] | None = None,
    **options: Any,
) -> None:
    """A video file.

    Args:
        path: of the file; its suffix says the container format.
        frames: how many.
        keep: the share of the file that is left, from its beginning.
        flip: where in the file bytes are changed, as a share of it.
        write: hexadecimal bytes that replace those of the same length behind the first of each mark, text.
        **options: of `clip_files.video`.
    """
    from tests.clip_files import video

    made = bytearray(video(_ready(path), frames, **options).read_bytes())
    if flip is not None:
        at = int(flip * len(made))
        made[at : at + 4] = bytes(value ^ 0xFF for value in made[at : at + 4])
    for mark, hexadecimal in (write or {}).items():
        at, new = made.index(mark.encode()) + len(mark), bytes.fromhex(hexadecimal)
        made[at : at + len(new)] = new
    path.write_bytes(bytes(made[: int(len(made) * keep)]))


def sound(path: Path) -> None:
    """A file with sound and no picture."""
    from tests.clip_files import sound_alone

    sound_alone(_ready(path))


def moving(path: Path, frames: int = 6, milliseconds: Any = 100, keep: float = 1.0) -> None:
    """An animation."""
    from tests.clip_files import animation as made
    from tests.clip_files import cut

    cut(made(_ready(path), frames, milliseconds), keep)


def frames(path: Path, count: int = 6, size: tuple[int, int] = (64, 48)) -> None:
    """A folder of frames."""
    from tests.clip_files import folder as made

    made(path, count, (size[0], size[1]))


def numbers(clip: Any) -> list[int]:
    """Return which frames an opened clip has."""
    from tests.clip_files import number_of

    return [number_of(each) for each in clip.frames]


# Model folders


@cache
def _tiny() -> Path:
    from tests.train.tiny import write_tiny

    return write_tiny(HOME / "tiny")


def tiny_model(
    path: Path,
    config: dict[str, Any] | None = None,
    tensors: dict[str, Any] | None = None,
    delete: list[str] | None = None,
    files: dict[str, Any] | None = None,
    cut: dict[str, int] | None = None,
) -> None:
    """A model folder with 36 visual tokens and four decoder layers.

    Args:
        path: of the folder.
        config: values of config.json by dotted names; None in place of a value writes null, "delete" removes the key.
        tensors: changes by name of tensor: "delete", "nan", "int8", "half", "transpose", "shorter", or "copy:NAME".
        delete: names of files.
        files: per name, text, or a mapping of changes to a JSON file.
        cut: per name of a file, how many of its first bytes are left.
    """
    _copied(_tiny(), path, config, tensors, delete, files)
    _cut(path, cut)


def _cut(path: Path, lengths: dict[str, int] | None) -> None:
    for name, length in (lengths or {}).items():
        (path / name).write_bytes((path / name).read_bytes()[:length])


def embedded_model(path: Path, config: Any = None, tensors: Any = None, delete: Any = None, files: Any = None) -> None:
    """A copy of the embedded model's folder, changed."""
    from foveate.embedded import PATH

    _copied(PATH, path, config, tensors, delete, files)


def _copied(source: Path, path: Path, config: Any, tensors: Any, delete: Any, files: Any) -> None:
    shutil.copytree(source, path)
    changes: dict[str, Any] = dict(files or {})
    if config:
        changes["config.json"] = config
    for name, change in changes.items():
        if isinstance(change, dict) and "times" not in change:
            data = json.loads((path / name).read_text()) if (path / name).exists() else {}
            for key, value in change.items():
                set_key(data, key, value)
            (path / name).write_text(json.dumps(data))
        else:
            text(path / name, change)
    for name in delete or ():
        (path / name).unlink()
    if tensors:
        change_tensors(path / "model.safetensors", tensors)


def set_key(data: Any, dotted: str, value: Any) -> None:
    """Set a value of nested mappings; "delete" removes it."""
    *outer, last = dotted.split(".")
    for name in outer:
        data = data.setdefault(name, {})
    if value == "delete":
        data.pop(last, None)
    else:
        data[last] = value


def change_tensors(path: Path, changes: dict[str, str]) -> None:
    """Change tensors of a safetensors file; a name may end with "*" for all that begin so."""
    import torch
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    held = load_file(path)
    for pattern, change in changes.items():
        if change.startswith("copy:"):
            held[pattern] = held[change[5:]].clone()
            continue
        if change.startswith("new:"):
            held[pattern] = torch.zeros(*map(int, change[4:].split(",")))
            continue
        names = [name for name in held if name == pattern or (pattern[-1] == "*" and name.startswith(pattern[:-1]))]
        assert names, f"no tensor {pattern}; there are {sorted(held)[:8]}"
        for name in names:
            value = held.pop(name)
            if change == "delete":
                continue
            if change == "nan":
                value = value.clone()
                value.view(-1)[0] = float("nan")
            elif change == "inf":
                value = value.clone()
                value.view(-1)[0] = float("inf")
            elif change == "int8":
                value = (value * 10).to(torch.int8)
            elif change == "half":
                value = value.half()
            elif change == "double":
                value = value.double()
            elif change == "bfloat16":
                value = value.bfloat16()
            elif change == "transpose":
                value = value.T.contiguous()
            elif change == "shorter":
                value = value[:-1].contiguous()
            elif change == "flat":
                value = value.flatten().contiguous()
            elif change == "empty":
                value = value[:0].contiguous()
            else:
                raise ValueError(change)
            held[name] = value
    save_file(held, path, metadata)


# Adapters and memories


def adapter(
    path: Path,
    kind: str = "voco",
    settings: Any = None,
    tensors: Any = None,
    delete: Any = None,
    files: Any = None,
    cut: Any = None,
) -> None:
    """A copy of the embedded model's adapter, changed as a model folder is."""
    from foveate.adapters import shipped

    shutil.copytree(shipped(kind), path)
    changes = dict(files or {})
    if settings is not None:
        changes[f"{kind}.json"] = settings
    for name, change in changes.items():
        if isinstance(change, dict) and "times" not in change:
            data = json.loads((path / name).read_text())
            for key, value in change.items():
                set_key(data, key, value)
            (path / name).write_text(json.dumps(data))
        else:
            text(path / name, change if isinstance(change, str) else json.dumps(change))
    for name in delete or ():
        (path / name).unlink()
    for name, changed in (tensors or {}).items():
        change_tensors(path / name, changed)
    _cut(path, cut)


def memory(path: Path, tensors: Any = None, metadata: Any = None, cut: int | None = None) -> None:
    """A saved memory of four tokens, changed."""
    import torch

    import foveate

    keys = torch.randn(2, 1, 4, 8, generator=torch.Generator().manual_seed(0))
    foveate.VoCoMemory(keys, keys.clone(), 0, 581, 576, "base", "adapter:4", torch.ones(4)).save(path)
    if metadata is not None:
        from safetensors import safe_open
        from safetensors.torch import load_file, save_file

        with safe_open(path, "pt") as file:
            held = dict(file.metadata())
        for name, value in metadata.items():
            if value is None:
                held.pop(name, None)
            else:
                held[name] = value
        save_file(load_file(path), path, held)
    if tensors:
        change_tensors(path, tensors)
    if cut is not None:
        path.write_bytes(path.read_bytes()[:cut])


# Recipes


def recipe(path: Path, changes: Any = None, extra: str = "", model: str = "model") -> None:
    """A recipe on `model`, written by `tiny_model`: six steps on sixteen scenes; `changes` by dotted names."""
    data: dict[str, Any] = {
        "model": model,
        "data": {"scenes": 16, "turns": 2},
        "stages": [{"share": "1/2", "spec": "pool:0.25@2"}, {"share": "1/2", "spec": "dense"}],
        "steps": 2,
        "batch": 2,
        "per_device": 2,
        "lr": 1e-3,
        "log_every": 1,
        "save_every": 1,
    }
    for name, value in (changes or {}).items():
        set_key(data, name, value)
    import yaml

    text(path, yaml.safe_dump(data, sort_keys=False) + extra)


# Results of bench


def _bench(base: Path) -> Any:
    """Run a small bench on the tiny model in `base`."""
    from typer.testing import CliRunner

    from foveate.commands import app

    questions(base / "q.jsonl")
    back = Path.cwd()
    os.chdir(base)
    options = ("--data", "q.jsonl", "--max-new-tokens", "2", "--out", "out", "--model", str(_tiny()))
    try:
        return CliRunner().invoke(app, ["bench", "--spec", "pool:9", "--spec", "random:9", *options])
    finally:
        os.chdir(back)


@cache
def _results() -> Path:
    """Return a folder with the results of a run, made once."""
    result = _bench(HOME / "whole")
    assert result.exit_code == 0, result.output
    return HOME / "whole"


@cache
def _interrupted() -> Path:
    """Return a folder with what a run left that was interrupted before it put its files in place, made once."""
    from unittest.mock import patch

    from foveate.bench.results import ResultsFolder

    with patch.object(ResultsFolder, "finish", side_effect=KeyboardInterrupt):
        result = _bench(HOME / "interrupted")
    assert result.exit_code == 130, result.output
    return HOME / "interrupted"


def results(path: Path, partial: bool = False, files: Any = None, delete: Any = None) -> None:
    """The folder of a small run; `q.jsonl` and its picture stand beside it.

    Args:
        path: of the folder.
        partial: as if it was interrupted before it was complete.
        files: per name, a text to write, or a list of text to replace and its replacement.
        delete: names of files.
    """
    base = _interrupted() if partial else _results()
    for each in ("q.jsonl", "shapes.png"):
        shutil.copy(base / each, path.parent / each)
    target = path.with_name(path.name + ".partial") if partial else path
    shutil.copytree(base / target.name, target)
    for name, change in (files or {}).items():
        if isinstance(change, list) and len(change) == 2 and change[0] != "append":
            held = (target / name).read_text()
            assert change[0] in held, change[0]
            (target / name).write_text(held.replace(change[0], change[1]))
        elif isinstance(change, list):
            with (target / name).open("a", encoding="utf-8", errors="surrogatepass") as file:
                file.write(_text(change[1]))
        else:
            text(target / name, change)
    for name in delete or ():
        (target / name).unlink()


def tiny() -> str:
    """Return the folder of the tiny model."""
    return str(_tiny())


def finite(path: str) -> bool:
    """Return whether all weights below a folder are finite numbers."""
    import torch
    from safetensors.torch import load_file

    return all(
        bool(torch.isfinite(tensor).all())
        for file in Path(path).rglob("*.safetensors")
        for tensor in load_file(file).values()
        if tensor.is_floating_point()
    )
