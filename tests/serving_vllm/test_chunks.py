"""Prompts that are read in chunks smaller than a clip: its placeholders, and the text between frames, are parted."""

from pathlib import Path

import test_qwen
from engines import ask_transformers, ask_vllm, difference, engine


def test_clips_in_chunks(tmp_path: Path) -> None:
    model, processor = test_qwen.saved(test_qwen.qwen3_vl, tmp_path)
    limits = {"max_num_batched_tokens": 24, "max_num_seqs": 4, "max_model_len": 256}
    llm = engine(tmp_path, enable_chunked_prefill=True, limit_mm_per_prompt={"image": 1, "video": 1}, **limits)
    questions = [test_qwen.question_about_a_clip(number) for number in range(3)]
    questions.append(test_qwen.question_about_a_clip(4, images=1))
    for spec in ("cluster:12", "stride:6", "cluster:3:per=frame"):
        for asked, answer in zip(questions, ask_vllm(llm, questions, [spec] * len(questions)), strict=True):
            expected = ask_transformers(model, processor, asked, spec)
            assert (answer.prompt, answer.tokens) == (expected.prompt, expected.tokens), spec
            assert answer.prompt > 24
            assert difference(answer, expected) < 1e-4, spec
