"""Two passes equal the masked pass, memories can be joined and moved, and text sees nothing else of an image."""

import copy
import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rows import ROWS, Row
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import GenerationConfig
from versions import set_checkpointing

import foveate
from foveate.engine import encode
from foveate.errors import FoveateError, UnsupportedFamily
from foveate.families import family_of
from foveate.layout import one_row
from foveate.voco import VoCo, VoCoMemory
from foveate.voco.generation import check_options
from foveate.voco.losses import distillation
from foveate.voco.two_pass import read_images

FAMILIES = [row for row in ROWS if row.name in ("llava", "qwen2_5_vl")]
BATCH = ("t6 A t5", "t2 B t9 C t3", "t11", "t3 C t4")
TOKENS = 3


@pytest.fixture(params=FAMILIES, ids=lambda row: row.name)
def row(request) -> Row:
    return request.param


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def attention(request) -> str:
    return request.param


_made: dict[tuple[str, str], Any] = {}


@pytest.fixture
def model(row, attention):
    if (row.name, attention) not in _made:
        _made[row.name, attention] = row.model(attention)
    return _made[row.name, attention]


@pytest.fixture
def voco(model):
    return VoCo(model, tokens=TOKENS, shared=False)


def with_labels(row: Row, *prompts: str) -> dict[str, Any]:
    inputs: dict[str, Any] = row.inputs(*prompts)
    labels = inputs["input_ids"].masked_fill(row.is_image(inputs["input_ids"]), -100)
    labels[:, :-3] = -100
    return {**inputs, "labels": labels}


