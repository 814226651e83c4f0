"""Streams of frames beside the whole clip compressed at once, with the real processor of each family."""

from typing import Any

import numpy as np
import pytest
import torch
from directories import make_processor
from PIL import Image
from rows import ROWS, Row
from test_contract import generate
from test_processors import CLIPS

from foveate.engine import ShortInputs, compress
from foveate.engine.images import KeptTokens
from foveate.engine.past import Past
from foveate.errors import FoveateError
from foveate.families import family_of
from foveate.layout import Layout, Segment
from foveate.methods import method_class
from foveate.prompts import chat_text
from foveate.stream import Stream
from foveate.tokens import EncoderAttention, Signal

NAMES = ("llava", "llava_onevision", "llava_next_video", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl", "smolvlm")
PLACES = {"resize": "pixels", "@features": "features"}
QUESTION = "what colour is it ?"
FRAMES = [
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (7, 7, 3), dtype=np.uint8)).resize((140, 112))
    for seed in range(12)
]


@pytest.fixture(params=[row for row in ROWS if row.name in NAMES], ids=lambda row: row.name)
def row(request: pytest.FixtureRequest) -> Row:
    return request.param


@pytest.fixture
def processor(row: Row, model: Any) -> Any:
    """The real processor, whose chat template writes clips where there are words for them."""
    words = CLIPS.keys() & row.words.keys()
    if words:
        pytest.importorskip("torchvision")
    made = make_processor(row, model.config)
    if words:
        made.chat_template = (
            "{% for turn in messages %}user {% for part in turn.content %}{% if part.type == 'video' %}"
            + "".join(CLIPS[word] for word in words)
            + " {% else %}{{ part.text }} {% endif %}{% endfor %}{% endfor %}"
        )
        # As released models have it: small frames are enlarged alike, alone and in a clip.
        limits = getattr(family_of(model), "clip_pixel_limits", None)
        if limits is not None:
            made.video_processor.size = {"shortest_edge": 28 * 28, "longest_edge": limits[1]}
    return made


def whole(model: Any, processor: Any, spec: str, numbers: list[int]) -> ShortInputs:
    """Inputs of the whole clip, compressed at once."""
    family = family_of(model)
    as_clip = getattr(processor, "video_processor", None) is not None
    content = [{"type": "video"}] if as_clip else [{"type": "image"}] * len(numbers)
    text = chat_text(processor, [{"role": "user", "content": [*content, {"type": "text", "text": QUESTION}]}])
    given: dict[str, Any] = {"images": [FRAMES[number] for number in numbers]}
    if as_clip:
        given = {"videos": [np.stack([np.asarray(FRAMES[number]) for number in numbers])], "do_sample_frames": False}
        # The last frame may come twice.
        indices = list(range(len(numbers)))
        given["video_metadata"] = [{"fps": 2.0, "total_num_frames": len(numbers), "frames_indices": indices}]
    inputs = processor(text=[text], return_tensors="pt", **given)
    frame = ":per=frame" if family.clip_places else ""
    return compress(model, inputs, spec.format(frame) if "{}" in spec else spec + frame)


@pytest.mark.parametrize("spec", ["cls:3", "pool:0.25", "resize:0.5+cls:0.5", "cls:3{}@features"])
def test_a_stream_within_its_budget_is_the_whole_clip(row: Row, model: Any, processor: Any, spec: str) -> None:
    """In ids, positions, features and answers; also while a frame waits for another one."""
    places = family_of(model).clip_places
    if places and any(word in spec and place not in places for word, place in PLACES.items()):
        return
    stream = Stream(model, spec.format(""), processor, budget=1000, fps=2.0)
    for count in (1, 5, 6):
        stream.extend(FRAMES[stream.frames : count])
        mine, expected = stream.inputs(QUESTION), None
        numbers = list(range(count))
        if count % family_of(model).frames_per_patch and hasattr(processor, "video_processor"):
            numbers.append(count - 1)
        expected = whole(model, processor, spec, numbers)
        assert torch.equal(mine["input_ids"], expected["input_ids"])
        assert torch.equal(mine["position_ids"], expected["position_ids"])
        for one, other in zip(mine.images, expected.images, strict=True):
            assert torch.equal(one.slot, other.slot)
            torch.testing.assert_close(one.features, other.features, atol=1e-5, rtol=1e-5)
        assert torch.equal(generate(model, mine), generate(model, expected))


