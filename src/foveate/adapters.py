"""Save learned adapters to directories and to the Hugging Face hub, atomically, and load them again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, ClassVar, Final, Self

import torch

from foveate.arguments import check_kind
from foveate.errors import FoveateError, first_line, quoted, unknown
from foveate.files import (
    FileError,
    atomic_files,
    is_folder,
    read_json_object,
    read_tensors,
    real_path,
    shown_path,
    temporary_folder,
    write_json,
    write_tensors,
)
from foveate.hub import explain, hub_answers, is_hub_name
from foveate.numbers import Between, check_whole

if TYPE_CHECKING:
    from torch import Tensor

SHIPPED: Final = "shipped"
"""The name of the embedded model's adapter, which comes with foveate."""

FORMAT: Final = 1
"""The version of the files that this foveate writes and reads."""

FLOATS: Final = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
"""What the weights of an adapter may be."""


class PretrainedAdapter:
    """Save and load what was learned for a base model: JSON settings, safetensors, and further files if any.

    A subclass sets `kind` and says what it consists of in `settings`, `tensors` and `from_files`. An adapter of kind
    "ATP" is the files `atp.json` and `atp.safetensors`.

    Attributes:
        base: the fingerprint of the model that the adapter was trained with.
    """

    kind: ClassVar[str]
    """What errors call the adapter; in lower case, the name of its files."""
    further: ClassVar[tuple[str, ...]] = ()
    """Names of further files or folders that it may have."""
    base: str

    def settings(self) -> dict[str, Any]:
        """Return everything but the weights, as JSON data."""
        raise NotImplementedError

    def tensors(self) -> dict[str, Tensor]:
        """Return the weights by name."""
        raise NotImplementedError

    def write_further(self, folder: Path, **options: Any) -> dict[str, Any]:
        """Write the `further` files to a folder, and return the settings that say what is there."""
        return {}

    @classmethod
    def from_files(cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor], folder: Path) -> Self:
        """Build an adapter from what was written.

        Raises:
            KeyError, TypeError, ValueError, RuntimeError: the files are damaged.
            FoveateError: they don't fit together.
        """
        raise NotImplementedError

    # Belonging to a base model

    def check_base(self, fingerprint: str) -> None:
        """Check that the adapter was made for the base model with this fingerprint.

        Raises:
            FoveateError: it was made for another one.
        """
        if fingerprint != self.base:
            raise FoveateError(
                f"{self.title} was made for another base model (their weights differ); load the model that it was "
                "trained with, or train a new one"
            )

    @property
    def title(self) -> str:
        """What errors call this adapter."""
        return f"this {self.kind} adapter"

    # Files

    @classmethod
    def settings_name(cls) -> str:
        """Return the name of the JSON file."""
        return f"{cls.kind.lower()}.json"

    @classmethod
    def weights_name(cls) -> str:
        """Return the name of the safetensors file."""
        return f"{cls.kind.lower()}.safetensors"

    def write(self, directory: str | Path, **options: Any) -> Path:
        """Write the adapter to a directory: all of its files, or none; other files there stay.

        Args:
            directory: created if it is missing.
            **options: for `write_further`.

        Raises:
            FoveateError: the directory can't be written.
        """
        check_kind("directory", directory, (str, Path), "the path of a folder")
        directory = Path(directory)
        with atomic_files(directory, (self.weights_name(), *self.further, self.settings_name())) as folder:
            self._write_files(folder, **options)
        return directory

    def _write_files(self, folder: Path, **options: Any) -> None:
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.tensors().items()}
        write_tensors(folder / self.weights_name(), tensors)
        settings = {"format": FORMAT, **self.settings(), **self.write_further(folder, **options)}
        write_json(folder / self.settings_name(), settings, indent=2)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read an adapter from a directory.

        Raises:
            FoveateError: its files are missing or damaged, or another version of foveate wrote them.
        """
        try:
            settings = read_json_object(folder / cls.settings_name())
            version = settings["format"]
            if type(version) is not int or version != FORMAT:
                advice = "update foveate" if type(version) is int and version > FORMAT else "save it again"
                raise FoveateError(
                    f"{shown_path(folder)} has format {quoted(version)}, and this foveate reads {FORMAT}; {advice}"
                )
            return cls.from_files(settings, read_tensors(folder / cls.weights_name()), folder)
        except (FileError, KeyError, TypeError, ValueError, RuntimeError) as error:
            if isinstance(error, FoveateError) and not isinstance(error, FileError):
                raise
            raise FoveateError(
                f"{shown_path(folder)} holds no complete {cls.kind} adapter ({first_line(error)}); save it again"
            ) from error

    @classmethod
    def from_pretrained(cls, path: str | Path = SHIPPED, **options: Any) -> Self:
        """Load an adapter from a directory or from the Hugging Face hub.

        Args:
            path: a directory, a name on the hub, or "shipped" for the embedded model's.
            **options: for the hub: `revision`, `token`, `cache_dir`.

        Raises:
            FoveateError: there is no such adapter, its files are damaged, or another version of foveate wrote them.
        """
        if str(path) == SHIPPED:
            return cls.load(shipped(cls.kind.lower()))
        return cls.load(downloaded(path, f"{cls.kind} adapter", **options))

    def push_to_hub(self, repository: str, **options: Any) -> Any:
        """Upload the adapter to the Hugging Face hub; the repository is created if it is missing.

        Args:
            repository: its name there, "user/name".
            **options: for `huggingface_hub.HfApi.upload_folder`.

        Returns:
            What `upload_folder` returns.
        """
        from huggingface_hub import HfApi

        api = HfApi()
        api.create_repo(repository, exist_ok=True)
        with temporary_folder() as folder:
            self._write_files(folder)
            return api.upload_folder(repo_id=repository, folder_path=folder, **options)


def read_settings(
    settings: Mapping[str, Any], kinds: Mapping[str, type | Between], defaults: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Read what the JSON file of an adapter says.

    Args:
        settings: as the file has them.
        kinds: what each is: a type, or the range of a whole number.
        defaults: of settings that may be missing.

    Raises:
        ValueError: one is missing, unknown, or something else; the text names it.
    """
    found = {**(defaults or {}), **{name: value for name, value in settings.items() if name != "format"}}
    for name, kind in kinds.items():
        if name not in found:
            raise ValueError(f"it lacks {name}")
        if isinstance(kind, Between):
            try:
                check_whole(name, found[name], kind)
            except FoveateError as error:
                raise ValueError(str(error)) from None
        elif type(found[name]) is not kind:
            raise ValueError(f"{name} is {quoted(found[name])}, and should be {_KINDS[kind]}")
    for name in found:
        if name not in kinds:
            raise ValueError(f"it says {name}, which no such adapter has")
    return found


