"""The examples of docs/voco.md run on the embedded model."""

import re
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]


def test_the_examples_of_the_page(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(ROOT)
    torch.set_num_threads(1)
    asked, stored, streamed, trained = re.findall(
        r"^```python\n(.*?)^```$", (ROOT / "docs" / "voco.md").read_text(), re.DOTALL | re.MULTILINE
    )
    names: dict[str, object] = {}
    exec(asked, names)
    # 32 tokens in 12 layers, 3 heads of 64, keys and values, 4 bytes each.
    assert capsys.readouterr().out.split() == ["32", str(32 * 12 * 3 * 64 * 2 * 4), "576"]
    assert len(names["answers"]) == 2
    assert names["memory"].nbytes * 18 == 576 * 12 * 3 * 64 * 2 * 4
    first = names["memory"]
    for _ in range(2):
        exec(stored.replace('"memories"', repr(str(tmp_path))), names)
        assert torch.equal(names["memory"].keys, first.keys)
    assert len(names["store"]) == 1
    capsys.readouterr()
    exec(streamed, names)
    assert capsys.readouterr().out.startswith("4 32\n")
    assert '"runs/voco/press/voco"' in trained
    exec(trained.replace("runs/voco/press/voco", "shipped"), names)
    assert capsys.readouterr().out.strip() in ("yes", "no", "['yes']", "['no']")
