"""The page's example runs, on the embedded model."""

import re
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]


def test_the_example_of_the_page(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    torch.set_num_threads(1)
    (code,) = re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs" / "voco.md").read_text(), re.DOTALL | re.MULTILINE)
    names: dict[str, object] = {}
    exec(code, names)
    # 32 tokens in 12 layers, 3 heads of 64, keys and values, 4 bytes each.
    assert capsys.readouterr().out.split() == ["32", str(32 * 12 * 3 * 64 * 2 * 4), "576"]
    assert len(names["answers"]) == 2
    assert names["memory"].nbytes * 18 == 576 * 12 * 3 * 64 * 2 * 4
