"""What the cost model tells, and what it refuses."""

import importlib
import itertools
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from given import tokens
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig
from variants import spec_of, variants

import foveate
from accelerator import Accelerator, on_accelerator
from foveate.costmodel import break_even, device, devices, published, read_model
from foveate.costmodel.calibrate import Calibration, Probe, measure
from foveate.costmodel.check import COUNTS, decoders, read
from foveate.costmodel.decoder_shape import read_decoder
from foveate.costmodel.device import SIZES, Device, at, processor, read_devices, save, user_file
from foveate.costmodel.model_config import PUBLISHED, load_config
from foveate.costmodel.ops import CallPart, Op
from foveate.costmodel.papers import figures
from foveate.embedded import PATH
from foveate.embedded.clips import CLIP_PATH
from foveate.errors import FoveateError, FoveateWarning, KeepError, SpecError
from foveate.methods import Cluster, FastV, Method, method_class, method_names
from foveate.schedule import tokens_after
from foveate.spec import parse
from foveate.tokens import Layout, Segment
from generators.cost import calibrations

LLAVA = "llava-1.5-7b"


def test_published_figures() -> None:
    found = figures()
    assert all(each.same for each in found if each.tolerance is not None)
    assert sum(each.same for each in found) >= 15
    # What is told to be out of reach is.
    assert max(abs(each.ours / each.published - 1) for each in found if each.tolerance is None) > 1


def test_parameters_are_those_of_the_models() -> None:
    """As the model cards have them."""
    cards = {
        "llava-1.5-7b": 7.06e9,
        "llava-1.5-13b": 13.35e9,
        "llava-next-7b": 7.06e9,
        "qwen2.5-vl-3b": 3.75e9,
        "qwen2.5-vl-7b": 8.29e9,
        "qwen3-vl-8b": 8.77e9,
    }
    assert set(cards) == set(published())
    for name, parameters in cards.items():
        assert read_model(name).parameters == pytest.approx(parameters, rel=0.002)


@pytest.mark.parametrize("name", [None, str(CLIP_PATH), *published()])
def test_configurations_that_come_along_need_no_defaults_of_transformers(name: str | None) -> None:
    path = (PATH if name is None else Path(name)) / "config.json"
    data = json.loads((path if path.is_file() else PUBLISHED / f"{name}.json").read_text())
    plain, theirs = read_model(name), read_model(AutoConfig.for_model(**data))
    assert type(plain.family) is type(theirs.family)
    assert (plain.vision, plain.decoder) == (theirs.vision, theirs.decoder)
    for each in ("decoder_depth", "window", "chunk", "longest_prompt", "is_plain"):
        assert getattr(plain.family, each) == getattr(theirs.family, each), each
    for size in ((336, 336), (640, 480), (90, 1000)):
        assert plain.family.image_layout(*size) == theirs.family.image_layout(*size)
        if plain.family.clip_places:
            assert plain.family.clip_layout(6, *size) == theirs.family.clip_layout(6, *size)
    for spec in ("cluster:16", "pool:0.5@2", "resize:0.25"):
        assert foveate.cost(plain, spec) == foveate.cost(theirs, spec)


def test_tokens_along_the_layers() -> None:
    def layers(spec: str) -> tuple[int, ...]:
        return foveate.cost(LLAVA, spec).layers

    assert layers("cluster:64") == (64,) * 32
    assert layers("pool:0.25@16") == (576,) * 16 + (144,) * 16
    assert layers("pyramiddrop:0.5@8,16,24") == (576,) * 8 + (288,) * 8 + (144,) * 8 + (72,) * 8
    assert layers("cluster:128+fastv:0.5@8") == (128,) * 8 + (64,) * 24
    assert layers("vtw@15") == (576,) * 15 + (0,) * 17
    assert layers("cls:0.5@features+stride:0.5@0") == (144,) * 32
    assert layers("resize:0.25") == (144,) * 32
    assert layers("resize:0.25:mode=enlarge") == (576,) * 32


def test_where_a_step_acts_decides_what_it_saves() -> None:
    dense, pixels, features, inside = (
        foveate.cost(LLAVA, spec) for spec in (None, "resize:0.25", "cls:0.25@features", "fastv:0.25@2")
    )
    assert pixels.part("encoder").flops < dense.part("encoder").flops / 3
    assert features.part("encoder").flops == inside.part("encoder").flops == dense.part("encoder").flops
    assert pixels.part("prefill").flops == features.part("prefill").flops < inside.part("prefill").flops
    assert dense.part("compressor").flops == 0 < pixels.part("compressor").flops + 1
    assert pixels.kv_bytes == features.kv_bytes < inside.kv_bytes < dense.kv_bytes


