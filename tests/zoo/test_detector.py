"""From a name to detections: download, old parameter names, classes, config."""

import hashlib
import io
import re

import numpy as np
import pytest
import torch
from mmdet.apis import inference_detector

import dcnzoo.models
from dcnzoo import zoo
from dcnzoo.openmmlab.runs.recipe import read_config_file
from tests.helpers.demo import build
from tests.helpers.server import Served, serving
from tests.zoo.conftest import entry

CONFIG = """
_base_ = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'
model = dict(
    backbone=dict(depth=18, base_channels=8, dcn='v1', init_cfg=None),
    neck=dict(in_channels=[8, 16, 32, 64], out_channels=16),
    rpn_head=dict(in_channels=16, feat_channels=16),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=16),
        bbox_head=dict(in_channels=16, fc_out_channels=32, num_classes=2)))
"""
META = {"CLASSES": ("bent", "straight"), "PALETTE": [(1, 2, 3), (4, 5, 6)], "mmdet_version": "2.0.0"}


@pytest.fixture
def published(package, tmp_path, monkeypatch):
    """A model in the index and on a server, as published by MMDetection 2.0."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    (model,) = package(entry("tiny", text=CONFIG, Published="a test"))
    detector = build(read_config_file(model.config).model)
    old = {re.sub(r"\.conv_offset\.", "_offset.", k): v for k, v in detector.state_dict().items()}
    buffer = io.BytesIO()
    torch.save({"state_dict": old, "meta": META}, buffer)
    name = f"tiny_20200130-{hashlib.sha256(buffer.getvalue()).hexdigest()[:8]}.pth"
    with serving(Served({f"/{name}": buffer.getvalue()})) as served:
        package(entry("tiny", text=CONFIG, Published="a test", Weights=f"{served.url}/{name}"))
        yield detector, served, tmp_path / "cache" / "hub" / "checkpoints" / name


def test_load_detects(published, tmp_path, monkeypatch):
    source, served, cached = published
    said = []
    monkeypatch.setattr("dcnzoo.openmmlab.runs.build.print_log", lambda text, **_: said.append(text))
    loaded = dcnzoo.load("tiny", cfg_options={"model.test_cfg.rcnn.score_thr": 0.0}, device="cpu")
    detector = loaded.model
    (line,) = said
    assert line.startswith(f"{cached}: 12 parameters renamed")
    assert cached.is_file() and len(served.requests) == 1
    assert loaded.classes == detector.dataset_meta["classes"] == META["CLASSES"]
    assert detector.dataset_meta["palette"] == META["PALETTE"]
    assert not detector.training
    for key, value in source.state_dict().items():
        assert torch.equal(detector.state_dict()[key], value)

    image = np.random.default_rng(0).integers(0, 255, (60, 90, 3), dtype=np.uint8)
    found = inference_detector(detector, image).pred_instances
    assert len(found) > 0 and found.labels.max() <= 1
    boxes = found.bboxes
    assert boxes.min() >= 0 and (boxes[:, 2:].amax(0) <= torch.tensor([90, 60]) + 1e-4).all()  # float32

    dcnzoo.load("tiny", checkpoint=cached)
    dcnzoo.load("tiny")
    assert zoo.download("tiny") == cached
    assert len(served.requests) == 1, "from the cache"
    assert zoo.download("tiny", tmp_path / "here") == tmp_path / "here" / cached.name
    assert len(served.requests) == 2
