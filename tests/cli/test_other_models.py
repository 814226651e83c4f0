"""The commands on a directory of another family: a tiny Qwen2.5-VL with random weights."""

import pytest
import torch
from commands import Commands
from PIL import Image

from foveate.images import open_image

WORDS = ("<pad>", "<eos>", "<unk>", "user", "what", "is", "it", "?", "<|vision_start|>", "<|vision_end|>")
WORDS += ("<|image_pad|>", "<|video_pad|>")


class Processor:
    """The real image processor and a tokenizer of twelve words, without the part for clips."""

    image_token = "<|image_pad|>"

    def __init__(self) -> None:
        from tokenizers import Tokenizer, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast, Qwen2VLImageProcessor

        words = {word: number for number, word in enumerate(WORDS)}
        inner = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
        inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        self.tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>")
        self.image_processor = Qwen2VLImageProcessor(size={"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 64})

    def apply_chat_template(self, turns, add_generation_prompt, tokenize):
        image, text = turns[0]["content"]
        assert image == {"type": "image"}
        return f"user <|vision_start|> {self.image_token} <|vision_end|> {text['text']}"

    def __call__(self, images, text, return_tensors):
        pixels = self.image_processor(images=images, return_tensors=return_tensors)
        count = int(pixels["image_grid_thw"][0].prod()) // 4
        whole = [each.replace(self.image_token, " ".join([self.image_token] * count)) for each in text]
        found = self.tokenizer(whole, return_tensors=return_tensors)
        types = (found["input_ids"] == WORDS.index(self.image_token)).int()
        return {**pixels, **found, "mm_token_type_ids": types}


@pytest.fixture(scope="module")
def directory_of_qwen(tmp_path_factory):
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    torch.manual_seed(0)
    model = Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(
            vision_config={
                "depth": 2,
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_heads": 4,
                "out_hidden_size": 64,
                "window_size": 56,
                "fullatt_block_indexes": [1],
                "patch_size": 14,
            },
            text_config={
                "vocab_size": len(WORDS),
                "hidden_size": 64,
                "intermediate_size": 96,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "max_position_embeddings": 512,
                "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]},
                "bos_token_id": None,
                "eos_token_id": WORDS.index("<eos>"),
                "pad_token_id": WORDS.index("<pad>"),
            },
            image_token_id=WORDS.index("<|image_pad|>"),
            video_token_id=WORDS.index("<|video_pad|>"),
            vision_start_token_id=WORDS.index("<|vision_start|>"),
            vision_end_token_id=WORDS.index("<|vision_end|>"),
        )
    )
    directory = tmp_path_factory.mktemp("qwen")
    model.save_pretrained(directory)
    return directory


@pytest.fixture
def qwen(directory_of_qwen, monkeypatch):
    import foveate.loading as module

    monkeypatch.setattr(module, "load_processor", lambda name=None, **options: Processor())
    return directory_of_qwen


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """An image of 4 rows and 9 columns of visual tokens."""
    path = tmp_path_factory.mktemp("images") / "wide.png"
    Image.linear_gradient("L").resize((9 * 28, 4 * 28)).convert("RGB").save(path)
    return path


def test_count(qwen, wide):
    found = Commands().json("count", wide, "--model", qwen, "--spec", "pool2d:8", "--spec", "resize:0.5")
    assert (found["grids"], found["total"]) == ([[1, 4, 9]], 36)
    assert [each["tokens"] for each in found["after"]] == [8, 18]


def test_ask_with_a_picture(qwen, wide, tmp_path):
    picture = tmp_path / "kept.png"
    words = ("--spec", "cls:9", "--spec", "cluster:4", "--spec", "resize:0.5", "--max-new-tokens", "2")
    found = Commands().json("ask", wide, "what is it ?", "--model", qwen, *words, "--picture", picture)
    assert [each["tokens_before"] for each in found["answers"]] == [36] * 4
    assert [each["tokens_after"] for each in found["answers"]][:3] == [36, 9, 4]
    assert open_image(picture).width > 2 * open_image(picture).height


def test_what_the_processor_refuses_is_one_line(qwen, tmp_path):
    path = tmp_path / "line.png"
    Image.new("RGB", (3000, 2)).save(path)
    said = Commands().refused("count", path, "--model", qwen)
    assert "the model's processor refuses this image" in said
    assert "\n" not in said


def test_more_than_this_image_has(qwen, wide):
    said = Commands().refused("ask", wide, "what is it ?", "--model", qwen)
    assert said == "cluster:64: keep 64 is more than the 36 tokens there are; keep at most 36, or 1.0"


def test_a_processor_that_needs_a_missing_package(directory_of_qwen, wide, monkeypatch):
    from transformers import AutoProcessor

    def missing(*arguments, **options):
        raise ImportError("\nQwen2VLVideoProcessor requires the Torchvision library\nand more advice")

    monkeypatch.setattr(AutoProcessor, "from_pretrained", missing)
    said = Commands().refused("count", wide, "--model", directory_of_qwen)
    words = "it needs torchvision, which is missing; install it (torchvision from the same index as torch)"
    assert said.endswith(words)


def test_a_model_that_needs_a_missing_package(directory_of_qwen, monkeypatch):
    from transformers import AutoModelForImageTextToText

    def missing(*arguments, **options):
        raise ImportError("\nTimmWrapperModel requires the timm library\nand more advice")

    monkeypatch.setattr(AutoModelForImageTextToText, "from_config", missing)
    said = Commands().refused("families", directory_of_qwen)
    assert "can't be made: it needs timm, which is missing; install it" in said
    assert "download" not in said
