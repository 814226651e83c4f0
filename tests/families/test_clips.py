"""What holds for clips, in every family that takes them: the points of the contract, and what only clips have.

In the contract's own tests, run here once more, pictures A and B are clips, of different lengths where a call can hold
such, and C is a picture.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from inspect import signature
from typing import Any

import pytest
import test_contract
import test_depth
import torch
from rows import ROWS, Row
from rows.row import INSTALLED
from test_contract import BATCH, CHAT, dense_positions, generate, kept_columns, logits
from versions import BEAMS_OF_SEVERAL_IMAGES, CACHE, cache_of_output

from foveate.costmodel import cost
from foveate.engine import apply, compress, encode, encoder_outputs
from foveate.errors import FoveateError
from foveate.families import family_of
from foveate.schedule import tokens_between

TAKES_CLIPS = [row.with_clips() for row in ROWS if row.clips]
MIXED = "t3 C t4 A t2 C t5 B t3"
"""A picture, a clip, a picture, a clip."""
SPECS = ["random:6", "cls:6", "cluster:6", "stride:6", "pool2d:6"]
plain_backend = test_contract.plain_backend


@pytest.fixture(params=TAKES_CLIPS, ids=lambda row: row.name)
def row(request: pytest.FixtureRequest) -> Row:
    return request.param


def takes(model: Any, spec: str) -> bool:
    """Whether the steps of a spec can act on clips."""
    place = "pixels" if spec.startswith("resize") else spec.partition("@")[2] or "input"
    return place.isdigit() or place in family_of(model).clip_places


# The contract, once more.


@pytest.mark.parametrize(
    "name",
    [
        "test_dropping_tokens_changes_the_logits",
        "test_keeping_everything_is_bit_equal_without_padding",
        "test_kept_tokens_keep_their_positions",
        "test_positions_made_here_are_the_models_own",
        "test_packed_decoding_goes_on_without_gaps",
        "test_a_batch_that_only_the_cut_makes_ragged",
        "test_a_second_turn_is_the_whole_conversation",
        "test_a_second_turn_of_a_padded_batch",
        "test_a_second_turn_of_a_padded_batch_in_generate",
        "test_a_second_image_after_an_answer",
        "test_an_image_after_a_text_only_turn",
        "test_two_conversations_at_once",
        "test_two_threads",
        "test_a_copied_cache_knows_what_it_holds",
        "test_rows_of_a_cache_move_with_what_it_knows",
        "test_text_only_prompts_pass_untouched",
        "test_a_failed_call_leaves_the_next_one_right",
        "test_chunked_prefill_is_refused",
        "test_compressed_inputs_are_not_compressed_again",
        "test_a_given_cache_is_used",
    ],
)
def test_the_contract(row: Row, model: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(test_contract, "METHODS", [spec for spec in test_contract.METHODS if takes(model, spec)])
    getattr(test_contract, name)(row, model)


@pytest.mark.parametrize("spec", ["random:1.0", "pool:1.0", "cls:1.0:positions=keep@features", "resize:1.0"])
def test_keeping_everything_is_the_untouched_model(row: Row, any_model: Any, spec: str) -> None:
    if takes(any_model, spec):
        test_contract.test_keeping_everything_is_the_untouched_model(row, any_model, spec)


@pytest.mark.parametrize("spec", ["random:6", "stride:6", "cls:6"])
def test_dropping_is_masking(row: Row, any_model: Any, spec: str) -> None:
    test_contract.test_dropping_is_masking(row, any_model, spec)


@pytest.mark.parametrize("spec", ["cluster:6", "evs:6"])
def test_twice_is_the_same(row: Row, any_model: Any, spec: str) -> None:
    if takes(any_model, spec):
        test_contract.test_twice_is_the_same(row, any_model, spec)


@pytest.mark.parametrize("given", [True, False])
def test_packed_positions_have_no_gaps(row: Row, model: Any, given: bool) -> None:
    test_contract.test_packed_positions_have_no_gaps(row, model, given)


@pytest.mark.parametrize("spec", ["random:6", "cls:0.3", "pool:0.25:positions=keep", "resize:0.5", "cdpruner:6"])
def test_a_batch_is_its_samples_alone(row: Row, any_model: Any, spec: str) -> None:
    if takes(any_model, spec):
        test_contract.test_a_batch_is_its_samples_alone(row, any_model, spec)


@pytest.mark.parametrize("prompts", [(CHAT,), BATCH])
def test_decoding_with_a_cache_is_forward_without(row: Row, any_model: Any, prompts: tuple[str, ...]) -> None:
    test_contract.test_decoding_with_a_cache_is_forward_without(row, any_model, prompts)


def test_attention_implementations_agree(row: Row, plain_backend: str) -> None:
    test_contract.test_attention_implementations_agree(row, plain_backend)


@pytest.mark.parametrize("spec", ["random:6", "random:6:positions=pack"])
def test_a_second_clip_in_a_second_turn(row: Row, any_model: Any, spec: str) -> None:
    # Without a cache, the dense model gives text after a clip of many frames a position before its last frame's.
    assert row.clips is not None
    short = [letter for letter, layout in row.clips.layouts.items() if layout.segments[0].t < 4]
    test_contract.test_a_second_image_in_a_second_turn(row.with_clips("".join(short)), any_model, spec)


@pytest.mark.parametrize("spec", [*SPECS, "cluster:6@features"])
def test_counts(row: Row, model: Any, spec: str) -> None:
    if not takes(model, spec):
        return
    family = family_of(model)
    inputs = row.inputs(MIXED)
    short = compress(model, inputs, spec)
    letters = [piece for piece in MIXED.split() if piece[0] != "t"]
    assert [image.layout for image in short.images] == [row.layout(letter) for letter in letters]
    assert family.clip_layouts(inputs) == (row.layout("A"), row.layout("B"))
    for image in short.images:
        fewest, most = tokens_between(spec, family, image.layout)
        assert fewest <= image.after <= most
    with apply(model, spec) as run:
        logits(model, inputs)
    assert [image.after for image in run.report().images] == [image.after for image in short.images]
    assert [plans.layout for plans in run.plans] == [image.layout for image in short.images]


@pytest.mark.parametrize(
    "spec", [*SPECS, "pool:6", "cdpruner:6", "cluster:6@features", "resize:0.5", "cluster:2:per=frame"]
)
def test_compress_is_apply(row: Row, any_model: Any, spec: str) -> None:
    if takes(any_model, spec):
        test_contract.test_compress_is_apply(row, any_model, spec)


def test_a_rule_of_clips(row: Row, model: Any) -> None:
    inputs = row.inputs("t6 A t5", "t2 B t9")
    for spec in ("evs:6", "frames:0.5"):
        short = compress(model, inputs | {"position_ids": dense_positions(model, inputs)}, spec)
        expected = generate(model, short)
        with apply(model, spec) as run:
            assert torch.equal(generate(model, inputs), expected)
        assert all(image.after < image.before for image in run.report().images)


@pytest.mark.parametrize("side", ["left", "right"])
def test_loss_and_gradients_are_the_masked_models(row: Row, side: str) -> None:
    test_contract.test_loss_and_gradients_are_the_masked_models(row, side)


def test_gradient_checkpointing_changes_nothing(row: Row) -> None:
    test_contract.test_gradient_checkpointing_changes_nothing(row, "random:6")


@contextmanager
def beams_of_clips(row: Row) -> Iterator[None]:
    """Expect the refusal of beams whose clips transformers loses: those of LLaVA-NeXT-Video in 5.19."""
    if row.name == "llava_next_video" and INSTALLED < (5, 20):
        with pytest.raises(FoveateError, match="images and 0 came to the decoder"):
            yield
        return
    yield


@BEAMS_OF_SEVERAL_IMAGES
@pytest.mark.parametrize("prompts", [(CHAT,), BATCH])
def test_beams(row: Row, any_model: Any, prompts: tuple[str, ...]) -> None:
    with beams_of_clips(row):
        test_contract.test_beams(row, any_model, prompts, "random:6")


@BEAMS_OF_SEVERAL_IMAGES
def test_several_answers_share_one_plan(row: Row, model: Any) -> None:
    with beams_of_clips(row):
        test_contract.test_several_answers_share_one_plan(row, model, "random:6")


# Inside the decoder.


@pytest.mark.inside
@pytest.mark.parametrize("spec", ["random:1.0@1", "pool:1.0@1,2"])
def test_keeping_everything_inside(row: Row, any_model: Any, spec: str) -> None:
    test_depth.test_keeping_everything_is_the_untouched_model(row, any_model, spec)


@pytest.mark.inside
@pytest.mark.parametrize(
    "name",
    ["test_dropping_is_masking", "test_decoding_is_masking", "test_merging_and_packing_are_the_layers_run_by_hand"],
)
@torch.no_grad()
def test_inside_the_decoder(row: Row, any_model: Any, name: str) -> None:
    test: Any = getattr(test_depth, name)
    spec = {"test_decoding_is_masking": "random:6@1"}.get(name, "pool:6@1")
    test(row, any_model, **({"layer": 1} if "layer" in signature(test).parameters else {"spec": spec}))


@pytest.mark.inside
def test_a_rule_that_reads_attention_inside(row: Row, any_model: Any) -> None:
    test_depth.test_a_batch_is_its_samples_alone(row, any_model, "fastv:6@1")


# What only clips have.


@pytest.mark.parametrize("spec", ["random:1.0", "random:6", "cls:6"])
def test_pictures_and_clips_in_one_prompt(row: Row, any_model: Any, spec: str) -> None:
    """In whatever order; and each is what it is alone."""
    inputs = row.inputs(MIXED, "t2 A t4")
    given = inputs | {"position_ids": dense_positions(any_model, inputs)}
    short = compress(any_model, given, f"{spec}:positions=keep")
    keep = kept_columns(row, inputs, short)
    with torch.no_grad():
        oracle = test_contract.without(row, any_model, given, keep)
    with apply(any_model, f"{spec}:positions=keep"):
        full = logits(any_model, given)
    real = keep & inputs["attention_mask"].bool()
    torch.testing.assert_close(full[real], oracle[real], atol=1e-5, rtol=1e-5)
    alone = compress(any_model, row.inputs("t2 A t4"), spec).images[0]
    for image in (short.images[1], short.images[4]):
        assert torch.equal(image.slot, alone.slot)
        torch.testing.assert_close(image.features, alone.features, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("prompt", [CHAT, MIXED])
def test_clips_encoded_once_serve_many_specs(row: Row, model: Any, prompt: str) -> None:
    specs = [spec for spec in ("random:6", row.select("6"), "cluster:6@features") if takes(model, spec)]
    inputs = row.inputs(prompt)
    encoded = encode(model, inputs, specs)
    without = {name: value for name, value in inputs.items() if not name.startswith("pixel_values")}
    assert [layout.is_clip for layout in encoded.layouts] == [row.is_clip(each) for each in prompt.split()[1::2]]
    for spec in specs:
        again = compress(model, inputs, spec)
        once = compress(model, without, spec, encoded=encoded)
        torch.testing.assert_close(logits(model, once), logits(model, again), atol=1e-5, rtol=1e-5)
        with apply(model, spec):
            expected = generate(model, inputs)
            assert torch.equal(
                generate(model, without | {"mm_encoder_outputs": encoder_outputs(model, encoded)}), expected
            )


@pytest.mark.parametrize("spec", ["random:1.0", "pool:1.0@1"])
@torch.no_grad()
def test_the_next_token_comes_after_the_last_frame(row: Row, model: Any, spec: str) -> None:
    """Where the text after a clip ends before its last frame, in `forward` with a cache."""
    if row.takes(spec):
        inputs, token = row.inputs("t6 B t1"), torch.full((1, 1), 33)
        dense = model(input_ids=token, **{CACHE: cache_of_output(model(**inputs, use_cache=True))}).logits
        with apply(model, spec):
            mine = model(input_ids=token, **{CACHE: cache_of_output(model(**inputs, use_cache=True))}).logits
        torch.testing.assert_close(mine, dense, atol=1e-5, rtol=1e-5)


def test_plans_of_a_clip_have_its_frames(row: Row, model: Any) -> None:
    with apply(model, "random:6") as run:
        logits(model, row.inputs(MIXED))
    frames = [plans.layout.segments[0].t for plans in run.plans]
    assert frames == [1, row.layout("A").segments[0].t, 1, row.layout("B").segments[0].t]
    kept = run.plans[1].kept(0)
    assert len(kept) == 6
    assert int(kept.max()) < row.layout("A").content


def test_another_clip_changes_the_logits(row: Row, model: Any) -> None:
    inputs = row.inputs(CHAT)
    other = inputs | {"pixel_values_videos": inputs["pixel_values_videos"].flip(0) * -1}
    with apply(model, "random:6"):
        assert (logits(model, inputs)[:, -1] - logits(model, other)[:, -1]).abs().max() > 1e-2


def test_a_clip_that_did_not_come_is_refused(row: Row, model: Any) -> None:
    names = family_of(model).video_inputs
    without = {name: value for name, value in row.inputs(CHAT).items() if name not in names}
    with apply(model, "random:6"), pytest.raises(FoveateError, match="no image came with it"):
        logits(model, without)
    with pytest.raises(FoveateError, match="no image came with it"):
        compress(model, without, "random:6")
    mixed = {name: value for name, value in row.inputs(MIXED).items() if name not in names}
    with pytest.raises(FoveateError, match="placeholders"):
        compress(model, mixed, "random:6")


def test_placeholders_that_are_mixed_up_are_refused(row: Row, model: Any) -> None:
    assert row.clips is not None
    inputs = row.inputs("t3 C t4 A t2")
    ids = inputs["input_ids"].clone()
    first, last = int((ids[0] == row.image_token).nonzero()[1]), int((ids[0] == row.clips.token).nonzero()[0])
    ids[0, first], ids[0, last] = row.clips.token, row.image_token
    with pytest.raises(FoveateError, match="of another image or clip stand among its own"):
        compress(model, inputs | {"input_ids": ids}, "random:6")


@pytest.mark.parametrize("spec", ["random:6@features", "resize:0.5"])
def test_places_where_no_step_can_act_on_clips_are_refused(row: Row, model: Any, spec: str) -> None:
    if takes(model, spec):
        return
    with pytest.raises(FoveateError, match=r"no step can act on clips of .* at @"):
        compress(model, row.inputs(CHAT), spec)
    with apply(model, spec):
        with pytest.raises(FoveateError, match=r"no step can act on clips of .* at @"):
            generate(model, row.inputs(CHAT))
        # The next call, of a picture, is none of a clip.
        assert generate(model, row.inputs("t3 C t4")).shape == (1, 6)


@pytest.mark.parametrize("name", ["pixel_values_videos", "video_grid_thw"])
def test_inputs_of_clips_that_are_no_tensors_are_refused(row: Row, model: Any, name: str) -> None:
    inputs = row.inputs(CHAT)
    if name not in inputs:
        return
    for wrong in ("a clip", inputs[name].tolist()[:1] if name == "pixel_values_videos" else 3):
        with pytest.raises(FoveateError, match=name):
            compress(model, inputs | {name: wrong}, "random:6")


@pytest.mark.parametrize(
    "row", [row for row in TAKES_CLIPS if row.smaller and "video_grid_thw" in row.inputs("A")], ids=lambda row: row.name
)
@torch.no_grad()
def test_resizing_is_the_model_given_smaller_frames(row: Row, model: Any) -> None:
    """Frames are averaged down here by hand, from the patches of the clip."""
    inputs = row.inputs(CHAT)
    ((t, h, w),) = inputs["video_grid_thw"].tolist()
    image = compress(model, inputs, "resize:0.5").images[0]
    assert image.seen is not None
    (seen,) = image.seen.segments
    assert seen.t == t
    assert seen.h * seen.w < h * w // 4
    frames = torch.zeros(t * 2, 3, h * 14, w * 14)
    patches = iter(inputs["pixel_values_videos"].view(-1, 3, 2, 14, 14))
    for frame, row_of, column_of in ((t_, r, c) for t_ in range(t) for r in range(0, h, 2) for c in range(0, w, 2)):
        for down, right in ((0, 0), (0, 1), (1, 0), (1, 1)):
            top, left = (row_of + down) * 14, (column_of + right) * 14
            patch = next(patches)
            for half in (0, 1):
                frames[2 * frame + half, :, top : top + 14, left : left + 14] = patch[:, half]
    small = torch.nn.functional.interpolate(frames, size=(seen.h * 28, seen.w * 28), mode="area")
    rows, columns = seen.h * 2, seen.w * 2
    packed = [
        small[2 * frame : 2 * frame + 2, :, (r + d) * 14 : (r + d + 1) * 14, (c + e) * 14 : (c + e + 1) * 14]
        .transpose(0, 1)
        .flatten()
        for frame in range(t)
        for r in range(0, rows, 2)
        for c in range(0, columns, 2)
        for d, e in ((0, 0), (0, 1), (1, 0), (1, 1))
    ]
    grid = torch.tensor([[t, rows, columns]])
    expected = model.model.get_video_features(torch.stack(packed), grid, return_dict=True).pooler_output[0]
    torch.testing.assert_close(image.features, expected, atol=1e-5, rtol=1e-5)


def test_families_without_clips_refuse_them() -> None:
    for row in (row for row in ROWS if not row.clips):
        model = row.model()
        family = family_of(model)
        inputs = row.inputs("t6 A t5") | {"pixel_values_videos": torch.zeros(1, 2)}
        with pytest.raises(FoveateError, match=f"video is not supported yet for {family.title}"):
            compress(model, inputs, "random:6")
        with apply(model, "random:6"), pytest.raises(FoveateError, match="video is not supported yet for"):
            model(**inputs)
        if not type(family).clip_places:  # the processor may know clips that the model can't read
            with pytest.raises(FoveateError, match="video is not supported yet for"):
                family.clip_layout(8, 100, 100)


@pytest.mark.parametrize("row", [row for row in TAKES_CLIPS if row.name == "gemma4"], ids=lambda row: row.name)
def test_frames_are_encoded_as_images(row: Row, model: Any) -> None:
    """Signals of a clip's frames are those of as many images, attention as a share of the whole clip's."""
    clips = row.inputs(CHAT)
    names = dict(zip(family_of(model).video_inputs, family_of(model).pixel_inputs, strict=False))
    images = {
        name: clips[given].reshape(-1, *clips[given].shape[-2:]) for given, name in names.items() if given in clips
    }
    specs = ["cls:1.0:positions=keep@features", "visionzip:6"]
    clip, frames = encode(model, clips, specs), encode(model, images, specs)
    assert clip.features is not None
    assert frames.features is not None
    torch.testing.assert_close(clip.features[0], torch.cat(frames.features), atol=1e-6, rtol=1e-6)
    assert len(clip.signals) > 1
    for signal, (found,) in clip.signals.items():
        expected = torch.cat(frames.signals[signal])
        share = len(frames) if found.ndim == 1 else 1
        torch.testing.assert_close(found * share, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("row", [row for row in TAKES_CLIPS if row.name == "gemma4"], ids=lambda row: row.name)
def test_frame_counts_that_do_not_fit_are_refused(row: Row, model: Any) -> None:
    inputs = row.inputs("t2 A t3 B t4")
    if (counts := inputs.get("num_frames_per_video")) is None:
        pytest.skip("this version of transformers has clips of one length")
    for wrong in (None, 5, counts + 1, counts.flip(0), counts.float()[:1]):
        with pytest.raises(FoveateError, match=r"num_frames_per_video|frames of 2 shapes"):
            compress(model, inputs | {"num_frames_per_video": wrong}, "random:6")


def test_clips_are_counted_from_a_configuration(row: Row, model: Any) -> None:
    """Frames cost as much as so many images of their size, and a budget is the whole clip's."""
    family = type(family_of(model)).of_config(model.config)
    layout = family.clip_layout(8, 112, 112)
    (grid,) = layout.segments
    assert tokens_between("random:6", family, layout)[1] == 6 + len(layout.structural)
    assert sum(each.count for each in family.encoder_grids(layout)) >= grid.count
    assert "pixels" not in family.clip_places or family.shrunk(layout, (grid.h, grid.w)).times == layout.times
    for spec in ("random:6@features", "resize:0.5"):
        if not takes(model, spec):
            with pytest.raises(FoveateError, match="no step can act on clips"):
                tokens_between(spec, family, layout)


def test_the_cost_of_clips() -> None:
    still, clip = cost("qwen2.5-vl-7b", images=[(640, 360)]), cost("qwen2.5-vl-7b", images=[], clips=[(16, 640, 360)])
    assert clip.visual_tokens == 8 * still.visual_tokens
    assert cost("qwen2.5-vl-7b", "cluster:64", images=[], clips=[(16, 640, 360)]).kept_tokens == 64
    for wrong in ([(640, 360)], [(0, 640, 360)], [(100_000, 640, 360)], ["a clip"], [(4, 640, 0)]):
        with pytest.raises(FoveateError):
            cost("qwen2.5-vl-7b", images=[], clips=wrong)  # pyright: ignore
    # As images, one by one.
    as_images = cost("llava-1.5-7b", "cluster:64", images=[], clips=[(4, 640, 360)])
    assert as_images == cost("llava-1.5-7b", "cluster:64", images=[(640, 360)] * 4)
