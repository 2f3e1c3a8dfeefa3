"""model_zoo.md is up to date and separates published from measured figures."""

from pathlib import Path

import pytest

from dcnzoo import zoo
from dcnzoo.zoo import index, page

from .conftest import entry
from .test_index import MEASURED

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("name", "text"),
    [("model_zoo.md", page.render), ("model-index.yml", lambda: page.render_index(ROOT / "configs"))],
)
def test_is_up_to_date(name, text):
    assert (ROOT / name).read_text("utf-8") == text(), "nox -s zoo"
    for model in index.models():
        for result in model.results:
            assert result.source.startswith(("published (", "measured ("))
            assert result.published or model.package == "dcnzoo"
            if model.package == "dcnzoo":  # conditions of `mim search` compare numbers
                assert all(isinstance(value, int | float) for value in result.metrics.values())


def rows(text, name):
    lines = [line for line in text.splitlines() if line.startswith(f"| [{name}](")]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]


def test_a_row():
    name = "mask-rcnn_r101-dconv-c3-c5_fpn_1x_coco"
    (cells,) = rows(page.render(), name)
    assert cells.pop(5) == str(zoo.find(name).metadata.get("CPU time (× Faster R-CNN R-50)", "–"))
    assert cells == [
        f"[{name}](configs/dcn/{name}.py)",
        *("ResNet-101", "DCN (backbone)", "64.7", "355.4", "12 epochs"),
        *("6.5", "11.7 (V100)"),  # GB; 85.47 ms per image
        *("COCO", "43.5", "38.9", "published (MMDetection)"),
        *(f"[download]({zoo.find(name).only_weights()})", "Apache-2.0"),
    ]


def test_published_and_measured_are_never_in_one_row(package):
    metadata = {"Training Memory (GB)": 3.5, "inference time (ms/im)": [{"value": 50, "hardware": "V100"}]}
    both = entry(
        "both",
        text="model = dict(backbone=dict(type='ResNet', depth=50, dcn=True))",
        Published=True,
        Weights="https://download.openmmlab.com/mmdetection/x-12345678.pth",
        Metadata=metadata,
    )
    measured = {"Dataset": "BCCD", "Metrics": {"box AP": "39.5 ± 0.3", "mask AP": 35.0}, "Measured": MEASURED}
    both["Results"].append(measured)
    package(both, entry("neither", text="model = dict()", Results=[]))
    text = page.render()
    published, measured = rows(text, "both")
    assert published[1:13] == [
        *("ResNet-50", "DCNv2 (backbone)", "–", "–", "–", "", "3.5", "20.0 (V100)", "COCO", "40.0", "–"),
        "published (MMDetection)",
    ]
    assert measured[7:13] == [
        *("–", "–", "BCCD", "39.5 ± 0.3", "35.0"),
        "measured (2 cores, 2026-11-20, make demo)",
    ]
    assert rows(text, "neither")[0][1:] == ["", "none", "–", "–", "–", "", *["–"] * 8]


def test_write(tmp_path, monkeypatch):
    (tmp_path / "configs" / "a").mkdir(parents=True)
    (tmp_path / "configs" / "a" / "metafile.yml").touch()
    assert [path.name for path in page.write(tmp_path)] == ["model-index.yml", "model_zoo.md"]
    assert (tmp_path / "model-index.yml").read_text() == "Import:\n  - configs/a/metafile.yml\n"
    assert page.write(tmp_path) == []
    (tmp_path / "model_zoo.md").write_text("stale")
    assert page.write(tmp_path) == [tmp_path / "model_zoo.md"]
