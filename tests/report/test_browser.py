"""A report in Chromium: it draws, it filters, it asks no network, and nothing fails. `nox -s report` runs this."""

from pathlib import Path

import pytest

from foveate.bench import scenes
from foveate.report import examples, read_runs, write_page
from foveate.report.examples import checked_task

pytest.importorskip("playwright.sync_api")

import screenshots


@pytest.mark.skipif(screenshots.chromium() is None, reason="there is no Chromium")
def test_a_report_in_a_browser(tmp_path: Path) -> None:
    (run,) = read_runs([Path(__file__).with_name("measured")])
    file = write_page([run], tmp_path / "report.html", {run.name: examples(run, checked_task(run, scenes(30)), 3)})
    asked: list[str] = []
    wrong: list[str] = []
    with screenshots.browser() as browser:
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda line: wrong.append(line.text) if line.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(file.as_uri())
        page.wait_for_selector('html[data-ready="yes"]')
        assert page.locator("[data-figure] svg.marks").count() == 4
        change = page.locator('[data-role="kind"]')
        change.select_option("any")
        spec = page.locator('[data-role="spec"]')
        for name in run.specs:
            spec.select_option(name)
            others = sum(name in each.others for each in run.changes())
            assert page.locator(".card").count() == min(12, others)
            assert page.locator('[data-role="place"]').inner_text().endswith(f"of {others}")
        assert page.locator(".card img").first.evaluate("image => image.naturalWidth") > 0
        page.set_viewport_size({"width": 375, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= 375
    assert not wrong
    assert {address.split(":")[0] for address in asked} <= {"file", "data", "blob"}
    assert [address for address in asked if address.startswith("file")] == [file.as_uri()]
