"""What a server needs of foveate: counts from layouts, features like `foveate.compress`, and refusals that say why."""

import re
import subprocess
import sys
from typing import Any

import pytest
import torch

import foveate
from foveate.errors import FoveateError
from foveate.families import Capture, family_of
from foveate.layout import Layout, Segment
from foveate.scenes import scene
from foveate.serving import ServedModel, SpecChoice, compress_each, saved_spec

CLIP = {
    **{"model_type": "clip_vision_model", "image_size": 336, "patch_size": 14, "num_hidden_layers": 24},
    **{"num_attention_heads": 16, "hidden_size": 1024},
}
LLAVA = {"model_type": "llava", "vision_config": CLIP, "text_config": {"model_type": "llama"}}
QWEN = {
    "model_type": "qwen2_5_vl",
    "vision_config": {"model_type": "qwen2_5_vl", "patch_size": 14, "spatial_merge_size": 2, "depth": 32},
}
SERVED = ("dense", "cluster:20", "cls:16", "cls:0.25@features", "visionzip:64", "cls:144+cluster:32", "divprune:0.1")


@pytest.fixture(scope="module")
def reference() -> Any:
    return foveate.reference()


def inputs_of(processor: Any, count: int) -> Any:
    turn = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what is there ?"}]}]
    prompt = processor.apply_chat_template(turn, add_generation_prompt=True)
    return processor(images=[scene(n).image for n in range(count)], text=[prompt] * count, return_tensors="pt")


