"""Models that no family describes: what holds for them, with one warning, and which are refused."""

import functools
import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import test_contract as contract
import test_depth as depth
import torch
from others import DEEPSEEK_OCR2, OTHERS, Other
from rows import LLAVA, ROWS, grid
from versions import BEAMS_OF_SEVERAL_IMAGES, CACHE, CHUNKS, cache_of_output

from foveate import FoveateWarning
from foveate.engine import apply, compress, encode
from foveate.errors import FoveateError, UnsupportedFamily
from foveate.families import Generic, family_of, generic
from foveate.families.prompt_check import layout_of_prompt
from foveate.keep import Keep
from generators.model_types import NotBuilt, answer, built, model_types

_models: dict[tuple[str, str], Any] = {}
BY_NAME = {row.name: row for row in OTHERS}


def installed(name: str) -> Other:
    """Return a model that no family describes; skips the test where transformers is too old for it."""
    if name not in BY_NAME:
        pytest.skip(f"this version of transformers has no {name} that can be used")
    return BY_NAME[name]


@pytest.fixture(params=OTHERS, ids=lambda row: row.name)
def row(request: pytest.FixtureRequest) -> Other:
    return request.param


@pytest.fixture(autouse=True)
def quiet() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FoveateWarning)
        yield


@pytest.fixture(autouse=True)
def forward_takes_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    """`forward` takes position ids even where `generate` drops them: compress for it."""
    monkeypatch.setattr(generic, "passes_position_ids", lambda model: True)


def for_generate(row: Other, spec: str) -> str:
    """A spec whose shorter inputs are right in `generate`, too."""
    return spec if row.takes_positions else f"{spec}:positions=pack"


def shared(row: Other, attention: str = "sdpa") -> Any:
    if (row.name, attention) not in _models:
        _models[row.name, attention] = row.model(attention)
    return _models[row.name, attention]


BOTH_IMPLEMENTATIONS: dict[str, Callable[[Other, Any], None]] = {
    "the test can see": contract.test_swapping_the_image_changes_the_logits,
    "keeping everything": lambda row, model: contract.test_keeping_everything_is_the_untouched_model(
        row, model, "random:1.0"
    ),
    "pooling everything": lambda row, model: contract.test_keeping_everything_is_the_untouched_model(
        row, model, "pool:1.0"
    ),
    "batch, selection": lambda row, model: contract.test_a_batch_is_its_samples_alone(row, model, "random:6"),
    "batch, merging": lambda row, model: contract.test_a_batch_is_its_samples_alone(row, model, "cluster:6"),
    "ragged by the cut": contract.test_a_batch_that_only_the_cut_makes_ragged,
    "compress is apply": lambda row, model: contract.test_compress_is_apply(row, model, for_generate(row, "random:6")),
}
ONCE: dict[str, Callable[[Other, Any], None]] = {
    "positions": contract.test_positions_made_here_are_the_models_own,
    "packed": contract.test_packed_decoding_goes_on_without_gaps,
    "beams": lambda row, model: contract.test_beams(row, model, (contract.CHAT,), for_generate(row, "random:6")),
    "beams of a batch": lambda row, model: contract.test_beams(
        row, model, contract.BATCH, for_generate(row, "random:6")
    ),
    "several answers": lambda row, model: contract.test_several_answers_share_one_plan(
        row, model, for_generate(row, "random:6")
    ),
    "prompt lookup": contract.test_prompt_lookup_is_greedy_decoding,
    "text only": contract.test_text_only_prompts_pass_untouched,
    "pool is apply": lambda row, model: contract.test_compress_is_apply(row, model, for_generate(row, "pool:6")),
    "logits to keep": lambda row, model: contract.test_logits_to_keep(row, model, 3),
    "not again": contract.test_compressed_inputs_are_not_compressed_again,
    "static cache": contract.test_static_caches_are_refused,
    "chunks": contract.test_chunked_prefill_is_refused,
}


INSIDE: dict[str, Callable[[Other, Any], None]] = {
    "keeping everything": lambda row, model: depth.test_keeping_everything_is_the_untouched_model(
        row, model, "pool:1.0@1,2"
    ),
    "dropping": lambda row, model: depth.test_dropping_is_masking(row, model, 1),
    "decoding": lambda row, model: depth.test_decoding_is_masking(row, model, "random:6@1"),
    "batch": lambda row, model: depth.test_a_batch_is_its_samples_alone(row, model, "cluster:6+pool:0.5@2"),
    "beams of a batch": lambda row, model: depth.test_beams(row, model, contract.BATCH),
    "length": depth.test_the_cache_of_each_layer_is_as_long_as_the_plan_says,
}