@pytest.mark.parametrize("spec", ["cls:4"])
def test_what_is_thinned_is_what_the_method_would_keep(row: Row, model: Any, processor: Any, spec: str) -> None:
    """A rule that scores each token keeps of its own choice what it would choose of the whole frame."""
    stream = Stream(model, spec, processor, budget=11, least=1, fps=2.0)
    stream.extend(FRAMES)
    assert stream.tokens <= 11
    held = stream.held
    assert sum(frame.span for frame in held) == len(FRAMES)
    assert [frame.number for frame in held] == sorted(frame.number for frame in held)
    assert len({frame.tokens for frame in held}) > 1
    short = stream.inputs(QUESTION)
    kept = [image.plan.slot[0] for image in short.images if image.plan is not None]
    together = family_of(model).frames_per_patch
    if len(short.images) == 1:
        assert short.images[0].seen is not None
        (clip,) = short.images[0].seen.segments
        count = clip.h * clip.w
        kept = [kept[0][kept[0] // count == number] % count for number in range(clip.t)]
    for frame, slots in zip(held, kept, strict=True):
        numbers = list(range(frame.number, frame.number + together))
        (image,) = whole(model, processor, f"cls:{frame.tokens}", numbers).images
        assert image.plan is not None
        assert torch.equal(slots, image.plan.slot[0])
    assert generate(model, short).shape[1] > 1


@pytest.mark.parametrize("row", [row for row in ROWS if row.name in ("llava", "qwen2_vl")], ids=lambda row: row.name)
def test_a_frame_is_encoded_once(row: Row, model: Any, processor: Any) -> None:
    calls: list[int] = []
    handle = family_of(model).tower.register_forward_hook(lambda *_: calls.append(1))
    stream = Stream(model, "cls:4", processor, budget=10, least=1)
    stream.extend(FRAMES[:8])
    for _ in range(3):
        stream.inputs(QUESTION)
    handle.remove()
    assert len(calls) == 8 // (family_of(model).frames_per_patch if hasattr(processor, "video_processor") else 1)


def test_memory_is_bounded_over_a_thousand_frames() -> None:
    """Everything that a stream holds of its past; what is kept of a frame is the tokens with the highest attention."""
    past = Past(method_class("cls")(), budget=32, least=1)
    layout = Layout((Segment(1, 4, 4),))
    for number in range(1000):
        features, attention = torch.randn(4, 8), torch.rand(4)
        signals: dict[Signal, torch.Tensor] = {EncoderAttention(): attention}
        past.add(number, KeptTokens(layout, layout, torch.arange(4) * 4, features, (), signals, torch.empty(0)))
        assert past.tokens <= 32
        # Features, attention and the place of each token.
        assert sum(frame.kept.nbytes for frame in past.frames) <= 32 * (4 * 8 + 4 + 8)
    assert sum(frame.span for frame in past.frames) == 1000
    assert past.frames[0].number == 0
    # The density falls by half with each doubling of age.
    products = [len(frame.kept) / frame.span * (1000 - frame.number - frame.span / 2) for frame in past.frames[:-4]]
    assert max(products) / min(products) < 5


@pytest.mark.parametrize("row", [row for row in ROWS if row.name == "llava"], ids=lambda row: row.name)
def test_a_stream_holds_its_past_and_nothing_else(row: Row, model: Any, processor: Any) -> None:
    stream = Stream(model, "cls:4", processor, budget=32, least=1)
    sizes: list[int] = []
    for number in range(60):
        stream.append(FRAMES[number % len(FRAMES)])
        sizes.append(stream.nbytes)
    assert max(sizes) <= 32 * (4 * model.config.text_config.hidden_size + 4 + 8)
    assert stream.frames == sum(frame.span for frame in stream.held) == 60
    short = stream.inputs(QUESTION)
    assert sum(image.after for image in short.images) == stream.tokens <= 32


@pytest.mark.parametrize("row", [row for row in ROWS if row.name == "llava"], ids=lambda row: row.name)
def test_what_a_stream_cannot_do_is_refused(row: Row, model: Any, processor: Any) -> None:
    for spec, text in (
        ("fastv:4@2", "acts inside the decoder"),
        ("cdpruner:4", "cdpruner reads the question"),
        ("evs:4", "use a method for images|is not given clips"),
    ):
        with pytest.raises(FoveateError, match=text):
            Stream(model, spec, processor, budget=32)
    with pytest.raises(FoveateError, match="budget of 4 has to hold one frame and 1 tokens of an older one"):
        Stream(model, "cls:4", processor, budget=4, least=1).append(FRAMES[0])
    for options, text in (
        ({"budget": 1}, "budget"),
        ({"budget": 8, "least": 5}, "least"),
        ({"budget": 8, "fps": 0}, "fps"),
    ):
        with pytest.raises(FoveateError, match=text):
            Stream(model, "cls:4", processor, **options)
    stream = Stream(model, "cls:4", processor, budget=32)
    with pytest.raises(FoveateError, match="no frame has come yet"):
        stream.ask(QUESTION)
    for wrong in ("a.mp4", np.zeros((4, 4, 3)), np.zeros((4, 4), dtype=np.uint8), None):
        with pytest.raises(FoveateError, match="a frame"):
            stream.append(wrong)  # pyright: ignore[reportArgumentType]
    with pytest.raises(FoveateError, match="frames must be pictures or arrays"):
        stream.extend("a.mp4")
    stream.append(np.asarray(FRAMES[0]))
    stream.append(torch.from_numpy(np.array(FRAMES[0])))
    with pytest.raises(FoveateError, match="the frames of a stream have one size"):
        stream.append(FRAMES[0].resize((50, 50)))
    with pytest.raises(FoveateError, match="question is empty"):
        stream.ask("  ")
    assert (stream.frames, stream.tokens) == (2, 8)
    assert isinstance(stream.ask(QUESTION, max_new_tokens=3), str)