def test_two_passes_equal_the_masked_pass(row, model, voco):
    """Text-only rows, two images in a row, and rows of different length, all in one batch."""
    inputs = with_labels(row, *BATCH)
    two, one = voco(model, inputs), voco(model, inputs, in_two_passes=False)
    real = two.logits.new_zeros(two.logits.shape[:2]).bool()
    for number, prompt in enumerate(BATCH):
        real[number, -sum(int(word[1:]) for word in prompt.split() if word[0] == "t") :] = True
    torch.testing.assert_close(two.logits[real], one.logits[real], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(two.loss, one.loss, atol=1e-5, rtol=1e-5)


def test_only_the_beginning_before_an_image_is_left_out(row, model, voco):
    """Rows of text alone equal the model's; an answer may end with [BOS], and a question may begin with it."""
    bos = model.config.get_text_config().bos_token_id
    assert bos == 1
    text, behind = row.inputs("t9", "t3"), row.inputs("t4 A t9")
    for inputs in (text, behind):
        inputs["input_ids"] = torch.nn.functional.pad(inputs["input_ids"], (0, 1), value=bos)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        if row.token_types:
            inputs["mm_token_type_ids"] = row.is_image(inputs["input_ids"]).int()
        inputs["labels"] = inputs["input_ids"].masked_fill(row.is_image(inputs["input_ids"]), -100)
    text["input_ids"][0, 0] = text["input_ids"][1, 6] = behind["input_ids"][0, 0] = bos
    text["attention_mask"][1, :6] = 0
    text["labels"][0, 0] = text["labels"][1, :7] = -100
    expected = model(**{name: value for name, value in text.items() if name != "mm_token_type_ids"})
    for two in (True, False):
        found = voco(model, text, in_two_passes=two)
        real = text["attention_mask"].bool()
        torch.testing.assert_close(found.logits[real], expected.logits[real], atol=1e-4, rtol=1e-4)
        assert found.labels.equal(text["labels"])
        after = voco(model, behind, in_two_passes=two)
        assert after.labels[0, -1] == bos
        assert after.labels.shape[1] == 4 + 9
    (memory,) = voco.encode(model, row.inputs("A"))
    ids, options = row.inputs("t7", "t3")["input_ids"], {"max_new_tokens": 4, "do_sample": False}
    begun = torch.nn.functional.pad(ids, (1, 0), value=0)
    begun[0, 0] = begun[1, 4] = bos
    assert voco.generate(model, memory, begun, **options).equal(voco.generate(model, memory, ids, **options))


def test_gradients_of_both_ways_agree(row, model, voco):
    inputs = with_labels(row, *BATCH)
    found = []
    for two in (True, False):
        voco.zero_grad()
        voco(model, inputs, in_two_passes=two).loss.backward()
        found.append(voco.embedding.grad.clone())
    assert found[0].abs().max() > 1e-4
    torch.testing.assert_close(found[0], found[1], atol=1e-4, rtol=1e-3)
    model.zero_grad()


def test_the_image_reaches_the_text_through_voco_tokens_alone(row, model, voco):
    """Features get their gradient through the memory, and another image changes the text's logits."""
    inputs = row.inputs("t4 A t6")
    encoded = encode(model, inputs)
    family = family_of(model)
    features = encoded.projected[0].detach().requires_grad_()
    (memory,) = read_images(family, [features], encoded.layouts, voco.embeddings(TOKENS), "", "")
    (through,) = torch.autograd.grad(memory.keys.sum() + memory.values.sum(), features, retain_graph=True)
    assert through.abs().max() > 0
    with torch.no_grad():
        swapped = voco(model, row.inputs("t4 B t6")).logits - voco(model, inputs).logits
    assert swapped.abs().max() > 1e-4, "the text sees nothing at all"


def test_text_rows_give_image_columns_no_weight(row):
    model = row.model("eager")
    voco = VoCo(model, tokens=2)
    weights = []

    def keep(module, args, output):
        weights.append(output[1])

    handles = [layer.self_attn.register_forward_hook(keep) for layer in family_of(model).decoder_layers]
    inputs = row.inputs("t4 A t6")
    text = voco(model, inputs, in_two_passes=False).logits.shape[1]
    for handle in handles:
        handle.remove()
    assert len(weights) == len(handles)
    for weight in weights:
        image = weight[:, :, -text:, : -text - 2]
        assert image.shape[-1] >= row.count("A")
        assert torch.equal(image, torch.zeros_like(image))
        assert (weight[:, :, -text:, -text - 2 : -text] > 0).all()


def test_no_gradient_goes_from_the_text_to_image_columns(row):
    """With VoCo tokens detached after every layer it is exactly zero; else it passes through them."""
    model = row.model("eager")
    voco = VoCo(model, tokens=2)
    inputs = row.inputs("t4 A t6")
    layers = family_of(model).decoder_layers
    arrived = []

    def gradient(hold: bool):
        arrived.clear()
        first = layers[0].register_forward_pre_hook(lambda module, args: arrived.append(args[0].requires_grad_()))
        hooks = [layer.register_forward_hook(held) for layer in layers] if hold else []
        logits = voco(model, inputs, in_two_passes=False).logits
        for hook in (first, *hooks):
            hook.remove()
        return torch.autograd.grad(logits.square().sum(), arrived[0])[0]

    def held(module, args, output):
        return torch.cat([output[:, : -text - 2], output[:, -text - 2 : -text].detach(), output[:, -text:]], dim=1)

    text = voco(model, inputs, in_two_passes=False).logits.shape[1]
    through, direct = gradient(hold=False), gradient(hold=True)
    assert through[:, : -text - 2].abs().max() > 0
    assert torch.equal(direct[:, : -text - 2], torch.zeros_like(direct[:, : -text - 2]))
    assert direct[:, -text:].abs().max() > 0


def test_a_memory_moved_is_a_memory_made_there(row, model, voco):
    """In one masked pass, the second image's memory equals the second part of the joined memory."""
    a, b = voco.encode(model, row.inputs("A")) + voco.encode(model, row.inputs("B"))
    ab, ba = VoCoMemory.joined([a, b]), VoCoMemory.joined([b, a])
    assert ab.tokens == 2 * TOKENS
    assert ab.end == a.end + b.end
    assert ab.visual_tokens == row.count("A") + row.count("B")
    torch.testing.assert_close(ab.moved(17).moved(0).keys, ab.keys, atol=1e-5, rtol=1e-5)
    ids = row.inputs("t7")["input_ids"]

    def logits(memory):
        kept = {}
        hook = model.lm_head.register_forward_hook(lambda module, args, output: kept.update(logits=output))
        voco.generate(model, memory, ids, max_new_tokens=1, do_sample=False)
        hook.remove()
        return kept["logits"][:, -1]

    assert (logits(ab) - logits(ba)).abs().max() > 1e-4, "order is lost"


def test_packed_images_stand_right_behind_one_another(row, model):
    """One and two passes agree, positions grow by the VoCo tokens alone, and order matters."""
    voco = VoCo(model, TOKENS, shared=False, packed=True)
    inputs = with_labels(row, "t2 B t9 C t3")
    two, one = voco(model, inputs), voco(model, inputs, in_two_passes=False)
    torch.testing.assert_close(two.logits, one.logits, atol=1e-4, rtol=1e-4)
    assert (two.loss - VoCo(model, TOKENS, shared=False)(model, inputs).loss).abs() > 1e-5
    a, b = voco.encode(model, row.inputs("A")) + voco.encode(model, row.inputs("B"))
    assert voco.join([a, b]).end == a.end + TOKENS
    assert (voco.join([a, b]).keys[:, :, :TOKENS] - voco.join([b, a]).keys[:, :, TOKENS:]).abs().max() > 1e-2


def test_a_packed_image_may_be_larger_than_all_before_it(row, model):
    """Its visual tokens begin before position 0 then, in one pass and in two."""
    voco = VoCo(model, 1, packed=True)
    inputs = row.inputs("t2 C t9 A t3")
    torch.testing.assert_close(
        voco(model, inputs).logits, voco(model, inputs, in_two_passes=False).logits, atol=1e-4, rtol=1e-4
    )


def test_images_joined_in_one_way_are_not_joined_in_the_other(row, model, voco, tmp_path):
    """Where each of them stands is no longer known; positions came out wrong, and nobody said so."""
    a, b, c = voco.encode(model, row.inputs("A t1 B t1 C"))
    for packed in (False, True):
        pair = VoCoMemory.joined([b, c], packed=packed)
        stored = VoCoMemory.load(pair.save(tmp_path / "pair.safetensors"))
        for memory in (pair, stored):
            for mixed in ([a, memory], [memory, a], [memory]):
                with pytest.raises(FoveateError, match=f"2 images that were joined with packed={packed}, and this"):
                    VoCoMemory.joined(mixed, packed=not packed)
            with pytest.raises(FoveateError, match="join all of them alike"):
                a.append(memory, packed=not packed)
            alike = VoCoMemory.joined([a, memory], packed=packed)
            torch.testing.assert_close(
                alike.keys, VoCoMemory.joined([a, b, c], packed=packed).keys, atol=1e-5, rtol=1e-5
            )
    path = pair.save(tmp_path / "pair.safetensors")
    with safe_open(path, framework="pt") as file:
        metadata = {name: value for name, value in file.metadata().items() if name != "packed"}
    save_file(load_file(path), path, metadata)
    with pytest.raises(FoveateError, match="encode the image again"):
        VoCoMemory.load(path)


@pytest.mark.parametrize("packed", [False, True])
def test_a_video_is_remembered_as_it_comes(row, model, packed):
    """Joining segment by segment equals joining all at once, and every segment adds only its tokens."""
    voco = VoCo(model, TOKENS, shared=False, packed=packed)
    segments = voco.encode(model, row.inputs("A t1 B t1 C"))
    streamed = segments[0]
    for number, segment in enumerate([*segments[1:], *segments * 3], start=2):
        streamed = voco.join([streamed, segment])
        assert streamed.nbytes == number * segment.nbytes
        assert streamed.images == number
    whole = voco.join(segments * 4)
    torch.testing.assert_close(streamed.keys, whole.keys, atol=1e-4, rtol=1e-4)
    assert streamed.end == whole.end
    halves = voco.join([voco.join(segments * 2), voco.join(segments * 2)])
    torch.testing.assert_close(halves.keys, whole.keys, atol=1e-4, rtol=1e-4)


def test_decoding_from_a_memory_is_decoding_under_the_mask(row, model, voco):
    """Greedy decoding equals masked passes over the text so far."""
    inputs = row.inputs("t4 A t6")
    (memory,) = voco.encode(model, inputs)
    ids = inputs["input_ids"][~row.is_image(inputs["input_ids"])][None]
    answer = voco.generate(model, memory, ids, max_new_tokens=5, do_sample=False)[0].tolist()
    expected: list[int] = []
    for _ in range(5):
        longer = {**inputs, "input_ids": torch.cat([inputs["input_ids"], torch.tensor([expected]).long()], dim=1)}
        longer["attention_mask"] = torch.ones_like(longer["input_ids"])
        longer.pop("mm_token_type_ids", None)
        with torch.no_grad():
            expected.append(int(voco(model, longer, in_two_passes=False).logits[0, -1].argmax()))
    assert answer == expected


def test_many_questions_and_memories_in_one_batch(row, model, voco):
    a, b = voco.encode(model, row.inputs("t3 A t2 B"))
    short, long = row.inputs("t4")["input_ids"], row.inputs("t9")["input_ids"]
    both = torch.cat([torch.cat([torch.zeros(1, 5, dtype=torch.int64), short], dim=1), long])
    options = {"max_new_tokens": 4, "do_sample": False}
    batched = voco.generate(model, VoCoMemory.joined([a, b]), both, **options)
    for number, ids in enumerate((short, long)):
        alone = voco.generate(model, VoCoMemory.joined([a, b]), ids, **options)
        assert batched[number].tolist() == alone[0].tolist()
    mixed = voco.generate(model, [VoCoMemory.joined([a, b]), b], both, **options)
    assert mixed[0].tolist() == batched[0].tolist()
    assert mixed[1].tolist() == voco.generate(model, b, long, **options)[0].tolist()
    one = voco.generate(model, [a, b], long, **options)
    assert one[1].tolist() == mixed[1].tolist()


def test_fewer_tokens_than_trained(row, model, voco):
    (whole,), (part,) = (voco.encode(model, row.inputs("A"), tokens=count) for count in (None, 2))
    assert (whole.tokens, part.tokens) == (TOKENS, 2)
    torch.testing.assert_close(whole.keys[:, :, :2], part.keys, atol=1e-5, rtol=1e-5)
    assert part.end == whole.end - 1


def test_the_first_tokens_of_a_memory_are_a_memory_of_fewer(row, model, voco):
    (whole,), (part,) = (voco.encode(model, row.inputs("A"), tokens=count) for count in (None, 2))
    first = whole.first(2)
    torch.testing.assert_close(first.keys, part.keys, atol=1e-5, rtol=1e-5)
    assert (first.end, first.adapter, first.visual_tokens) == (part.end, part.adapter, part.visual_tokens)
    assert VoCoMemory.joined([first, part]).tokens == 4
    with pytest.raises(FoveateError, match=f"from 1 to {TOKENS}"):
        whole.first(TOKENS + 1)
    with pytest.raises(FoveateError, match="memory of 2 images"):
        VoCoMemory.joined([whole, whole]).first(2)


def test_images_read_behind_a_spec(row, model):
    """VoCo tokens read what a spec leaves of an image, and the memory counts all visual tokens."""
    spec = "pool2d:0.5:positions=pack@features"
    if row.name != "llava":
        with pytest.raises(UnsupportedFamily, match="rows and columns"):
            VoCo(model, 2, features=spec)
        return
    voco = VoCo(model, 2, features=spec)
    (memory,) = voco.encode(model, row.inputs("t3 A t2"))
    assert memory.visual_tokens == row.count("A")
    assert memory.end < VoCo(model, 2).encode(model, row.inputs("A"))[0].end
    kept = foveate.compress(model, row.inputs("A"), spec).images[0].features
    assert 1 < kept.shape[0] <= row.count("A") // 2
    layout = one_row(kept.shape[0])
    with torch.no_grad():
        (expected,) = read_images(family_of(model), [kept], [layout], voco.embeddings(2), "", "")
    torch.testing.assert_close(memory.keys, expected.keys, atol=1e-5, rtol=1e-5)
    with pytest.raises(FoveateError, match="positions=pack"):
        VoCo(model, 2, features="pool2d:0.5@features")


def test_images_of_one_batch_are_their_own(row, model, voco):
    together = voco.encode(model, row.inputs(*BATCH))
    for memory, letter in zip(together, "ABCC"[:1] + "BCC"):
        (alone,) = voco.encode(model, row.inputs(letter))
        torch.testing.assert_close(memory.keys, alone.keys, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(memory.values, alone.values, atol=1e-4, rtol=1e-4)


def test_bytes_are_counted_exactly(row, model, voco):
    (memory,) = voco.encode(model, row.inputs("A"))
    text = model.config.get_text_config()
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    assert memory.nbytes == 2 * text.num_hidden_layers * text.num_key_value_heads * TOKENS * head * 4


def test_memories_survive_the_disk(row, model, voco, tmp_path):
    (memory,) = voco.encode(model, row.inputs("A"))
    again = VoCoMemory.load(memory.save(tmp_path / "a.safetensors"))
    assert torch.equal(again.keys, memory.keys)
    assert torch.equal(again.values, memory.values)
    assert (again.begin, again.end, again.base) == (memory.begin, memory.end, memory.base)
    ids = row.inputs("t7")["input_ids"]
    options = {"max_new_tokens": 4, "do_sample": False}
    assert voco.generate(model, again, ids, **options).equal(voco.generate(model, memory, ids, **options))
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_distillation_is_zero_for_the_teacher_itself(row, model, voco):
    inputs = with_labels(row, "t6 A t5", "t9 C t7")
    output = voco(model, inputs)
    assert distillation(output, output.logits, output.labels).abs() < 1e-6
    with torch.no_grad():
        dense = model(**{name: value for name, value in inputs.items() if name != "labels"}).logits
    loss = distillation(output, dense, inputs["labels"])
    assert loss > 0
    loss.backward()
    assert voco.embedding.grad.abs().max() > 0
    model.zero_grad()


# The adapter on disk, and whose it is


def test_the_adapter_survives_the_disk(row, model, voco, tmp_path):
    again = VoCo.from_pretrained(voco.save_pretrained(tmp_path / "voco"))
    assert torch.equal(again.embedding, voco.embedding)
    assert (again.tokens, again.base, again.fingerprint()) == (voco.tokens, voco.base, voco.fingerprint())
    voco.save_pretrained(tmp_path / "voco")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["voco"]
    assert sorted(path.name for path in (tmp_path / "voco").iterdir()) == ["voco.json", "voco.safetensors"]


# Bad input


def test_another_base_model(row, model, voco):
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.lm_head.weight.add_(1)
        family_of(other).decoder_layers[0].mlp.down_proj.weight.mul_(1.5)
    with pytest.raises(FoveateError, match="another base model"):
        voco.encode(other, row.inputs("A"))
    (memory,) = VoCo(other, tokens=2).encode(other, row.inputs("A"))
    with pytest.raises(FoveateError, match="another base model"):
        voco.generate(model, memory, row.inputs("t3")["input_ids"])


def test_another_adapter(row, model, voco):
    (memory,) = VoCo(model, tokens=2, seed=7).encode(model, row.inputs("A"))
    with pytest.raises(FoveateError, match="another adapter"):
        voco.generate(model, memory, row.inputs("t3")["input_ids"])


def test_another_dtype_or_depth(row, model, voco):
    (memory,) = voco.encode(model, row.inputs("A"))
    ids = row.inputs("t3")["input_ids"]
    with pytest.raises(FoveateError, match=r"convert it with \.to"):
        voco.generate(model, memory.to(dtype=torch.bfloat16), ids)
    fewer = VoCoMemory(
        memory.keys[:1], memory.values[:1], 0, memory.end, 1, memory.base, memory.adapter, memory.frequencies
    )
    with pytest.raises(FoveateError, match="layers"):
        voco.generate(model, fewer, ids)


def test_more_tokens_than_trained(row, model, voco):
    for count in (0, TOKENS + 1):
        with pytest.raises(FoveateError, match=f"from 1 to {TOKENS}"):
            voco.encode(model, row.inputs("A"), tokens=count)


def test_a_memory_cut_short(row, model, voco, tmp_path):
    (memory,) = voco.encode(model, row.inputs("A"))
    path = memory.save(tmp_path / "a.safetensors")
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(FoveateError, match="truncated or damaged"):
        VoCoMemory.load(path)
    save_file({"keys": torch.zeros(1)}, path)
    with pytest.raises(FoveateError, match="not a VoCo memory"):
        VoCoMemory.load(path)
    with pytest.raises(FoveateError, match="there is no memory"):
        VoCoMemory.load(tmp_path / "none.safetensors")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tensors: tensors["keys"].view(-1)[3:4].fill_(float("nan")), "NaN"),
        (lambda tensors: tensors["values"].view(-1)[3:4].fill_(float("inf")), "infinite"),
        (lambda tensors: tensors.update(keys=tensors["keys"].to(torch.int8)), "must be alike"),
        (lambda tensors: tensors.update({name: tensors[name].to(torch.int8) for name in ("keys", "values")}), "int8"),
        (lambda tensors: tensors.update(keys=tensors["keys"][0].contiguous()), "must be alike"),
        (lambda tensors: tensors.update(values=tensors["values"][:, :, :1].contiguous()), "must be alike"),
        (lambda tensors: tensors.pop("values"), "values"),
        (lambda tensors: tensors.update(frequencies=torch.zeros(2, 2)), "frequencies"),
    ],
)
def test_memories_of_other_tensors(row, model, voco, tmp_path, change, said):
    (memory,) = voco.encode(model, row.inputs("A"))
    path = memory.save(tmp_path / "a.safetensors")
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata)
    with pytest.raises(FoveateError, match="damaged") as caught:
        VoCoMemory.load(path)
    assert said in str(caught.value)


