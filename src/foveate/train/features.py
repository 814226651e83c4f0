"""Train on kept features: a frozen encoder runs once per image.

What a spec at `@features` leaves of an image is written to the run's folder, in half precision, and the model reads it
in place of pixels. Projector and decoder are trained as if the encoder had run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate, islice
from pathlib import Path
from typing import Any, Final

import torch
from PIL import Image
from torch import Tensor, nn

from foveate.engine.encode import encode_for
from foveate.engine.images import plan_images
from foveate.errors import FoveateError
from foveate.families import Family, family_of
from foveate.files import facts_of_files, is_file, make_folder, parse_json, shown_path, tensor_file, write_tensors
from foveate.loading import find_config, load_model
from foveate.precision import with_autocast, without_autocast
from foveate.prompts import tokenized
from foveate.schedule import Schedule, schedule
from foveate.train.batches import Batches
from foveate.train.recipe import SHIPPED, Recipe, Stage
from foveate.train.settings import DENSE, RecipeError
from foveate.train.sources import Conversation, Conversations

SHARD: Final = 256
"""The number of conversations in one file of features."""

_AT_ONCE: Final = 16


def check_features(family: Family, spec: str, stages: Sequence[Stage] = ()) -> Schedule:
    """Check that the results of a spec can be kept, and that stages can train on them.

    Raises:
        RecipeError: it acts at other places than `@features`, lets the content decide how much remains, or leaves gaps
            between position ids; or a stage acts before the decoder's input or looks at the encoder.
    """
    plan = schedule(spec, family)
    steps = plan.spec.steps
    if any(step.places != ("features",) for step in steps):
        raise RecipeError(f"data.features is {spec}; every step of it must act at @features, where features are kept")
    if any(step.method.positions != "pack" or step.method.adaptive for step in steps):
        raise RecipeError(
            f"data.features is {spec}; kept features have no gaps and are equally many for every image: write "
            "positions=pack, and a method that isn't adaptive"
        )
    family.check_feature_maps()
    for stage in stages:
        if stage.spec == DENSE:
            continue
        found = schedule(stage.spec, family)
        if found.encoding or found.features or found.encoder_signals:
            raise RecipeError(
                f"{stage.spec} acts before the decoder or looks at the encoder; there is none when data.features is set"
            )
    return plan


class KeptFeatures:
    """The conversations of a recipe, each with the features that are left of its images.

    Args:
        folder: where the files are; missing ones are made.
        rows: the conversations, with any number of images each.
        model: with its encoder.
        processor: the model's own.
        spec: which features are left.
        key: what else the features depend on; features of another key are not used.
        share: this process's number and how many there are: each makes its share of the files.
        say: prints progress.

    Raises:
        FoveateError: features can't be kept, or no conversation has an image.
    """

    def __init__(
        self,
        folder: Path,
        rows: Conversations,
        model: nn.Module,
        processor: Any,
        spec: str,
        key: str,
        share: tuple[int, int] = (0, 1),
        say: Callable[[str], None] = print,
    ) -> None:
        self._rows = rows
        digest = hashlib.sha256(json.dumps([spec, key, len(rows)]).encode()).hexdigest()[:16]
        self._folder = folder / digest
        self._open: dict[int, Any] = {}
        self._messages: dict[int, list[Any]] = {}
        self._begins: dict[int, list[int]] = {}
        shards = range(-(-len(rows) // SHARD))
        missing = [number for number in shards if not is_file(self._path(number))]
        if missing:
            if not any(rows[index].images for index in range(len(rows))):
                raise FoveateError("no conversation of data has an image; leave data.features out for text alone")
            make_folder(self._folder)
            family = family_of(model)
            plan = check_features(family, spec)
            for number in missing[share[0] :: share[1]]:
                self._make(number, family, plan, processor)
                say(f"features of {min((number + 1) * SHARD, len(rows)):,} of {len(rows):,} images are kept")

    def __len__(self) -> int:
        return len(self._rows)

    def name(self, index: int) -> str:
        """Return what errors call a row."""
        return self._rows.name(index)

    @property
    def fingerprint(self) -> Mapping[str, str]:
        """Return what tells the conversations from others in the same place."""
        return self._rows.fingerprint

    def __getitem__(self, index: int) -> Conversation:
        """Return the conversation without its images."""
        number, at = divmod(index, SHARD)
        self._file(number)
        return Conversation(self.name(index), (), tuple(self._messages[number][at]))

    def features(self, index: int) -> Tensor:
        """Return the features of a conversation's images: (images, D, 1, M) float16."""
        number, at = divmod(index, SHARD)
        file = self._file(number)
        begin, end = self._begins[number][at : at + 2]
        return file.get_slice("features")[begin:end]

    @property
    def tokens(self) -> int:
        """How many features every image has."""
        return self._file(0).get_slice("features").get_shape()[-1]

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:05}.safetensors"

    def _file(self, number: int) -> Any:
        if number not in self._open:
            path = self._path(number)
            self._open[number] = tensor_file(path, "file of features", "run the same command again to make it")
            header = self._open[number].metadata()
            self._messages[number] = parse_json(header["messages"], shown_path(path))
            # Files of earlier versions have one image in every conversation and no numbers of images.
            many = "images" in header
            images = parse_json(header["images"], shown_path(path)) if many else [1] * len(self._messages[number])
            self._begins[number] = list(accumulate(images, initial=0))
        return self._open[number]

    @torch.no_grad()
    def _make(self, number: int, family: Family, plan: Schedule, processor: Any) -> None:
        indices = range(number * SHARD, min((number + 1) * SHARD, len(self._rows)))
        made: list[Tensor] = []
        listed = [self._rows[index] for index in indices]
        pictures = (picture for one in listed for picture in one.pictures())
        while part := list(islice(pictures, _AT_ONCE)):
            made += _encoded(part, family, plan, processor)
        if not made:
            # A file of text alone holds no image of the shape that all have.
            [one] = _encoded([Image.new("RGB", (64, 64))], family, plan, processor)
            made = [one[:0]]
        header = {
            "messages": json.dumps([one.messages for one in listed]),
            "images": json.dumps([len(one.images) for one in listed]),
        }
        # Autocast to bfloat16 doesn't put float16 together.
        with without_autocast(made[0].device):
            write_tensors(self._path(number), {"features": torch.cat(made).contiguous()}, header)


