"""Adapters on disk and on the Hugging Face hub: a folder that is there whole or not at all."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from foveate.errors import FoveateError

SHIPPED: Final = "shipped"
"""What an adapter of the embedded model is called, which comes with foveate."""


def shipped(kind: str) -> Path:
    """The folder of the embedded model's adapter of a kind, such as "atp"."""
    return Path(__file__).parent / "reference" / kind


@contextmanager
def written(directory: str | Path) -> Iterator[Path]:
    """A new folder to write an adapter into, which takes the name `directory` once all of it is written.

    What had the name before is replaced, whole. After an error it is as it was.

    Args:
        directory: made if it is missing, and so are the folders that it is in.

    Raises:
        FoveateError: it can't be written.

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with written(f"{folder}/adapter") as new:
    ...         _ = (new / "settings.json").write_text("{}")
    ...     [str(path.relative_to(folder)) for path in Path(folder).glob("*/*")]
    ['adapter/settings.json']
    """
    # What a link leads to is replaced, and not the link.
    final = Path(directory).resolve()
    if final.exists() and not final.is_dir():
        raise FoveateError(f"{directory} can't be written: it is a file; name another folder")
    new = None
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        new = Path(tempfile.mkdtemp(prefix=f".{final.name}-", suffix=".partial", dir=final.parent))
        yield new
        # mkdtemp lets nobody else in.
        new.chmod(0o755)
        if final.exists():
            old = new.with_suffix(".stale")
            final.replace(old)
            try:
                new.replace(final)
            except OSError:
                old.replace(final)
                raise
            shutil.rmtree(old, ignore_errors=True)
        else:
            new.replace(final)
    except OSError as error:
        raise FoveateError(f"{directory} can't be written ({error.strerror or error})") from error
    finally:
        if new is not None:
            shutil.rmtree(new, ignore_errors=True)


def downloaded(path: str | Path, what: str) -> Path:
    """The folder of an adapter that is here, or is on the Hugging Face hub under this name.

    Args:
        path: a folder, or a name on the hub.
        what: what it is called in the error, such as "ATP adapter".

    Raises:
        FoveateError: there is none.
    """
    if Path(path).is_dir():
        return Path(path)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(str(path), allow_patterns=["*.json", "*.safetensors"]))
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