@pytest.mark.parametrize("name", ["begin", "end", "visual_tokens", "images"])
@pytest.mark.parametrize("value", ["-1", "x", "", "1e3", None])
def test_memories_of_other_counts(row, model, voco, tmp_path, name, value):
    (memory,) = voco.encode(model, row.inputs("A"))
    path = memory.save(tmp_path / "a.safetensors")
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    if value is None and name == "images":
        pytest.skip("files of one image may leave it out")
    kept = {key: each for key, each in metadata.items() if key != name}
    save_file(load_file(path), path, kept if value is None else {**kept, name: value})
    with pytest.raises(FoveateError, match="damaged"):
        VoCoMemory.load(path)


def test_an_adapter_cut_short(row, model, voco, tmp_path):
    path = voco.save_pretrained(tmp_path / "voco")
    weights = path / "voco.safetensors"
    assert set(load_file(weights)) == {"embedding"}
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(FoveateError, match="no complete VoCo adapter"):
        VoCo.from_pretrained(path)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"format": 99}, "format 99.*update foveate"),
        ({"tokens": 5}, rf"embedding has the shape \({TOKENS}, .*should have \(5, any\)"),
    ],
)
def test_an_adapter_of_another_shape(row, model, voco, tmp_path, settings, said):
    path = voco.save_pretrained(tmp_path / "voco") / "voco.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))
    with pytest.raises(FoveateError, match=said):
        VoCo.from_pretrained(path.parent)


