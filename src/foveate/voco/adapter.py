"""The VoCo adapter: what is learned, and both ways to run it: under the mask, or in two passes."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Final
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from foveate.adapters import SHIPPED, downloaded, shipped, upload, written
from foveate.engine import Encoded
from foveate.engine import encode as encode_images
from foveate.engine.compress import refuse_video
from foveate.engine.planning import plan_images
from foveate.errors import FoveateError, UnsupportedFamily
from foveate.families import Family, family_of
from foveate.families.fingerprint import fingerprint
from foveate.schedule import schedule
from foveate.tokens import Layout, Segment
from foveate.transformers_api import cache_argument
from foveate.voco.arrange import samples, without_beginning
from foveate.voco.lora import LORA_WEIGHTS, added, branches, digest, without_adapters
from foveate.voco.memory import VoCoMemory
from foveate.voco.passes import (
    VoCoOutput,
    cross_entropy,
    embedding_table,
    filled_cache,
    home,
    one_pass,
    read,
    real_mask,
    two_passes,
)

_SETTINGS, _WEIGHTS, _LORA = "voco.json", "voco.safetensors", "lora"
_DENSE, _FORMAT = "dense", 1
# Options of `generate` that are a memory's matter, or that would take a cache apart which holds more than the ids.
_OWN_OPTIONS: Final = (
    "inputs",
    "input_ids",
    "inputs_embeds",
    "attention_mask",
    "position_ids",
    "past_key_values",
    "cache",
    "cache_position",
    "assistant_model",
)
_ONLY: Final = {
    "num_beams": 1,
    "num_return_sequences": 1,
    "cache_implementation": None,
    "prompt_lookup_num_tokens": None,
}


class VoCo(nn.Module):
    """VoCo tokens for one base model: their embedding, and LoRA weights if it was trained with any.

    The decoder reads `[BOS] image VoCo...` once; the keys and values at the VoCo tokens are the image from then on.
    Text never sees more of it.

    Args:
        model: the base model; its embeddings say where the VoCo embedding starts from.
        tokens: VoCo tokens per image.
        shared: whether all VoCo tokens have one embedding, as in the authors' code; they differ by position alone.
        seed: for the embedding's start.
        start: token ids whose embeddings the VoCo tokens start from, over and over, where each has its own; None
            starts at random. A text token gathers what it stands for, and so does a VoCo token that starts as one.
        features: the spec at `@features` that images are read under, such as `pool2d:144:positions=pack@features`,
            which makes reading cheaper; dense reads all visual tokens.
        packed: the VoCo tokens of several images stand right behind one another, see `VoCoMemory.joined`.

    Raises:
        UnsupportedFamily: the model is of no supported family.
        FoveateError: `tokens` is below 1, or `start` comes with `shared`.
    """

    def __init__(
        self,
        model: nn.Module,
        tokens: int = 1,
        *,
        shared: bool = True,
        seed: int = 0,
        start: Sequence[int] | None = None,
        features: str = "dense",
        packed: bool = False,
    ) -> None:
        super().__init__()
        if tokens < 1:
            raise FoveateError(f"{tokens} VoCo tokens hold no image; take at least 1")
        family = family_of(model)
        table: Tensor = embedding_table(family).weight
        generator = torch.Generator().manual_seed(seed)
        spread = table.detach().float().std().item()
        begun = torch.randn(1 if shared else tokens, table.shape[1], generator=generator) * spread
        if start is not None:
            if shared or not start:
                raise FoveateError("each VoCo token starts from its own token: pass shared=False, and ids to start")
            ids = [start[number % len(start)] for number in range(tokens)]
            # A little noise, so that two that start as the same token can part.
            begun = table.detach()[ids].float().cpu() + 0.1 * begun
        self.embedding = nn.Parameter(begun.to(table.device))
        self.tokens = tokens
        self.features = features
        self.packed = packed
        if features != _DENSE:
            _check_features(family, features)
        self.base = fingerprint(model)
        self.lora: Path | None = None

    # Reading images

    def encode(
        self, model: nn.Module, inputs: Mapping[str, Any], tokens: int | None = None, encoded: Encoded | None = None
    ) -> list[VoCoMemory]:
        """Read the images of `inputs` into memories, one per image, in prompt order.

        Args:
            model: the base model.
            inputs: the processor's output for a prompt, or a batch of prompts, with images.
            tokens: VoCo tokens per image; fewer than were trained work, too. None takes all.
            encoded: the images, encoded before, for this adapter's `features`; without it the vision encoder is run.

        Raises:
            FoveateError: the adapter belongs to another model, or more tokens are asked for than it has.
        """
        self.check(model)
        family = family_of(model)
        refuse_video(family, inputs)
        count = self._count(tokens)
        _check_cache(family)
        with self.on(model), torch.no_grad():
            encoded = encoded or encode_images(model, inputs, () if self.features == _DENSE else (self.features,))
            _check_images(family, encoded)
            features, layouts = _left(family, encoded, self.features)
            found = read(family, features, layouts, *self._voice(count))
        return [replace(each, visual_tokens=layout.total) for each, layout in zip(found, encoded.layouts, strict=True)]

    def join(self, memories: Sequence[VoCoMemory]) -> VoCoMemory:
        """Memories of images, or of a video's segments, one behind the other, as this adapter was trained.

        A video is remembered as it comes: `memory = voco.join([memory, *voco.encode(model, segment)])`.

        Raises:
            FoveateError: as `VoCoMemory.joined`.
        """
        return VoCoMemory.joined(memories, packed=self.packed)

    # Asking

    def generate(
        self,
        model: nn.Module,
        memory: VoCoMemory | Sequence[VoCoMemory],
        questions: str | Sequence[str] | Tensor,
        processor: Any = None,
        **options: Any,
    ) -> Any:
        """Answer questions from memories, without any image.

        One memory serves any number of questions; as many memories as questions go in pairs.

        Args:
            model: the base model.
            memory: one memory (several images: `join`), or one per question.
            questions: texts, or token ids `(B, T)` int64 padded on the left with the model's padding id. [BOS] before
                them is left out, since the memory holds one.
            processor: the model's processor, for questions that are texts.
            **options: for the model's own `generate`, `max_new_tokens` for instance; one answer per question, without
                beams.

        Returns:
            The answers as texts, or the new token ids `(B, new)` if ids came; with `return_dict_in_generate` what
            `generate` returns, its `sequences` the new token ids.

        Raises:
            FoveateError: counts don't fit together, a memory belongs to another model or adapter, texts came without a
                processor, or an option can't be had.
        """
        self.check(model)
        _check_options(model, options)
        family = family_of(model)
        device = next(family.core.parameters()).device
        single = isinstance(questions, str)
        asked = [questions] if isinstance(questions, str) else questions
        memories = [memory] if isinstance(memory, VoCoMemory) else list(memory)
        if not memories or not len(asked):
            raise FoveateError(f"there is no {'question to answer' if memories else 'memory to answer from'}; pass one")
        if isinstance(asked, Tensor):
            ids = asked.to(device)
            mask = without_beginning(family, ids, real_mask(model, ids).bool()).long()
        else:
            ids, mask = self._tokenised(family, asked, processor, device)
        if len(memories) == 1:
            memories *= ids.shape[0]
        elif ids.shape[0] == 1:
            ids, mask = ids.expand(len(memories), -1), mask.expand(len(memories), -1)
        if len(memories) != ids.shape[0]:
            raise FoveateError(f"{len(memories)} memories don't go with {ids.shape[0]} questions; give one, or as many")
        for number, each in enumerate(memories, start=1):
            self._check_memory(family, each, f"memory {number}")
        _check_cache(family)
        with self.on(model), torch.no_grad():
            cache, seen, positions = filled_cache(family, memories, mask, device)
            whole = torch.cat([seen, mask], dim=1)
            generated: Any = model.generate(  # pyright: ignore[reportCallIssue]
                input_ids=ids,
                attention_mask=whole,
                position_ids=positions,
                **{**options, **cache_argument(model.forward, cache), "use_cache": True},
            )
        if not isinstance(generated, Tensor):
            generated.sequences = generated.sequences[:, ids.shape[1] :]
            return generated
        new = generated[:, ids.shape[1] :]
        if isinstance(questions, Tensor):
            return new
        texts = [text.strip() for text in processor.batch_decode(new, skip_special_tokens=True)]
        return texts[0] if single and len(texts) == 1 else texts

    def _tokenised(
        self, family: Family, questions: Sequence[str], processor: Any, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        if processor is None:
            raise FoveateError("questions as texts need the model's processor; pass it, or pass token ids")
        rows: list[Tensor] = []
        for question in questions:
            chat = [{"role": "user", "content": [{"type": "text", "text": question}]}]
            ids = processor.apply_chat_template(
                chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
            )["input_ids"]
            rows.append(samples(family, {"input_ids": ids}, ())[0].text)
        longest = max(row.shape[0] for row in rows)
        ids = torch.zeros(len(rows), longest, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for number, row in enumerate(rows):
            ids[number, longest - row.shape[0] :] = row
            mask[number, longest - row.shape[0] :] = 1
        return ids.to(device), mask.to(device)

    # Training

    def forward(
        self,
        model: nn.Module,
        inputs: Mapping[str, Any],
        *,
        tokens: int | None = None,
        in_two_passes: bool = True,
        encoded: Encoded | None = None,
    ) -> VoCoOutput:
        """Logits and loss of the text behind memories, for training.

        Args:
            model: the base model, with the adapter's LoRA weights in it unless it has adapters of its own. What of it
                is trained is the caller's choice. Where activations are checkpointed, hold `with voco.on(model):`
                around the backward pass, too.
            inputs: the processor's output, with `labels` for a loss; rows may hold no image or several.
            tokens: VoCo tokens per image; None takes all.
            in_two_passes: images first, then text with their KV as past (any attention backend); else one pass under
                the mask of the paper (eager or SDPA). Equal but for rounding.
            encoded: the images, encoded before; without it the vision encoder is run.

        Returns:
            Logits `(B, T, vocabulary)` over the text, its labels, and the mean cross-entropy of the next token.

        Raises:
            FoveateError: the backend can't take the mask, no label is left, there is a video among the inputs, or the
                adapter belongs to another model.
        """
        family = family_of(model)
        refuse_video(family, inputs)
        count = self._count(tokens)
        if _met.get(model) != self.base:
            # Training may change the model from then on.
            self.check(model)
            _met[model] = self.base
        # What the model has of its own is what is trained, and stays on.
        tuned = bool(getattr(model, "peft_config", None))
        with nullcontext() if tuned or self.lora is None else self.on(model):
            return self._forward(model, family, inputs, count, in_two_passes, encoded)

    def _forward(
        self,
        model: nn.Module,
        family: Family,
        inputs: Mapping[str, Any],
        count: int,
        in_two_passes: bool,
        encoded: Encoded | None,
    ) -> VoCoOutput:
        if encoded is None and inputs.get("pixel_values") is not None:
            encoded = encode_images(model, inputs, () if self.features == _DENSE else (self.features,))
        features: Sequence[Tensor] = ()
        layouts: Sequence[Layout] = ()
        if encoded is not None:
            _check_images(family, encoded)
            features, layouts = _left(family, encoded, self.features)
        rows = samples(family, inputs, () if encoded is None else encoded.layouts)
        if in_two_passes:
            _check_cache(family)
            memories = read(family, features, layouts, *self._voice(count)) if layouts else []
            logits, labels = two_passes(model, family, rows, memories, self.packed)
        else:
            logits, labels = one_pass(model, family, rows, features, layouts, self.rows(count), self.packed)
        return VoCoOutput(logits, labels, None if labels is None else cross_entropy(logits, labels))

    # Belonging to a model

    def check(self, model: nn.Module) -> None:
        """Whether this adapter was made for this model.

        Raises:
            FoveateError: it was made for another one.
        """
        if fingerprint(model) != self.base:
            raise FoveateError(
                "this VoCo adapter was made for another base model (their weights differ); load the model that it was "
                "trained with, or train a new one"
            )

    def belong_to(self, model: nn.Module) -> None:
        """From now on this adapter is one of this model, which was trained together with it."""
        self.base = fingerprint(model)

    def _check_memory(self, family: Family, memory: VoCoMemory, name: str) -> None:
        if memory.base != self.base:
            raise FoveateError(f"{name} was made by another base model; encode its image again with this one")
        if not memory.adapter.startswith(self.fingerprint().split(":")[0]):
            raise FoveateError(f"{name} was made by another adapter; encode its image again with this one")
        dtype = home(family)[1]
        if memory.keys.dtype != dtype:
            raise FoveateError(
                f"{name} is {memory.keys.dtype} and the model {dtype}; bring it over with .to(dtype=...)"
            )
        if memory.keys.shape[0] != len(family.decoder_layers):
            raise FoveateError(
                f"{name} has {memory.keys.shape[0]} layers and the model {len(family.decoder_layers)}; it was made by "
                "another model"
            )

    def rows(self, count: int) -> Tensor:
        """The embeddings of the first `count` VoCo tokens: `(count, D)`."""
        return self.embedding.expand(self.tokens, -1)[:count]

    def _voice(self, count: int) -> tuple[Tensor, str, str]:
        return self.rows(count), self.base, self.fingerprint(count)

    def _count(self, tokens: int | None) -> int:
        count = self.tokens if tokens is None else tokens
        if not 1 <= count <= self.tokens:
            raise FoveateError(f"{count} VoCo tokens were asked for; this adapter has from 1 to {self.tokens}")
        return count

    def fingerprint(self, tokens: int | None = None) -> str:
        """Names the adapter's weights and how many tokens are used: "1f3a...:2"."""
        name = hashlib.sha256(self.embedding.detach().float().cpu().numpy().tobytes())
        if self.features != _DENSE:
            name.update(self.features.encode())
        if self.lora is not None:
            name.update(digest(self.lora))
        return f"{name.hexdigest()[:16]}:{tokens or self.tokens}"

    @contextmanager
    def on(self, model: nn.Module) -> Iterator[None]:
        """With the adapter's LoRA weights in the model and other adapters off; afterwards it is as it was before.

        A block may stand in another one; the inner adapter is then the only one.

        Raises:
            FoveateError: the LoRA weights are gone, or the model is peft's wrapper around one.
        """
        if _is_wrapper(model):
            raise FoveateError("this is peft's wrapper around a model; pass the model itself: model.get_base_model()")
        parts = {} if self.lora is None else branches(self.lora)
        with without_adapters(model), added(model, parts):
            yield

    # On disk

    def save_pretrained(self, directory: str | Path, lora: Any = None, dtype: torch.dtype | None = None) -> Path:
        """Write the adapter to a directory: settings, safetensors, and LoRA weights in peft's own format.

        Args:
            directory: made if it is missing; an adapter in it is replaced, whole, and what else is there stays.
            lora: a `peft.PeftModel` whose weights belong to the adapter; None keeps those that it was loaded with.
            dtype: of the LoRA weights on disk; None keeps theirs.

        Raises:
            FoveateError: the directory can't be written.
        """
        directory = Path(directory)
        with written(directory, (_WEIGHTS, _LORA, _SETTINGS)) as folder:
            self._write(folder, lora, dtype)
        if (directory / _LORA).is_dir():
            self.lora = directory.resolve() / _LORA
        return directory

    def _write(self, folder: Path, lora: Any = None, dtype: torch.dtype | None = None) -> None:
        from safetensors.torch import save_file

        save_file({"embedding": self.embedding.detach().cpu().contiguous()}, folder / _WEIGHTS)
        if lora is not None:
            lora.save_pretrained(folder / _LORA, safe_serialization=True)
        elif self.lora is not None:
            branches(self.lora)
            shutil.copytree(self.lora, folder / _LORA)
        if (folder / _LORA).is_dir():
            _tidy(folder / _LORA, dtype)
            branches(folder / _LORA)
        settings = {
            "format": _FORMAT,
            "tokens": self.tokens,
            "features": self.features,
            "packed": self.packed,
            "base": self.base,
            "lora": (folder / _LORA).is_dir(),
        }
        (folder / _SETTINGS).write_text(json.dumps(settings, indent=2) + "\n")

    @classmethod
    def from_pretrained(cls, path: str | Path = SHIPPED, **options: Any) -> VoCo:
        """Read what `save_pretrained` wrote: from a directory, or by its name on the Hugging Face hub.

        Args:
            path: "shipped" is the embedded model's.
            **options: for the hub: `revision`, `token`, `cache_dir`.

        Raises:
            FoveateError: there is no whole adapter, or another version of foveate wrote it.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        directory = shipped("voco") if str(path) == SHIPPED else downloaded(path, "VoCo adapter", **options)
        try:
            settings = json.loads((directory / _SETTINGS).read_text())
            if settings["format"] != _FORMAT:
                raise FoveateError(
                    f"{directory} has format {settings['format']}, and this foveate reads {_FORMAT}; update foveate"
                )
            embedding = load_file(directory / _WEIGHTS)["embedding"]
            voco = cls.__new__(cls)
            nn.Module.__init__(voco)
            voco.embedding = nn.Parameter(embedding)
            voco.tokens, voco.base = int(settings["tokens"]), str(settings["base"])
            voco.features, voco.packed = str(settings.get("features", _DENSE)), bool(settings.get("packed", False))
            voco.lora = directory / _LORA if settings["lora"] else None
        except (OSError, KeyError, ValueError, SafetensorError) as error:
            raise FoveateError(f"{directory} holds no whole VoCo adapter ({error}); save it again") from error
        if embedding.ndim != 2 or len(embedding) not in (1, voco.tokens):
            raise FoveateError(
                f"{directory} has {voco.tokens} tokens and embeddings of shape {tuple(embedding.shape)}; save it again"
            )
        if voco.lora is not None:
            branches(voco.lora)
        return voco

    def push_to_hub(self, repository: str, **options: Any) -> Any:
        """Upload the adapter to the Hugging Face hub; `options` go to `huggingface_hub.HfApi.upload_folder`."""
        return upload(repository, self._write, **options)


# Models that a training step was taken on, and the base that they were.
_met: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()


def _is_wrapper(model: Any) -> bool:
    return hasattr(model, "peft_config") and hasattr(model, "get_base_model")


def _check_cache(family: Family) -> None:
    """Whether the decoder hands out keys and values.

    Raises:
        FoveateError: its activations are checkpointed in training.
    """
    if any(getattr(each, "gradient_checkpointing", False) and each.training for each in family.decoder.modules()):
        raise FoveateError(
            "in training, gradient checkpointing leaves no keys and values; call model.eval(), or train with "
            "in_two_passes=False"
        )


def _check_options(model: Any, options: Mapping[str, Any]) -> None:
    """Whether answers from memories can be had under these options of `generate`.

    Raises:
        FoveateError: VoCo sets one itself, or one asks for more than one answer, or for another cache.
    """
    own = [name for name in _OWN_OPTIONS if options.get(name) is not None]
    if own:
        raise FoveateError(f"{', '.join(own)}: VoCo sets what a memory needs itself; leave it out")
    config = options.get("generation_config") or model.generation_config
    given = {name: options.get(name, getattr(config, name, None)) for name in _ONLY}
    # A model's own use_cache is overridden, a caller's isn't.
    given["use_cache"] = options.get("use_cache")
    for name, value in given.items():
        if value is not None and value != _ONLY.get(name, True):
            hint = "pass a question as often as you want it answered" if name.startswith("num_") else "leave it out"
            raise FoveateError(f"{name}={value} can't be had with memories; {hint}")


def _tidy(lora: Path, dtype: torch.dtype | None) -> None:
    """Leave of what peft wrote what is true of the adapter, its weights in `dtype`.

    peft adds an empty model card, and the place that the base model had on the machine that it was trained on.
    """
    from safetensors.torch import load_file, save_file

    (lora / "README.md").unlink(missing_ok=True)
    config = json.loads((lora / "adapter_config.json").read_text(encoding="utf-8"))
    if Path(config.get("base_model_name_or_path") or "").is_absolute():
        config["base_model_name_or_path"] = None
        (lora / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    if dtype is not None:
        weights = lora / LORA_WEIGHTS
        save_file({name: value.to(dtype) for name, value in load_file(weights).items()}, weights)


def _check_features(family: Family, spec: str) -> None:
    """Whether what a spec leaves of an image can be read as an image of one row.

    Raises:
        FoveateError: it acts elsewhere, leaves gaps between positions, or the family's positions have two axes.
    """
    steps = schedule(spec, family).spec.steps
    if any(step.places != ("features",) or step.method.positions != "pack" for step in steps):
        raise FoveateError(f"{spec}: VoCo reads what steps at @features leave, with positions=pack")
    if family.position_axes > 1:
        raise UnsupportedFamily(f"{family.title} places visual tokens in rows and columns; VoCo reads all of its")


def _left(family: Family, encoded: Encoded, spec: str) -> tuple[Sequence[Tensor], Sequence[Layout]]:
    """What a spec leaves of the images, at the decoder's input, and the layouts that the decoder then sees."""
    if spec == _DENSE:
        return encoded.projected, encoded.layouts
    plans = plan_images(family, schedule(spec, family), encoded)
    return [each.cut.features for each in plans], [Layout((Segment(1, 1, each.after),)) for each in plans]


def _check_images(family: Family, encoded: Encoded) -> None:
    """Whether each image is one grid that enters the decoder at its input alone."""
    tiled = any(len(layout.segments) > 1 or layout.structural for layout in encoded.layouts)
    if tiled or any(encoded.companions):
        how = "in tiles" if tiled else "with features that enter between its layers"
        raise UnsupportedFamily(f"VoCo reads images of one grid; {family.title} shows them {how}")
