"""Adapters on disk and on the Hugging Face hub: there whole or not at all."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from foveate.errors import FoveateError

SHIPPED: Final = "shipped"
"""What an adapter of the embedded model is called, which comes with foveate."""


def shipped(kind: str) -> Path:
    """The folder of the embedded model's adapter of a kind, such as "atp"."""
    return Path(__file__).parent / "embedded" / kind


@contextmanager
def written(directory: str | Path, parts: Sequence[str]) -> Iterator[Path]:
    """A new folder to write an adapter into, whose files take their place in `directory` once all are written.

    What else is in `directory` stays. After an error all is as it was.

    Args:
        directory: made if it is missing, and so are the folders that it is in.
        parts: the files and folders that an adapter may have, its settings last: without them nobody reads it, so they
            go first and come last.

    Raises:
        FoveateError: it can't be written.

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with written(f"{folder}/adapter", ["settings.json"]) as new:
    ...         _ = (new / "settings.json").write_text("{}")
    ...     [str(path.relative_to(folder)) for path in Path(folder).glob("*/*")]
    ['adapter/settings.json']
    """
    from safetensors import SafetensorError

    final = Path(directory)
    if final.exists() and not final.is_dir():
        raise FoveateError(f"{directory} can't be written: it is a file; name another folder")
    made = not final.exists()
    new = None
    try:
        final.mkdir(parents=True, exist_ok=True)
        # Within it, so that it is on the same disk: a folder may be one by itself, in one that nobody may write to.
        new = Path(tempfile.mkdtemp(prefix=".", suffix=".partial", dir=final))
        yield new
        # safetensors lets nobody else read what it writes; the settings are as readable as this user's files are.
        mode = (new / parts[-1]).stat().st_mode
        for path in new.rglob("*.safetensors"):
            path.chmod(mode)
        _take_place(new, final, parts)
        made = False
    except (OSError, SafetensorError) as error:
        # safetensors says so of a full disk, too.
        raise FoveateError(f"{directory} can't be written ({getattr(error, 'strerror', None) or error})") from error
    finally:
        if new is not None:
            shutil.rmtree(new, ignore_errors=True)
        if made:
            with suppress(OSError):
                final.rmdir()


def _take_place(new: Path, final: Path, parts: Sequence[str]) -> None:
    """Move what is written to where it belongs, and what stood there away; after an error all is moved back."""
    old = new / ".old"
    old.mkdir()
    # Files of these names are an older adapter's if its settings are there, else only what is in the way goes.
    older = (final / parts[-1]).exists()
    away: list[str] = []
    placed: list[str] = []
    try:
        for name in reversed(parts):
            if (final / name).exists() and (older or (new / name).exists()):
                (final / name).replace(old / name)
                away.append(name)
        for name in parts:
            if (new / name).exists():
                (new / name).replace(final / name)
                placed.append(name)
    except OSError:
        for name in placed:
            (final / name).replace(new / name)
        for name in reversed(away):
            (old / name).replace(final / name)
        raise


def downloaded(path: str | Path, what: str, **options: Any) -> Path:
    """The folder of an adapter that is here, or is on the Hugging Face hub under this name.

    Args:
        path: a folder, or a name on the hub.
        what: what it is called in the error, such as "ATP adapter".
        **options: for `huggingface_hub.snapshot_download`, such as `revision`, `token`, `cache_dir`.

    Returns:
        The whole path, which another working directory doesn't change.

    Raises:
        FoveateError: there is none.
    """
    if Path(path).is_dir():
        return Path(path).resolve()
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(str(path), allow_patterns=["*.json", "*.safetensors"], **options))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise FoveateError(f"there is no {what} at {path}, neither here nor on the hub") from error


def upload(repository: str, write: Callable[[Path], object], **options: Any) -> Any:
    """Upload an adapter to the Hugging Face hub; the repository is made if it is missing.

    Args:
        repository: its name there.
        write: writes the adapter's files into a folder.
        **options: for `huggingface_hub.HfApi.upload_folder`.

    Returns:
        What `upload_folder` returns.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    api.create_repo(repository, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder))
        return api.upload_folder(repo_id=repository, folder_path=folder, **options)
