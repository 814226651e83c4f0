"""Adapters on disk and on the hub: whole or not at all."""

import shutil
from pathlib import Path

import pytest
from rows import ROWS

from foveate.adapters import downloaded, written
from foveate.atp import ATP
from foveate.errors import FoveateError
from foveate.voco import VoCo


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_a_folder_is_replaced_whole(tmp_path):
    for name in ("old", "new"):
        with written(tmp_path / "within" / "adapter") as folder:
            (folder / name).write_text(name)
            assert folder.parent == tmp_path / "within", "the same disk, so that renaming is enough"
    assert names(tmp_path) == ["within", "within/adapter", "within/adapter/new"]
    assert (tmp_path / "within" / "adapter").stat().st_mode & 0o777 == 0o755


def test_a_link_stays_one(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    with written(tmp_path / "link") as folder:
        (folder / "new").touch()
    assert (tmp_path / "link").is_symlink()
    assert names(tmp_path / "disk") == ["new"]


def _full_disk(folder: Path) -> None:
    (folder / "half").touch()
    raise OSError(28, "No space left on device")


def _mistake(folder: Path) -> None:
    (folder / "half").touch()
    raise KeyError("a mistake")


@pytest.mark.parametrize(
    ("fail", "error", "text"), [(_full_disk, FoveateError, "adapter can't be written"), (_mistake, KeyError, "mistake")]
)
def test_what_fails_leaves_all_as_it_was(tmp_path, fail, error, text):
    with written(tmp_path / "adapter") as folder:
        (folder / "old").touch()
    with pytest.raises(error, match=text), written(tmp_path / "adapter") as folder:
        fail(folder)
    assert names(tmp_path) == ["adapter", "adapter/old"]


def test_the_old_one_is_put_back(tmp_path, monkeypatch):
    with written(tmp_path / "adapter") as folder:
        (folder / "old").touch()
    replace = Path.replace

    def refused(path: Path, target: Path) -> Path:
        if path.suffix == ".partial":
            raise OSError(13, "Permission denied")
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", refused)
    with pytest.raises(FoveateError, match="Permission denied"), written(tmp_path / "adapter"):
        pass
    assert names(tmp_path) == ["adapter", "adapter/old"]


def test_a_file_in_the_way(tmp_path):
    (tmp_path / "adapter").write_text("somebody's")
    with pytest.raises(FoveateError, match="it is a file"), written(tmp_path / "adapter"):
        pass
    with pytest.raises(FoveateError, match="can't be written"), written(tmp_path / "adapter" / "below"):
        pass
    assert (tmp_path / "adapter").read_text() == "somebody's"


def test_neither_here_nor_on_the_hub(tmp_path):
    assert downloaded(str(tmp_path), "adapter") == tmp_path
    with pytest.raises(FoveateError, match=r"there is no VoCo adapter at .*nowhere, neither here nor on the hub"):
        VoCo.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(FoveateError, match=r"there is no ATP adapter at .*nowhere, neither here nor on the hub"):
        ATP.from_pretrained(tmp_path / "nowhere")


@pytest.mark.parametrize("kind", [VoCo, ATP], ids=lambda kind: kind.__name__)
def test_what_is_uploaded_can_be_read(tmp_path, monkeypatch, kind):
    class Hub:
        def create_repo(self, repository: str, exist_ok: bool) -> None:
            assert exist_ok

        def upload_folder(self, *, repo_id: str, folder_path: str, **options: str) -> str:
            shutil.copytree(folder_path, tmp_path / repo_id)
            return options["commit_message"]

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    adapter = kind(next(row for row in ROWS if row.name == "llava").model())
    before = adapter.save_pretrained(tmp_path / "mine")
    state = dict(vars(adapter))
    assert adapter.push_to_hub("somebody/adapter", commit_message="a first one") == "a first one"
    assert vars(adapter) == state, "its home is where it was"
    there = tmp_path / "somebody" / "adapter"
    assert names(there) == names(before)
    assert all((there / name).read_bytes() == (before / name).read_bytes() for name in names(before))
    kind.from_pretrained(there)
