"""Calls that cannot mean what they say get one clear line; none passes at full length unseen."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from rows import Row
from test_contract import dense_positions
from versions import CACHE, cache_of_output

from foveate.engine import apply, compress, encode, timed
from foveate.errors import FoveateError
from foveate.families import family_of

CHAT = "t6 A t5"
PIXELS = (
    "pixel_values", "image_grid_thw", "image_sizes", "spatial_shapes", "pixel_attention_mask", "target_sizes",
    "image_position_ids", "image_token_pooling", "image_grids",
)  # fmt: skip


def without_pixels(inputs: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in inputs.items() if name not in PIXELS}


def test_a_prompt_whose_images_are_missing(row: Row, model: Any) -> None:
    with pytest.raises(FoveateError, match="image placeholders and no image"):
        compress(model, without_pixels(row.inputs(CHAT)), "random:6")


@torch.no_grad()
def test_features_that_were_made_elsewhere(row: Row, model: Any) -> None:
    inputs = row.inputs(CHAT)
    features = {"image": family_of(model).core.get_image_features(**{n: inputs[n] for n in PIXELS if n in inputs})}
    with pytest.raises(FoveateError, match="mm_encoder_outputs"):
        compress(model, {**without_pixels(inputs), "mm_encoder_outputs": features}, "random:6")


@torch.no_grad()
def test_other_labels_than_tokens(row: Row, model: Any) -> None:
    inputs = row.inputs(CHAT)
    ids = inputs.pop("input_ids")
    labels, length = ids.masked_fill(row.is_image(ids), -100), ids.shape[1]
    with apply(model, "random:6"):
        for wrong in (labels[:, 1:], torch.cat([labels, labels[:, -1:]], dim=1)):
            text = f"{wrong.shape[1]} labels came and {length} were expected: one for every token of the prompt"
            with pytest.raises(FoveateError, match=text):
                model(input_ids=ids, labels=wrong, **inputs)
            with pytest.raises(FoveateError, match=text):
                model(ids, labels=wrong, **inputs)
        whole = model(input_ids=ids, labels=labels, **inputs).loss
        # Where fewer predictions are asked for, fewer labels can be right.
        assert whole.isfinite()
        if row.logits_to_keep:
            assert model(input_ids=ids, labels=labels[:, -4:], logits_to_keep=4, **inputs).loss.isfinite()


@pytest.mark.parametrize("spec", ["cls:6", "cluster:6@features"])
def test_images_encoded_for_another_spec(row: Row, model: Any, spec: str) -> None:
    inputs = row.inputs(CHAT)
    encoded = encode(model, inputs, ["random:6"])
    with pytest.raises(FoveateError, match="encode them again"):
        compress(model, inputs, spec, encoded=encoded)


def test_nothing_to_encode(row: Row, model: Any) -> None:
    with pytest.raises(FoveateError, match="no image"):
        encode(model, row.inputs("t9"), ["random:6"])


@pytest.mark.parametrize(("value", "kind"), [(float("nan"), "NaN"), (float("inf"), "NaN|infinite")])
def test_features_that_are_not_finite(row: Row, value: float, kind: str) -> None:
    """The image is named, whoever asked for it to be encoded; the others don't matter."""
    model = row.model()
    inputs = row.inputs("t2 A t3 B", "t4 C")
    family = family_of(model)
    clean = compress(model, inputs, row.select("6"))

    def spoil(module: Any, args: Any, output: Any) -> Any:
        if family.projects_each:
            states = output.last_hidden_state
            (states[-1] if len(states) > 1 else states[0, -4:])[:] = value
            return output
        rows = output if isinstance(output, torch.Tensor) else getattr(output, "pooler_output", None)
        rows = output[0] if rows is None else rows
        # The last of all rows belongs to the last image.
        while rows.ndim > 2:
            rows = rows[-1]
        rows[-row.pictures["C"].tiles[-1][0].w - 1 :, 3] = value
        return output

    spoiled = family.tower if family.projects_each else family.projected_module
    handle = spoiled.register_forward_hook(spoil)
    for spec in (row.select("6"), "random:1.0"):
        with pytest.raises(FoveateError, match=rf"image 2 \(counted from 0\) has ({kind}) features"):
            compress(model, inputs, spec)
        with apply(model, spec), pytest.raises(FoveateError, match="image 2"):
            model.generate(**inputs, max_new_tokens=2)
    handle.remove()
    assert torch.equal(compress(model, inputs, row.select("6"))["input_ids"], clean["input_ids"])


