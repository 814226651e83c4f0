from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rows import ROWS

from foveate.bench.answers import Asker, Prompts
from foveate.bench.configurations import DENSE
from foveate.engine import apply, compress, encode
from foveate.errors import FoveateError
from foveate.fingerprint import answering_fingerprint
from foveate.schedule import tokens_per_layer
from foveate.spec import Spec, parse

SPECS = [DENSE, *map(parse, ("random:5", "cluster:4", "cls:3", "pool2d:4", "stride:9:positions=keep", "resize:4"))]


def answer(asker: Asker, prompts: list[Prompts], spec: Spec, reuse: bool) -> Any:
    with torch.inference_mode():
        encoded = encode(asker.model, asker.pixels(prompts), [spec])
    return asker.answer(prompts, spec, encoded, reuse=reuse)


def text_of(asker: Asker, ids: Any) -> str:
    """The text of new ids of `generate`, up to their end."""
    ends = [number for number, each in enumerate(ids.tolist()) if each in asker.decoding.ends]
    return asker.processor.decode(ids[: min(ends, default=len(ids))], skip_special_tokens=True)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: str(spec) or "dense")
def test_reuse_equals_generate(model, processor, task, spec) -> None:
    asker = Asker(model, processor, longest=6)
    prompts = [asker.prompts(picture) for picture in task.pictures[:3]]
    fast, plain = (answer(asker, prompts, spec, reuse) for reuse in (True, False))
    assert fast.texts == plain.texts
    assert fast.before == plain.before == [16, 16, 16]
    assert fast.after == pytest.approx(plain.after)
    assert len({text for texts in fast.texts for text in texts}) > 1, "the test can't see anything"


def test_methods_that_read_the_question_see_each_question(model, processor, task) -> None:
    asker, spec = Asker(model, processor, longest=6), parse("cdpruner:3")
    prompts = [asker.prompts(picture) for picture in task.pictures[:3]]
    with torch.inference_mode():
        encoded = encode(asker.model, asker.pixels(prompts), [spec])
        answered = asker.answer(prompts, spec, encoded)
        assert answered.spent.compressions == sum(len(each.rows) for each in prompts)
        for number, each in enumerate(prompts):
            slots = set()
            for row, text in zip(each.rows, answered.texts[number], strict=True):
                ids = torch.tensor([row])
                short = compress(model, {"input_ids": ids}, spec, encoded.pick([number]))
                slots.add(tuple(short.images[0].slot.tolist()))
                alone = model.generate(**short, max_new_tokens=6, do_sample=False)
                assert text_of(asker, alone[0, short["input_ids"].shape[1] :]) == text
            assert len(slots) > 1, "the questions make no difference"
    with pytest.raises(FoveateError, match="cdpruner:3 reads the question"):
        asker.answer(prompts, spec, encoded, reuse=True)


@pytest.mark.parametrize("spec", ["pool:4@1", "random:6+pool:0.5@1", "vtw@1"])
@torch.inference_mode()
def test_steps_inside_the_decoder_act_under_apply(model, processor, task, spec) -> None:
    asker = Asker(model, processor, longest=6)
    prompts = [asker.prompts(picture) for picture in task.pictures[:3]]
    encoded = encode(asker.model, asker.pixels(prompts), [parse(spec)])
    answered = asker.answer(prompts, parse(spec), encoded)
    counts = tokens_per_layer(spec, asker.family, encoded.layouts[0])
    for number, each in enumerate(prompts):
        for row, text in zip(each.rows, answered.texts[number], strict=True):
            ids = torch.tensor([row])
            with apply(model, spec):
                alone = model.generate(
                    input_ids=ids,
                    attention_mask=torch.ones_like(ids),
                    **each.pixels,
                    max_new_tokens=6,
                    do_sample=False,
                    pad_token_id=asker.pad,
                )
            assert text_of(asker, alone[0, ids.shape[1] :]) == text
    assert answered.after == pytest.approx([counts[-1]] * 3)
    assert answered.mean == pytest.approx([sum(counts) / len(counts)] * 3)
    with pytest.raises(FoveateError, match="acts inside the decoder"):
        asker.answer(prompts, parse(spec), encoded, reuse=True)


def test_answers_of_different_length_equal_generate(model, processor, task) -> None:
    """Rows that end early leave the batch; the others must go on as if alone."""
    asker = Asker(model, processor, longest=12)
    prompts = [asker.prompts(picture) for picture in task.pictures[:8]]
    fast = answer(asker, prompts, DENSE, reuse=True).texts
    alone = [answer(asker, [each], DENSE, reuse=False).texts[0] for each in prompts]
    assert fast == alone
    assert len({len(text.split()) for texts in fast for text in texts}) > 1


def test_prompts_are_those_of_the_processor(model, processor, task) -> None:
    asker = Asker(model, processor)
    picture = task.pictures[0]
    prompts = asker.prompts(picture)
    for asked, row in zip(picture.questions, prompts.rows):
        chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": asked.text}]}]
        text = processor.apply_chat_template(chat, add_generation_prompt=True)
        whole = processor(text=[text], images=[picture.load()], return_tensors="pt")["input_ids"][0].tolist()
        assert list(row) == whole
    assert prompts.rows[0][: prompts.shared].count(4) == 16
    assert prompts.rows[0][prompts.shared - 1] == 4


def test_mrope_reuse_equals_generate() -> None:
    """Qwen2.5-VL counts positions on three axes; images of two sizes are two groups."""
    row = next(each for each in ROWS if each.name == "qwen2_5_vl")
    stub = SimpleNamespace(chat_template="x", batch_decode=lambda ids, skip_special_tokens: [str(each) for each in ids])
    asker = Asker(row.model(), stub, longest=5)
    prompts = []
    for letter in "AB":
        ids = [row.ids(f"t4 {letter} {end}") for end in ("t3", "t5", "t7'1")]
        prompts.append(Prompts(row.pixels(letter), tuple(map(tuple, ids)), 4 + row.count(letter)))
    for text in ("cluster:6", "pool2d:6", "cls:6:positions=keep"):
        fast, plain = (answer(asker, prompts, parse(text), reuse) for reuse in (True, False))
        assert fast.texts == plain.texts


def test_fingerprint_sees_one_changed_weight_matrix(model, processor) -> None:
    before = answering_fingerprint(model, processor)
    assert before == answering_fingerprint(model, processor)
    weight = model.model.language_model.layers[0].self_attn.q_proj.weight
    with torch.no_grad():
        weight.add_(1e-3)
        assert answering_fingerprint(model, processor) != before
        weight.sub_(1e-3)