def test_a_spec_is_text_or_methods() -> None:
    expected = foveate.cost(LLAVA, "cluster:64+fastv:0.5@2")
    cluster, fastv = Cluster(keep=64), FastV(keep=0.5).at(2)
    for spec in ([cluster, fastv], ["cluster:64", fastv], parse("cluster:64+fastv:0.5@2")):
        assert foveate.cost(LLAVA, spec) == expected
    assert foveate.cost(LLAVA, cluster) == foveate.cost(LLAVA, "cluster:64")
    family = read_model(LLAVA).family
    layout = family.image_layout(336, 336)
    assert tokens_after([cluster, fastv], family, layout) == expected.kept_tokens == 32
    assert break_even(read_model(LLAVA), cluster, 60, 1, 1, device("laptop"), None).largest == 128 * 128
    with pytest.raises(SpecError, match="a spec is text such as"):
        foveate.cost(LLAVA, 64)  # pyright: ignore[reportArgumentType]


def test_a_family_without_a_model_says_so() -> None:
    family = read_model(LLAVA).family
    with pytest.raises(FoveateError, match="this LLaVA family was made from a configuration and has no model"):
        family.encode({})


def test_a_longer_answer_only_costs_decoding() -> None:
    short, long = (foveate.cost(LLAVA, new_tokens=n) for n in (1, 101))
    assert short.part("decode").flops == short.per_token == 0
    for name in ("encoder", "projector", "prefill"):
        assert short.part(name) == long.part(name)
    assert long.kv_bytes - short.kv_bytes == 100 * 524_288
    assert long.first_token == pytest.approx(short.first_token)
    assert long.seconds == pytest.approx(long.first_token + 100 * long.per_token, rel=1e-3)


def test_batches_share_weights() -> None:
    one, many = (foveate.cost(LLAVA, batch=n) for n in (1, 8))
    assert many.flops == pytest.approx(8 * one.flops)
    assert many.kv_bytes == 8 * one.kv_bytes
    assert many.weight_bytes == one.weight_bytes
    assert one.part("decode").seconds < many.part("decode").seconds < 2 * one.part("decode").seconds


def test_all_methods_have_an_effort() -> None:
    for name in method_names():
        method = method_class(name)()
        assert isinstance(method, Method)
        effort = method.effort(576, 1024)
        assert effort.flops >= 0
        assert effort.launches >= 0


def test_plain_data() -> None:
    told = foveate.cost(LLAVA, "cluster:64").to_dict()
    assert told["kept_tokens"] == 64
    assert {part["name"] for part in told["parts"]} == {
        "encoder",
        "projector",
        "compressor",
        "prefill",
        "head",
        "decode",
    }
    assert told["flops"] == sum(part["flops"] for part in told["parts"])


def test_it_says_what_it_found() -> None:
    assert "576 -> 64 visual tokens" in str(foveate.cost(LLAVA, "cluster:64"))


# Pictures


def test_pictures_of_any_size() -> None:
    llava, qwen = (read_model(name).family for name in (LLAVA, "qwen2.5-vl-7b"))
    for width, height in ((336, 336), (1, 4000), (640, 480)):
        assert llava.image_layout(height, width).total == 576
    assert qwen.image_layout(1008, 1344).segments[0].count == 48 * 36
    assert qwen.image_layout(3, 3).total == 4
    assert qwen.image_layout(9000, 9000).total <= 16_384
    with pytest.raises(FoveateError, match="200 to 1"):
        qwen.image_layout(20, 6000)