def test_checkpointed_activations(row, voco):
    """They leave no keys and values in training; the masked pass needs none."""
    model, inputs = row.model(), with_labels(row, "t3 A t4")
    (memory,) = voco.encode(model, inputs)
    set_checkpointing(model, True)
    voco.encode(model, inputs)
    model.train()
    calls = (
        lambda: voco.encode(model, inputs),
        lambda: voco.generate(model, memory, row.inputs("t3")["input_ids"]),
        lambda: voco(model, inputs),
    )
    for call in calls:
        with pytest.raises(FoveateError, match=r"call model\.eval\(\), or train with in_two_passes=False"):
            call()
    voco(model, inputs, in_two_passes=False).loss.backward()
    assert voco.embedding.grad.abs().max() > 0


def test_counts_that_do_not_fit(row, model, voco):
    (memory,) = voco.encode(model, row.inputs("A"))
    ids = row.inputs("t3")["input_ids"].expand(3, -1)
    with pytest.raises(FoveateError, match="2 memories don't go with 3 questions"):
        voco.generate(model, [memory, memory], ids)
    with pytest.raises(FoveateError, match="need the model's processor"):
        voco.generate(model, memory, "what ?")
    for other, said in (
        (ids[0], r"questions are \(3,\) int64"),
        (ids.sum(), r"questions are \(\) int64"),
        (ids.float(), r"questions are \(3, 3\) float32"),
        (ids + 10**6, "questions hold ids from 10.* and the model's are from 0 to"),
        (-ids, "questions hold ids from -"),
    ):
        with pytest.raises(FoveateError, match=said):
            voco.generate(model, memory, other)
    with pytest.raises(FoveateError, match="no label is left"):
        voco(model, {**row.inputs("t3 A t4"), "labels": torch.full_like(row.inputs("t3 A t4")["input_ids"], -100)})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"num_beams": 2}, "num_beams=2 doesn't work with memories"),
        ({"num_return_sequences": 2, "do_sample": True}, "num_return_sequences=2 .*as often as you want"),
        ({"generation_config": GenerationConfig(num_beams=3)}, "num_beams=3"),
        ({"cache_implementation": "static"}, "cache_implementation=static"),
        ({"use_cache": False}, "use_cache=False"),
        ({"attention_mask": torch.ones(1, 3), "position_ids": torch.ones(1, 3)}, "attention_mask, position_ids: VoCo"),
    ],
)
def test_options_of_generate_that_can_not_be(row, model, voco, options, said):
    (memory,) = voco.encode(model, row.inputs("A"))
    with pytest.raises(FoveateError, match=said):
        voco.generate(model, memory, row.inputs("t3")["input_ids"], **options)