REFUSED = dict.fromkeys(("beams of a batch", "several answers"), BEAMS_OF_SEVERAL_IMAGES)


def marked(points: Iterable[str]) -> list[Any]:
    """Points of the contract, with the mark of those that some versions of transformers can't do."""
    return [pytest.param(point, marks=REFUSED.get(point, ())) for point in points]


@pytest.fixture(params=[row for row in OTHERS if row.plain], ids=lambda row: row.name)
def inside(request: pytest.FixtureRequest) -> Other:
    return request.param


ATTENTION = ("sdpa", pytest.param("eager", marks=pytest.mark.slow))
"""With the second one, a suite of many models takes twice as long."""


@pytest.mark.parametrize("point", BOTH_IMPLEMENTATIONS)
@pytest.mark.parametrize("attention", ATTENTION)
def test_the_contract_under_each_attention(row: Other, attention: str, point: str) -> None:
    BOTH_IMPLEMENTATIONS[point](row, shared(row, attention))


@pytest.mark.parametrize("point", marked(ONCE))
def test_the_contract(row: Other, point: str) -> None:
    ONCE[point](row, shared(row))


def test_turns_of_a_padded_batch(row: Other) -> None:
    contract.test_a_second_turn_of_a_padded_batch_in_generate(row, shared(row))


@pytest.mark.parametrize("attention", ATTENTION)
def test_dropping_is_masking(row: Other, attention: str) -> None:
    contract.test_dropping_is_masking(row, shared(row, attention), "random:6")


@pytest.mark.parametrize("prompts", [(contract.CHAT,), contract.BATCH])
def test_decoding(row: Other, prompts: tuple[str, ...]) -> None:
    contract.test_decoding_with_a_cache_is_forward_without(row, shared(row), prompts)


def test_a_second_turn_is_the_whole_conversation(row: Other) -> None:
    contract.test_a_second_turn_is_the_whole_conversation(row, shared(row))


@CHUNKS
def test_a_second_turn_in_chunks(row: Other) -> None:
    contract.test_a_second_turn_in_chunks(row, shared(row))


@pytest.mark.parametrize("attention", ATTENTION)
def test_a_second_image_in_a_second_turn(row: Other, attention: str) -> None:
    model = shared(row, attention)
    contract.test_a_second_image_in_a_second_turn(row, model, "random:6")
    contract.test_a_second_image_after_an_answer(row, model)
    contract.test_an_image_after_a_text_only_turn(row, model)


@pytest.mark.parametrize("spec", ["random:1.0", "random:6"])
def test_a_second_image_in_generate(row: Other, spec: str) -> None:
    """`generate` gets the ids and types of the whole conversation, a cache, and the new image alone."""
    if not row.blocks_after_cache or row.images_see_later_ones:
        return
    model = shared(row)
    if family_of(model).position_axes > 1:
        # The dense model computes the positions of all images again, and misses the grids of earlier ones.
        return
    whole = row.inputs(contract.CHAT + " t2 B t4")
    dense = contract.generate(model, whole, 4)
    with apply(model, spec):
        expected = contract.generate(model, whole, 4)
        cache = cache_of_output(model(**row.inputs(contract.CHAT), use_cache=True))
        ids = contract.generate(model, {**whole, **row.pixels("B")}, 4, **{CACHE: cache})
    assert torch.equal(ids, expected)
    assert spec != "random:1.0" or torch.equal(ids, dense)


