"""Text is read the same way everywhere, and what is broken is named with its line."""

import json
import os
import socket
from pathlib import Path

import pytest
import torch

from foveate.errors import FoveateError
from foveate.files import (
    DamagedFile,
    FileError,
    MissingFile,
    kind_of,
    read_json,
    read_json_lines,
    read_tensors,
    read_text,
    read_toml,
    read_yaml,
    write_json,
    write_tensors,
)


def _file(tmp_path: Path, content: bytes | str, name: str = "a") -> Path:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    ("content", "value"),
    [
        (b'\xef\xbb\xbf{"a": "b"}\r\n', {"a": "b"}),
        ('{"a": "one\u2028two\u0085three\u000b"}'.replace("\u000b", ""), {"a": "one\u2028two\u0085three"}),
        ('{"a": "\\ud83d\\ude00"}', {"a": "\U0001f600"}),
        ("[" * 100 + "]" * 100, None),
        ('{"a": ' + "9" * 308 + "}", {"a": int("9" * 308)}),
    ],
)
def test_json_that_is_right(tmp_path: Path, content: bytes | str, value: object) -> None:
    path = _file(tmp_path, content)
    found = read_json(path)
    assert value is None or found == value
    assert [number for number, _ in read_json_lines(path)] == [1]


BROKEN = [
    (b'{"a": "\xff"}', r"line 2 is not text in UTF-8 \(byte 0xff\); save it in UTF-8"),
    (b"{\x00}", "line 2 holds a NUL character"),
    (b'{"a": 1', r"is not JSON \(Expecting ',' delimiter at .*character 8\)"),
    (b'{"a": NaN}', "holds NaN, which is no number"),
    (b'{"a": -Infinity}', "holds -Infinity, which is no number"),
    (b'{"a": 1e999}', "holds the number 1e999, which is larger than any float"),
    (b'{"a": ' + b"1" * 5000 + b"}", "holds a number of 5,000 digits; write one of at most 308"),
    (b'{"a": 1, "b": 2, "a": 3}', 'holds the key "a" twice; keep one of them'),
    (b'{"a": "\\ud800"}', r"holds \\ud800, half of a surrogate pair, which is no character"),
    (b'{"\\udc00": 1}', r"holds \\udc00, half of a surrogate pair"),
    (b"[" * 100_000, "nested over 100 deep"),
    (b"[" * 101 + b"]" * 101, "nested over 100 deep"),
    (b'{"a":' * 200 + b"1" + b"}" * 200, "nested over 100 deep"),
]


@pytest.mark.parametrize(("content", "text"), BROKEN, ids=range(len(BROKEN)))
def test_json_that_is_broken_is_named_with_its_line(tmp_path: Path, content: bytes, text: str) -> None:
    path = _file(tmp_path, b"\n" + content)
    with pytest.raises(DamagedFile, match=text):
        read_json(path)
    with pytest.raises(DamagedFile, match=rf"a, line 2.*{text.removeprefix('line 2 ')}"):
        list(read_json_lines(path))


def test_utf_16_is_told_to_be_saved_again(tmp_path: Path) -> None:
    for encoding in ("utf-16", "utf-16-le", "utf-16-be"):
        path = _file(tmp_path, '{"a": "b"}'.encode(encoding))
        for read in (read_text, read_json, read_yaml, read_toml, lambda each: list(read_json_lines(each))):
            with pytest.raises(DamagedFile, match=r"UTF-16.*save it in UTF-8"):
                read(path)


def test_files_of_other_programs_may_hold_what_python_reads(tmp_path: Path) -> None:
    path = _file(tmp_path, '{"a": Infinity, "a": 1e999, "b": "\\udcff"}')
    assert read_json(path, strict=False) == {"a": float("inf"), "b": "\udcff"}


def test_halves_of_pairs_survive_writing(tmp_path: Path) -> None:
    write_json(tmp_path / "a", {"name": os.fsdecode(b"\xff.png")})
    assert json.loads((tmp_path / "a").read_text(encoding="utf-8")) == {"name": "\udcff.png"}


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("a: 1\na: 2\n", 'the key "a" occurs twice.*line 2'),
        ("a: {b: 1, b: 2}\n", 'the key "b" occurs twice'),
        ("a: [\n", "is not YAML"),
        ("a: !!python/object/apply:os.system [ls]\n", "tag .* is not taken"),
        ('a: !!int ""\n', "tag .* is not taken"),
        ("a: !!timestamp x\n", "tag .* is not taken"),
        ("a: !own x\n", "tag .* is not taken"),
        ("a: " + "1" * 5000 + "\n", "line 1 holds a number of 5,000 digits"),
        ("a: 0x" + "f" * 5000 + "\n", "line 1 holds a number of 5,002 digits"),
        ("a: " + "1:" * 5000 + "1\n", "line 1 holds a number of"),
        ("a: 1." + "1" * 5000 + "\n", "line 1 holds a number of"),
        ("a: 1\nb: 012\n", "line 2 holds 012, which YAML reads as another number; write the number in plain digits"),
        ("a: 1:30\n", "line 1 holds 1:30, which"),
        ("a: [0x10]\n", "line 1 holds 0x10, which"),
        ("a: 0b11\n", "line 1 holds 0b11, which"),
        ("a: 1_000\n", "line 1 holds 1_000, which"),
        ("a: 1_0.5\n", "line 1 holds 1_0.5, which"),
        ("a: -1:30.5\n", "line 1 holds -1:30.5, which"),
        ("012: 1\n", "line 1 holds 012, which"),
        ("a: 2026-13-45\n", "a value that can't be read"),
        ("[" * 100_000, "nested over 100 deep"),
        ("[" * 101 + "]" * 101, "nested over 100 deep"),
        ("a: &a [*a]\n", "a value that contains itself"),
        ("a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
            f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join([f'*{chr(97 + n)}'] * 10)}]\n" for n in range(8)
        ), "stands for over 100,000 values"),
        ('a: "\\ud800"\n', r"holds \\ud800, half of a surrogate pair"),
        ("a: 1\n---\nb: 2\n", "is not YAML"),
        ("? [a, b]\n: 1\n", "a key is no name|unhashable"),
        ("? {a: b}\n: 1\n", "a key is no name|unhashable"),
        ("a\x07: 1\n", "is not YAML"),
        (b"a: \xff\n", "line 1 is not text in UTF-8"),
    ],
)  # fmt: skip
def test_yaml_that_is_broken(tmp_path: Path, content: str | bytes, text: str) -> None:
    with pytest.raises(DamagedFile, match=text) as caught:
        read_yaml(_file(tmp_path, content))
    assert len(str(caught.value).splitlines()) == 1


