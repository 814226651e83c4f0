"""Adapters are written to disk and to the hub completely or not at all."""

import shutil
from pathlib import Path

import pytest
from rows import ROWS
from safetensors import SafetensorError

from foveate.adapters import downloaded
from foveate.atp import ATP
from foveate.errors import FoveateError
from foveate.files import atomic_files
from foveate.voco import VoCo


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


PARTS = ("weights", "lora", "settings")


def write(directory: Path, text: str, *names: str) -> None:
    with atomic_files(directory, PARTS) as folder:
        for name in names:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(text)


def contents(folder: Path) -> dict[str, str]:
    return {name: (folder / name).read_text() for name in names(folder) if (folder / name).is_file()}


def test_an_adapter_is_replaced_whole_and_nothing_else(tmp_path):
    """A model's own files stay, the folder itself isn't replaced, and no file of the older adapter remains."""
    home = tmp_path / "within" / "adapter"
    write(home, "old", "weights", "lora/config", "settings")
    (home / "model.safetensors").write_text("the model")
    (home / "tokenizer").mkdir()
    (home / "tokenizer" / "vocabulary").write_text("words")
    kept = {"model.safetensors": "the model", "tokenizer/vocabulary": "words"}
    before = home.stat().st_ino
    write(home, "new", "weights", "lora/other", "settings")
    assert contents(home) == kept | {"weights": "new", "lora/other": "new", "settings": "new"}
    write(home, "third", "weights", "settings")
    assert contents(home) == kept | {"weights": "third", "settings": "third"}
    assert home.stat().st_ino == before
    assert home.stat().st_mode & 0o777 == 0o755
    other = tmp_path / "lora of somebody"
    (other / "lora").mkdir(parents=True)
    write(other, "new", "weights", "settings")
    assert (other / "lora").is_dir(), "without settings beside it, it is no adapter's"


@pytest.mark.parametrize("kind", [VoCo, ATP], ids=lambda kind: kind.__name__)
def test_a_model_beside_its_adapter_stays(tmp_path, kind):
    model = next(row for row in ROWS if row.name == "llava").model()
    model.save_pretrained(tmp_path)
    before = names(tmp_path)
    kind(model).save_pretrained(tmp_path)
    # Whoever may read what this user writes may read all of it.
    (tmp_path / "plain").write_text("")
    for name in set(names(tmp_path)) - set(before):
        assert (tmp_path / name).stat().st_mode == (tmp_path / "plain").stat().st_mode, name
    (tmp_path / "plain").unlink()
    assert set(before) < set(names(tmp_path))
    kind.from_pretrained(tmp_path)


def test_a_link_stays_one(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    write(tmp_path / "link", "new", "settings")
    assert (tmp_path / "link").is_symlink()
    assert names(tmp_path / "disk") == ["settings"]


def _full_disk(folder: Path) -> None:
    (folder / "weights").touch()
    raise OSError(28, "No space left on device")


def _full_disk_of_safetensors(folder: Path) -> None:
    raise SafetensorError("I/O error: File too large")


def _mistake(folder: Path) -> None:
    (folder / "weights").touch()
    raise KeyError("a mistake")


@pytest.mark.parametrize(
    ("fail", "error", "text"),
    [
        (_full_disk, FoveateError, "adapter can't be written"),
        (_full_disk_of_safetensors, FoveateError, "adapter can't be written .*too large"),
        (_mistake, KeyError, "mistake"),
    ],
)
def test_what_fails_leaves_all_as_it_was(tmp_path, fail, error, text):
    with pytest.raises(error, match=text), atomic_files(tmp_path / "adapter", PARTS) as folder:
        fail(folder)
    assert names(tmp_path) == []
    write(tmp_path / "adapter", "old", "weights", "settings")
    with pytest.raises(error, match=text), atomic_files(tmp_path / "adapter", PARTS) as folder:
        fail(folder)
    assert contents(tmp_path) == {"adapter/weights": "old", "adapter/settings": "old"}


@pytest.mark.parametrize("last", range(6))
def test_the_old_one_is_put_back(tmp_path, monkeypatch, last):
    """Whichever rename fails; and the settings are never together with another adapter's files."""
    write(tmp_path / "adapter", "old", "weights", "lora/config", "settings")
    before = contents(tmp_path)
    replace, done = Path.replace, []

    def refused(path: Path, target: Path) -> Path:
        if len(done) == last:
            done.append(path.name)
            raise OSError(13, "Permission denied")
        done.append(path.name)
        result = replace(path, target)
        if (tmp_path / "adapter" / "settings").exists():
            assert len({text for name, text in contents(tmp_path).items() if ".partial" not in name}) == 1
        return result

    monkeypatch.setattr(Path, "replace", refused)
    with pytest.raises(FoveateError, match="Permission denied"):
        write(tmp_path / "adapter", "new", "weights", "lora/config", "settings")
    assert contents(tmp_path) == before


def test_a_file_in_the_way(tmp_path):
    (tmp_path / "adapter").write_text("somebody's")
    with pytest.raises(FoveateError, match="it is a file"):
        write(tmp_path / "adapter", "new", "settings")
    with pytest.raises(FoveateError, match="can't be written"):
        write(tmp_path / "adapter" / "below", "new", "settings")
    assert (tmp_path / "adapter").read_text() == "somebody's"


def test_neither_here_nor_on_the_hub(tmp_path):
    assert downloaded(str(tmp_path), "adapter") == tmp_path
    with pytest.raises(FoveateError, match=r"there is no VoCo adapter at .*nowhere, neither here nor on the hub"):
        VoCo.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(FoveateError, match=r"there is no ATP adapter at .*nowhere, neither here nor on the hub"):
        ATP.from_pretrained(tmp_path / "nowhere")


@pytest.mark.parametrize("kind", [VoCo, ATP], ids=lambda kind: kind.__name__)
def test_what_the_hub_is_asked_for(tmp_path, monkeypatch, kind):
    kind(next(row for row in ROWS if row.name == "llava").model()).save_pretrained(tmp_path / "there")
    asked = {}

    def snapshot(name: str, *, allow_patterns: list[str], **options: str) -> str:
        asked.update(options, name=name)
        return str(tmp_path / "there")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    kind.from_pretrained("somebody/adapter", revision="second", token="mine", cache_dir=str(tmp_path))
    assert asked.pop("local_files_only") in (True, False), "whether the hub can be reached"
    assert asked == {"name": "somebody/adapter", "revision": "second", "token": "mine", "cache_dir": str(tmp_path)}


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
