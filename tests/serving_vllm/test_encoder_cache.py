"""Requests that are aborted give their places in the encoder's cache and in the KV cache back."""

from typing import Any

import pytest
from engines import engine
from vllm import LLM, SamplingParams

import foveate
from foveate.embedded import PATH
from foveate.scenes import scene


@pytest.fixture(scope="module")
def llm() -> LLM:
    return engine(PATH, max_num_batched_tokens=256, enable_chunked_prefill=True)


@pytest.mark.parametrize("spec", ["dense", "cluster:64"])
def test_aborted_requests_leave_nothing_in_use(llm: LLM, spec: str, measured: dict[str, list[Any]]) -> None:
    _, processor = foveate.reference()
    own: Any = llm.llm_engine
    scheduler = own.engine_core.engine_core.scheduler
    pool, encoded = scheduler.kv_cache_manager.block_pool, scheduler.encoder_cache_manager
    blocks, slots = pool.get_num_free_blocks(), encoded.num_freeable_slots
    for steps in (1, 2, 5):
        names = [f"{spec}-{steps}-{number}" for number in range(4)]
        for number, name in enumerate(names):
            turn = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "is there a star ?"}]}]
            prompt: Any = {
                "prompt": processor.apply_chat_template(turn, add_generation_prompt=True),
                "multi_modal_data": {"image": scene(400 + number + 10 * steps).image},
                "mm_processor_kwargs": {"foveate": spec},
            }
            own.add_request(name, prompt, SamplingParams(max_tokens=200, ignore_eos=True))
        for _ in range(steps):
            own.step()
        # Something was in use, else this says nothing.
        assert pool.get_num_free_blocks() < blocks
        own.abort_request(names)
        own.step()
        assert not own.has_unfinished_requests()
        assert pool.get_num_free_blocks() == blocks
        assert encoded.num_freeable_slots == slots
    measured.setdefault("faults", []).append(
        {
            "what": f"12 requests with {spec}, aborted after 1, 2 and 5 steps",
            "happened": "nothing is in use of the KV cache and of the encoder's",
        }
    )
