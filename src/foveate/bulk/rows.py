"""Answer the question of a row, or keep the compressed features of its image; a broken row becomes an error cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from foveate.arguments import check_kind
from foveate.bench.answers import Asker, Prompts
from foveate.bench.tasks import TaskImage, TaskQuestion
from foveate.bulk.columns import Columns, cell_bytes, ids_of, image_of, question_of
from foveate.engine import compress
from foveate.errors import FoveateError
from foveate.fingerprint import model_fingerprint
from foveate.loading import load
from foveate.numbers import Between, check_whole
from foveate.schedule import schedule
from foveate.spec import Spec, as_spec

_DENSE = "dense"


@dataclass
class RowWork:
    """What works on rows has in common: a model that is loaded when the first rows come, and a spec.

    It can be pickled and sent to other processes, before and after that; each loads its own model.

    Args:
        spec: the steps; "dense" for none.
        model: a folder, or a name on the Hugging Face hub. None is the embedded model.
        revision: of a model on the hub.
        device: where the model goes; "auto" is the GPU if there is one.
        dtype: of the model, as for `foveate.load`.
        device_map: as for `foveate.load`, instead of `device`.
        quantize: as for `foveate.load`.
        batch: how many prompts go through the model at once.

    Raises:
        SpecError: the spec is malformed or names an unknown method.
        FoveateError: the batch is smaller than 1.
    """

    spec: str = _DENSE
    model: str | None = None
    revision: str | None = None
    device: str | None = "auto"
    dtype: str | None = None
    device_map: str | None = None
    quantize: str | None = None
    batch: int = 8

    needed: ClassVar[tuple[str, ...]] = ("image",)
    """The columns that it reads; without a column "id", they make the id of a row."""
    longest: ClassVar[int] = 1

    def __post_init__(self) -> None:
        check_kind("spec", self.spec, str, 'text, such as "cluster:64"')
        check_whole("batch", self.batch, Between(1, 65_536))
        if isinstance(self.model, Path):
            self.model = str(self.model)
        self.spec = _DENSE if self.spec.strip() == _DENSE else str(as_spec(self.spec))

    def __getstate__(self) -> dict[str, Any]:
        # The model stays in its process.
        return {name: value for name, value in vars(self).items() if name in self.__dataclass_fields__}

    @property
    def steps(self) -> Spec:
        """Return the steps of the spec; none if it is dense."""
        return Spec(()) if self.spec == _DENSE else as_spec(self.spec)

    @cached_property
    def asker(self) -> Asker:
        """Load the model, and check that it can do the spec.

        Raises:
            FoveateError: it can't be loaded, or can't do the spec.
        """
        device = None if self.device_map is not None else self.device
        model, processor = load(
            self.model,
            revision=self.revision,
            device=device,
            dtype=self.dtype,
            device_map=self.device_map,
            quantize=self.quantize,
        )
        asker = Asker(model, processor, longest=self.longest, batch=self.batch)
        schedule(self.steps, asker.family)
        return asker

    @cached_property
    def fingerprint(self) -> str:
        """Return the fingerprint of the model."""
        return model_fingerprint(self.asker.family.core)

    def __call__(self, columns: Columns) -> dict[str, list[Any]]:
        """Work on rows.

        Returns:
            One cell per row in each column: "id"; what came out; "error", the reason in one line, or "" if all is well;
            "spec"; "model", its fingerprint.

        Raises:
            FoveateError: a column is missing, or the model can't be loaded or do the spec.
        """
        ids = ids_of(columns, self.needed)
        asker = self.asker
        cells: list[dict[str, Any]] = [dict(self.empty) for _ in ids]
        errors = [""] * len(ids)
        pictures: dict[bytes, list[int]] = {}
        for row, cell in enumerate(columns["image"]):
            pictures.setdefault(cell_bytes(cell), []).append(row)
        good: list[tuple[Prompts, list[int]]] = []
        for rows in pictures.values():
            good += self._prepared(asker, columns, rows, errors)
        if good:
            self._guarded(asker, good, cells, errors)
        return {
            "id": ids,
            **{name: [cell[name] for cell in cells] for name in self.empty},
            "error": errors,
            "spec": [self.spec] * len(ids),
            "model": [self.fingerprint] * len(ids),
        }

    def _prepared(
        self, asker: Asker, columns: Columns, rows: list[int], errors: list[str]
    ) -> list[tuple[Prompts, list[int]]]:
        """Prepare the questions about one image; those that can't be asked get an error each."""
        try:
            image = image_of(columns["image"][rows[0]])
            questions = tuple(TaskQuestion(self.question(columns, row), "") for row in rows)
            prompts = asker.prompts(TaskImage("the image", image, questions))
            self._check_room(asker, prompts)
        except FoveateError as error:
            if len(rows) == 1:
                errors[rows[0]] = " ".join(str(error).split())
                return []
            return [found for row in rows for found in self._prepared(asker, columns, [row], errors)]
        return [(prompts, rows)]

    def _check_room(self, asker: Asker, prompts: Prompts) -> None:
        """Check that a prompt and its answer are no longer than the model takes.

        Raises:
            FoveateError: they are.
        """
        room = getattr(asker.family.config.get_text_config(), "max_position_embeddings", None)
        length = max(map(len, prompts.rows))
        if room is not None and length + self.longest > room:
            raise FoveateError(
                f"prompt and answer take {length} + {self.longest} tokens and the model has room for {room}; shorten "
                "the question or the answer"
            )

    def _guarded(
        self, asker: Asker, good: list[tuple[Prompts, list[int]]], cells: list[dict[str, Any]], errors: list[str]
    ) -> None:
        """Work on prepared images together; if that fails, on each alone, so that only the broken one has an error."""
        try:
            self.work(asker, good, cells)
        except FoveateError as error:
            if len(good) == 1:
                for row in good[0][1]:
                    errors[row] = " ".join(str(error).split())
                return
            for each in good:
                self._guarded(asker, [each], cells, errors)

    # What a subclass does

    empty: ClassVar[Mapping[str, Any]] = {}
    """What a row holds that has an error, by column."""

    def question(self, columns: Columns, row: int) -> str:
        """Return what is asked about the image of a row.

        Raises:
            FoveateError: the cell is no question.
        """
        raise NotImplementedError

    def work(self, asker: Asker, good: Sequence[tuple[Prompts, list[int]]], cells: list[dict[str, Any]]) -> None:
        """Fill in the cells of rows.

        Args:
            asker: of the model.
            good: prompts of images, each with the rows of its questions.
            cells: per row; those in `good` are filled in.

        Raises:
            FoveateError: an image can't be compressed so.
        """
        raise NotImplementedError


