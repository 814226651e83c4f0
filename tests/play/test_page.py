"""The page in a browser: `nox -s play`. Skipped where Gradio, playwright or a Chromium is missing."""

import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import foveate
from foveate.play.pictures import MOST_BYTES, generated

gradio = pytest.importorskip("gradio")
httpx = pytest.importorskip("httpx")
playwright = pytest.importorskip("playwright.sync_api")

import screenshots  # noqa: E402

pytestmark = pytest.mark.skipif(screenshots.chromium() is None, reason="there is no Chromium")

expect: Any = playwright.expect
SLOW = 60_000
expect.set_options(timeout=SLOW)


@pytest.fixture(scope="session")
def no_network() -> Iterator[list[str]]:
    """What this process, which serves the page, connects to besides this machine."""
    outside: list[str] = []
    patch = pytest.MonkeyPatch()
    connect, resolve = socket.socket.connect, socket.getaddrinfo

    def connecting(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX and str(address[0]) not in ("127.0.0.1", "::1", "localhost"):
            outside.append(str(address))
            raise OSError(f"{address} is not this machine")
        connect(self, address)

    def resolving(host: Any, *rest: Any, **options: Any) -> Any:
        if host not in (None, "", "127.0.0.1", "::1", "localhost", "0.0.0.0"):
            outside.append(str(host))
            raise OSError(f"{host} is not this machine")
        return resolve(host, *rest, **options)

    patch.setattr(socket.socket, "connect", connecting)
    patch.setattr(socket, "getaddrinfo", resolving)
    yield outside
    patch.undo()


@pytest.fixture(scope="session")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    from foveate.bench.configurations import configurations
    from foveate.bench.runner import Benchmark
    from foveate.bench.tasks import scenes

    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("results") / "mine"
    specs = configurations(("cluster", "stride"), "64,16", None)
    Benchmark(*foveate.reference(), scenes(15), specs, folder, 4, "foveate bench").run(lambda *_: None)
    return {"mine": folder}


@pytest.fixture(scope="session")
def address(results: dict[str, Path], no_network: list[str]) -> Iterator[str]:
    with screenshots.served(results) as found:
        yield found


@pytest.fixture(scope="session")
def chrome() -> Iterator[Any]:
    with screenshots.browser() as started:
        yield started


class Visitor:
    """A browser window with its own session, which notes requests that leave this machine, and errors."""

    def __init__(self, chrome: Any, address: str, query: str = "", width: int = 1280, height: int = 900) -> None:
        self.context = chrome.new_context(viewport={"width": width, "height": height})
        self.context.set_default_timeout(SLOW)
        self.page = self.context.new_page()
        self.address, self.outside, self.errors = address, [], []
        self.context.on("request", self._asked)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", lambda said: self.errors.append(said.text) if said.type == "error" else None)
        self.page.goto(address + query)
        self.page.wait_for_selector("#fv-controls0 form")

    def _asked(self, request: Any) -> None:
        if not request.url.startswith((self.address, "data:", "blob:")):
            self.outside.append(request.url)

    def card(self, number: int) -> Any:
        return self.page.locator(".fv-card").nth(number)

    def type_spec(self, slot: int, text: str) -> None:
        self.page.locator(f"#fv-spec{slot} textarea").fill(text)
        self.page.locator(f"#fv-spec{slot} textarea").press("Enter")

    def slide(self, slot: int, tokens: int) -> None:
        self.page.locator(f'#fv-controls{slot} [data-field="tokens"]').fill(str(tokens))

    def close(self) -> None:
        assert not self.outside
        assert not self.errors
        self.context.close()


@pytest.fixture
def visitor(chrome: Any, address: str) -> Iterator[Visitor]:
    opened = Visitor(chrome, address)
    yield opened
    opened.close()


def test_ask_slide_and_type(visitor: Visitor) -> None:
    page = visitor.page
    expect(page.locator(".fv-card")).to_have_count(3)
    expect(visitor.card(0)).to_contain_text("576 of 576 tokens")
    expect(visitor.card(1)).to_contain_text("64 of 576 tokens")
    page.get_by_role("button", name="how many shapes ?").click()
    expect(page.locator("#fv-question textarea")).to_have_value("how many shapes ?")
    expect(visitor.card(0).locator(".fv-answer")).to_have_text(re.compile(r"\d"))
    visitor.slide(0, 144)
    expect(page.locator("#fv-spec0 textarea")).to_have_value("cluster:144")
    expect(visitor.card(1)).to_contain_text("144 of 576 tokens")
    expect(page.locator("#fv-answers")).to_contain_text("The encoder has run once for this picture")
    visitor.type_spec(2, "fastv:0.25:rows=text@3")
    expect(visitor.card(3)).to_contain_text("144 of 576 tokens, 252 over layers")
    controls = page.locator("#fv-controls2")
    expect(controls.locator('[data-field="method"]')).to_have_value("fastv")
    expect(controls.locator('[data-field="layers"]')).to_have_value("3")
    controls.locator('[data-field="method"]').select_option("pyramiddrop")
    expect(page.locator("#fv-spec2 textarea")).to_have_value("pyramiddrop:144@3,6,9")
    expect(visitor.card(3)).to_contain_text("144 of 576 tokens")


def test_a_bad_spec_shows_foveates_own_line(visitor: Visitor) -> None:
    visitor.type_spec(1, "clustre:64@2")
    refused = visitor.card(2).locator(".fv-error")
    expect(refused).to_contain_text('^^^^^^^ no method is called "clustre"; did you mean "cluster"?')
    visitor.type_spec(1, "cluster:600")
    expect(refused).to_contain_text("keep 600 is more than the 576 tokens there are")
    # The others go on.
    visitor.slide(0, 32)
    expect(visitor.card(1)).to_contain_text("32 of 576 tokens")


def test_a_clip(visitor: Visitor) -> None:
    page = visitor.page
    page.locator("#fv-examples").get_by_role("button", name="clip").click()
    expect(page.locator("#fv-picture")).to_contain_text("288 visual tokens, as a video")
    visitor.type_spec(0, "prunevid:0.25")
    expect(visitor.card(1)).to_contain_text("72 of 288 tokens")
    page.get_by_role("tab", name="See").click()
    expect(page.locator("#fv-kept figure")).to_have_count(8)
    page.locator("#fv-kept .fv-stack").nth(3).hover(position={"x": 30, "y": 30})
    expect(page.locator(".fv-told")).to_contain_text(re.compile(r"Row \d, column \d: (kept|merged|dropped)"))


def test_a_second_tab_has_its_own_state(visitor: Visitor, chrome: Any, address: str) -> None:
    other = Visitor(chrome, address, "?picture=chart-2&spec=stride:16")
    expect(other.card(1)).to_contain_text("16 of 576 tokens")
    visitor.slide(0, 100)
    expect(visitor.card(1)).to_contain_text("100 of 576 tokens")
    other.slide(0, 9)
    expect(other.card(1)).to_contain_text("9 of 576 tokens")
    expect(other.page.locator(".fv-card")).to_have_count(2)
    expect(visitor.page.locator("#fv-spec0 textarea")).to_have_value("cluster:100")
    expect(other.page.locator("#fv-picture")).to_contain_text("chart 2")
    other.close()


def test_a_picture_of_ones_own(visitor: Visitor, tmp_path: Path) -> None:
    page, drop = visitor.page, visitor.page.locator("#fv-file input[type=file]")
    generated("shapes-3").frames[0].save(tmp_path / "mine.png")
    drop.set_input_files(tmp_path / "mine.png")
    expect(page.locator("#fv-picture")).to_contain_text("mine.png, 192 x 192")
    page.locator("#fv-question textarea").fill("is there a cross ?")
    page.locator("#fv-question textarea").press("Enter")
    expect(visitor.card(0).locator(".fv-answer")).to_have_text("yes")
    page.get_by_role("button", name="Clear").or_(
        page.locator('#fv-file button[aria-label="Remove this file"]')
    ).first.click()
    (tmp_path / "text.png").write_text("no picture")
    drop.set_input_files(tmp_path / "text.png")
    expect(page.locator("#fv-notice")).to_contain_text("is not an image, whatever its name says")


def test_what_is_too_large_is_refused(visitor: Visitor, tmp_path: Path, address: str) -> None:
    page = visitor.page
    Image.new("1", (12_000, 6_000)).save(tmp_path / "wide.png")
    page.locator("#fv-file input[type=file]").set_input_files(tmp_path / "wide.png")
    expect(page.locator("#fv-notice")).to_contain_text("12,000 x 6,000 pixels, and the limit is 50,000,000")
    # The server refuses a large file, whatever a page does.
    large = httpx.post(f"{address}gradio_api/upload", files={"files": ("large.png", bytes(MOST_BYTES + 1))}, timeout=60)
    assert large.status_code == 413


def test_see_by_pointer_and_by_keys(visitor: Visitor) -> None:
    page = visitor.page
    page.get_by_role("tab", name="See").click()
    figure, told = page.locator("#fv-kept figure"), page.locator(".fv-told")
    expect(page.locator("#fv-kept")).to_contain_text("keeps 64 of 576 tokens in decoder layer 11")
    figure.focus()
    for key in ("ArrowDown", "ArrowDown", "ArrowRight"):
        page.keyboard.press(key)
    expect(told).to_contain_text("Row 2, column 2:")
    assert figure.locator("svg path").count() == 1
    page.get_by_label("attention in the decoder").check()
    expect(page.locator("#fv-kept")).to_contain_text(
        "attention from the last token of the question in decoder layer 11"
    )
    page.get_by_label("attention in the encoder").check()
    expect(page.locator("#fv-kept")).to_contain_text("in encoder layer 5")
    with page.expect_download() as saved:
        page.locator("#fv-download").click()
    with Image.open(saved.value.path()) as picture:
        assert picture.format == "PNG"
        assert picture.width > 1000


def test_cost_moves_with_the_sliders(visitor: Visitor) -> None:
    page = visitor.page
    page.get_by_role("tab", name="Cost").click()
    expect(page.locator(".fv-cost").first).to_contain_text("qwen2.5-vl-7b, image 1344 x 1008")
    row = page.locator(".fv-cost").first.locator("tbody tr").nth(1)
    before = row.inner_text()
    visitor.slide(0, 400)
    expect(row).to_contain_text("cluster:400")
    assert row.inner_text() != before
    expect(page.locator(".fv-cost").nth(1)).to_contain_text("Measured here: one run of each answer")
    visitor.type_spec(1, "evs:0.5")
    expect(page.locator(".fv-cost .fv-error").first).to_contain_text("evs works on the frames of a clip")


def test_compare_leads_from_a_point_to_an_answer(visitor: Visitor) -> None:
    page = visitor.page
    page.get_by_role("tab", name="Compare").click()
    dots = page.locator(".fv-dot")
    expect(dots).to_have_count(5)
    page.locator('.fv-dot[data-pick="stride:16"]').focus()
    page.keyboard.press("Enter")
    expect(page.locator(".fv-failures h3")).to_contain_text("stride:16")
    row = page.locator(".fv-failures tbody tr").first
    asked = row.locator("td").nth(2).inner_text()
    row.get_by_role("link").click()
    expect(page.locator("#fv-question textarea")).to_have_value(asked)
    expect(page.locator("#fv-spec0 textarea")).to_have_value("stride:16")
    expect(visitor.card(1)).to_contain_text("16 of 576 tokens")


def test_a_link_opens_the_same_page(visitor: Visitor, chrome: Any, address: str) -> None:
    page = visitor.page
    page.locator("#fv-examples").get_by_role("button", name="chart").click()
    expect(page.locator("#fv-picture")).to_contain_text("chart 4")
    visitor.type_spec(0, "cluster:0.1:seed=3")
    page.get_by_role("tab", name="Share").click()
    expect(page.locator("#fv-command textarea, #fv-command input")).to_have_value(
        re.compile("foveate ask chart-4.png .* --spec cluster:0.1:seed=3 --spec cls:64")
    )
    link = page.locator("#fv-link textarea, #fv-link input")
    expect(link).to_have_value(re.compile("seed"))
    expect(page).to_have_url(re.compile("seed"))
    other = Visitor(chrome, address, "?" + link.input_value().partition("?")[2].replace("tab=share", "tab=ask"))
    expect(other.page.locator("#fv-picture")).to_contain_text("chart 4")
    expect(other.card(1)).to_contain_text("58 of 576 tokens")
    other.close()


def test_it_fits_a_phone(chrome: Any, address: str) -> None:
    phone = Visitor(chrome, address, width=375, height=780)
    expect(phone.card(0)).to_contain_text("576")
    for tab in ("See", "Cost", "Compare", "Share"):
        phone.page.get_by_role("tab", name=tab).click()
        phone.page.wait_for_timeout(300)
        assert phone.page.evaluate("document.documentElement.scrollWidth") <= 375, tab
    phone.close()


def test_every_picture_says_what_it_shows_and_every_control_has_a_name(visitor: Visitor) -> None:
    missing = visitor.page.evaluate(
        """() => [...document.querySelectorAll("img:not([alt]), input, select, textarea, button")].filter((each) =>
          each.matches("img") || (each.offsetParent && !each.labels?.length && !each.ariaLabel &&
          !each.textContent.trim() && !each.title && !each.closest("label"))).map((each) =>
          each.outerHTML.slice(0, 160))"""
    )
    assert not missing


def test_nothing_was_fetched_from_elsewhere(address: str, no_network: list[str]) -> None:
    """What the visitors' browsers asked for is in their own tests; this is what the server did."""
    assert address.startswith("http://127.0.0.1:")
    assert not no_network


def test_pictures_for_the_pages(pytestconfig: pytest.Config) -> None:
    if not pytestconfig.getoption("screenshots"):
        pytest.skip("--screenshots takes them")
    screenshots.shoot()
