"""Reports and explain pages in Chromium: ``nox -s clients``."""

import math
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

playwright = pytest.importorskip("playwright.sync_api", exc_type=ImportError)

from dcnzoo.report.explain import render_explanation  # noqa: E402
from dcnzoo.report.report import write_report  # noqa: E402

from ..report.test_explain import explained  # noqa: E402
from ..report.test_report import data, make_run  # noqa: E402, F401

CHROMIUM = [
    "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
PHONE, DESKTOP = (390, 800), (1200, 800)


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as api:
        program = shutil.which("chromium")  # else Playwright's own
        yield api.chromium.launch(executable_path=program, args=CHROMIUM, chromium_sandbox=False)


@pytest.fixture
def explain_page(tmp_path):
    file = tmp_path / "explain.html"
    explanation = explained(names=("backbone.layer2.0.conv2", "backbone.layer3.0.conv2"))
    file.write_text(render_explanation(explanation, "title", "end"), encoding="utf-8")
    return file


def visit(browser, file, size=DESKTOP, scheme="light", hash=""):
    page = browser.new_page(viewport=dict(zip(("width", "height"), size, strict=True)), color_scheme=scheme)
    page.on("pageerror", lambda error: pytest.fail(str(error)))
    page.goto(f"{file.as_uri()}{hash}")
    page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    return page


SMALL_TEXTS = """() => {
  const small = [], texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const parent = texts.currentNode.parentElement;
    const seen = texts.currentNode.data.trim() && !["SCRIPT", "STYLE"].includes(parent.tagName);
    if (seen && parseFloat(getComputedStyle(parent).fontSize) < 12) small.push(texts.currentNode.data);
  }
  return small;
}"""


def check(browser, file):
    """No violation of axe's rules; no page wider than the screen, nothing cut off; texts of 12 pixels."""
    axe = Path(os.environ["AXE"]).read_text(encoding="utf-8")
    for size in (DESKTOP, PHONE):
        for scheme in ("light", "dark"):
            page = visit(browser, file, size, scheme)
            page.evaluate(axe)
            violations = page.evaluate("axe.run()")["violations"]
            assert not [(each["id"], each["nodes"][0]["html"][:200]) for each in violations]
            assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
            assert page.evaluate(SMALL_TEXTS) == []
            scales = page.evaluate(
                "[...document.querySelectorAll('.chart img')].map(each => each.width / each.naturalWidth)"
            )
            assert all(scale > 0.99 for scale in scales), "charts in their own size, or their text is small"
            page.close()


def test_report(browser, make_run):  # noqa: F811
    check(browser, write_report([make_run()], evaluated=6, images=1))


def test_explain_page(browser, explain_page):
    check(browser, explain_page)


@pytest.mark.parametrize(
    ("hash", "layer", "row", "column"),
    [("", 1, 5, 7), ("#layer=0&at=3.4,3.2&heat=1", 0, 2, 1), ("#at=-50,999", 1, 11, 0)],
)
def test_points_of_the_place_are_drawn(browser, tmp_path, hash, layer, row, column):
    explanation = explained(names=("a", "b"))
    explanation.fields[0].offset.mul_(0.5)  # both fields share this tensor and differ only in their names
    explanation.fields[1].weight.uniform_(-0.9, 0.8)
    file = tmp_path / "explain.html"
    file.write_text(render_explanation(explanation, "title"), encoding="utf-8")
    page = visit(browser, file, hash=hash)
    field = explanation.fields[layer]
    script = "all => all.map(each => [each.getAttribute('cx'), each.getAttribute('cy'), each.dataset.weight])"
    drawn = np.array(page.locator("circle").evaluate_all(script), float)
    expected = field.points[:, :, row, column].flip(1).numpy() + 0.5
    assert drawn.shape == (math.prod(field.kernel_size), 3)
    np.testing.assert_allclose(drawn[:, :2], expected, atol=1 / 64 + 1e-4)
    np.testing.assert_allclose(drawn[:, 2], field.weight[:, row, column].abs(), atol=1 / 510 + 1e-3)
    text = page.content()
    assert f">{field.name}: output (y {row}, x {column}) of 12×12, 15 points each" in text
    assert ('visibility="visible"' in text) == ("heat" in hash)
    assert ("receptive field at (x 3.0, y 4.0)" in text) == ("heat" in hash), "the nearest"


def test_pointer_and_keyboard_pin_a_point(browser, explain_page):
    page = visit(browser, explain_page)
    view = page.locator("#view svg").bounding_box()

    def at(x, y):  # of 31 × 21 pixels
        return view["x"] + (x + 0.5) / 31 * view["width"], view["y"] + (y + 0.5) / 21 * view["height"]

    def state():  # pixels of the screen are not exactly those of the picture
        x, y = (round(float(page.locator(f"#{name}").input_value())) for name in ("x", "y"))
        return (x, y), re.sub(r"\d+\.\d", lambda at: str(round(float(at[0]))), page.evaluate("location.hash"))

    page.mouse.move(*at(9, 6))
    assert state() == ((9, 6), ""), "follows the pointer"
    page.mouse.click(*at(9, 6))
    page.mouse.move(*at(20, 15))
    assert state() == ((9, 6), "#layer=1&at=9,6"), "pinned"
    points = page.locator("circle").evaluate_all("all => all.map(each => each.outerHTML)")
    page.locator("#heat").check()
    assert "receptive field at (x 3.0, y 4.0)" in page.locator("#status").inner_text()
    other = visit(browser, explain_page, hash=page.evaluate("location.hash"))
    assert other.locator("circle").evaluate_all("all => all.map(each => each.outerHTML)") == points
    assert other.locator("#heat").is_checked() and other.locator("#pinned").is_checked()

    page.locator("#view").focus()
    page.keyboard.press("ArrowRight")  # one output of 12 on 36 pixels further
    page.keyboard.press("ArrowDown")  # of 12 on 24
    assert state()[0] == (12, 8)
    page.keyboard.press("Escape")
    assert state() == ((21, 10), "#layer=1&heat=1"), "back at the first place"
    assert "receptive field at (x 21.0, y 10.0)" in page.locator("#status").inner_text()

    reached = set()
    for _ in range(9):  # from the image on: its controls and the table
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.className"))
    assert {"layer", "x", "y", "pinned", "heat", "scroll"} <= reached
    page.locator("#x").fill("5")
    page.keyboard.press("Enter")
    assert state() == ((5, 10), "#layer=1&at=5,10&heat=1")
