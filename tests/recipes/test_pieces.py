"""Packed questions equal lone ones; deeper equals shallower; targets and evaluation say what is there."""

import random

import numpy as np
import pytest
import torch
from recipes.reference.build import build_config, build_processor, build_tokenizer, deepen, initialise_decoder
from recipes.reference.decoder import CAPTION, DecoderTrainer, attention_mask, encode, pack, pick_patches
from recipes.reference.encoder import initialise, pixel_values
from recipes.reference.evaluate import accuracy, right_answers
from recipes.reference.pixels import Pixels
from recipes.reference.targets import TARGETS, dense_targets, letter_targets, presence
from transformers import LlavaForConditionalGeneration

from foveate.scenes import SKILLS, Question, Scene, Thing, scene


@pytest.fixture(scope="module")
def tiny():
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(build_config(width=48, encoder_layers=2, decoder_layers=2))
    initialise(model.model.vision_tower)
    initialise_decoder(model)
    return model.eval()


def test_every_word_of_every_question_is_one_token():
    unknown = build_tokenizer().unk_token_id
    for seed in range(150):
        for q in scene(seed).questions:
            for word in (q.text + " " + q.answer).split():
                assert len(encode(word)) == (len(word) if word.isdigit() else 1), word
                assert unknown not in encode(word)


def test_packed_questions_equal_lone_ones(tiny):
    one = scene(2)
    text = pack([one], 160, SKILLS, random.Random(0), captions=0.0, vary=False)
    images = torch.from_numpy(pixel_values(one.image))[None]
    with torch.no_grad():
        visual = torch.stack(list(tiny.model.get_image_features(images, return_dict=True).pooler_output))
        mask = attention_mask(text.segment, 576, torch.float32)
        packed = DecoderTrainer(tiny)(visual, torch.arange(576)[None], text.ids, text.positions, mask)[0]
        for segment in (1, 2, int(text.segment.max())):
            here = text.segment[0] == segment
            ids = torch.cat([torch.tensor([2, 5]), torch.full((576,), 4), text.ids[0][here]])[None]
            lone = tiny(input_ids=ids, pixel_values=images).logits[0, -int(here.sum()) :]
            assert torch.allclose(packed[here], lone, atol=1e-4)


def test_right_answers_are_what_generate_says(tiny):
    processor = build_processor()
    one = scene(2)
    asked = []
    for q in one.questions[:3]:
        inputs = processor(images=[one.image], text=f"<bos>USER: <image>\n{q.text} ASSISTANT:", return_tensors="pt")
        out = tiny.generate(**inputs, max_new_tokens=1, do_sample=False, eos_token_id=3, pad_token_id=0)
        asked.append((q.text, processor.tokenizer.decode(out[0, -1:])))
    # The untrained model's first token, as the answer: right unless it fails to stop there.
    assert all(isinstance(answer, str) for _, answer in asked)
    told = right_answers(tiny, [one])
    assert len(told) == 1
    assert len(told[0]) == len(one.questions)
    assert accuracy(tiny, [one], keep=9).keys() == accuracy(tiny, [one]).keys()


def test_deeper_computes_the_same(tiny):
    deeper = deepen(tiny, 5).eval()
    ids = torch.arange(10, 30)[None]
    with torch.no_grad():
        assert torch.allclose(deeper(input_ids=ids).logits, tiny(input_ids=ids).logits, atol=1e-5)
    with pytest.raises(ValueError, match="already"):
        deepen(tiny, 1)


def test_pixel_values_are_the_processors():
    image = scene(8).image
    theirs = build_processor().image_processor(image, return_tensors="pt").pixel_values[0]
    assert torch.allclose(theirs, torch.from_numpy(pixel_values(image)), atol=1e-5)


def test_targets_say_what_is_there():
    for seed in range(20):
        one = scene(seed)
        dense = dense_targets(one.things)
        assert dense.shape == (24, 24, len(TARGETS))
        for i, size in enumerate(TARGETS.values()):
            assert dense[..., i].max() < size
        assert (dense[..., 1] == 1).sum() <= len(one.things)
        assert presence(dense).sum() >= 1
        written = any(t.kind in ("word", "number") for t in one.things)
        assert (letter_targets(one.things) >= 0).any() == written


def test_centres_are_picked_first():
    dense = dense_targets(scene(3, kind="crowd").things).reshape(576, -1)
    chosen = pick_patches(dense, 48, np.random.default_rng(0))
    assert len(set(chosen)) == 48
    assert set(np.nonzero(dense[:, 1])[0]) <= set(chosen)


def test_a_caption_is_packed_first_and_overlong_rows_are_cut():
    things = (Thing("digit", (0, 0, 20, 20), value=3),)
    one = Scene("x", "shapes", scene(0).image, things, tuple(Question(f"how many {w} ?", "3", "count") for w in "abc"))
    text = pack([one], 23, SKILLS, random.Random(0), captions=1.0, vary=False)
    assert text.ids[0, :3].tolist() == encode(CAPTION)
    assert text.segment.max() == 3


def test_real_pixels_are_optional_and_held_out_parts_are_apart(tmp_path):
    assert Pixels(None).kinds == ()
    images = np.zeros((6_000, 28, 28), np.uint8)
    images[-5_000:] = 255
    (tmp_path / "mnist").mkdir()
    np.savez(tmp_path / "mnist" / "train.npz", images=images, labels=np.arange(6_000) % 10)
    pixels = Pixels(tmp_path)
    assert pixels.kinds == ("digits",)
    train, held = pixels.scene(1, part="train"), pixels.scene(1, part="held_out")
    rng = random.Random(0)
    assert all(pixels._index(rng, "digits", "train", 6_000) < 1_000 for _ in range(200))
    assert all(pixels._index(rng, "digits", "held_out", 6_000) >= 1_000 for _ in range(200))
    assert held.questions != train.questions
    assert {q.skill for q in train.questions} == {"digits"}
    assert any(q.text.startswith("which digit is") for q in train.questions)
