"""docs/versions.md is made from reports of pytest, and from nothing else."""

from pathlib import Path

import pytest
import transformers

from generators import versions

REPORT = """\
<testsuites><testsuite name="pytest">
<testcase classname="a" name="passes"/>
<testcase classname="a" name="passes too"/>
<testcase classname="a" name="fails"><failure message="no">no</failure></testcase>
<testcase classname="a" name="breaks"><error message="no">no</error></testcase>
<testcase classname="a" name="not here"><skipped type="pytest.skip" message="needs a GPU">no</skipped></testcase>
<testcase classname="a" name="b1"><skipped type="pytest.xfail" message="refused: beams"/></testcase>
<testcase classname="a" name="b2"><skipped type="pytest.xfail" message="refused: beams"/></testcase>
<testcase classname="a" name="known"><skipped type="pytest.xfail" message="a known bug"/></testcase>
</testsuite></testsuites>
"""


def test_a_report_is_counted(tmp_path: Path) -> None:
    (tmp_path / "report.xml").write_text(REPORT)
    counted = versions.counts(tmp_path / "report.xml")
    assert counted == {"passed": 2, "refused": {"beams": 2}, "failed": 2, "mended": 0, "skipped": 2}


def test_tests_that_ran_again_count_once(tmp_path: Path) -> None:
    (tmp_path / "1.xml").write_text(REPORT)
    (tmp_path / "2.xml").write_text(
        '<testsuites><testsuite><testcase classname="a" name="fails"/></testsuite></testsuites>'
    )
    counted = versions.counts(tmp_path)
    assert counted == {"passed": 3, "refused": {"beams": 2}, "failed": 1, "mended": 1, "skipped": 2}


def test_a_run_enters_its_row_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "report.xml").write_text(REPORT)
    monkeypatch.setattr(versions, "MEASUREMENTS", tmp_path / "versions.json")
    assert "No run has been entered yet" in versions.page()
    for _ in range(2):
        versions.take(tmp_path / "report.xml", transformers.__version__)
    text = versions.page()
    assert text.count(f"| {transformers.__version__} | all | 2 | 2 | 2 |") == 1
    assert f"* Beams: {transformers.__version__}." in text
    versions.take(tmp_path / "report.xml", f"{transformers.__version__}:3/12")
    assert versions.page().count(f"| {transformers.__version__} | 1 of 12 | 2 | 2 | 2 |") == 1
    with pytest.raises(AssertionError, match="this is transformers"):
        versions.take(tmp_path / "report.xml", "5.17.0")
