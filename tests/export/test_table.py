"""The table of average precisions in PyTorch and in the runtimes."""

import json
import runpy
import sys

import numpy as np
import pytest

import dcnzoo.models
import dcnzoo.openmmlab.datasets  # noqa: F401

# isort: split
from mmdet.registry import MODELS
from mmengine.registry import DefaultScope

from dcnzoo.openmmlab.export.detectors import FAMILIES
from tests.test_tools import ROOT, run

# without those that the published table has not
PUBLISHED = [name for name in FAMILIES if name not in ("Deformable DETR", "YOLOX")]

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def tool():
    sys.path.insert(0, str(ROOT / "tools/deployment"))
    yield runpy.run_path(str(ROOT / "tools/deployment/table.py"))
    sys.path.remove(str(ROOT / "tools/deployment"))


@pytest.mark.parametrize("name", [name for name in PUBLISHED if name != "CornerNet"])
def test_small_detectors_build(name, tool):
    assert set(tool["FAMILIES"]) == set(PUBLISHED)
    cfg = tool["small"](name)
    with DefaultScope.overwrite_default_scope("mmdet"):
        model = MODELS.build(cfg.model)
    assert sum(p.numel() for p in model.parameters()) < 1.5e6
    assert any("conv_offset" in key for key, _ in model.named_parameters())
    assert tool["FAMILIES"][name].kinds == tuple(cfg.test_evaluator.metric)


def test_average_precision_is_not_rounded(tool, tmp_path):
    """Three objects in three images, one detected; AP computed by hand."""
    images = [{"id": i, "file_name": f"{i}", "width": 50, "height": 50} for i in (1, 2, 3)]
    box = dict(category_id=1, bbox=[5, 5, 20, 20])
    truth = [{"id": i, "image_id": i, "area": 400, "iscrowd": 0, **box} for i in (1, 2, 3)]
    content = dict(images=images, categories=[{"id": 1, "name": "thing"}], annotations=truth)
    (tmp_path / "truth.json").write_text(json.dumps(content))
    (tmp_path / "found.json").write_text(json.dumps([dict(image_id=1, score=0.9, **box)]))
    ap = tool["average_precision"](str(tmp_path / "truth.json"), str(tmp_path / "found.json"), "bbox")
    # precision 1 up to a recall of 1/3: 34 of the 101 points
    assert np.isclose(ap, 100 * 34 / 101) and ap != round(ap, 1)


@pytest.mark.slow
def test_small_run(tmp_path):
    arguments = ["--quick", "--families", "RetinaNet", "--backends", "onnxruntime", "--work-dir", tmp_path]
    output = run("deployment/table", *arguments)
    assert "| RetinaNet | box | " in output and "36.5 | 36.4 | 36.3 |" in output
    weights = tmp_path / "quick/retinanet/logs/epoch_1.pth"
    trained = weights.stat().st_mtime_ns
    run("deployment/table", *arguments)
    assert weights.stat().st_mtime_ns == trained, "what is finished is kept"
