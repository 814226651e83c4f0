"""The class that lmms-eval asks."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any, Final

import torch
from accelerate import Accelerator
from lmms_eval import utils
from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.models.model_utils.gen_metrics import log_metrics
from lmms_eval.protocol import ChatMessages
from loguru import logger

from foveate.engine import apply
from foveate.errors import FoveateError
from foveate.lmms_plugin.arguments import read_count, read_spec, read_switch
from foveate.loading import load_model, load_processor
from foveate.prompts import chat_text, special_tokens
from foveate.voco import VoCo, VoCoMemory

_PASSED: Final = ("max_new_tokens", "min_new_tokens", "num_beams", "do_sample", "temperature", "top_p", "top_k")
"""What tasks say about decoding and `generate` takes; the rest is for other models."""


class Foveate(lmms):
    """A model of a supported family under a spec: `--model foveate --model_args pretrained=DIR,spec=cluster:64`.

    Args:
        pretrained: a folder with a model, or its name on the hub.
        spec: how to compress; `dense` for not at all. One with commas stands in quotes: `spec="fastv:0.5@2,8"`.
        revision: of a model on the hub.
        device: such as `cuda:0`; several processes take one each.
        dtype: `auto`, `float32`, `bfloat16`, `float16`.
        device_map: spreads the model over several devices: `auto`.
        quantize: `4bit` or `8bit`.
        batch_size: how many prompts the model gets at once, padded on the left.
        system: a system prompt.
        loyalty: whether every question is also answered dense, to log how many answers are equal; takes twice the time.
        voco: a folder with VoCo tokens, or its name on the hub: questions are answered from them in place of the image.
        voco_tokens: how many of them to use; all by default.

    Raises:
        FoveateError: an argument can't be read, or the model can't be loaded.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str,
        spec: str = "dense",
        revision: str | None = None,
        device: str | None = None,
        dtype: str = "auto",
        device_map: str | None = None,
        quantize: str | None = None,
        batch_size: int | str = 1,
        system: str = "",
        loyalty: bool | str = False,
        voco: str | None = None,
        voco_tokens: int | str | None = None,
        **unknown: Any,
    ) -> None:
        super().__init__()
        if given := [name for name, value in unknown.items() if value is not None and name != "max_batch_size"]:
            raise FoveateError(f"--model_args has {', '.join(given)}, which foveate doesn't know; leave it out")
        if not str(batch_size).isdigit() or int(batch_size) < 1:
            raise FoveateError(f"--batch_size is {batch_size}; it must be a whole number of at least 1")
        self.spec, self.loyalty, self.system = (
            read_spec(str(spec)),
            read_switch("loyalty", loyalty),
            str(system).strip(),
        )
        self.accelerator = Accelerator()
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
        if self._world_size > 1 and device_map is None:
            device = str(self.accelerator.device)
        self.processor = load_processor(pretrained, revision=revision)
        self.processor.tokenizer.padding_side = "left"
        self._model = load_model(
            pretrained,
            revision=revision,
            device=None if device_map is not None else device,
            dtype=str(dtype),
            device_map=device_map,
            quantize=quantize,
        )
        self.batch_size_per_gpu = int(batch_size)
        self.voco = None if voco is None else VoCo.from_pretrained(str(voco))
        self.voco_tokens = read_count("voco_tokens", voco_tokens)
        if self.voco is None and self.voco_tokens is not None:
            raise FoveateError("--model_args has voco_tokens and no voco; name the folder of the VoCo tokens")
        if self.voco is not None:
            if self.spec is not None or self.loyalty or self.system:
                raise FoveateError("VoCo tokens stand for the whole image: leave spec, loyalty and system out")
            self.voco.check(self._model)

    # What lmms-eval reads of a model

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        return self.processor.tokenizer

    @property
    def model(self) -> Any:
        """The model itself."""
        return self._model

    @property
    def config(self) -> Any:
        """The model's configuration."""
        return self._model.config

    @property
    def device(self) -> torch.device:
        """Where inputs go."""
        return self._model.device

    @property
    def batch_size(self) -> int:
        """How many prompts the model gets at once."""
        return self.batch_size_per_gpu

    @property
    def rank(self) -> int:
        """The number of this process."""
        return self._rank

    @property
    def world_size(self) -> int:
        """How many processes there are."""
        return self._world_size

    @property
    def eot_token_id(self) -> int:
        """The id that ends a text."""
        return self.tokenizer.eos_token_id

    @property
    def max_length(self) -> int:
        """The longest prompt."""
        return int(getattr(self.config.get_text_config(), "max_position_embeddings", 2048))

    # What it is asked

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Refuse tasks that compare probabilities of given answers."""
        raise FoveateError("foveate answers tasks of the type generate_until; this one asks for likelihoods")

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Refuse tasks whose questions follow from answers."""
        raise FoveateError("foveate answers tasks of the type generate_until; this one has several rounds")

    @torch.inference_mode()
    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        """Answer all questions of this process, in batches of those with the same settings for decoding."""
        found: list[GenerationResult] = []
        images = before = after = mean = equal = tokens = 0
        began = time.monotonic()
        order = utils.Collator(
            [each.args for each in requests],
            lambda each: str(each[2]),
            group_fn=lambda each: each[2],
            grouping=True,
        )
        for chunk in order.get_batched(n=self.batch_size, batch_fn=None):
            settings = chunk[0][2]
            chats = [self._messages(*given[1:]) for given in chunk]
            texts, inputs = self._inputs(chats)
            run = None
            if self.voco is not None:
                memories = self._memories(self.voco, chats, inputs)
                answers, counts = self._from_memories(self.voco, memories, chats, settings)
                images, before = images + len(memories), before + sum(each.visual_tokens for each in memories)
                after += sum(each.tokens for each in memories)
                mean = after
            else:
                with nullcontext() if self.spec is None else apply(self._model, self.spec) as run:
                    answers, counts = self._generate(inputs, settings)
            if run is not None:
                sums = run.report().sums
                images, before, after = images + sums.images, before + sums.before, after + sums.after
                mean += sums.mean_over_layers
            if self.loyalty and self.spec is not None:
                dense, _ = self._generate(inputs, settings)
                equal += sum(one == other for one, other in zip(answers, dense, strict=True))
            tokens += sum(counts)
            for text, answer, count in zip(texts, answers, counts, strict=True):
                found.append(GenerationResult(text=answer, token_counts=TokenCounts(output_tokens=count)))
                self.cache_hook.add_partial("generate_until", (text, settings), answer)
        taken = time.monotonic() - began
        told: dict[str, Any] = {"spec": self._asked_under(), "num_requests": len(found)}
        if images:
            told |= {"visual_tokens_dense": before / images, "visual_tokens": after / images}
            told["visual_tokens_over_layers"] = mean / images
        if self.loyalty and found:
            told["loyalty"] = equal / len(found) if self.spec is not None else 1.0
        log_metrics(taken, tokens, tokens / taken if taken else 0.0, told)
        logger.info(f"foveate: {', '.join(f'{name} {value}' for name, value in told.items())}")
        return order.get_original(found)

    def _asked_under(self) -> str:
        """Return what the log calls the configuration."""
        if self.voco is not None:
            return f"voco:{self.voco_tokens or self.voco.tokens}"
        return "dense" if self.spec is None else str(self.spec)

    def _messages(self, to_messages: Any, settings: Any, number: int, task: str, split: str) -> ChatMessages:
        return ChatMessages(messages=to_messages(self.task_dict[task][split][number]))

    def _inputs(self, chats: Sequence[ChatMessages]) -> tuple[list[str], dict[str, Any]]:
        """Return the prompts as text, and as the inputs of the model, padded on the left."""
        texts, pictures = [], []
        for chat in chats:
            images, videos, sounds = chat.extract_media()
            if videos or sounds:
                raise FoveateError("foveate asks about images in lmms-eval; this task has videos or sounds")
            messages = chat.to_hf_messages()
            if self.system:
                first = {"role": "system", "content": [{"type": "text", "text": self.system}]}
                messages = [first, *(each for each in messages if each["role"] != "system")]
            texts.append(chat_text(self.processor, messages))
            pictures.append([image.convert("RGB") for image in images])
        given: dict[str, Any] = {}
        if any(pictures):
            # Some processors want a list for each prompt, and none takes an empty one.
            given["images"] = pictures if all(pictures) else [image for own in pictures for image in own]
        inputs = self.processor(
            text=texts, padding=True, return_tensors="pt", **given, **special_tokens(self.processor, texts[0])
        ).to(self.device)
        for name, value in inputs.items():
            if isinstance(value, torch.Tensor) and value.is_floating_point():
                inputs[name] = value.to(self._model.dtype)
        return texts, dict(inputs)

    def _memories(self, voco: VoCo, chats: Sequence[ChatMessages], inputs: dict[str, Any]) -> list[VoCoMemory]:
        """Return one memory for each prompt, of all its images."""
        counts = [len(chat.extract_media()[0]) for chat in chats]
        if not all(counts):
            raise FoveateError("VoCo tokens stand for images, and a question of this task has none")
        every = iter(voco.encode(self._model, inputs, self.voco_tokens))
        return [
            own[0] if len(own) == 1 else voco.join(own) for own in ([next(every) for _ in range(n)] for n in counts)
        ]

    def _from_memories(
        self, voco: VoCo, memories: Sequence[VoCoMemory], chats: Sequence[ChatMessages], settings: dict[str, Any]
    ) -> tuple[list[str], list[int]]:
        """Return the answers to the questions of a batch, each after its memory, and how many tokens each has."""
        questions = [_question(chat) for chat in chats]
        said = voco.generate(self._model, memories, questions, self.processor, **_options(settings))
        answers = [_until(text, settings.get("until")) for text in said]
        return answers, [len(self.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in answers]

    def _generate(self, inputs: dict[str, Any], settings: dict[str, Any]) -> tuple[list[str], list[int]]:
        """Return the answers to a batch, and how many tokens each has."""
        options = _options(settings)
        ids = self._model.generate(**inputs, **options)[:, inputs["input_ids"].shape[1] :]
        answers = [
            _until(text, settings.get("until")) for text in self.processor.batch_decode(ids, skip_special_tokens=True)
        ]
        pad = getattr(self._model.generation_config, "pad_token_id", None)
        return answers, [int((row != pad).sum()) for row in ids]


def _options(settings: dict[str, Any]) -> dict[str, Any]:
    """Return what a task says about decoding, as options of `generate`."""
    options = {name: settings[name] for name in _PASSED if settings.get(name) is not None}
    if not options.get("temperature"):
        options |= {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    options.setdefault("max_new_tokens", 1024)
    return options


def _question(chat: ChatMessages) -> str:
    """Return the text of a chat of one turn.

    Raises:
        FoveateError: it has several.
    """
    messages = chat.to_hf_messages()
    if len(messages) != 1 or messages[0]["role"] != "user":
        raise FoveateError("questions to VoCo tokens are one turn of the user; this task has other messages")
    return "\n".join(part["text"] for part in messages[0]["content"] if part["type"] == "text")


def _until(text: str, ends: Any) -> str:
    """Return an answer up to the first text that ends it, without blanks around."""
    for end in _texts(ends):
        text = text.split(end)[0]
    return text.strip()


def _texts(ends: Any) -> Iterator[str]:
    yield from (each for each in ([ends] if isinstance(ends, str) else ends or ()) if each.strip())
