"""A report in Chromium: it draws, it filters, it asks no network, and nothing fails. `nox -s report` runs this."""

import shutil
from pathlib import Path

import pytest

from foveate.bench import scenes
from foveate.report import examples, read_runs, write_page
from foveate.report.examples import checked_task

sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
)


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
def test_a_report_in_a_browser(tmp_path: Path) -> None:
    (run,) = read_runs([Path(__file__).with_name("measured")])
    file = write_page([run], tmp_path / "report.html", {run.name: examples(run, checked_task(run, scenes(30)), 3)})
    asked: list[str] = []
    wrong: list[str] = []
    with sync_api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=[*QUIET])
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
        browser.close()
    assert not wrong
    assert {address.split(":")[0] for address in asked} <= {"file", "data", "blob"}
    assert [address for address in asked if address.startswith("file")] == [file.as_uri()]