@pytest.mark.parametrize("attention", ATTENTION)
@torch.no_grad()
def test_dropping_in_a_later_turn_is_masking(row: Other, attention: str) -> None:
    """The dense model on a cache, in which dropped columns of both images can't be seen."""
    if not (row.full_attention and row.blocks_after_cache):
        return
    model = shared(row, attention)
    whole, first = row.inputs("t6 A t5 t2 B t4"), row.inputs("t6 A t5")
    begin = first["input_ids"].shape[1]
    second = {**whole, **row.pixels("B"), "input_ids": whole["input_ids"][:, begin:]}
    if row.reading_experts:
        second["moe_mm_token_type_ids"] = whole["moe_mm_token_type_ids"][:, begin:]
    keep = contract.kept_columns(row, whole, compress(model, whole, "random:6:positions=keep"))
    positions = contract.dense_positions(model, whole)
    for spec, mask in (("random:1.0", torch.ones_like(keep)), ("random:6:positions=keep", keep)):
        given = first | {"attention_mask": mask[:, :begin].long(), "position_ids": positions[..., :begin]}
        cache = cache_of_output(model(**given, use_cache=True))
        given = second | {"attention_mask": mask.long(), "position_ids": positions[..., begin:]}
        expected = model(**given, **{CACHE: cache}).logits
        with apply(model, spec):
            cache = cache_of_output(model(**first, use_cache=True))
            got = model(**second, **{CACHE: cache}).logits
        real = mask[:, begin:]
        torch.testing.assert_close(got[real], expected[real], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("point", marked(INSIDE))
def test_the_contract_inside_the_decoder(inside: Other, point: str) -> None:
    INSIDE[point](inside, shared(inside))


@pytest.mark.parametrize("point", ["keeping everything", "dropping", "decoding"])
def test_windows_shorter_than_the_prompt(point: str) -> None:
    """Inside the decoder a window counts the columns of layer 0, however many are gone."""
    wide = installed("exaone4_5")

    def make() -> Any:
        model = wide.make()
        model.config.text_config.sliding_window = 16
        return type(model)(model.config)

    narrow = replace(wide, make=make)
    INSIDE[point](narrow, narrow.model("eager"))


def test_position_ids_that_generate_drops(row: Other, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    model, inputs = shared(row), row.inputs(*contract.BATCH)
    assert family_of(model).takes_positions == row.takes_positions
    if row.takes_positions:
        return
    for spec in ("random:1.0", "random:6:positions=pack"):
        with apply(model, spec):
            expected = contract.generate(model, inputs, 4)
        assert torch.equal(contract.generate(model, compress(model, inputs, spec), 4), expected)
    with pytest.raises(FoveateError, match=r"drops the position ids.*positions=pack"):
        compress(model, inputs, "random:6")


def test_counts(row: Other) -> None:
    model = shared(row)
    inputs = row.inputs(*contract.BATCH)
    with apply(model, "random:0.3") as run:
        cache = cache_of_output(model(**inputs, use_cache=True))
    report = run.report()
    counts = [row.count(letter) for letter in "ABCC"]
    assert [image.before for image in report.images] == counts
    assert [image.after for image in report.images] == [Keep.of(0.3).count(count) for count in counts]
    assert cache.get_seq_length() == compress(model, inputs, "random:0.3")["input_ids"].shape[1]
    assert [layout.total for layout in family_of(model).layouts(inputs)] == counts


def test_training(row: Other) -> None:
    contract.test_loss_and_gradients_are_the_masked_models(row, "left")
    contract.test_gradient_checkpointing_changes_nothing(row, "random:6")


@pytest.mark.parametrize("name", ["janus", "lighton_ocr"])
def test_two_threads(name: str) -> None:
    row = installed(name)
    model = shared(row)
    prompts = ["t6 A t5", "t2 B t9", "t3 C t4", "t5 B t2"] * 2
    with apply(model, "random:6"):
        alone = [contract.generate(model, row.inputs(prompt)) for prompt in prompts]
        with ThreadPoolExecutor(4) as pool:
            together = list(pool.map(lambda prompt: contract.generate(model, row.inputs(prompt)), prompts))
    assert all(torch.equal(one, other) for one, other in zip(alone, together))


def test_nothing_is_left_behind(row: Other) -> None:
    model = shared(row)
    inputs = row.inputs(contract.CHAT)
    dense = contract.logits(model, inputs)
    core = family_of(model).core

    def fail() -> None:
        with apply(model, "random:6"):
            contract.generate(model, inputs)
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert "get_image_features" not in vars(core)
    assert torch.equal(contract.logits(model, inputs), dense)


def test_text_between_the_rows_of_an_image() -> None:
    """What a model takes for one image may be several runs of placeholders; each is a row of tokens of its own."""
    row = BY_NAME["lighton_ocr"]
    model = shared(row)
    # One image of three rows, with a token between the rows, as its processor writes it.
    ids = row.ids("t4") + ([5] * 3 + [9]) * 3 + row.ids("t5")
    inputs = row.pixels("A")
    runs = [3, 3, 3]
    inputs |= {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.int64)}
    dense = contract.logits(model, inputs)
    with apply(model, "random:1.0"):
        torch.testing.assert_close(contract.logits(model, inputs), dense, atol=1e-6, rtol=0)
    with apply(model, "random:2") as run:
        full = contract.logits(model, inputs)
        answer = contract.generate(model, inputs, 4)
        beams = contract.generate(model, inputs, 4, num_beams=3)
    assert [(image.before, image.after) for image in run.report().images[: len(runs)]] == [(n, 2) for n in runs]
    short = compress(model, inputs, "random:2")
    keep = contract.kept_columns(row, inputs, short)
    oracle = contract.logits(model, contract.masked(model, inputs, keep))
    torch.testing.assert_close(full[keep], oracle[keep], atol=1e-5, rtol=1e-5)
    assert torch.equal(contract.generate(model, short, 4), answer)
    assert torch.equal(contract.generate(model, short, 4, num_beams=3), beams)
    encoded = encode(model, inputs, ["random:2"])
    assert [layout.total for layout in encoded.layouts] == runs


@BEAMS_OF_SEVERAL_IMAGES
def test_beams_when_images_keep_different_numbers() -> None:
    """A model that takes one tensor is given images of different length, and their beams stay with their prompts."""
    row = BY_NAME["janus"]
    model = shared(row)
    ids = [row.ids("t4 A t5"), row.ids("t2") + [5] * 2 * row.count("B") + row.ids("t3")]
    longest = max(len(each) for each in ids)
    pads = [longest - len(each) for each in ids]
    inputs = row.pixels("ABC") | {
        "input_ids": torch.tensor([[0] * pad + each for pad, each in zip(pads, ids)]),
        "attention_mask": torch.tensor([[0] * pad + [1] * len(each) for pad, each in zip(pads, ids)]),
    }
    for spec in ("random:0.4", "random:4"):
        with apply(model, spec):
            beams = contract.generate(model, inputs, 4, num_beams=3)
        given = inputs | {"position_ids": contract.dense_positions(model, inputs)}
        assert torch.equal(contract.generate(model, compress(model, given, spec), 4, num_beams=3), beams)
        for number, prompt in enumerate(ids):
            alone = {"input_ids": torch.tensor([prompt]), "attention_mask": torch.ones(1, len(prompt)).long()}
            alone |= {"pixel_values": inputs["pixel_values"][[0] if number == 0 else [1, 2]]}
            with apply(model, spec):
                assert torch.equal(contract.generate(model, alone, 4, num_beams=3)[0], beams[number])


def test_one_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    row = BY_NAME["janus"]
    model = shared(row)
    monkeypatch.setattr(generic, "_warned", type(generic._warned)())

    def use() -> None:
        assert isinstance(family_of(model), Generic)
        compress(model, row.inputs(contract.CHAT), "random:6")
        with apply(model, "random:6"):
            contract.generate(model, row.inputs(contract.CHAT))

    with pytest.warns(FoveateWarning, match="'janus'") as caught:
        use()
    assert len([each for each in caught if issubclass(each.category, FoveateWarning)]) == 1


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("cls:6", "asks for EncoderAttention"),
        ("cluster:6@features", "@features"),
        ("resize:0.25", "@pixels"),
    ],
)
def test_what_is_not_known_is_refused(spec: str, words: str) -> None:
    row = BY_NAME["janus"]
    with pytest.raises(FoveateError, match=words) as caught:
        compress(shared(row), row.inputs(contract.CHAT), spec)
    assert "Janus" in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("hunyuan_vl", "several axes"),
        ("granite_docling", "image features after its first layers"),
        ("florence2", "encoder of text"),
        ("mllama", "no module with get_image_features"),
        ("mistral_large4", "indexed_attention, which were never tried"),
        ("ovis2", "returns visual_indicator_features besides features"),
        ("emu3", "returns image_tokens besides features"),
        ("instructblip", "returns qformer_outputs, vision_outputs besides features"),
        ("fuyu", "reads image features from last_hidden_state"),
        ("pi0", "for another decoder"),
        ("diffusion_gemma", "for another decoder"),
    ],
)
def test_models_that_cannot_be_right_are_refused(kind: str, words: str) -> None:
    try:
        model = built(kind)
    except NotBuilt as error:
        pytest.skip(str(error).partition("\n")[0])
    for refuses in (
        lambda: family_of(model),
        lambda: apply(model, "random:6"),
        lambda: compress(model, {}, "random:6"),
    ):
        with pytest.raises(UnsupportedFamily, match=words) as caught:
            refuses()
    assert "(foveate families lists them)" in str(caught.value)
    assert f"'{kind}'" in str(caught.value)
    with pytest.raises(UnsupportedFamily, match=words):
        encode(model, {"pixel_values": torch.zeros(1)})