def test_options_of_generate_that_can(row, voco):
    """A returned dict has only new ids, and a model whose cache is disabled answers the same."""
    model, ids = row.model(), row.inputs("t7")["input_ids"]
    (memory,) = voco.encode(model, row.inputs("A"))
    options = {"max_new_tokens": 4, "do_sample": False}
    expected = voco.generate(model, memory, ids, **options, use_cache=True)
    model.generation_config.use_cache = model.config.get_text_config().use_cache = False
    found = voco.generate(model, memory, ids, **options, return_dict_in_generate=True, output_logits=True)
    assert found.sequences.equal(expected)
    assert len(found.logits) == 4
    for nothing, questions in (([], ids), (memory, []), (memory, ids[:0]), (memory, ids[:, :0])):
        with pytest.raises(FoveateError, match=r"there is no (memory to answer from|question to answer)"):
            voco.generate(model, nothing, questions, **options)


def test_training_is_on_what_the_adapter_belongs_to(row, voco):
    """Else the loss would be silently wrong: of another model, or of a video taken for text."""
    model, inputs = row.model(), with_labels(row, "t3 A t4")
    other = copy.deepcopy(model)
    with torch.no_grad():
        family_of(other).decoder_layers[0].mlp.down_proj.weight.mul_(1.5)
    with pytest.raises(FoveateError, match="another base model"):
        voco(other, inputs)
    first = voco(model, inputs).loss
    with torch.no_grad():
        family_of(model).decoder_layers[0].mlp.down_proj.weight.mul_(1.5)
    assert voco(model, inputs).loss != first, "trained since then, as the caller chose"
    name = next(iter(family_of(model).video_inputs), None)
    if name is not None:
        with pytest.raises(FoveateError, match="video is not supported yet for VoCo tokens"):
            voco(model, {**inputs, name: torch.zeros(1)})


def test_a_backend_without_the_mask(row, voco):
    model = row.model()
    family_of(model).decoder.config._attn_implementation = "flash_attention_2"
    with pytest.raises(FoveateError, match="use in_two_passes=True"):
        voco(model, row.inputs("t3 A t4"), in_two_passes=False)


@pytest.mark.parametrize("count", [0, -1, 1.5, True])
def test_answers_of_no_tokens_are_refused(count: Any) -> None:
    with pytest.raises(FoveateError, match="max_new_tokens must be a whole number from 1"):
        check_options(SimpleNamespace(generation_config=SimpleNamespace()), {"max_new_tokens": count})
