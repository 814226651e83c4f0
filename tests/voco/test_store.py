"""Memories by what they were made from, in a bounded folder that two processes share."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from foveate.errors import FoveateError
from foveate.voco import MemoryStore, VoCoMemory

PROCESS = """
import sys, torch
from foveate.voco import MemoryStore, VoCoMemory
folder, seed = sys.argv[1], int(sys.argv[2])
store = MemoryStore(folder, max_bytes=400_000)
for step in range(int(sys.argv[3])):
    value = (seed + step) % 7
    keys = torch.full((2, 2, 300, 16), float(value))
    def make():
        return VoCoMemory(keys, keys.clone(), 0, 3, 1, "base", "adapter", torch.ones(8))
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


def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch):
    import safetensors.torch

    store = MemoryStore(tmp_path)
    store.put("a", memory(1.0))

    def full(*args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(FoveateError, match="No space left"):
        store.put("a", memory(2.0))
    assert (store.get("a").keys == 1.0).all()
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_bad_stores(tmp_path):
    with pytest.raises(FoveateError, match="holds nothing"):
        MemoryStore(tmp_path, max_bytes=0)
    (tmp_path / "file").write_text("")
    with pytest.raises(FoveateError, match="can't be a store"):
        MemoryStore(tmp_path / "file")
    with pytest.raises(FoveateError, match="larger than the store"):
        MemoryStore(tmp_path / "small", max_bytes=100).put("a", memory(1.0))


def start(folder, seed: int, steps: int) -> subprocess.Popen:
    command = [sys.executable, "-c", PROCESS, str(folder), str(seed), str(steps)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_two_processes_and_a_kill(tmp_path):
    """Both evict what the other reads; one is killed in the middle; what is left is whole."""
    steady, doomed = start(tmp_path, 0, 100), start(tmp_path, 3, 1_000_000)
    assert doomed.stdout.readline().strip() == "0"
    time.sleep(0.2)
    doomed.send_signal(signal.SIGKILL)
    doomed.communicate()
    _, said = steady.communicate(timeout=120)
    assert steady.returncode == 0, said
    store = MemoryStore(tmp_path, max_bytes=400_000)
    assert len(store) >= 1
    assert store.nbytes <= 400_000
    for path in tmp_path.glob("*.safetensors"):
        VoCoMemory.load(path)
