"""Files and folders are written atomically: completely, or what was there stays."""

import json
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from foveate.errors import FoveateError
from foveate.files import atomic_file, atomic_files, replace_folder, write_json, write_tensors, write_text


def _names(folder: Path) -> list[str]:
    """Everything below a folder, hidden files, too."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_every_kind_is_written_and_nothing_else_is_left(tmp_path: Path) -> None:
    write_text(tmp_path / "new" / "a.txt", "größer")
    write_json(tmp_path / "b.json", {"é": [1, 2]})
    write_json(tmp_path / "c.json", {"é": [1, 2]}, indent=None)
    write_tensors(tmp_path / "d.safetensors", {"x": torch.arange(3)}, {"format": "pt"})
    assert (tmp_path / "new" / "a.txt").read_text(encoding="utf-8") == "größer"
    assert json.loads((tmp_path / "b.json").read_text(encoding="utf-8")) == {"é": [1, 2]}
    assert (tmp_path / "c.json").read_text(encoding="utf-8") == '{"é": [1, 2]}\n'
    assert load_file(tmp_path / "d.safetensors")["x"].tolist() == [0, 1, 2]
    assert _names(tmp_path) == ["b.json", "c.json", "d.safetensors", "new", "new/a.txt"]


def test_all_files_have_the_same_access_rights(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "")
    write_tensors(tmp_path / "b", {"x": torch.zeros(1)})
    with atomic_files(tmp_path / "c", ["d.safetensors", "e.json"]) as new:
        write_tensors(new / "d.safetensors", {"x": torch.zeros(1)})
        write_json(new / "e.json", {})
    (tmp_path / "usual").touch()
    assert len({stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*") if path.is_file()}) == 1


def test_after_an_error_the_file_is_what_it_was(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    write_text(file, "old")

    def interrupted() -> None:
        with atomic_file(file) as partial:
            partial.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert file.read_text() == "old"
    assert _names(tmp_path) == ["a.txt"]


def test_after_an_error_the_folder_is_what_it_was(tmp_path: Path) -> None:
    def written(text: str, fails: bool = False) -> None:
        with atomic_files(tmp_path / "adapter", ["weights", "settings"]) as new:
            write_text(new / "weights", text)
            write_text(new / "settings", text)
            if fails:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        written("first", fails=True)
    assert _names(tmp_path) == []
    written("old")
    with pytest.raises(KeyboardInterrupt):
        written("half", fails=True)
    assert {name: (tmp_path / name).read_text() for name in _names(tmp_path)[1:]} == {
        "adapter/settings": "old",
        "adapter/weights": "old",
    }


def test_a_finished_folder_replaces_an_older_one(tmp_path: Path) -> None:
    for text in ("old", "new"):
        write_text(tmp_path / ".writing" / text, text)
        replace_folder(tmp_path / ".writing", tmp_path / "model")
    assert _names(tmp_path) == ["model", "model/new"]


def test_what_cannot_be_written_is_named(tmp_path: Path) -> None:
    write_text(tmp_path / "file", "")
    with pytest.raises(FoveateError, match=r"file/a can't be written: .*/file is a file; name another place"):
        write_text(tmp_path / "file" / "a", "")
    folder = atomic_files(tmp_path / "file", ["settings"])
    with pytest.raises(FoveateError, match=r"file can't be written: it is a file; name another folder"), folder:
        pass
    (tmp_path / "folder").mkdir()
    with pytest.raises(FoveateError, match=r"/folder is a folder; name a file in it"):
        write_text(tmp_path / "folder", "")
    assert _names(tmp_path) == ["file", "folder"]


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    write_text(tmp_path / "a", "old")
    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(FoveateError, match=r"a can't be written \(No space left on device\)"):
        write_text(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "old"
    assert _names(tmp_path) == ["a"]