@pytest.mark.parametrize("kind", model_types())
def test_every_type_of_model_is_taken_or_refused_with_a_reason(kind: str) -> None:
    try:
        found = answer(kind)
    except NotBuilt as error:
        pytest.skip(str(error).partition("\n")[0])
    assert found.family is None or "input" in found.places
    assert (found.family is None) == bool(found.refusal)
    assert "\n" not in found.refusal


M_ROPE = [name for name in ("paddleocr_vl", "ernie4_5_vl_moe") if name in BY_NAME]
"""Models with positions of Qwen2-VL."""


@pytest.mark.parametrize("name", M_ROPE)
def test_grids_of_models_with_positions_of_qwen2_vl(name: str) -> None:
    row = BY_NAME[name]
    model, inputs = shared(row), row.inputs(*contract.BATCH)
    family = family_of(model)
    assert family.knows_grids
    assert family.layouts(inputs) == tuple(row.pictures[letter] for letter in "ABCC")
    with apply(model, "pool2d:6") as run:
        model(**inputs)
    assert [plan.layout for plan in run.plans] == [row.pictures[letter] for letter in "ABCC"]
    with pytest.raises(FoveateError, match="needs image_grid_thw"):
        compress(model, {key: value for key, value in inputs.items() if key != "image_grid_thw"}, "random:6")


