"""The page: whole, self-contained, the same every time, safe from what labels hold, and working in a real browser."""

from __future__ import annotations

import base64
import itertools
import re
import shutil
import struct
import zlib
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from study_rows import ROWS, cell, draw, value, written

from sdekit import DDIM, HEUN
from sdekit.data import digits
from sdekit.study import Report
from sdekit.study.chart import Scale
from sdekit.study.sheets import png, sheet, tiled
from sdekit.study.storage import Store

VOID = {"meta", "img", "br", "link", "input"}


class Tree(HTMLParser):
    """Checks that every tag is closed by its own, and keeps tags, attributes and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The rows and samples of a small study."""
    path = written(tmp_path / "study.jsonl")
    for row in ROWS:
        if row["kind"] == "draw" and row["status"] == "ok":
            Store(path).keep_samples(row["id"], digits().test[:64])
    return path


def page(path: Path, **more: Any) -> str:
    return Report.read(path).html(path.with_suffix(".html"), **more).read_text(encoding="utf-8")


def test_the_page_says_all_there_is_to_say(path: Path) -> None:
    tree = Tree(page(path, title="Digits", command="sdekit bench run digits"))
    text = " ".join("".join(tree.text).split())
    for part in ("Best at 5 evaluations", "Heun", "0.510", "ValueError: too | long", "a.py:1 in f", "Traceback: <b>"):
        assert part in text
    for part in ("sdekit bench run digits", "f00d", "beef", "2026-01-02", 'Report.read("study.jsonl")', "Not ranked"):
        assert part in text


def test_the_same_rows_give_the_same_bytes(path: Path) -> None:
    assert page(path) == page(path)


def test_the_page_asks_for_nothing_from_elsewhere(path: Path) -> None:
    tree = Tree(page(path))
    links = [v or "" for _, attrs in tree.tags for key, v in attrs.items() if key in ("src", "href", "xlink:href")]
    assert links
    assert all(link.startswith(("#", "data:")) for link in links)
    assert "@import" not in page(path)
    assert "url(" not in page(path)


def test_tables_and_pictures_are_described(path: Path) -> None:
    tree = Tree(page(path))
    tables = sum(tag == "table" for tag, _ in tree.tags)
    assert tables == sum(tag == "caption" for tag, _ in tree.tags) > 4
    heads = [attrs for tag, attrs in tree.tags if tag == "th"]
    assert sum("scope" not in attrs for attrs in heads) == 1  # the corner above the names of the sheets
    images = [attrs for tag, attrs in tree.tags if tag == "img"]
    assert len(images) == 1 + 4
    assert all((attrs["alt"] or "").startswith("Samples of") for attrs in images)
    drawn = [attrs for tag, attrs in tree.tags if tag == "svg"]
    assert len(drawn) == 2
    assert all(attrs["role"] == "img" and attrs["aria-label"] for attrs in drawn)
    targets = {attrs["href"] for tag, attrs in tree.tags if tag == "a"}
    assert targets <= {f"#{attrs['id']}" for _, attrs in tree.tags if "id" in attrs}


def test_labels_are_text(tmp_path: Path) -> None:
    evil = '<script>alert("x")</script>&\'"'
    rows = [*cell(evil, 5, (1.0, 2.0), model=evil), *cell("DDIM", 5, (3.0, 4.0), model=evil)]
    rows = [row | {"metric": evil} if row["kind"] == "value" else row for row in rows]
    failed = draw("RK4", 5, 0, model=evil, status=evil, where=evil, traceback=evil)
    text = page(written(tmp_path / "a.jsonl", [*rows, failed]), title=evil, command=evil)
    tree = Tree(text)
    assert sum(tag == "script" for tag, _ in tree.tags) == 1
    assert "".join(tree.text).count(evil) > 8


def test_a_report_without_a_file_has_a_page(tmp_path: Path) -> None:
    Tree(Report(ROWS).html(tmp_path / "deep" / "page.html").read_text(encoding="utf-8"))