def run_encoder(model: Any, pixels: torch.Tensor) -> Capture:
    """Record what a server would: queries and keys of every layer, features, and what the projector makes of them."""
    core, attention, handles = model.model, {}, []
    for number, layer in enumerate(core.vision_tower.encoder.layers):
        for name, part in (("queries", layer.self_attn.q_proj), ("keys", layer.self_attn.k_proj)):
            keep = attention.setdefault(number, {}).__setitem__
            handles.append(part.register_forward_hook(lambda _, __, output, name=name, keep=keep: keep(name, output)))
    with torch.no_grad():
        features = core.vision_tower(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
        projected = core.multi_modal_projector(features)
    for handle in handles:
        handle.remove()
    layouts = (Layout((Segment(1, 24, 24),)),) * len(pixels)
    return Capture(layouts, layouts, attention=attention, features=features, projected=projected)


def test_a_batch_of_mixed_specs_gets_what_compress_gives_each(reference: Any) -> None:
    model, processor = reference
    served = ServedModel(model.config.to_dict())
    served.bind(model.model)
    specs = [served.spec(text) for text in SERVED] + [served.spec("cluster:20")]
    inputs = inputs_of(processor, len(specs))
    images = compress_each(specs, run_encoder(model, inputs["pixel_values"]))
    for number, (spec, image) in enumerate(zip(specs, images, strict=True)):
        alone = {name: value[number : number + 1] for name, value in inputs.items()}
        with torch.no_grad():
            short = foveate.compress(model, alone, "cluster:1.0" if spec.is_dense else spec.text)
        (expected,) = short.images
        torch.testing.assert_close(image.features, expected.features, rtol=1e-5, atol=1e-5)
        assert image.slot.equal(expected.slot)
        assert spec.count(image.layout) == image.after == len(image.features)
        positions = spec.positions(image.layout)
        assert positions.ids.equal(expected.positions)
        assert (positions.spans, positions.reaches) == (expected.spans, expected.reaches)


@pytest.mark.parametrize("text", ["cluster:16", "stride:16", "pool2d:16", "dense", "cluster:0.3"])
def test_positions_with_three_axes_are_known_from_the_layout(text: str) -> None:
    spec = ServedModel(QWEN, moves_positions=True, signals=False).spec(text)
    layout = Layout((Segment(1, 6, 9),))
    positions = spec.positions(layout)
    assert positions.ids.shape == (3, spec.count(layout))
    packed = text.startswith("cluster")
    assert positions.spans == positions.reaches == (spec.count(layout) if packed else 9,)
    assert (positions.ids[0] > 0).any() == packed


def test_a_step_that_keeps_everything_moves_no_position() -> None:
    served = ServedModel(QWEN, moves_positions=True, signals=False)
    layout = Layout((Segment(1, 6, 9),))
    ids = served.spec("stride:6").positions(layout).ids
    assert ids.equal(served.spec("stride:6+cluster:1.0:positions=keep").positions(layout).ids)
    assert not ids.equal(torch.arange(6).expand(3, -1))


def test_a_server_that_encodes_an_image_for_each_question_serves_methods_that_read_it(reference: Any) -> None:
    model, processor = reference
    config = model.config.to_dict()
    with pytest.raises(FoveateError, match="such as cluster, or start it anew"):
        ServedModel(config, question_option="start it anew").spec("cdpruner:20")
    served = ServedModel(config, per_question=True)
    served.bind(model.model)
    specs = [served.spec("cdpruner:20"), served.spec("cluster:20"), served.spec("cdpruner:20")]
    inputs = inputs_of(processor, 3)
    inputs["pixel_values"] = inputs["pixel_values"][:1].expand(3, -1, -1, -1)
    inputs["input_ids"][2, -4] = 40  # another question about the same picture
    texts = []
    for row in inputs["input_ids"]:
        texts.append(model.get_input_embeddings()(row[row != model.config.image_token_id]).detach())
    images = compress_each(specs, run_encoder(model, inputs["pixel_values"]), texts)
    for number, (spec, image) in enumerate(zip(specs, images, strict=True)):
        alone = {name: value[number : number + 1] for name, value in inputs.items()}
        with torch.no_grad():
            (expected,) = foveate.compress(model, alone, spec.text).images
        assert image.slot.equal(expected.slot)
    assert not images[0].slot.equal(images[2].slot)


def served_clips(model_type: str) -> tuple[ServedModel, Layout]:
    """A model, and the layout of a clip of it: 5 frames of 2 x 2 tokens."""
    vision = {"model_type": model_type, "patch_size": 14, "spatial_merge_size": 2, "tokens_per_second": 2}
    served = ServedModel({"model_type": model_type, "vision_config": vision}, moves_positions=True, signals=False)
    inputs = {"video_grid_thw": torch.tensor([[5, 4, 4]]), "second_per_grid_ts": torch.tensor([1.5])}
    return served, served.family.clip_layouts(inputs)[0]


def test_how_many_tokens_each_frame_of_a_clip_keeps_is_known_where_the_layout_tells() -> None:
    served, layout = served_clips("qwen3_vl")
    for text, counts in {
        "dense": (4,) * 5,
        "cluster:1.0": (4,) * 5,
        "cluster:3:per=frame": (3,) * 5,
        "cluster:3:per=frame+divprune:2:per=frame": (2,) * 5,
        "cluster:9:per=frame": (4,) * 5,
        "cluster:12": None,
        "cluster:3:per=frame+cluster:12": None,
        "evs:0.5:positions=pack": None,
    }.items():
        spec = served.spec(text)
        assert spec.run_counts(layout) == counts, text
        if counts is None:
            with pytest.raises(FoveateError, match="keep a number per=frame, or a grid"):
                spec.positions(layout)
            continue
        positions = spec.positions(layout)
        assert positions.ids.shape == (3, spec.count(layout))
        assert sum(counts) == spec.count(layout)
        packed = counts != (4,) * 5
        assert positions.spans == positions.reaches == (counts if packed else (2,) * 5)
    stride = served.spec("stride:5:positions=pack")
    counts = stride.run_counts(layout)
    assert counts is not None
    assert sum(counts) == stride.count(layout)
    assert stride.positions(layout).ids[0].tolist() == [number for count in counts for number in range(count)]


def test_a_clip_of_one_run_reaches_beyond_its_rows_and_columns() -> None:
    served, layout = served_clips("qwen2_5_vl")
    assert layout.times == (0, 3, 6, 9, 12)
    for text in ("dense", "stride:5"):
        positions = served.spec(text).positions(layout)
        assert (positions.spans, positions.reaches) == ((2,), (13,))
    spec = served.spec("cluster:7")
    assert spec.run_counts(layout) == (7,)
    assert spec.positions(layout).ids.tolist() == [list(range(7))] * 3
    assert spec.positions(layout).reaches == (7,)


def test_a_rule_of_clips_leaves_pictures_beside_them_whole_and_is_refused_for_pictures_alone() -> None:
    served, clip = served_clips("qwen2_5_vl")
    spec, picture = served.spec("evs:0.5:positions=pack+cluster:0.5"), Layout((Segment(1, 4, 6),))
    assert (spec.count(clip), spec.count(picture)) == (5, 12)
    with pytest.raises(FoveateError, match="evs works on the frames of a clip"):
        spec.check_pictures()
    served.spec("cluster:6").check_pictures()


REFUSED = {
    "cluster:9999": "KeepError",
    "clutser:64": 'did you mean "cluster"',
    "resize:0.25": "acts at @pixels, and vLLM has prepared the image by then",
    "tome:64@encoder": "acts at @encoder, and vLLM runs the encoder as a whole",
    "fastv:0.5@2": "acts inside the decoder, whose layers share one cache in vLLM",
    "cdpruner:64": "reads the question, and vLLM keeps an encoded image",
    "prumerge:auto": "lets the content decide how many tokens remain",
    "stride:64": "keeps position ids, and vLLM counts position ids itself; write stride:64:positions=pack",
    "cls:64:layer=-1": r"reads encoder layer -1 of 24, and vLLM loads the first 23",
    "cluster:64+pool:0.5@features": "comes after a step that acts later",
}


@pytest.mark.parametrize("text", REFUSED)
def test_what_a_server_cannot_do_is_refused_with_the_reason(text: str) -> None:
    served = ServedModel(LLAVA, server="vLLM", encoder_layers=23)
    with pytest.raises(FoveateError) as error:
        served.spec(text).count(served.image_layout(336, 336))
    assert re.search(REFUSED[text], f"{type(error.value).__name__}: {error.value}"), error.value


def test_what_a_server_lacks_is_refused() -> None:
    served = ServedModel(QWEN, server="vLLM", places=("input",), moves_positions=True, signals=False)
    with pytest.raises(FoveateError, match=r"asks for EncoderAttention.*, which vLLM doesn't give for Qwen2.5-VL"):
        served.spec("cls:16")
    with pytest.raises(FoveateError, match=r"acts at @features, which vLLM doesn't show; use @input"):
        served.spec("cluster:16@features")
    with pytest.raises(FoveateError, match=r"must know them before the encoder runs; write divprune:16:positions=keep"):
        served.spec("divprune:16:positions=keep")
    with pytest.raises(FoveateError, match=r"4 tokens"):
        served.spec("cluster:16").count(Layout((Segment(1, 2, 2),)))


def test_a_server_chooses_by_its_option_the_environment_or_the_saved_model() -> None:
    saved = ServedModel({**LLAVA, "foveate": {"spec": "cluster:144"}})
    environment = {"FOVEATE_SPEC": "cluster:64"}
    assert SpecChoice(ServedModel(LLAVA), environment={}).of_request().is_dense
    assert SpecChoice(saved, environment={}).of_request().text == "cluster:144"
    assert SpecChoice(saved, environment=environment).of_request().text == "cluster:64"
    choice = SpecChoice(saved, "cluster:16", environment)
    assert choice.of_request().text == "cluster:16"
    assert choice.of_request("cluster:64") is choice.of_request("cluster:64:start=stride")
    assert choice.of_request("dense").is_dense


def test_a_server_allows_its_own_spec_and_those_of_its_list() -> None:
    choice = SpecChoice(ServedModel(LLAVA), "cluster:64", {"FOVEATE_SPECS": "cluster:16; pool:4:positions=pack ;"})
    for text in ("cluster:16", "cluster:64", "pool:4:positions=pack"):
        assert choice.of_request(text).text == text
    for text in ("dense", "cluster:17"):
        with pytest.raises(FoveateError, match=f"{text} is not among the specs of this server: cluster:64, cluster:16"):
            choice.of_request(text)
    for wrong in (64, ["cluster:64"], None):
        with pytest.raises(FoveateError, match="a spec in a request or an option is text"):
            choice.of_request(wrong or {})
    with pytest.raises(FoveateError, match="did you mean"):
        SpecChoice(ServedModel(LLAVA), environment={"FOVEATE_SPECS": "cluster:16;clutser:4"})


@pytest.mark.parametrize("field", ["cluster:64", {"specs": "cluster:64"}, {"spec": 64}, 7])
def test_a_saved_spec_that_is_none_is_refused(field: object) -> None:
    with pytest.raises(FoveateError, match="foveate of the configuration must be"):
        saved_spec({"foveate": field})
    assert saved_spec({}) is None


def test_a_server_needs_no_transformers() -> None:
    code = (
        "import sys\nsys.modules['transformers'] = None\n"
        f"from foveate.serving import ServedModel, SpecChoice\nserved = ServedModel({LLAVA})\n"
        "print(SpecChoice(served, 'cluster:64').of_request().count(served.image_layout(480, 640)))"
    )
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert run.stdout.strip() == "64"


def test_reference_family_is_found_by_its_configuration(reference: Any) -> None:
    model, _ = reference
    assert type(ServedModel(model.config).family) is type(family_of(model))