@pytest.mark.parametrize(("name", "factor"), [("qwen2.5-vl-7b", 28), ("qwen3-vl-8b", 32)])
def test_sizes_are_those_of_the_processor(name: str, factor: int, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize
    except ImportError:
        pytest.skip("the processor's package is missing")
    limits = (3136, 12_845_056)
    family = read_model(name).family
    monkeypatch.setattr(family, "pixel_limits", limits)
    generator = torch.Generator().manual_seed(0)
    sizes = torch.randint(1, 3000, (300, 2), generator=generator).tolist()
    sizes += torch.randint(1, 40, (100, 2), generator=generator).tolist()
    for width, height in sizes:
        if max(width, height) > 200 * min(width, height):
            continue
        rows, columns = smart_resize(height, width, factor, *limits)
        (grid,) = family.image_layout(height, width).segments
        assert (grid.h * factor, grid.w * factor) == (max(rows, factor), max(columns, factor)), (width, height)


def test_the_encoder_sees_a_crop_for_each_tile() -> None:
    family = read_model("llava-next-7b").family
    generator = torch.Generator().manual_seed(0)
    for width, height in torch.randint(20, 2000, (200, 2), generator=generator).tolist():
        layout = family.image_layout(height, width)
        base, tiles = layout.segments
        assert family.encoder_grids(layout) == (base,) * (1 + len(tiles.rows) * len(tiles.columns))
        small = family.encoder_grids(family.shrunk(layout, (12, 12)))
        assert small == (Segment(1, 12, 12),) * len(family.encoder_grids(layout))
    assert read_model("qwen2.5-vl-7b").family.encoder_grids(Layout((Segment(1, 3, 5),))) == (Segment(1, 6, 10),)


# Devices


def test_peaks_bound_the_time() -> None:
    place = device("h100")
    told = foveate.cost(LLAVA, device="h100")
    for part in told.parts:
        assert part.seconds >= max(part.flops / place.rate("bfloat16") * 0.5, part.moved / place.bandwidth) * 0.999
    assert foveate.cost(LLAVA, device="l4").seconds > told.seconds
    assert not foveate.cost(LLAVA, device="l4", batch=64).fits


def test_launches_hide_small_work() -> None:
    small = CallPart("small", (Op("x", flops=1e6, launches=100),))
    place = Device("x", "x", {"float32": 1e12}, 1e12, 1e9, launch=1e-5)
    assert place.seconds(small, "float32") == pytest.approx(1e-3)
    assert replace(place, overlap=False).seconds(small, "float32") == pytest.approx(1e-3 + 1e-6)


def test_curves() -> None:
    curve = ((1.0, 2.0), (4.0, 8.0))
    assert [at(curve, x) for x in (0.5, 1, 2, 4, 9)] == pytest.approx([2, 2, 4, 8, 8])


def test_break_even() -> None:
    model = read_model(LLAVA)
    fast = replace(device("laptop"), launch=0.0)
    found = break_even(model, "stride:64", 60, 1, 1, fast, "float32")
    assert found.tokens is not None
    assert 64 < found.tokens <= 144
    assert 0.5 < found.saved < 1
    slow = replace(fast, launch=1000.0)
    assert break_even(model, "stride:64", 60, 1, 1, slow, "float32").tokens is None


def test_built_in_devices_name_their_sources() -> None:
    assert {"a100", "h100", "h200", "b200", "l4", "rtx4090", "orin", "laptop"} <= set(devices())
    for each in devices().values():
        assert each.source
        assert each.rate("float32") < 1e15


def test_a_device_comes_back_from_its_file(tmp_path: Path) -> None:
    place = replace(device("laptop"), name="mine", products=((4.0, 0.25), (64.0, 1.0)), title='a "quoted" name')
    path = tmp_path / "folder" / "devices.toml"
    save(place, path)
    save(replace(place, name="other"), path)
    assert read_devices(path) == {"mine": place, "other": replace(place, name="other")}
    assert [each.name for each in path.parent.iterdir()] == ["devices.toml"]


def test_measured_devices_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("APPDATA", str(tmp_path))
    save(replace(device("laptop"), name="this-machine"), user_file())
    assert foveate.cost(LLAVA, device="this-machine").device == "this-machine"


def test_the_processor_has_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("foveate.costmodel.device")
    told = "processor\t: 0\nmodel name\t: A fast one @ 3 GHz\nflags\t: fpu\nmodel name\t: Another\n"
    monkeypatch.setattr(module, "read_text", lambda path: told)
    assert processor() == "A fast one @ 3 GHz"
    monkeypatch.setattr(module, "read_text", lambda path: "CPU implementer : 0x41\n")
    monkeypatch.setattr("platform.processor", lambda: "")
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert processor() == "aarch64"


def test_measuring_takes_the_shortest_time() -> None:
    probe = Probe("sum", lambda: torch.ones(1000).sum())
    measure([probe], torch.device("cpu"), budget=0)
    assert probe.times >= 3
    assert 0 < probe.seconds < 1


def test_calibration_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """No time is judged: only that every figure is there, and can be used."""
    from foveate.costmodel import calibrate

    monkeypatch.setattr(calibrate, "_ROWS", (4, 64))
    monkeypatch.setattr(calibrate, "_QUERIES", (16, 64))
    monkeypatch.setattr(calibrate, "_BETWEEN", (16, 64))
    monkeypatch.setattr(calibrate, "WIDER", 256)
    calibration = Calibration("cpu")
    measure(calibration.probes, calibration.place, budget=0)
    found = calibration.device("here")
    assert found.measured
    assert not found.overlap
    assert max(share for _, share in found.products) == 1
    assert found.launch > 0
    assert foveate.cost(None, device=found, new_tokens=2).seconds > 0


def test_predictions_agree_with_the_committed_measurements() -> None:
    for place, points in calibrations().values():
        assert place.measured
        assert len(points) == 2 * len(COUNTS)
        assert all(abs(point.ratio - 1) <= 0.15 for point in points)
        for point in points:
            decoder = read_decoder(decoders()[point.decoder])
            dtype = next(iter(place.rates))
            part = decoder.prefill([point.tokens] * len(decoder.layers), 1, SIZES[dtype])
            assert place.seconds(part, dtype) == pytest.approx(point.predicted)


@pytest.mark.parametrize("text", ["", "{}", '{"device": {}, "check": []}', '{"device": 3, "check": [1]}'])
def test_no_measurement(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(FoveateError, match=r"is not JSON|is not what foveate calibrate --check --json prints"):
        read(tmp_path / "x.json")


# What is refused


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ({"batch": 0}, "batch must be a whole number from 1 on, not 0"),
        ({"new_tokens": 0}, "new_tokens must be a whole number from 1 to 1,000,000, not 0"),
        ({"text_tokens": -1}, "text_tokens must be a whole number from 0 on, not -1"),
        ({"batch": 1.5}, "batch must be a whole number from 1 on, not 1.5"),
        ({"images": [(0, 336)]}, "0 x 336 pixels does not exist"),
        ({"images": [(336, -4)]}, "336 x -4 pixels does not exist"),
        ({"images": [(50_000, 50_000)]}, "2,500,000,000 pixels, and the limit is 100,000,000"),
        ({"images": [336]}, "336 is no size of a picture"),
        ({"images": [], "text_tokens": 0}, "nothing to count"),
        ({"device": "h1000"}, 'no device is called "h1000"; did you mean "h100"?'),
        ({"device": "none.toml"}, "there is no device file none.toml"),
        ({"dtype": "int8"}, "no data type 'int8'"),
    ],
)
def test_numbers(numbers: dict[str, object], words: str) -> None:
    with pytest.raises(FoveateError) as found:
        foveate.cost(LLAVA, **numbers)  # pyright: ignore
    assert words in str(found.value)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("spec", "kind", "words"),
    [
        ("clustre:64", SpecError, 'did you mean "cluster"?'),
        ("cluster:600", KeepError, "more than the 576 tokens there are"),
        ("cluster:64+stride:65", KeepError, "more than the 64 tokens there are"),
        ("pool:0.5@32", FoveateError, "acts at layer 32, and this decoder has 32 layers; name one from 0 to 31"),
        ("pool:0.5@16+cluster:64", FoveateError, "comes after a step that acts later"),
        ("pool:0.5@8,8", FoveateError, "names layer 8 twice"),
        ("fastv:0.5", FoveateError, "of which layers"),
        ("fastv:0.5@input", FoveateError, "of which layers"),
        ("resize:0.5@input", FoveateError, "resize cannot act at @input"),
        ("cluster:64@pixels", FoveateError, "cluster cannot act at @pixels"),
        ("resize:0.5:mode=exact", FoveateError, "cannot resize 'exact'"),
        ("resize:0.5+resize:0.5", FoveateError, "at most one step at @pixels"),
    ],
)
def test_specs(spec: str, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind) as found:
        foveate.cost(LLAVA, spec)
    assert words in str(found.value)