_KINDS: Final[Mapping[type, str]] = {str: "text", bool: "true or false", list: "a list"}


def check_weights(tensors: Mapping[str, Tensor], shapes: Mapping[str, Sequence[int | None]]) -> None:
    """Check that an adapter's file holds these weights and no others, and that all are finite floats.

    Args:
        tensors: what the file holds.
        shapes: of each weight; None is any size of 1 or more.

    Raises:
        ValueError: a weight is missing, left over, or isn't what it should be; the text names it.
    """
    for name in {**tensors, **shapes}:
        if name not in shapes:
            raise ValueError(f"it holds {name}, which no such adapter has")
        if name not in tensors:
            raise ValueError(f"it lacks {name}")
        tensor, shape = tensors[name], shapes[name]
        fits = tensor.ndim == len(shape) and all(
            size >= 1 if wanted is None else size == wanted for size, wanted in zip(tensor.shape, shape, strict=True)
        )
        if not fits:
            wanted = ", ".join("any" if size is None else str(size) for size in shape)
            raise ValueError(f"{name} has the shape {tuple(tensor.shape)}, and should have ({wanted})")
        if tensor.dtype not in FLOATS:
            raise ValueError(f"{name} is {tensor.dtype}, and weights are floats of 16 bits or more")
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"{name} has NaN or infinite numbers")


def shipped(kind: str) -> Path:
    """Return the folder of the embedded model's adapter of a kind, such as "atp"."""
    return Path(__file__).parent / "embedded" / kind


def downloaded(path: str | Path, what: str, **options: Any) -> Path:
    """Return the absolute path of an adapter's folder; one that isn't on this machine is downloaded from the hub.

    Args:
        path: a folder, or a name on the hub.
        what: what the error calls it, such as "ATP adapter".
        **options: for the hub: `revision`, `token`, `cache_dir`.

    Raises:
        FoveateError: there is none, an option is unknown or of another type, or one is given for a folder.
    """
    check_kind("path", path, (str, Path), "a folder, or a name on the Hugging Face hub")
    for name, value in options.items():
        if name not in _HUB_OPTIONS:
            raise FoveateError(unknown("option for the hub is called", name, tuple(_HUB_OPTIONS)))
        check_kind(name, value, (*_HUB_OPTIONS[name], NoneType), "text, or what huggingface_hub takes for it")
    if is_folder(path):
        if given := sorted(name for name, value in options.items() if value is not None):
            raise FoveateError(f"{given[0]} is for the hub, and {shown_path(path)} is a folder; leave it out")
        return real_path(path)
    none = f"there is no {what} at {shown_path(path)}, neither here nor on the hub"
    if not is_hub_name(path):
        raise FoveateError(f"{none}; name a folder that save_pretrained wrote, or organisation/name")
    from huggingface_hub import snapshot_download

    name, revision = str(path), options.get("revision")
    try:
        found = snapshot_download(
            name,
            allow_patterns=["*.json", "*.safetensors"],
            local_files_only=not hub_answers(name, revision),
            **options,
        )
    except MemoryError:
        raise
    except Exception as error:
        raise explain(error, name, revision) or FoveateError(f"{none} ({first_line(error)})") from error
    return Path(found)


_HUB_OPTIONS: Final[Mapping[str, tuple[type, ...]]] = {
    "revision": (str,),
    "token": (str, bool),
    "cache_dir": (str, Path),
}
"""Options of `huggingface_hub.snapshot_download` that adapters take, with their types."""
