"""From a name to detections: download, old parameter names, classes, config."""

import hashlib
import io
import re

import numpy as np
import pytest
import torch
from mmdet.apis import DetInferencer, inference_detector, init_detector

import dcnzoo.models
from dcnzoo import zoo
from dcnzoo.data.shapes import CLASSES
from dcnzoo.openmmlab.checkpoints import load_file, to_safetensors
from dcnzoo.openmmlab.runs.recipe import read_config_file

from ..demo import build
from .conftest import entry
from .server import Served, serving

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
    monkeypatch.setattr("dcnzoo.openmmlab.runs.execute.print_log", lambda text, **_: said.append(text))
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


def test_names_of_classes_are_in_the_published_file(published, tmp_path):
    """In safetensors too, from checkpoints of MMDetection 2 and 3, for MMDetection's own functions."""
    cached, config = published[2], str(zoo.find("tiny").config)
    dcnzoo.load("tiny")
    names = {"classes": ["a", "b"], "palette": np.uint8([[9, 8, 7], [6, 5, 4]])}
    torch.save({**torch.load(cached), "meta": {"dataset_meta": names}}, tmp_path / "new.pth")
    for source, classes, palette in (
        (cached, META["CLASSES"], META["PALETTE"]),
        (tmp_path / "new.pth", ("a", "b"), [(9, 8, 7), (6, 5, 4)]),
    ):
        checkpoint, file = load_file(source), tmp_path / "out.safetensors"
        file.write_bytes(to_safetensors(checkpoint["state_dict"], checkpoint["meta"]))
        assert dcnzoo.load("tiny", checkpoint=file).model.dataset_meta["palette"] == palette
        assert init_detector(config, str(file), device="cpu").dataset_meta["classes"] == classes


def test_mmdet_reads_the_names_of_the_shipped_weights(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = zoo.find("mask-rcnn_r14-mdconv_fpn_8e_shapes")
    inferencer = DetInferencer(str(model.config), str(zoo.download(model.id)), device="cpu")
    assert inferencer.model.dataset_meta["classes"] == CLASSES
    assert inferencer.visualizer.dataset_meta["classes"] == CLASSES
    assert not list(tmp_path.iterdir()), "no data set is generated for its names"