def test_configurations(tmp_path: Path) -> None:
    def refused(config: object) -> str:
        with pytest.raises(FoveateError) as found:
            foveate.cost(config)
        assert "\n" not in str(found.value)
        return str(found.value)

    assert "no model_type" in refused({})
    assert "unknown to the installed transformers" in refused({"model_type": "lava"})
    assert "has no vision_config and no text_config" in refused({"model_type": "llama"})
    telling = refused(SimpleNamespace(model_type="fuyuer", vision_config=1, text_config=1))
    assert "does not know the vision side of 'fuyuer'; it knows " in telling
    assert ", llava_next, " in telling
    assert "write the number into it as image_seq_length" in telling
    assert "one of llava-1.5-13b" in refused("llava-1.5-70b")
    assert "there is no" in refused(tmp_path)
    (tmp_path / "config.json").write_text("{")
    assert "is not JSON" in refused(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    assert "holds no JSON object, but [] (list)" in refused(tmp_path / "config.json")

    assert "has no vision_config and no text_config" in refused({"model_type": "llava"})
    assert "has no vision_config;" in refused({"model_type": "qwen2_5_vl", "hidden_size": 64})
    plain = SimpleNamespace(model_type="llava", vision_config=load_config(LLAVA).vision_config)
    plain.text_config = SimpleNamespace(model_type="llama", num_hidden_layers=2)
    assert "the configuration of llama has no hidden_size" in refused(plain)
    config = load_config(LLAVA)
    config.text_config.num_hidden_layers = 0
    assert "num_hidden_layers of llama is 0; it must be a whole number from 1 to 1000" in refused(config)
    config = load_config(LLAVA)
    config.text_config.num_key_value_heads = 5
    assert "can't share 5 key heads" in refused(config)
    config = load_config(LLAVA)
    config.text_config.kv_lora_rank = 512
    assert "latent attention (kv_lora_rank)" in refused(config)


def test_a_vision_side_that_is_not_known_is_left_out_and_said() -> None:
    known = foveate.cost(LLAVA, "stride:64", new_tokens=3)
    config = load_config(LLAVA)
    config.model_type = "llava_of_the_future"
    with pytest.warns(
        FoveateWarning, match="does not know the vision side of 'llava_of_the_future'.* 576 visual tokens"
    ):
        found = foveate.cost(config, "stride:64", new_tokens=3)
    for name in ("prefill", "head", "decode"):
        assert found.part(name) == known.part(name)
    for name in ("encoder", "projector"):
        assert found.part(name).seconds == found.part(name).flops == 0
    assert found.layers == known.layers
    assert found.kv_bytes == known.kv_bytes
    assert found.weight_bytes == read_model(LLAVA).decoder.parameters * 2
    config.vision_config.model_type = "sam"
    config.model_type = "llava"
    with pytest.warns(FoveateWarning, match="LLaVA with a sam encoder"):
        assert foveate.cost(config).visual_tokens == 576


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("cls:64", r"cls asks for EncoderAttention\(.*cannot give at @input"),
        ("stride:64@features", "stride:64@features acts at @features, and all that steps can reach in a model of type"),
        ("resize:0.5", "resize:0.5 acts at @pixels, and all that steps can reach in a model of type"),
        ("tome:64@encoder", "acts at @encoder, and in a model of type .* nothing can"),
    ],
)
@pytest.mark.filterwarnings("ignore::foveate.errors.FoveateWarning")
def test_nothing_acts_in_a_vision_side_that_is_not_known(spec: str, words: str) -> None:
    config = load_config(LLAVA)
    config.model_type = "llava_of_the_future"
    with pytest.raises(FoveateError, match=words):
        foveate.cost(config, spec)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[x]\n", "has no rate"),
        ("[x]\nfloat32 = 0\n", "needs float32 as a number above 0"),
        ("[x]\nfloat32 = 1e9\n", "needs bandwidth"),
        ("[x]\nfloat32 = 1e9\nbandwidth = 1\nmemory = 1\nspeed = 1\n", "'speed' that means nothing"),
        ("[x]\nfloat32 = 1e9\nbandwidth = 1\nmemory = 1\nproducts = [[2, 1], [1, 1]]\n", "ascending"),
        ("[x]\nfloat32 = 1e9\nbandwidth = 1\nmemory = 1\nproducts = 3\n", "list of pairs"),
        ("x = 1\n", "is no table"),
        ("[x", "is not TOML"),
    ],
)
def test_device_files(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "devices.toml"
    path.write_text(text)
    with pytest.raises(FoveateError) as found:
        device(str(path))
    assert words in str(found.value)


BY_CONTENT = {"agglomerative", "fastvid", "prunevid", "sparsevlm-rank"}
"""Methods whose content decides how many rounds, segments or groups there are."""
SIZES_OF_PLANS = {
    False: [(Layout((Segment(1, 9, 9),)), 9), (Layout((Segment(1, 16, 17),)), 40)],
    True: [(Layout((Segment(5, 14, 14),)), 500), (Layout((Segment(8, 14, 14),)), 700)],
}
EFFORTS = [
    *(spec_of(variant) for variant in variants(clips=True)),
    *("atp:auto", "prumerge:auto", "prumerge-plus:auto", "prumerge-plus:auto:ratio=0.1"),
    *("prunevid:auto", "pixelprune:auto"),
    *("sparsevlm-rank:auto", "sparsevlm-rank:auto:recycle=none", "vtw"),
]


@pytest.mark.parametrize("spec", EFFORTS)
def test_efforts_are_what_plans_take(spec: str) -> None:
    """At least half of the FLOPs, and all launches and waits of an accelerator, within 7 % or three operations."""
    name = spec.partition(":")[0]
    # Means over several frames are for clips, too.
    for layout, keep in SIZES_OF_PLANS[method_class(name).temporal or name == "pool3d"]:
        seen = tokens(layout, images=1, width=64, dtype=torch.bfloat16)
        method = parse(spec.format(k=keep)).steps[0].method
        effort = method.effort(layout.content, 64)
        with torch.no_grad(), FlopCounterMode(display=False) as counter, Accelerator() as counted:
            seen = on_accelerator(seen)
            counted.forget()
            plan = method.plan(seen)
            flops = counter.get_total_flops()
            plan.apply(seen.features)
        slack = 1e6
        assert flops / 2 - slack <= effort.flops, flops
        # Where the content decides what remains, the most is estimated.
        assert method.ragged or name in BY_CONTENT or effort.flops <= 3 * flops + slack, flops
        if name in BY_CONTENT:
            assert counted.launches / 3 <= effort.launches <= 4 * counted.launches
            assert counted.waits / 2 - 1 <= effort.waits <= 2 * counted.waits + 1
        else:
            assert abs(effort.launches - counted.launches) <= max(3, 0.07 * counted.launches), counted.launches
            assert effort.waits == counted.waits


def test_a_layers_own_work_is_a_known_number() -> None:
    """By hand: one layer of LLaVA-1.5-7B over one token, and one key more in the cache."""
    decoder = read_model(LLAVA).decoder
    one = decoder.prefill([1] * 32, 1, 2)
    linear = 2 * (4 * 4096**2 + 3 * 4096 * 11008)
    assert one.flops == 32 * (linear + 4 * 4096)
    assert decoder.cache([1] * 32, 1, 2) == 2 * 32 * 32 * 128 * 2


@pytest.mark.parametrize(("width", "inner", "encoder"), [(256, 700, 512), (64, 128, 1024)])
def test_peak_memory_is_near_the_real_one(width: int, inner: int, encoder: int) -> None:
    """Tensors that are alive at once while a model answers, as torch's profiler sees them."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    vision = {"hidden_size": 128, "intermediate_size": encoder, "num_hidden_layers": 4, "num_attention_heads": 4}
    text = {"hidden_size": width, "intermediate_size": inner, "num_hidden_layers": 6, "num_attention_heads": 4}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**vision, image_size=336, patch_size=14),
        text_config=LlamaConfig(**text, vocab_size=500, max_position_embeddings=1024),
        image_token_id=5,
    )
    model: Any = LlavaForConditionalGeneration(config).eval()
    ids = torch.cat([torch.full((2, 576), 5), torch.randint(10, 400, (2, 60))], dim=1)
    pixels = torch.randn(2, 3, 336, 336)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen, torch.inference_mode():
        model.generate(input_ids=ids, pixel_values=pixels, attention_mask=torch.ones_like(ids), max_new_tokens=3)
    events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]  # pyright: ignore
    alive = itertools.accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns()))
    told = foveate.cost(config, text_tokens=60, new_tokens=3, batch=2, dtype="float32")
    assert told.peak_bytes - told.weight_bytes == pytest.approx(max(alive), rel=0.2)
