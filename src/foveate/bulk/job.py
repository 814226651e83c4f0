"""Go through a file of rows, on Ray for several processes; a job that was killed goes on where it was."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any, Final

from foveate.arguments import check_kind
from foveate.bulk.columns import Columns, ids_of
from foveate.bulk.rows import RowWork
from foveate.errors import FoveateError, first_line
from foveate.files import (
    DamagedFile,
    FolderLock,
    atomic_file,
    check_writable_folder,
    files_in,
    is_file,
    is_folder,
    kind_of,
    make_folder,
    read_json_lines,
    read_json_object,
    shown_path,
    write_json,
)
from foveate.numbers import Between, check_whole

SETTINGS: Final = "bulk.json"
"""The file of an output folder that says what made it."""
PART_ROWS: Final = 64
"""Rows of one file of the output; what is lost when a job is killed is at most this for each process."""

Progress = Callable[[int, int | None], None]
"""Is told how many rows are done, and how many there are, if that is known."""


@dataclass(frozen=True)
class Done:
    """What a job did.

    Attributes:
        rows: in the output.
        new: of these, how many this run added.
        errors: of these, how many have an error cell.
    """

    rows: int
    new: int
    errors: int


def run(
    source: str | Path, output: str | Path, work: RowWork, *, actors: int = 0, progress: Progress | None = None
) -> Done:
    """Go through the rows of a file with `Answer` or `Compress`, and write what comes out to a folder of Parquet files.

    Each finished part is one file, which is there whole or not at all. A job that was killed goes on when it is started
    again: rows whose ids are in the folder are left out, so each id is there once.

    Args:
        source: a Parquet file, a folder of them, or a JSONL file, with the columns that `work` needs. Relative paths of
            images are those of the current folder.
        output: a new folder, or one of the same job that isn't finished.
        work: what to do with the rows.
        actors: how many processes of Ray work, each with its own model; 0 works in this process, without Ray.
        progress: is called after each part.

    Returns:
        How many rows there are now.

    Raises:
        FoveateError: the source can't be read or lacks a column, the output is that of another job, Ray or PyArrow is
            missing, or the model can't be loaded or do the spec.
        FolderInUse: another job writes to the output.

    >>> import json, tempfile
    >>> from foveate.bulk import Answer
    >>> from foveate.scenes import scene
    >>> folder = Path(tempfile.mkdtemp())
    >>> scene(3).image.save(folder / "scene.png")
    >>> row = {"image": f"{folder}/scene.png", "question": "how many shapes ?"}
    >>> _ = (folder / "rows.jsonl").write_text(json.dumps(row))
    >>> run(folder / "rows.jsonl", folder / "out", Answer("cluster:64"))
    Done(rows=1, new=1, errors=0)
    >>> run(folder / "rows.jsonl", folder / "out", Answer("cluster:64"))
    Done(rows=1, new=0, errors=0)
    """
    check_kind("work", work, RowWork, "foveate.bulk.Answer or Compress")
    check_whole("actors", actors, Between(0, 100_000))
    _pyarrow()
    rows = _Source(Path(source), work.needed)
    folder = check_writable_folder(output)
    with FolderLock(make_folder(folder)):
        _check_settings(folder, work)
        before = _finished(folder)
        part = _Part(work, folder, frozenset(before))
        counts = rows.through(part, actors)
        done = len(before)
        for new in counts:
            done += new
            if progress is not None:
                progress(done, rows.count)
    after = _finished(folder)
    return Done(len(after), len(after) - len(before), sum(map(bool, after.values())))


def _pyarrow() -> Any:
    """Import PyArrow.

    Raises:
        FoveateError: it isn't installed.
    """
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise FoveateError(f"bulk jobs need PyArrow ({first_line(error)}); run: pip install 'foveate[bulk]'") from None
    return pyarrow


def _check_settings(folder: Path, work: RowWork) -> None:
    """Write what makes the output, or check that the same made what is there.

    Raises:
        FoveateError: something else made it.
    """
    settings = {"work": type(work).__name__, **asdict(work)}
    # These change where it runs, and not what comes out.
    for name in ("device", "device_map", "batch"):
        settings.pop(name)
    file = folder / SETTINGS
    if not is_file(file):
        if files_in(folder, "*.parquet"):
            raise FoveateError(f"{shown_path(folder)} holds files that no bulk job made; name a new folder")
        write_json(file, settings)
        return
    found = read_json_object(file, "settings of a bulk job", "name a new folder")
    for name, value in settings.items():
        if found.get(name) != value:
            raise FoveateError(
                f"{shown_path(folder)} is the output of a job with {name} {found.get(name)}, and this one has {value}; "
                "name a new folder"
            )


def _finished(folder: Path) -> dict[str, str]:
    """Return the error of each row that is finished, by its id.

    Raises:
        DamagedFile: a file can't be read.
    """
    parquet = _pyarrow().parquet
    found: dict[str, str] = {}
    for file in sorted(files_in(folder, "*.parquet")):
        try:
            table = parquet.read_table(file, columns=["id", "error"])
        except (OSError, _pyarrow().lib.ArrowException) as error:
            raise DamagedFile(
                f"{shown_path(file)} is damaged ({first_line(error)}); remove it and start again"
            ) from None
        found |= zip(table["id"].to_pylist(), table["error"].to_pylist(), strict=True)
    return found


class _Part:
    """Works on some rows and writes what comes out: a callable for Ray.

    Args:
        work: what is done with rows.
        folder: of the output.
        finished: the ids that are left out.
    """

    def __init__(self, work: RowWork, folder: Path, finished: frozenset[str]) -> None:
        self.work = work
        self.folder = folder
        self.finished = finished

    def __call__(self, columns: Columns) -> dict[str, list[int]]:
        """Work on rows; returns how many there were, as one row."""
        ids = ids_of(columns, self.work.needed)
        seen = set(self.finished)
        chosen: list[int] = []
        for row, each in enumerate(ids):
            if each not in seen:
                seen.add(each)
                chosen.append(row)
        if chosen:
            made = self.work({name: [column[row] for row in chosen] for name, column in columns.items()})
            # By the ids, so that a part that two processes work on, because one was lost, is one file.
            name = hashlib.sha256("\n".join(made["id"]).encode("utf-8", "backslashreplace")).hexdigest()[:24]
            with atomic_file(self.folder / f"{name}.parquet") as file:
                _pyarrow().parquet.write_table(_pyarrow().table(made), file)
        return {"rows": [len(chosen)]}


class _Source:
    """The rows of a file, read part by part.

    Args:
        path: of it, or of a folder.
        needed: the columns that must be there; of others only "id" is read.

    Raises:
        FoveateError: it can't be read, or lacks a column.
    """

    def __init__(self, path: Path, needed: tuple[str, ...]) -> None:
        self.path, self.needed = path, needed
        self.files: list[Path] = []
        self.count: int | None = None
        self.columns = list(needed)
        kind = kind_of(path)
        if kind == "missing":
            raise FoveateError(f"there is no file {shown_path(path)}; give a Parquet file, a folder of them, or JSONL")
        if is_folder(path):
            self.files = sorted(files_in(path, "*.parquet"))
            if not self.files:
                raise FoveateError(f"the folder {shown_path(path)} holds no Parquet file")
        elif path.suffix.lower() in (".parquet", ".pq"):
            self.files = [path]
        if self.files:
            self._check_files()

    def _check_files(self) -> None:
        """Check the columns of Parquet files, and count their rows.

        Raises:
            FoveateError: one can't be read, or lacks a column.
        """
        arrow = _pyarrow()
        self.count = 0
        for file in self.files:
            try:
                metadata = arrow.parquet.read_metadata(file)
            except (OSError, arrow.lib.ArrowException) as error:
                raise DamagedFile(f"{shown_path(file)} is no Parquet file ({first_line(error)})") from None
            self.count += metadata.num_rows
            names = metadata.schema.to_arrow_schema().names
            self._check_columns(names, file)
            if "id" in names and "id" not in self.columns:
                self.columns.append("id")

    def _check_columns(self, names: Iterable[str], where: object) -> None:
        missing = [name for name in self.needed if name not in names]
        if missing:
            raise FoveateError(
                f"{where} has no column {missing[0]}, but {', '.join(sorted(names)) or 'none'}; rename the one that "
                "holds it"
            )

    def parts(self) -> Iterator[Columns]:
        """Yield the rows part by part, in order.

        Raises:
            FoveateError: a line of a JSONL file is no row, or a file is damaged.
        """
        if not self.files:
            lines = self._lines()
            while rows := list(islice(lines, PART_ROWS)):
                names = [*self.needed, *(["id"] if any("id" in row for row in rows) else [])]
                yield {name: [row.get(name) for row in rows] for name in names}
            return
        for file in self.files:
            with _pyarrow().parquet.ParquetFile(file) as opened:
                for batch in opened.iter_batches(PART_ROWS, columns=self.columns):
                    yield batch.to_pydict()

    def _lines(self) -> Iterator[dict[str, Any]]:
        """Yield the rows of a JSONL file."""
        for number, value in read_json_lines(self.path, "file of rows"):
            if not isinstance(value, dict):
                raise FoveateError(f"{shown_path(self.path)}, line {number} is no row; write {{...}}")
            self._check_columns(value, f"{shown_path(self.path)}, line {number}")
            yield value

    def through(self, part: _Part, actors: int) -> Iterator[int]:
        """Work on all parts; yield how many rows each added."""
        if not actors:
            for columns in self.parts():
                yield part(columns)["rows"][0]
            return
        yield from _on_ray(self, part, actors)


def _on_ray(source: _Source, part: _Part, actors: int) -> Iterator[int]:
    """Work on all parts in processes of Ray, each with a model of its own; on a GPU each, where there are some.

    Raises:
        FoveateError: Ray is missing, or has too few GPUs.
    """
    try:
        # Not by `import`: type checkers run where Ray isn't installed.
        ray: Any = import_module("ray")
        import_module("ray.data")
    except ImportError as error:
        raise FoveateError(
            f"several processes need Ray ({first_line(error)}); run: pip install 'foveate[bulk]'"
        ) from None
    import torch

    ours = not ray.is_initialized()
    if ours:
        # Tasks that read need a processor beside those of the actors; without one, everything waits.
        ray.init(num_cpus=actors + 2, include_dashboard=False, log_to_driver=False)
    try:
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        if source.files:
            rows = ray.data.read_parquet([str(file) for file in source.files], columns=source.columns)
        else:
            rows = ray.data.from_items(list(source._lines()))
        gpus = 1 if torch.cuda.is_available() and part.work.device != "cpu" else 0
        if gpus and ray.cluster_resources().get("GPU", 0) < actors:
            raise FoveateError(f"{actors} processes need a GPU each; Ray has {ray.cluster_resources().get('GPU', 0):g}")
        counts = rows.map_batches(
            _Part,
            fn_constructor_args=(part.work, part.folder, part.finished),
            batch_size=PART_ROWS,
            compute=ray.data.ActorPoolStrategy(size=actors),
            num_cpus=1,
            num_gpus=gpus,
        )
        for batch in counts.iter_batches(batch_size=None, batch_format="numpy"):
            yield int(batch["rows"].sum())
    finally:
        if ours:
            ray.shutdown()
