"""A store finds memories by their image, is bounded in size, and can be shared by processes."""

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from rows import ROWS
from safetensors.torch import save_file

from foveate.errors import FoveateError, FoveateWarning
from foveate.families import family_of
from foveate.voco import MemoryStore, VoCo, VoCoMemory
from foveate.voco.two_pass import memory_cache

PROCESS = """
import sys, torch
from foveate.voco import MemoryStore, VoCoMemory
folder, seed = sys.argv[1], int(sys.argv[2])
store = MemoryStore(folder, max_bytes=400_000)
for step in range(int(sys.argv[3])):
    value = (seed + step) % 7
    keys = torch.full((2, 2, 300, 16), float(value))
    def make():
        return VoCoMemory(keys, keys.clone(), 0, 300, 1, "base", "adapter", torch.ones(8))
    found = store.get_or_make(f"{value:064x}", make)
    assert (found.keys == value).all(), "a memory of another name"
    print(step, flush=True)
"""


def memory(value: float, tokens: int = 4) -> VoCoMemory:
    keys = torch.full((2, 2, tokens, 8), value)
    return VoCoMemory(keys, keys.clone(), 0, tokens, 1, "base", "adapter", torch.ones(4))


def test_a_memory_is_made_once(tmp_path):
    store, made = MemoryStore(tmp_path), []

    def make():
        made.append(1)
        return memory(2.0)

    key = MemoryStore.key(b"picture", "base", "adapter")
    for _ in range(3):
        assert (store.get_or_make(key, make).keys == 2.0).all()
    assert len(made) == 1
    assert key in store
    assert MemoryStore(tmp_path).get(key) is not None


def test_names_tell_image_model_and_adapter_apart():
    pixels = torch.arange(12.0).view(3, 2, 2)
    names = {
        MemoryStore.key(b"picture", "base", "adapter"),
        MemoryStore.key(b"other", "base", "adapter"),
        MemoryStore.key(b"picture", "other", "adapter"),
        MemoryStore.key(b"picture", "base", "adapter:2"),
        MemoryStore.key(pixels, "base", "adapter"),
        MemoryStore.key(pixels.view(3, 4, 1), "base", "adapter"),
    }
    assert len(names) == 6
    assert MemoryStore.key(pixels, "base", "adapter") == MemoryStore.key(pixels.clone(), "base", "adapter")


def test_names_tell_everything_of_an_image_and_nothing_of_the_text():
    """Eight patches in two rows, or in four: the same pixels at other positions."""

    def key(rows: int, columns: int, ids: list[int]) -> str:
        grid, ids = torch.tensor([[1, rows, columns]]), torch.tensor([ids])
        return MemoryStore.key({"pixel_values": torch.ones(8, 6), "image_grid_thw": grid, "input_ids": ids}, "b", "a")

    assert key(2, 4, [1, 2]) == key(2, 4, [3])
    assert key(2, 4, [1]) != key(4, 2, [1])
    with pytest.raises(FoveateError, match="no image"):
        MemoryStore.key({"input_ids": torch.ones(1, 3)}, "base", "adapter")


def test_the_longest_unused_goes_first(tmp_path):
    probe = MemoryStore(tmp_path / "probe")
    probe.put("a", memory(0.0))
    store = MemoryStore(tmp_path / "store", max_bytes=3 * probe.nbytes)
    for number, name in enumerate("abc"):
        store.put(name, memory(float(number)))
        os.utime(store.directory / f"{name}.safetensors", (number, number))
    assert store.get("a") is not None
    store.put("d", memory(3.0))
    assert ("a" in store, "b" in store, "c" in store, "d" in store) == (True, False, True, True)
    assert store.nbytes <= store.max_bytes


def test_the_header_of_a_file_counts(tmp_path):
    """A file that alone is larger than the store isn't kept, and nothing else goes for it."""
    small, large = memory(1.0, tokens=1), memory(2.0, tokens=16)
    store = MemoryStore(tmp_path, max_bytes=large.nbytes)
    store.put("small", small)
    with pytest.raises(FoveateError, match=r"of 4,\d\d\d bytes is larger than the store of 4,096; raise max_bytes"):
        store.put("large", large)
    assert ("small" in store, "large" in store) == (True, False)
    assert store.nbytes <= store.max_bytes


def test_a_damaged_memory_is_made_anew(tmp_path):
    store = MemoryStore(tmp_path)
    store.put("a", memory(1.0))
    path = tmp_path / "a.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    assert (store.get_or_make("a", lambda: memory(5.0)).keys == 5.0).all()
    assert len(store) == 1


def test_what_a_killed_process_left_is_cleared_away_in_time(tmp_path):
    store = MemoryStore(tmp_path)
    for name, age in (("old", 7200), ("new", 0)):
        (tmp_path / f".{name}-x.partial").write_bytes(b"half")
        then = time.time() - age
        os.utime(tmp_path / f".{name}-x.partial", (then, then))
    store.put("a", memory(1.0))
    assert sorted(path.name for path in tmp_path.iterdir()) == [".new-x.partial", "a.safetensors"]