def test_several_models_and_metrics_have_sections(tmp_path: Path) -> None:
    rows: list[Any] = []
    for model in ("small", "large"):
        for drawn in cell("DDIM", 5, (1.0, 1.1), model=model, print=model)[::2]:
            drawn["id"] += model
            rows += [drawn, value(drawn, 1.0), value(drawn, 5.0, metric="KID", measure="k")]
    tree = Tree(page(written(tmp_path / "a.jsonl", rows)))
    assert {attrs.get("id") for tag, attrs in tree.tags if tag == "section"} >= {"s0", "s1", "s2", "s3"}


def test_a_study_makes_its_page(tmp_path: Path) -> None:
    """From the run to the page, with real rows: a model, two metrics, samples of the plane."""
    from test_study import Moments, real, study

    metrics = (Moments(), Moments("twice"))
    report = study(methods={"DDIM": DDIM, "Heun": HEUN}, metric=metrics, floor=real(64)).run(tmp_path / "a.jsonl")
    text = report.html(tmp_path / "a.html").read_text(encoding="utf-8")
    Tree(text)
    assert text.count('class="cloud"') == 1 + 2 * 3
    assert text == Report.read(tmp_path / "a.jsonl").html(tmp_path / "b.html").read_text(encoding="utf-8")


# Pictures -----------------------------------------------------------------------------------------------------


def decoded(data: bytes) -> torch.Tensor:
    """The pixels of a PNG without filters, its checksums verified."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    at, chunks = 8, {}
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        assert struct.unpack(">I", data[at + 8 + length : at + 12 + length]) == (zlib.crc32(kind + body),)
        chunks[kind], at = body, at + 12 + length
    width, height, _, colour = struct.unpack(">IIBB", chunks[b"IHDR"][:10])
    rows = torch.frombuffer(bytearray(zlib.decompress(chunks[b"IDAT"])), dtype=torch.uint8).reshape(height, -1)
    assert rows[:, 0].unique().tolist() == [0]
    return rows[:, 1:].reshape(height, width, {4: 2, 6: 4}[colour])


@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_come_back(channels: int) -> None:
    images = torch.arange(5 * channels * 12, dtype=torch.uint8).reshape(5, channels, 3, 4)
    pixels = tiled(images)
    assert pixels.shape == (7, 9, channels + 1)
    assert torch.equal(decoded(png(pixels)), pixels)
    assert torch.equal(pixels[4:, 5:, :channels].permute(2, 0, 1), images[3])
    assert pixels[:, :, -1].unique().tolist() == [0, 255]
    assert pixels[3].unique().tolist() == [0]


def test_numbers_from_minus_one_to_one_are_grey_levels() -> None:
    html = sheet(torch.tensor([-1.0, 0.0, 1.0, 7.0]).reshape(1, 1, 1, 4), "a")
    (data,) = re.findall(r"base64,([^\"]+)\"", html)
    assert decoded(base64.b64decode(data))[0, :, 0].tolist() == [0, 128, 255, 255]


def test_large_images_are_fewer() -> None:
    assert tiled(torch.zeros(64, 3, 32, 32, dtype=torch.uint8)).shape == (4 * 33 - 1, 4 * 33 - 1, 4)
    assert tiled(torch.zeros(64, 1, 256, 256, dtype=torch.uint8)).shape == (256, 256, 2)


@pytest.mark.parametrize("shape", [(5,), (5, 3), (5, 2, 8, 8), (5, 4, 4)])
def test_what_cannot_be_seen_is_left_out(shape: tuple[int, ...]) -> None:
    assert sheet(torch.zeros(shape), "a") == ""


@pytest.mark.parametrize(
    ("low", "high", "logarithmic", "ticks"),
    [
        (4, 60, True, [5, 10, 20, 50]),
        (1e-9, 1e-3, True, [1e-9, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3]),
        (1.0, 1.5, True, [1.0, 1.1, 1.2, 1.3, 1.4, 1.5]),
        (-1, 1, False, [-1, -0.5, 0, 0.5, 1]),
    ],
)
def test_ticks_are_round(low: float, high: float, logarithmic: bool, ticks: list[float]) -> None:
    assert Scale(low, high, 0, 1, logarithmic).ticks == pytest.approx(ticks)


# In a browser -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A Chromium of this machine, without a window."""
    playwright = pytest.importorskip("playwright.sync_api")
    binary = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if binary is None:
        pytest.skip("there is no Chromium on this machine")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=binary, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(params=["light", "dark"])
