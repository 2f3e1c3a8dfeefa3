"""A config of each of MMDetection's families builds, predicts and trains; docs/mmdet_coverage.md lists them.

``make test`` tries a few families of different kinds, ``make test-all`` the others.
"""

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "tools" / "analysis"))

import mmdet_coverage as tool  # noqa: E402
import trial  # noqa: E402

PAGE = (ROOT / "docs" / "mmdet_coverage.md").read_text()
ROWS = {
    family: tuple(rest)
    for family, *rest in re.findall(r"^\| (\S+) \| `(.+)` \| (.+) \|$", PAGE, re.MULTILINE)
}
# They need packages that `make setup` does not install; `make test-others` tries them, but not misc.
NEED_MORE = {
    *("boxinst", "bytetrack", "convnext", "deepsort", "glip", "grounding_dino", "lad", "misc"),
    *("mm_grounding_dino", "ocsort", "paa", "reid", "sort", "strongsort", "timm_example"),
}
FAMILIES = {family: name for family, name in tool.families() if family not in NEED_MORE}
QUICK = ("atss", "fast_rcnn", "solo", "yolox")


@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in FAMILIES]
)
def test_family(family):
    assert tool.apart(FAMILIES[family]) == "ok"


def test_the_page_is_complete():
    assert [(family, name) for family, (name, _) in ROWS.items()] == list(tool.families())
    assert {family for family, (_, result) in ROWS.items() if result != "ok"} == NEED_MORE


def test_the_page_names_no_machine():
    assert not re.search(r"/(tmp|home|root|work|usr)/", PAGE)


def test_speakers_are_there():
    for family, name in tool.SPEAKERS.items():
        assert (tool.MMDETS / family / name).is_file()


def test_weights_are_forgotten():
    cfg = trial.read("mmdet::detr/detr_r50_8xb2-150e_coco.py")
    assert cfg.model.backbone.init_cfg is None and cfg.custom_imports.imports == ["dcnzoo.models"]