@contextmanager
def limit(name: int, value: int) -> Iterator[None]:
    """Lower a limit of the process inside the block."""
    before = resource.getrlimit(name)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(name, (value, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(name, before)
        signal.signal(signal.SIGXFSZ, ignored)


def test_a_full_disk_leaves_what_was_there(tmp_path):
    """The memory that was just made is returned all the same."""
    store = MemoryStore(tmp_path)
    store.put("a", memory(1.0))
    with limit(resource.RLIMIT_FSIZE, 512):
        with pytest.raises(FoveateError, match=r"can't be written .*File too large"):
            store.put("a", memory(2.0))
        with pytest.warns(FoveateWarning, match="made and not stored"):
            assert (store.get_or_make("b", lambda: memory(3.0)).keys == 3.0).all()
    assert (store.get("a").keys == 1.0).all()
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_file_that_cannot_be_opened_now_stays(tmp_path):
    store = MemoryStore(tmp_path)
    store.put("a", memory(1.0))
    assert store.get("a") is not None
    opened = [os.open(os.devnull, os.O_RDONLY) for _ in range(2)]
    os.close(opened[0])
    with limit(resource.RLIMIT_NOFILE, opened[0]):
        assert store.get("a") is None
        with pytest.raises(FoveateError, match=r"can't be read \(Too many open files"):
            VoCoMemory.load(tmp_path / "a.safetensors")
    os.close(opened[1])
    assert (store.get("a").keys == 1.0).all()


def test_a_store_that_can_only_be_read(tmp_path, monkeypatch):
    """Complete memories are read, and damaged ones are left in place."""
    store = MemoryStore(tmp_path)
    store.put("a", memory(1.0))
    keys = {name: torch.zeros(2, 2, 4, 8) for name in ("keys", "values", "frequencies")}
    facts = {"format": "foveate-voco-memory-1", "begin": "first", "end": "1", "visual_tokens": "1"}
    save_file(keys, tmp_path / "b.safetensors", {**facts, "base": "b", "adapter": "a"})

    def refused(*args, **options):
        raise OSError(30, "Read-only file system")

    with monkeypatch.context() as patch:
        for name in ("utime", "unlink"):
            patch.setattr(os, name, refused)
        assert (store.get("a").keys == 1.0).all()
        assert store.get("b") is None
    assert "b" in store
    assert store.get("b") is None
    assert "b" not in store


def test_what_is_found_fits_the_model(tmp_path):
    """Written by a float32 process, and read by a bfloat16 one whose encoder is in float32."""
    row = next(row for row in ROWS if row.name == "llava")
    wide, model = row.model(), row.model(dtype=torch.bfloat16)
    family = family_of(model)
    family.tower.float()
    family.feature_module.float()
    inputs = row.inputs("A")
    voco = VoCo(wide, 2)
    store, key = MemoryStore(tmp_path), MemoryStore.key(inputs, voco.base, voco.fingerprint())
    store.put(key, voco.encode(wide, inputs)[0])
    found = store.get_or_make(key, lambda: pytest.fail("it is there"), model)
    (made,) = voco.encode(model, inputs)
    assert found.keys.dtype == made.keys.dtype == torch.bfloat16
    assert (found.keys - made.keys).abs().max() < 0.1
    assert voco.generate(model, voco.join([found, made]), row.inputs("t3")["input_ids"], max_new_tokens=1).shape == (
        1,
        1,
    )


def test_memories_of_two_devices_and_of_two_lengths_meet():
    """Joining takes the device of the first memory; the cache takes the question's."""
    far, near = memory(1.0).to("meta"), memory(2.0)
    joined = VoCoMemory.joined([far, near.first(2)])
    assert (joined.tokens, joined.keys.device.type, joined.adapter) == (6, "meta", "adapter")
    with pytest.raises(FoveateError, match="another model or adapter"):
        VoCoMemory.joined([near, replace(near, adapter="other:4")])
    row = next(row for row in ROWS if row.name == "llava")
    mask = torch.ones(3, 5, device="meta")
    cache, _, _ = memory_cache(family_of(row.model()), [near, None, far], mask, mask.device)
    assert (cache.layers[0].keys.shape, cache.layers[0].keys.device.type) == ((3, 2, 4, 8), "meta")


def test_bad_stores(tmp_path):
    with pytest.raises(FoveateError, match="holds nothing"):
        MemoryStore(tmp_path, max_bytes=0)
    (tmp_path / "file").write_text("")
    with pytest.raises(FoveateError, match="can't be made"):
        MemoryStore(tmp_path / "file")
    with pytest.raises(FoveateError, match="larger than the store"):
        MemoryStore(tmp_path / "small", max_bytes=100).put("a", memory(1.0))


def start(folder, seed: int, steps: int) -> subprocess.Popen:
    command = [sys.executable, "-c", PROCESS, str(folder), str(seed), str(steps)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_two_processes_and_a_kill(tmp_path):
    """Both evict what the other reads; one is killed while it writes; no file is damaged."""
    steady, doomed = start(tmp_path, 0, 100), start(tmp_path, 3, 1_000_000)
    assert doomed.stdout.readline().strip() == "0"
    time.sleep(0.2)
    doomed.send_signal(signal.SIGKILL)
    doomed.communicate()
    _, said = steady.communicate(timeout=120)
    assert steady.returncode == 0, said
    store = MemoryStore(tmp_path, max_bytes=400_000)
    assert len(store) >= 1
    # A process that is killed between writing and evicting leaves too much; the next write evicts it.
    store.put("next", memory(1.0))
    assert store.nbytes <= 400_000
    for path in tmp_path.glob("*.safetensors"):
        VoCoMemory.load(path)