@pytest.mark.parametrize("name", M_ROPE)
def test_positions_that_are_not_those_of_qwen2_vl_are_refused(name: str) -> None:
    """All of them at `apply`; those of some grids where such an image comes."""
    row = BY_NAME[name]
    model = row.model()
    core, whole, tallest = model.model, model.model.get_rope_index, 0

    @functools.wraps(whole)
    def longer(*args: Any, **kwargs: Any) -> Any:
        positions, deltas = whole(*args, **kwargs)
        return (positions, deltas + 1) if int(kwargs["image_grid_thw"][:, 1].max()) > tallest else (positions, deltas)

    vars(core)["get_rope_index"] = longer
    with pytest.raises(UnsupportedFamily, match="are not those of Qwen2-VL"):
        apply(model, "random:6")
    tallest = 9
    with apply(model, "random:6"):
        model(**row.inputs("t4 A t3 C t2"))
        with pytest.raises(FoveateError, match="1 x 5 x 3 tokens other positions than Qwen2-VL"):
            model(**row.inputs("t4 B t3"))
    vars(core)["get_rope_index"] = lambda **given: None
    with pytest.raises(UnsupportedFamily, match="are not those of Qwen2-VL"):
        encode(model, row.inputs("t4 A t3"))


def test_grids_that_the_encoder_does_not_keep_are_refused() -> None:
    row = BY_NAME["ernie4_5_vl_moe"]
    model, inputs = row.model(), row.inputs("t4 A t3")
    ids = inputs["input_ids"]
    broken = inputs | {"input_ids": torch.cat([ids[:, :10], ids[:, :1], ids[:, 10:-1]], dim=1)}
    with apply(model, "random:6"), pytest.raises(FoveateError, match="text stands between the placeholders"):
        model(**broken)
    whole = model.model.get_image_features

    @functools.wraps(whole)
    def fewer(*args: Any, **kwargs: Any) -> Any:
        output = whole(*args, **kwargs)
        output.pooler_output = [each[1:] for each in output.pooler_output]
        return output

    vars(model.model)["get_image_features"] = fewer
    with apply(model, "random:6"), pytest.raises(FoveateError, match=r"makes \[23\] tokens .* counts \[24\]"):
        model(**inputs)


def test_attention_is_refused_where_layers_have_no_norm_before_it() -> None:
    """What attention reads there is the layer's input itself."""
    with pytest.raises(FoveateError, match="asks for DecoderAttention"):
        apply(shared(installed("exaone4_5")), "fastv:6@1")


def test_attention_is_refused_where_heads_are_rotated_in_other_pairs() -> None:
    """GLM's decoder turns neighbours; without a family nothing says so, and a method would rank by wrong attention."""
    glm = next(row for row in ROWS if row.name == "glm4v")
    model = glm.model()
    model.config.model_type = "glm_unknown"
    family = family_of(model)
    assert isinstance(family, Generic)
    assert "decoder" in family.places
    with pytest.raises(FoveateError, match="asks for DecoderAttention"):
        apply(model, "fastv:6@1")
    with apply(model, "pool:6@1"):
        model(**glm.inputs(contract.CHAT))
    for row in OTHERS:
        if row.plain and row.name != "exaone4_5" and "decoder" in family_of(shared(row)).places:
            apply(shared(row), "fastv:6@1").close()


