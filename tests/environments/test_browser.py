"""Reports and explain pages in Chromium: ``nox -s clients``."""

import math
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

playwright = pytest.importorskip("playwright.sync_api", exc_type=ImportError)

from dcnzoo.report.explain_page import render_explanation  # noqa: E402
from dcnzoo.report.report import write_report  # noqa: E402
from tests.helpers.explained import explained  # noqa: E402
from tests.helpers.processes import ROOT  # noqa: E402
from tests.report.conftest import data, make_run  # noqa: E402, F401

CHROMIUM = [
    "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
PHONE, DESKTOP = (390, 800), (1280, 800)
OUTSIDE = """[...document.body.querySelectorAll("*")].filter(each => {
  const {left, right, width} = each.getBoundingClientRect();
  const scrolls = each.parentElement.closest(".scroll, .chart, svg");  // their content may be wider
  return width && !scrolls && (left < 0 || right > innerWidth);
}).map(each => each.outerHTML.slice(0, 200))"""


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as api:
        program = shutil.which("chromium")  # else Playwright's own
        yield api.chromium.launch(executable_path=program, args=CHROMIUM, chromium_sandbox=False)


def visit(browser, file, size=DESKTOP, scheme="light", hash=""):
    page = browser.new_page(viewport=dict(zip(("width", "height"), size, strict=True)), color_scheme=scheme)
    page.on("pageerror", lambda error: pytest.fail(str(error)))
    page.goto(f"{file.as_uri()}{hash}")
    page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    return page


def check(browser, file):
    """No violation of axe's rules; no element outside the screen; all pictures are there, with a text."""
    axe = Path(os.environ["AXE"]).read_text(encoding="utf-8")
    for size in (DESKTOP, PHONE):
        for scheme in ("light", "dark"):
            page = visit(browser, file, size, scheme)
            page.evaluate(axe)
            violations = page.evaluate("axe.run()")["violations"]
            assert not [(each["id"], each["nodes"][0]["html"][:200]) for each in violations]
            assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
            assert page.evaluate(OUTSIDE) == []
            assert page.evaluate("[...document.images].every(each => each.naturalWidth && each.alt)")
            page.close()


def test_report(browser, make_run):  # noqa: F811
    check(browser, write_report([make_run()], evaluated=6, images=1))


def test_explain_page(browser, tmp_path):
    file = tmp_path / "explain.html"
    explanation = explained(names=("backbone.layer2.0.conv2", "backbone.layer3.0.conv2"))
    file.write_text(render_explanation(explanation, "title", "end"), encoding="utf-8")
    check(browser, file)


def test_scene_of_the_documentation(browser):
    """The committed page follows the pointer, and is small."""
    file = ROOT / "docs/scene.html"
    page = visit(browser, file)
    before = page.locator("circle").evaluate_all("all => all.map(each => each.getAttribute('cx'))")
    page.mouse.move(100, 300)
    after = page.locator("circle").evaluate_all("all => all.map(each => each.getAttribute('cx'))")
    assert len(before) == len(after) == 9 and before != after
    assert file.stat().st_size <= 500_000


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
    np.testing.assert_allclose(drawn[:, :2], expected, atol=1e-3)
    np.testing.assert_allclose(drawn[:, 2], field.weight[:, row, column].abs(), atol=1 / 510 + 1e-3)
    text = page.content()
    assert f">{field.name}: output (y {row}, x {column}) of 12×12, 15 points each" in text
    assert ('visibility="visible"' in text) == ("heat" in hash)
    assert ("receptive field at (x 3.0, y 4.0)" in text) == ("heat" in hash), "the nearest"