def _encoded(pictures: list[Image.Image], family: Family, plan: Schedule, processor: Any) -> list[Tensor]:
    """Return the features that are left of each image: (1, D, 1, M) float16."""
    inputs = dict(processor.image_processor(images=pictures, return_tensors="pt"))
    encoded = encode_for(family, inputs, [plan])
    assert encoded.features is not None
    made: list[Tensor] = []
    for image, features in zip(plan_images(family, plan, encoded), encoded.features, strict=True):
        kept = features[None] if image.plan is None else image.plan.apply(features[None])
        made.append(kept.half().mT[:, :, None].cpu())
    return made


class FeatureBatches(Batches):
    """Makes batches of conversations whose images are kept features.

    Args:
        processor: the model's own.
        family: of the model that reads features.
        kept: the conversations and features.
        max_length: as for `Batches`.
        positions: as for `Batches`.
    """

    def __init__(
        self,
        processor: Any,
        family: Family,
        kept: KeptFeatures,
        max_length: int | None = None,
        *,
        positions: bool = True,
    ) -> None:
        super().__init__(processor, family, max_length, positions=positions)
        self._kept = kept
        self._word: str = processor.tokenizer.convert_ids_to_tokens(family.image_token)

    def __call__(self, rows: Sequence[tuple[int, Conversation]]) -> dict[str, Any]:
        """Make one batch; `pixel_values` are the features of all its images, (images, D, 1, M) float32."""
        features = torch.cat([self._kept.features(number) for number, _ in rows]).float()
        self._count = features.shape[-1]
        batch = super().__call__(rows)
        return {**batch, "pixel_values": features} if len(features) else batch

    def row(self, one: Conversation) -> dict[str, Tensor]:
        """Return the text of one conversation, with as many placeholders as its images have features."""
        text, spans = self.spoken(one)
        images = sum(part["type"] == "image" for message in one.messages for part in message["content"])
        encoded = tokenized(self._processor, text.replace(self._word, self._word * self._count), return_tensors="pt")
        inputs = {name: encoded[name] for name in ("input_ids", "attention_mask")}
        return self.labelled(inputs, text, spans, one.name, images * self._count)


def train_on_features(
    model: nn.Module,
    processor: Any,
    rows: Conversations,
    recipe: Recipe,
    folder: Path,
    say: Callable[[str], None],
    arguments: Any,
) -> tuple[KeptFeatures, FeatureBatches]:
    """Keep the features of all images, and let the model read them in place of pixels.

    Returns:
        The conversations with their features, and what makes batches of them. The model has no encoder any more.
    """
    spec = recipe.data.features
    assert spec is not None
    key = _key(recipe, rows, processor)
    share = (int(arguments.process_index), int(arguments.world_size))
    if share[1] > 1:
        from accelerate.utils import broadcast_object_list

        # Copies of the data on several machines may have other times of change.
        (key,) = broadcast_object_list([key])
    model.to(arguments.device)
    with with_autocast(arguments.device, recipe.precision):
        kept = KeptFeatures(folder, rows, model, processor, spec, key, share, say)
    if share[1] > 1:
        torch.distributed.barrier()
    family = family_of(model)
    family.read_feature_maps(1, kept.tokens)
    return kept, FeatureBatches(processor, family, kept, recipe.max_length, positions=recipe.objective.dense_positions)


def with_encoder(trained: nn.Module, recipe: Recipe) -> Any:
    """Return the whole model: what was trained on kept features, with the encoder that made them."""
    whole = load_model(**recipe.source).float()
    tower = {id(weight) for weight in family_of(whole).tower.parameters()}
    theirs = {name for name, weight in whole.named_parameters(remove_duplicate=False) if id(weight) not in tower}
    stored = trained.state_dict()
    missing, unexpected = whole.load_state_dict({name: stored[name] for name in theirs}, strict=False)
    assert not unexpected
    assert not theirs & set(missing)
    return whole


def _key(recipe: Recipe, rows: Conversations, processor: Any) -> str:
    """Return what tells a recipe's features from those of other data or another model, without reading weights."""
    parts: list[Any] = [recipe.to_dict()["data"]]
    if recipe.commit is not None:
        parts.append([recipe.model, recipe.commit])
    else:
        found = facts_of_files(find_config(**recipe.source).parent, "*.safetensors")
        parts.append([[file.path.name, file.size, file.modified] for file in sorted(found, key=lambda file: file.path)])
        if recipe.model != SHIPPED:
            # A folder's processor may be edited; the embedded model's comes with foveate.
            parts.append(processor.image_processor.to_dict())
    if rows.fingerprint:
        parts.append(dict(rows.fingerprint))
    return json.dumps(parts, default=str)