def test_yaml_that_is_right(tmp_path: Path) -> None:
    text = "base: &base {a: 1, b: 2}\nother:\n  <<: *base\n  b: 3\n"
    value = {"base": {"a": 1, "b": 2}, "other": {"a": 1, "b": 3}}
    for content in (text, text.replace("\n", "\r\n"), "\ufeff" + text):
        assert read_yaml(_file(tmp_path, content)) == value
    assert read_yaml(_file(tmp_path, "# nothing\n")) is None
    numbers = {"0": 0, "-12": -12, "+5": 5, "0.5": 0.5, "1.5e+3": 1500.0, '"012"': "012", "'1:30'": "1:30"}
    for content, value in numbers.items():
        assert read_yaml(_file(tmp_path, content)) == value


@pytest.mark.parametrize(
    "content", ["a = ", "a = " + "1" * 5000, "a = " + "[" * 5000, "a = 1\na = 2", "a = 2026-13-45"]
)
def test_toml_that_is_broken(tmp_path: Path, content: str) -> None:
    with pytest.raises(DamagedFile, match=r"a is not TOML|nested over 100 deep"):
        read_toml(_file(tmp_path, content))


def _refused(path: str | Path, text: str) -> None:
    def lines(path: str | Path) -> None:
        list(read_json_lines(path))

    for read in (read_text, read_json, read_yaml, read_toml, read_tensors, lines):
        with pytest.raises(FileError, match=text) as caught:
            read(path)
        assert len(str(caught.value).splitlines()) == 1
        assert len(str(caught.value)) < 400


def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        for path in (tmp_path / "pipe", tmp_path / "socket", "/dev/zero", "/dev/null"):
            assert kind_of(path) == "other"
            _refused(path, "is a pipe or a device; save its content to a file, and name that")
    _refused(tmp_path, "is a folder; name a file")


def test_paths_that_lead_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    _refused(tmp_path / "loop", r"can't be read \(Too many levels .*\); its links lead in a circle")
    _refused(tmp_path / ("a" * 300), r"can't be read \(File name too long\); use a shorter name")
    _refused("a/" * 5000, r"can't be read \(File name too long\); use a shorter name")
    _refused("a\0b", r"the path a\\x00b holds a NUL character")
    _refused("", "the path is empty")
    _refused("\ud800", "holds half of a surrogate pair")
    _refused("one\ntwo", r"there is no file one\\ntwo; check the path")
    _refused(tmp_path / "no" / "such", "there is no file")
    _refused(_file(tmp_path, "") / "below", "there is no file")
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    _refused("a", "there is no file a")


def test_names_that_are_not_utf_8_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"\xff.json")
    path.write_text("[1]")
    assert read_json(path) == [1]
    path.write_text("[1")
    with pytest.raises(DamagedFile, match=r"\\udcff.json is not JSON"):
        read_json(path)


def test_large_files(tmp_path: Path) -> None:
    with (tmp_path / "large").open("wb") as file:
        file.truncate(2**36)
    for read in (read_text, read_json, read_yaml, read_toml):
        with pytest.raises(FileError, match="is too large for a file: 68,719,476,736 bytes"):
            read(tmp_path / "large")
    with pytest.raises(DamagedFile, match="large, line 1 is longer than"):
        list(read_json_lines(tmp_path / "large"))


def test_tensors(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    write_tensors(path, {"x": torch.arange(3)})
    assert read_tensors(path)["x"].tolist() == [0, 1, 2]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DamagedFile, match="no whole safetensors file"):
        read_tensors(path)
    path.write_bytes(b"")
    with pytest.raises(DamagedFile, match="no whole safetensors file"):
        read_tensors(path)
    with pytest.raises(MissingFile, match=r"there is no memory .*; encode the image again"):
        read_tensors(tmp_path / "none", "memory", "encode the image again")
    assert issubclass(MissingFile, FoveateError)
