"""The embedded model for clips loads, reads a clip as one layout of frames, and its processor refuses what can't be."""

import pytest
import torch

import foveate
from foveate.embedded.clips import CLIP_PATH, clip_reference
from foveate.errors import FoveateError
from foveate.families import family_of
from foveate.scenes import clip


@pytest.fixture(scope="module")
def loaded():
    return clip_reference()


def asked(processor, one, text):
    turn = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": text}]}]
    return processor(processor.apply_chat_template(turn, add_generation_prompt=True), [one.frames])


def test_the_directory_is_small_and_holds_no_pickle():
    files = [each for each in CLIP_PATH.iterdir() if each.is_file()]
    assert sum(each.stat().st_size for each in files) <= 24e6
    assert {each.suffix for each in files} <= {".json", ".safetensors", ".jinja", ".md"}


def test_it_answers_about_clips_and_methods_for_clips_act_on_them(loaded):
    model, processor = loaded
    right = {"dense": 0, "evs:72": 0}
    for kind in ("change", "glimpse"):
        one = clip(0, split="test", frames=8, kind=kind)
        question = one.questions[-1]
        inputs = asked(processor, one, question.text)
        (layout,) = family_of(model).clip_layouts(inputs)
        assert (layout.segments[0].t, layout.content) == (8, 288)
        for spec in right:
            short = inputs if spec == "dense" else foveate.compress(model, inputs, spec)
            out = model.generate(**short, max_new_tokens=4)
            answer = processor.decode(out[0, short["input_ids"].shape[1] :], skip_special_tokens=True)
            right[spec] += answer == question.answer
    assert min(right.values()) >= 1


def test_clips_of_two_lengths_are_refused_and_so_are_missing_ones(loaded):
    _, processor = loaded
    four, eight = clip(0).frames, clip(0, frames=8).frames
    with pytest.raises(FoveateError, match=r"same number of frames, at least one, not \{8, 4\}|not \{4, 8\}"):
        processor(["<video> a", "<video> b"], [four, eight])
    with pytest.raises(FoveateError, match="1 places for clips, and there are 0 clips"):
        processor("<video> a", [])


def test_a_batch_of_clips_is_each_alone(loaded):
    model, processor = loaded
    clips = [clip(seed, frames=4, kind="camera") for seed in range(2)]
    texts = ["USER: <video>\nwhere does the camera move ?", "USER: <video>\nis there a ring ?"]
    both = processor(texts, [one.frames for one in clips])
    with torch.inference_mode():
        logits = model(**both).logits[:, -1]
        for row, (text, one) in enumerate(zip(texts, clips, strict=True)):
            alone = model(**processor(text, [one.frames])).logits[0, -1]
            torch.testing.assert_close(logits[row], alone, atol=1e-4, rtol=1e-4)
