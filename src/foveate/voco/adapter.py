"""The VoCo adapter: embeddings and LoRA weights, to train, to read images with, and to answer from memories."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Final, Self
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn

from foveate.adapters import PretrainedAdapter, check_weights, read_settings
from foveate.arguments import check_kind, listed
from foveate.engine import Encoded
from foveate.engine.inputs import check_mapping, check_prompt_inputs
from foveate.engine.modalities import refuse_clips
from foveate.engine.sharding import refuse_sharded
from foveate.errors import FoveateError
from foveate.families import Family, family_of, vlm_of
from foveate.files import is_folder, real_path
from foveate.fingerprint import DIGITS, check_fingerprint, model_fingerprint
from foveate.numbers import SEED, Between, check_whole
from foveate.prompts import check_question
from foveate.tokens import Layout
from foveate.voco.embeddings import decoder_device_and_dtype, embedded_vocabulary, initial_embeddings
from foveate.voco.generation import (
    check_options,
    check_question_ids,
    generate_after_memories,
    paired,
    question_ids,
)
from foveate.voco.image_features import DENSE, check_features_spec, check_steps, encode_features, reduced_features
from foveate.voco.lora import (
    adapters_disabled,
    check_lora_fits,
    copy_lora,
    load_lora,
    lora_applied,
    lora_digest,
    save_lora,
)
from foveate.voco.losses import VoCoOutput, cross_entropy
from foveate.voco.memory import VoCoMemory, memories_of
from foveate.voco.one_pass import one_pass_logits
from foveate.voco.prompt_rows import prompt_rows
from foveate.voco.two_pass import read_images, two_pass_logits

_LORA: Final = "lora"
MOST_TOKENS: Final = 65_536
"""The most VoCo tokens of an adapter; each is a column of the prompt."""


_SETTINGS: Final = {"tokens": Between(1, MOST_TOKENS), "base": str, "lora": bool, "features": str, "packed": bool}


class VoCo(PretrainedAdapter, nn.Module):
    """VoCo tokens of one base model: their embeddings, and LoRA weights if it was trained with any.

    The decoder reads `[BOS] image VoCo...` once. From then on, the keys and values at the VoCo tokens stand for the
    image, and text sees nothing else of it. VoCo-LLaMA, Ye et al. 2024, arXiv 2406.12275.

    Args:
        model: the base model.
        tokens: VoCo tokens per image.
        shared: use one embedding for all VoCo tokens, as the authors' code does; they differ by position alone.
        seed: draws the initial embeddings.
        start: token ids whose embeddings the VoCo tokens start from, repeated as often as needed; needs
            `shared=False`. None starts at random.
        features: a spec at `@features` under which images are read, such as `pool2d:144:positions=pack@features`, which
            makes reading cheaper; "dense" reads all visual tokens.
        packed: positions count the VoCo tokens of images after the first, and not their visual tokens; see
            `VoCoMemory.joined`.

    Attributes:
        embedding: `(1, D)` if shared, else `(tokens, D)`, float32 unless trained otherwise.
        base: the fingerprint of the base model.
        lora: the folder of the LoRA weights, as peft writes them, or None.

    Raises:
        UnsupportedFamily: the model is of no supported family, or its images can't be read under `features`.
        FoveateError: `tokens` is below 1, or `start` comes with `shared`.

    >>> import foveate
    >>> from PIL import Image
    >>> model, processor = foveate.reference()
    >>> voco = foveate.VoCo.from_pretrained("shipped")
    >>> part = {"type": "image", "image": Image.new("RGB", (192, 192))}
    >>> chat = [{"role": "user", "content": [part]}]
    >>> inputs = processor.apply_chat_template(chat, tokenize=True, return_dict=True, return_tensors="pt")
    >>> (memory,) = voco.encode(model, inputs)
    >>> memory.tokens, memory.visual_tokens
    (32, 576)
    >>> voco.generate(model, memory.first(8), ["how many circles are there ?"], processor, max_new_tokens=1)
    ['...']
    """

    kind: ClassVar[str] = "VoCo"
    further: ClassVar[tuple[str, ...]] = (_LORA,)

    def __init__(
        self,
        model: nn.Module,
        tokens: int = 1,
        *,
        shared: bool = True,
        seed: int = 0,
        start: Sequence[int] | None = None,
        features: str = DENSE,
        packed: bool = False,
    ) -> None:
        super().__init__()
        check_whole("tokens", tokens, Between(1, MOST_TOKENS))
        check_whole("seed", seed, SEED)
        check_kind("features", features, str, "a spec as text")
        check_kind("shared", shared, bool, "True or False")
        check_kind("packed", packed, bool, "True or False")
        if start is not None:
            start = [
                check_whole("a token of start", token, Between(0)) for token in listed("start", start, "token ids")
            ]
        if start is not None and (shared or not start):
            raise FoveateError("each VoCo token starts from its own token: pass shared=False, and ids to start")
        family = family_of(model)
        check_features_spec(family, features)
        self.base = model_fingerprint(family.core)
        table = embedded_vocabulary(family)
        for token in start or ():
            check_whole("a token of start", token, Between(0, len(table) - 1))
        embeddings = initial_embeddings(table, 1 if shared else tokens, seed, start)
        self.embedding = nn.Parameter(embeddings.to(table.device))
        self.tokens = tokens
        self.features = features
        self.packed = packed
        self.lora: Path | None = None

    # Reading images

    def encode(
        self, model: nn.Module, inputs: Mapping[str, Any], tokens: int | None = None, encoded: Encoded | None = None
    ) -> list[VoCoMemory]:
        """Read images into memories, one per image, in prompt order.

        Args:
            model: the base model.
            inputs: the processor's output for one or several prompts with images.
            tokens: VoCo tokens per image; fewer than were trained work, too. None takes all.
            encoded: the images as `foveate.encode` returned them for this adapter's `features`; without it, the vision
                encoder runs.

        Raises:
            FoveateError: the adapter belongs to another model, more tokens are asked for than it has, or a video is
                among the inputs.
            UnsupportedFamily: the family's images can't be read; see `docs/voco.md`.
        """
        check_mapping(inputs)
        if encoded is not None:
            check_kind("encoded", encoded, Encoded, "what foveate.encode returned")
        self.check(model)
        refuse_sharded(model, family_of(model).core)
        model = vlm_of(model)
        family = family_of(model)
        refuse_clips("VoCo tokens", family, inputs)
        count = self._count(tokens)
        _check_cache(family)
        with self.on(model), torch.no_grad():
            encoded = encoded or encode_features(model, inputs, self.features)
            features, layouts = reduced_features(family, encoded, self.features)
            memories = self._read(family, features, layouts, count)
        return [
            replace(memory, visual_tokens=layout.total)
            for memory, layout in zip(memories, encoded.layouts, strict=True)
        ]

    def _read(
        self, family: Family, features: Sequence[Tensor], layouts: Sequence[Layout], count: int
    ) -> list[VoCoMemory]:
        return read_images(family, features, layouts, self.embeddings(count), self.base, self.fingerprint(count))

    def join(self, memories: Sequence[VoCoMemory]) -> VoCoMemory:
        """Join memories of images, or of a video's segments, in order, with positions as this adapter was trained.

        A video can be read as it arrives: `memory = voco.join([memory, *voco.encode(model, segment)])`.

        Raises:
            FoveateError: as `VoCoMemory.joined`.
        """
        return VoCoMemory.joined(memories, packed=self.packed)

    # Answering

    def generate(
        self,
        model: nn.Module,
        memory: VoCoMemory | Sequence[VoCoMemory],
        questions: str | Sequence[str] | Tensor,
        processor: Any = None,
        **options: Any,
    ) -> Any:
        """Answer questions from memories; no image is needed.

        One memory serves any number of questions; as many memories as questions are paired.

        Args:
            model: the base model.
            memory: one memory (for several images, `join` them), or one per question.
            questions: texts, or token ids `(B, T)` int64 padded on the left with the model's padding id. [BOS] before
                them is left out, since the memory has one.
            processor: the model's processor; needed for texts.
            **options: for the model's own `generate`, such as `max_new_tokens`. Beams and several answers per question
                are refused.

        Returns:
            Answers as texts: one for one text, else a list. For ids, new ids `(B, new)` int64. Under
            `return_dict_in_generate`, what `generate` returns, with `sequences` the new ids.

        Raises:
            FoveateError: counts don't match, a memory belongs to another model or adapter, texts came without a
                processor, ids are none of the model's, or an option doesn't work with memories.
        """
        self.check(model)
        model = vlm_of(model)
        check_options(model, options)
        family = family_of(model)
        if not isinstance(questions, str | Tensor):
            questions = listed("questions", questions, "texts, or token ids")
            for question in questions:
                check_kind("a question", question, str, "a text")
        texts = [questions] if isinstance(questions, str) else questions
        if isinstance(texts, Tensor):
            check_question_ids(family, texts)
        else:
            texts = [check_question(text) for text in texts]
        memories = [memory] if isinstance(memory, VoCoMemory) else memories_of(memory)
        if not memories or not (texts.numel() if isinstance(texts, Tensor) else texts):
            raise FoveateError(f"there is no {'question to answer' if memories else 'memory to answer from'}; pass one")
        device = family.device
        memories, ids, mask = paired(memories, *question_ids(model, family, texts, processor, device))
        for number, own in enumerate(memories, start=1):
            self._check_memory(family, own, f"memory {number}")
        _check_cache(family)
        with self.on(model):
            generated = generate_after_memories(model, family, memories, ids, mask, options)
        if isinstance(questions, Tensor) or not isinstance(generated, Tensor):
            return generated
        answers = [text.strip() for text in processor.batch_decode(generated, skip_special_tokens=True)]
        return answers[0] if isinstance(questions, str) and len(answers) == 1 else answers

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
        """Return logits and loss of the text after its images' memories, for training.

        Args:
            model: the base model, with the adapter's LoRA weights added unless it has adapters of its own. The caller
                chooses which of its weights are trained. With checkpointed activations, run the backward pass inside
                `with voco.on(model):`, too.
            inputs: the processor's output, with `labels` for a loss; rows may hold no image or several.
            tokens: VoCo tokens per image; None takes all.
            in_two_passes: read images first, then text with their keys and values in the cache (any attention backend);
                else run one pass under the paper's mask (eager or SDPA). Equal but for rounding.
            encoded: the images as `foveate.encode` returned them; without it, the vision encoder runs.

        Raises:
            FoveateError: the attention backend can't take the mask, all labels are -100, a video is among the inputs,
                the adapter belongs to another model, or the model is in DistributedDataParallel.
        """
        check_mapping(inputs)
        check_prompt_inputs(inputs)
        if encoded is not None:
            check_kind("encoded", encoded, Encoded, "what foveate.encode returned")
        family = family_of(model)
        if torch.is_grad_enabled():
            _refuse_data_parallel(model)
        model = vlm_of(model)
        refuse_clips("VoCo tokens", family, inputs)
        count = self._count(tokens)
        if _checked_models.get(model) != self.base:
            # Only once: training may change the weights from then on.
            self.check(model)
            _checked_models[model] = self.base
        # Adapters that the model has itself are what is trained, so they stay on.
        has_adapters = bool(getattr(model, "peft_config", None))
        with nullcontext() if has_adapters or self.lora is None else self.on(model):
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
            encoded = encode_features(model, inputs, self.features)
        features, layouts = ((), ()) if encoded is None else reduced_features(family, encoded, self.features)
        rows = prompt_rows(family, inputs, () if encoded is None else encoded.layouts)
        if in_two_passes:
            _check_cache(family)
            memories = self._read(family, features, layouts, count) if layouts else []
            logits, labels = two_pass_logits(model, family, rows, memories, self.packed)
        else:
            embeddings = self.embeddings(count)
            logits, labels = one_pass_logits(model, family, rows, features, layouts, embeddings, self.packed)
        return VoCoOutput(logits, labels, None if labels is None else cross_entropy(logits, labels))

    def embeddings(self, count: int) -> Float[Tensor, "count D"]:
        """Return the embeddings of the first `count` VoCo tokens, `(count, D)`.

        Raises:
            FoveateError: the adapter has fewer.
        """
        return self.embedding.expand(self.tokens, -1)[: self._count(count)]

    def _count(self, tokens: int | None) -> int:
        count = self.tokens if tokens is None else check_whole("tokens", tokens)
        if not 1 <= count <= self.tokens:
            raise FoveateError(f"{count} VoCo tokens were asked for; this adapter has from 1 to {self.tokens}")
        return count

    # Belonging to a model

    def check(self, model: nn.Module) -> None:
        """Check that this adapter was made for this model.

        Raises:
            FoveateError: it was made for another one.
        """
        self.check_base(model_fingerprint(family_of(model).core))
        self.check_sizes(model)

    def check_sizes(self, model: nn.Module) -> None:
        """Check that this adapter's weights are as wide as a model's, which may have no weights itself.

        Raises:
            FoveateError: they aren't, or the model lacks a layer that has LoRA weights.
        """
        family = family_of(model)
        width, own = int(family.decoder_config.hidden_size), self.embedding.shape[1]
        if own != width:
            raise FoveateError(
                f"this VoCo adapter has embeddings of width {own} and the model {width}; train a new one"
            )
        if self.lora is not None:
            check_lora_fits(vlm_of(model), load_lora(self.lora))

    def set_base_model(self, model: nn.Module) -> None:
        """Make the adapter belong to a model that was trained together with it."""
        self.base = model_fingerprint(family_of(model).core)

    def _check_memory(self, family: Family, memory: VoCoMemory, name: str) -> None:
        if memory.base != self.base:
            raise FoveateError(f"{name} was made by another base model; encode its image again with this one")
        if not memory.adapter.startswith(self.fingerprint().split(":")[0]):
            raise FoveateError(f"{name} was made by another adapter; encode its image again with this one")
        dtype = decoder_device_and_dtype(family)[1]
        if memory.keys.dtype != dtype:
            raise FoveateError(f"{name} is {memory.keys.dtype} and the model {dtype}; convert it with .to(dtype=...)")
        layers = len(family.decoder_layers)
        if memory.keys.shape[0] != layers:
            raise FoveateError(
                f"{name} has {memory.keys.shape[0]} layers and the model {layers}; it was made by another model"
            )

    def fingerprint(self, tokens: int | None = None) -> str:
        """Return the name of the adapter's weights and of how many tokens are used, such as "1f3a...:2".

        Raises:
            FoveateError: the LoRA weights are gone, or the adapter has fewer tokens.
        """
        count = self._count(tokens)
        digest = hashlib.sha256(self.embedding.detach().float().cpu().numpy().tobytes())
        if self.features != DENSE:
            digest.update(self.features.encode())
        if self.lora is not None:
            digest.update(lora_digest(self.lora))
        return f"{digest.hexdigest()[:DIGITS]}:{count}"

    @contextmanager
    def on(self, model: nn.Module) -> Iterator[None]:
        """Add the adapter's LoRA weights to a model inside the block, and disable all other adapters.

        Blocks may be nested; the innermost adapter alone counts. After the block, the model is what it was before.

        Raises:
            FoveateError: the LoRA weights are gone.
        """
        model = vlm_of(model)
        deltas = {} if self.lora is None else load_lora(self.lora)
        with adapters_disabled(model), lora_applied(model, deltas):
            yield

    # Files

    def save_pretrained(self, directory: str | Path, lora: Any = None, dtype: torch.dtype | None = None) -> Path:
        """Write the adapter to a directory: `voco.json`, `voco.safetensors`, and LoRA weights in peft's own format.

        An adapter that is there is replaced atomically; other files there stay.

        Args:
            directory: created if it is missing.
            lora: a `peft.PeftModel` whose weights belong to the adapter; None keeps those that it was loaded with.
            dtype: the dtype of the LoRA weights on disk; None keeps theirs.

        Raises:
            FoveateError: the directory can't be written, or `lora` is more than plain LoRA of linear layers.
        """
        directory = self.write(directory, lora=lora, dtype=dtype)
        if is_folder(directory / _LORA):
            self.lora = real_path(directory) / _LORA
        return directory

    def settings(self) -> dict[str, Any]:
        """Return everything but the weights, as JSON data."""
        return {"tokens": self.tokens, "features": self.features, "packed": self.packed, "base": self.base}

    def tensors(self) -> dict[str, Tensor]:
        """Return the embeddings by name."""
        return {"embedding": self.embedding}

    def write_further(self, folder: Path, lora: Any = None, dtype: torch.dtype | None = None) -> dict[str, Any]:
        """Write the LoRA weights, if there are any, and return whether there are."""
        if lora is not None:
            save_lora(lora, folder / _LORA, dtype)
        elif self.lora is not None:
            copy_lora(self.lora, folder / _LORA, dtype)
        return {"lora": is_folder(folder / _LORA)}

    @classmethod
    def from_files(cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor], folder: Path) -> Self:
        """Build an adapter from its settings and embeddings; LoRA weights are read when they are used.

        Raises:
            FoveateError: embeddings don't fit the number of tokens, or LoRA weights are damaged.
        """
        found = read_settings(settings, _SETTINGS, {"features": DENSE, "packed": False})
        tokens: int = found["tokens"]
        shared = "embedding" in tensors and tensors["embedding"].shape[:1] == (1,)
        check_weights(tensors, {"embedding": (1 if shared else tokens, None)})
        voco = cls.__new__(cls)
        nn.Module.__init__(voco)
        voco.embedding = nn.Parameter(tensors["embedding"])
        voco.tokens, voco.base = tokens, found["base"]
        voco.features, voco.packed = found["features"], found["packed"]
        voco.lora = folder / _LORA if found["lora"] else None
        check_fingerprint("base", voco.base)
        check_steps(voco.features)
        if voco.lora is not None:
            load_lora(voco.lora)
        return voco


_checked_models: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()
"""Models that a training step was taken on, with the base that they were checked against."""


def _refuse_data_parallel(model: nn.Module) -> None:
    """Refuse to train inside DistributedDataParallel.

    Raises:
        FoveateError: gradients would not be averaged over processes.
    """
    if any(isinstance(each, nn.parallel.DistributedDataParallel) for each in model.modules()):
        raise FoveateError(
            "DistributedDataParallel averages the gradients of its own forward alone, and reading images goes around "
            "it; put the model and this adapter into one module whose forward calls the adapter, and wrap that"
        )


def _check_cache(family: Family) -> None:
    """Check that the decoder fills a cache.

    Raises:
        FoveateError: it checkpoints activations in training, which leaves the cache empty.
    """
    if any(getattr(layer, "gradient_checkpointing", False) and layer.training for layer in family.decoder.modules()):
        raise FoveateError(
            "in training, gradient checkpointing leaves no keys and values; call model.eval(), or train with "
            "in_two_passes=False"
        )
