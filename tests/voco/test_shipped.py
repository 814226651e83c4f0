"""The adapter that comes with the embedded model is small, complete, and better than no image."""

import torch

import foveate
from foveate.adapters import shipped
from foveate.scenes import test_set
from foveate.voco import VoCo

HOME = shipped("voco")


def test_it_is_small_and_tells_nothing_of_where_it_was_trained() -> None:
    files = [path for path in HOME.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".json", ".safetensors"}
    assert sum(path.stat().st_size for path in files) < 6e6
    assert '"base_model_name_or_path": null' in (HOME / "lora" / "adapter_config.json").read_text()


def test_its_memories_answer_questions() -> None:
    model, processor = foveate.reference()
    voco = VoCo.from_pretrained()
    right = {1: 0, 32: 0}
    asked = 0
    for scene in test_set(40):
        inputs = dict(processor.image_processor(images=[scene.image], return_tensors="pt"))
        inputs["input_ids"] = torch.full((1, 576), model.config.image_token_id)
        (memory,) = voco.encode(model, inputs)
        assert memory.nbytes == 32 * 18 * 1024
        asked += len(scene.questions)
        for count in right:
            questions = [each.text for each in scene.questions]
            answers = voco.generate(model, memory.first(count), questions, processor, max_new_tokens=12)
            right[count] += sum(each.answer == said for each, said in zip(scene.questions, answers, strict=True))
    # Whoever sees nothing has about a fifth of them.
    assert right[1] > 0.35 * asked
    assert right[32] > 0.6 * asked