@dataclass
class Answer(RowWork):
    """Answer the question of each row about its image.

    Rows are a dict of columns: "image" (a path, the bytes of a file, a PIL image, an array), "question", and "id" if
    rows have names of their own. Several questions about one image in a batch share its encoding, and its prefill where
    the spec allows it. Decoding obeys the model's own generation configuration, without sampling.

    Args:
        max_new_tokens: the longest answer, in tokens.

    >>> from foveate.scenes import scene
    >>> drawn = scene(3)
    >>> rows = Answer("cluster:64")({"image": [drawn.image, "gone.png"], "question": ["how many shapes ?"] * 2})
    >>> rows["answer"][1], rows["error"], rows["visual_tokens"]
    ('', ['', 'there is no image gone.png; check the path'], [64, 0])
    """

    max_new_tokens: int = 16

    needed: ClassVar[tuple[str, ...]] = ("image", "question")
    empty: ClassVar[Mapping[str, Any]] = {"answer": "", "visual_tokens": 0, "visual_tokens_dense": 0}

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("max_new_tokens", self.max_new_tokens, Between(1, 1_000_000))

    @property
    def longest(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Return the longest answer, in tokens."""
        return self.max_new_tokens

    def question(self, columns: Columns, row: int) -> str:
        """Return the question of a row."""
        return question_of(columns["question"][row])

    def work(self, asker: Asker, good: Sequence[tuple[Prompts, list[int]]], cells: list[dict[str, Any]]) -> None:
        """Answer the questions."""
        prompts = [each for each, _ in good]
        answered = asker.answer(prompts, self.steps, asker.encode(prompts, [self.steps]))
        for index, (_, rows) in enumerate(good):
            for row, text in zip(rows, answered.texts[index], strict=True):
                cells[row]["answer"] = text
                cells[row]["visual_tokens"] = round(answered.after[index])
                cells[row]["visual_tokens_dense"] = round(answered.before[index])


@dataclass
class Compress(RowWork):
    """Keep the compressed features of the image of each row: what enters the decoder, in the order of the prompt.

    Rows are a dict of columns: "image", and "id" if rows have names of their own. `features_of` gives them back as a
    tensor, which vLLM takes as `image_embeds`.

    Args:
        features_dtype: "float16", "bfloat16" or "float32": how the features are stored.

    Raises:
        FoveateError: the spec reads the question, or acts inside the decoder.

    >>> from foveate.scenes import scene
    >>> rows = Compress("cluster:16")({"image": [scene(3).image]})
    >>> features_of({name: column[0] for name, column in rows.items()}).shape
    torch.Size([16, 192])
    """

    features_dtype: str = "float16"

    empty: ClassVar[Mapping[str, Any]] = {"features": b"", "visual_tokens": 0, "features_dtype": ""}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.features_dtype not in _DTYPES:
            raise FoveateError(f"features_dtype is {self.features_dtype!r}, and must be {' or '.join(_DTYPES)}")
        for step in self.steps.steps:
            if step.method.query_aware:
                raise FoveateError(
                    f"{step} reads the question, so features of an image alone can't be kept; see Answer"
                )
            if any(place == "decoder" or (isinstance(place, int) and place > 0) for place in step.places):
                raise FoveateError(f"{step} acts inside the decoder, after the features that are kept; see Answer")

    def question(self, columns: Columns, row: int) -> str:
        """Return a question that nothing reads."""
        return "?"

    @torch.inference_mode()
    def work(self, asker: Asker, good: Sequence[tuple[Prompts, list[int]]], cells: list[dict[str, Any]]) -> None:
        """Compress the images."""
        prompts = [each for each, _ in good]
        encoded = asker.encode(prompts, [self.steps])
        inputs = asker.padded([each.rows[0] for each in prompts])
        images = compress(asker.model, inputs, self.steps, encoded).images
        for image, (_, rows) in zip(images, good, strict=True):
            stored = image.features.to("cpu", _DTYPES[self.features_dtype]).contiguous()
            for row in rows:
                cells[row]["features"] = stored.view(torch.uint8).numpy().tobytes()
                cells[row]["visual_tokens"] = stored.shape[0]
                cells[row]["features_dtype"] = self.features_dtype


_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


def features_of(row: Mapping[str, Any]) -> Tensor:
    """Return the features `(M, D)` of a row that `Compress` made.

    Args:
        row: its cells by column.

    Raises:
        FoveateError: the row has an error, or no features.
    """
    if row.get("error"):
        raise FoveateError(f"row {row.get('id')} has no features: {row['error']}")
    missing = [name for name in ("features", "visual_tokens", "features_dtype") if name not in row]
    if missing or row["features_dtype"] not in _DTYPES:
        raise FoveateError(f"this is no row of Compress: it lacks {', '.join(missing) or 'a dtype'}")
    flat = torch.frombuffer(bytearray(row["features"]), dtype=_DTYPES[row["features_dtype"]])
    return flat.view(int(row["visual_tokens"]), -1)