def test_experts_that_read_token_types_keep_steps_out_of_the_decoder() -> None:
    with pytest.raises(FoveateError, match="@1, and all that steps can reach"):
        apply(shared(BY_NAME["ernie4_5_vl_moe"]), "random:6@1")


def test_images_that_look_both_ways_keep_steps_out_of_the_decoder() -> None:
    """Only the model makes their mask, or a family that knows how."""
    gemma = next(row for row in ROWS if row.name == "gemma3")
    model = gemma.model()
    model.config.model_type = "gemma_unknown"
    with pytest.raises(FoveateError, match="@1, and all that steps can reach"):
        apply(model, "random:6@1")


def test_features_of_an_unknown_form() -> None:
    row = BY_NAME["janus"]
    model = row.model()
    whole = model.model.get_image_features

    @functools.wraps(whole)
    def flat(*args: Any, **kwargs: Any) -> Any:
        output = whole(*args, **kwargs)
        output.pooler_output = output.pooler_output[..., :7]
        return output

    vars(model.model)["get_image_features"] = flat
    with pytest.raises(FoveateError, match="have an unknown form"):
        compress(model, row.inputs(contract.CHAT), "random:6")


def test_an_encoder_that_returns_more() -> None:
    model = BY_NAME["janus"].model()
    whole = model.model.get_image_features

    @functools.wraps(whole)
    def more(*args: Any, **kwargs: Any) -> Any:
        output = whole(*args, **kwargs)
        output["row_features"] = output.pooler_output
        return output

    vars(model.model)["get_image_features"] = more
    with pytest.raises(FoveateError, match="returns row_features besides features"):
        compress(model, BY_NAME["janus"].inputs(contract.CHAT), "random:6")


def test_what_a_second_call_of_the_encoder_returns() -> None:
    row, model = DEEPSEEK_OCR2, shared(DEEPSEEK_OCR2)
    BOTH_IMPLEMENTATIONS["keeping everything"](row, model)
    contract.test_dropping_is_masking(row, model, "random:6")
    contract.test_a_second_image_in_a_second_turn(row, model, "random:6")


def test_values_per_column_that_nobody_knows_are_refused() -> None:
    row = BY_NAME["janus"]
    model = row.model()
    whole = model.model.forward

    def forward(mm_encoder_outputs: Any = None, row_type_ids: Any = None, **kwargs: Any) -> Any:
        return whole(mm_encoder_outputs=mm_encoder_outputs, **kwargs)

    model.model.forward = forward
    inputs = row.inputs(contract.CHAT)
    with apply(model, "random:6"):
        model(**inputs)
        with pytest.raises(FoveateError, match="row_type_ids has one value for every token"):
            model(**inputs, row_type_ids=torch.zeros_like(inputs["input_ids"]))


def test_commands_on_a_model_that_no_family_describes() -> None:
    """`foveate ask` and `foveate count` ask for the layout of the one image."""
    row = BY_NAME["janus"]
    model = shared(row)
    assert layout_of_prompt(family_of(model), row.inputs(contract.CHAT)) == grid(1, 36)
    with pytest.raises(FoveateError, match="2 runs of visual tokens"):
        layout_of_prompt(family_of(model), row.inputs("t4 A t2 B t5"))
    assert not family_of(model).knows_grids


def test_a_family_that_refuses_one_model_leaves_it_to_this_one() -> None:
    assert isinstance(family_of(shared(BY_NAME["llava_with_cls"])), Generic)
    assert type(family_of(LLAVA.model())).__name__ == "Llava"
    assert grid(1, 37) == family_of(shared(BY_NAME["llava_with_cls"])).layouts(row_inputs())[0]


def row_inputs() -> dict[str, torch.Tensor]:
    return BY_NAME["llava_with_cls"].inputs(contract.CHAT)


def test_a_head_beside_the_encoder_is_refused() -> None:
    """Such a module returns logits, as long as the prompt that is left."""
    model = BY_NAME["janus"].model()
    family_of(model).core.lm_head = torch.nn.Identity()
    with pytest.raises(UnsupportedFamily, match="the head of its language model is inside"):
        family_of(model)