def seen(browser: Any, path: Path, request: pytest.FixtureRequest) -> Iterator[Any]:
    """The page as a browser shows it, which must complain of nothing and load nothing."""
    page(path)
    told, asked = [], []
    tab = browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme=request.param)
    tab.on("console", lambda message: told.append(message.text))
    tab.on("pageerror", lambda error: told.append(str(error)))
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto(path.with_suffix(".html").as_uri())
    yield tab
    tab.close()
    assert told == []
    assert [url for url in asked if not url.startswith("data:")] == [path.with_suffix(".html").as_uri()]


def column(tab: Any, k: int) -> list[str]:
    rows = tab.locator("table.sorts").first.locator("tbody tr").all()
    return [row.locator("th, td").nth(k).inner_text() for row in rows]


def test_tables_sort_by_a_click_and_by_the_keyboard(seen: Any) -> None:
    heads = seen.locator("table.sorts").first.locator("thead button")
    assert column(seen, 0) == ["DDIM", "Heun"]
    heads.nth(1).click()
    assert column(seen, 0) == ["Heun", "DDIM"]
    assert seen.locator("th[aria-sort]").get_attribute("aria-sort") == "ascending"
    heads.nth(1).press("Enter")
    assert column(seen, 0) == ["DDIM", "Heun"]
    for _ in range(2):  # what is not ranked stays at the end, whichever way
        heads.nth(2).click()
        assert column(seen, 0) == ["DDIM", "Heun"]
    assert seen.locator("th[aria-sort]").count() == 1


def test_colours_follow_the_system_and_can_be_read(seen: Any, request: pytest.FixtureRequest) -> None:
    """The contrast of text with its ground is at least 4.5, as WCAG 2 asks, for words and for every line's name."""
    script = """() => {
      const rgb = (c) => c.match(/[\\d.]+/g).slice(0, 3).map((v) => v / 255)
        .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
      const lum = (c) => { const [r, g, b] = rgb(c); return 0.2126 * r + 0.7152 * g + 0.0722 * b };
      const ground = (e) => { for (; e; e = e.parentElement) {
        const c = getComputedStyle(e).backgroundColor;
        if (!c.endsWith(", 0)")) return c } return "rgb(255, 255, 255)" };
      const ratio = (a, b) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
      const words = [...document.querySelectorAll("p, li, td, th, small, dt, dd, a, caption, h2, .chart text")];
      const colour = (e) => getComputedStyle(e)[e instanceof SVGElement ? "fill" : "color"];
      return [getComputedStyle(document.body).backgroundColor,
        Math.min(...words.map((e) => ratio(lum(colour(e)), lum(ground(e)))))] }"""
    ground, contrast = seen.evaluate(script)
    dark = "dark" in request.node.callspec.id
    assert (sum(map(int, re.findall(r"\d+", ground))) < 200) is dark
    assert contrast >= 4.5


@pytest.mark.parametrize("width", [360, 768, 1600])
def test_no_width_makes_the_page_scroll_sideways(seen: Any, width: int) -> None:
    seen.set_viewport_size({"width": width, "height": 900})
    for details in seen.locator("details > summary").all():
        if details.is_visible():
            details.click()
    assert seen.evaluate("document.documentElement.scrollWidth") <= width


def test_pictures_are_seen_pixel_by_pixel(seen: Any) -> None:
    images = seen.locator(".sheets img")
    assert images.count() == 5
    script = "e => [e.naturalWidth, getComputedStyle(e).imageRendering, e.getBoundingClientRect().width]"
    natural, rendering, shown = images.first.evaluate(script)
    assert (natural, rendering) == (8 * 9 - 1, "pixelated")
    assert shown > 1.5 * natural


def test_names_in_charts_lie_apart_and_inside(seen: Any) -> None:
    for chart in seen.locator("svg.chart").all():
        script = """e => { const whole = e.getBoundingClientRect();
          return [...e.querySelectorAll(".end text")].map((t) => t.getBoundingClientRect())
            .map((b) => [b.top - whole.top, b.bottom - whole.top, whole.right - b.right]) }"""
        boxes = sorted(chart.evaluate(script))
        assert all(room >= 0 for *_, room in boxes)
        assert all(bottom - 3 <= top for (_, bottom, _), (top, _, _) in itertools.pairwise(boxes))