@torch.no_grad()
@pytest.mark.encoder_signals
def test_features_made_under_another_spec(row: Row, model: Any) -> None:
    inputs = row.inputs(CHAT)
    with apply(model, "random:6"):
        output = family_of(model).core.get_image_features(
            **{n: inputs[n] for n in PIXELS if n in inputs}, return_dict=True
        )
    call = {**without_pixels(inputs), "mm_encoder_outputs": {"image": output}}
    with apply(model, "cls:6"), pytest.raises(FoveateError, match="not made under this apply"):
        model(**call)


def test_times_of_two_threads(row: Row, model: Any) -> None:
    inputs = row.inputs(CHAT)

    def ask(_: int) -> None:
        model.generate(**inputs, max_new_tokens=8, do_sample=False)

    with timed(model) as times, ThreadPoolExecutor(4) as pool:
        list(pool.map(ask, range(8)))
    assert times.decode_tokens == 8 * 7


def test_an_image_after_a_padded_text_turn_needs_positions(row: Row, model: Any) -> None:
    """Where padding counts in one kind of call and not in another, only position ids tell."""
    if family_of(model).counts_padding:
        pytest.skip("without position ids, padding always counts in this family")
    start, second = row.inputs("t9", "t4"), row.inputs("t3 C t4", "t3 C t4")
    with torch.no_grad(), apply(model, "stride:6"):
        cache = cache_of_output(model(**start, use_cache=True))
        mask = torch.cat([start["attention_mask"], second["attention_mask"]], dim=1)
        with pytest.raises(FoveateError, match="pass position_ids with both turns"):
            model(**{**second, "attention_mask": mask}, **{CACHE: cache})


def test_an_image_after_a_padded_text_turn(row: Row, model: Any) -> None:
    """The padding of the first turn must not push the image away from the text."""
    firsts, second = ("t9", "t4"), row.inputs("t3 C t4")

    def turns(texts: tuple[str, ...]) -> torch.Tensor:
        start = row.inputs(*texts)
        for name in ("rope_deltas",):
            if hasattr(family_of(model).core, name):
                setattr(family_of(model).core, name, None)
        one = model.generate(**start, max_new_tokens=2, do_sample=False, return_dict_in_generate=True)
        count = len(texts)
        both = {
            "input_ids": torch.cat([one.sequences, second["input_ids"].expand(count, -1)], dim=1),
            "attention_mask": torch.cat(
                [start["attention_mask"], torch.ones(count, 2 + second["input_ids"].shape[1]).long()], dim=1
            ),
        } | row.pixels("C" * count)
        if row.token_types:
            both["mm_token_type_ids"] = row.is_image(both["input_ids"]).int()
        out = model.generate(
            **both, **{CACHE: cache_of_output(one)}, max_new_tokens=4, do_sample=False,
            return_dict_in_generate=True, output_logits=True,
        )  # fmt: skip
        return torch.stack(out.logits)

    with apply(model, "random:6"):
        together = turns(firsts)
        for number, text in enumerate(firsts):
            torch.testing.assert_close(together[:, number], turns((text,))[:, 0], atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("spec", ["stride:4", "stride:0.5@1"])
def test_rows_of_several_documents_are_refused(row: Row, any_model: Any, spec: str) -> None:
    """Dense, transformers keeps them apart by their positions; a compressed row could not."""
    first, second = row.inputs("t6 A t5"), row.inputs("t2 A t3")
    positions = [dense_positions(any_model, each) for each in (first, second)]
    packed = {name: torch.cat([first[name], second[name]]) for name in first if name in PIXELS}
    packed["input_ids"] = torch.cat([first["input_ids"], second["input_ids"]], dim=1)
    packed["position_ids"] = torch.cat(positions, dim=-1)
    if row.token_types:
        packed["mm_token_type_ids"] = row.is_image(packed["input_ids"]).int()
    with apply(any_model, spec), pytest.raises(FoveateError, match="several packed documents"):
        any_model(**packed, use_cache=False)
    if "@1" not in spec:
        with pytest.raises(FoveateError, match="several packed documents"):
            compress(any_model, packed, spec)
        with pytest.raises(FoveateError, match="several packed documents"):
            compress(any_model, first | {"cu_seq_lens_q": torch.tensor([0, 4])}, spec)


@torch.no_grad()
def test_placeholders_without_an_image_are_refused(row: Row, model: Any) -> None:
    inputs = row.inputs("t6 A t5")
    text = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    words = "image placeholders and no image came with it"
    with pytest.raises(FoveateError, match=words):
        compress(model, text, "random:6")
    with apply(model, "random:6"):
        with pytest.raises(FoveateError, match=words):
            model(**text)
        with pytest.raises(FoveateError, match=words):
            model.generate(**text, max_new_tokens=2, do_sample=False)
        model(**row.inputs("t11"))
