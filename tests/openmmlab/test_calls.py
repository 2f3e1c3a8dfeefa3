"""Calls of a detector: a threshold before NMS, bfloat16, threads, errors; the model stays as it was."""

import copy
import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from mmengine.hub import get_config
from torch import nn

import dcnzoo
from dcnzoo.data.shapes import ShapesSpec, draw_image
from dcnzoo.openmmlab import calls
from dcnzoo.openmmlab.calls import call_settings, tracing
from dcnzoo.openmmlab.detector import TorchDetector, default_score_threshold
from tests.helpers.demo import build as build_config
from tests.helpers.detectors import build, has_dcn
from tests.helpers.detectors import predict_batch as predict

SIZE = (160, 192)
SHAPES = "mask-rcnn_r14-mdconv_fpn_8e_shapes"


@pytest.fixture(scope="module")
def picture():
    return np.ascontiguousarray(np.kron(draw_image(ShapesSpec(), "val", 0)[0], np.ones((4, 4, 1), np.uint8)))


@pytest.fixture(scope="module")
def detector():
    return dcnzoo.load(SHAPES, device="cpu")


def attributes(model: nn.Module) -> list[dict]:
    return [{**vars(module), "test_cfg": getattr(module, "test_cfg", None)} for module in model.modules()]


def same(one: list[dict], other: list[dict]) -> bool:
    pairs = zip(one, other, strict=True)
    return all(a.keys() == b.keys() and all(a[name] is b[name] for name in a) for a, b in pairs)


@pytest.mark.parametrize(("family", "masks"), [("Mask R-CNN", True), ("FCOS", False), ("YOLOX", False)])
def test_threshold_reaches_nms(family, masks):
    model = build(family, has_dcn(family))
    images = torch.randn(2, 3, *SIZE)
    before = predict(model, images)
    threshold = float(np.sort(np.concatenate([result.scores for result in before]))[-20])
    state = attributes(model)
    with call_settings(model, threshold):
        results = predict(model, images)
    assert same(attributes(model), state)
    assert family == "FCOS" or sum(map(len, results)) < sum(map(len, before))  # its centerness comes later
    for one, other in zip(before, results, strict=True):
        one, other = one[one.scores >= threshold], other[other.scores >= threshold]
        assert (other.masks is not None) == masks
        np.testing.assert_allclose(one.boxes, other.boxes, rtol=1.3e-6, atol=1e-5)
        assert np.array_equal(one.scores, other.scores) and np.array_equal(one.labels, other.labels)


@pytest.mark.parametrize(
    ("family", "threshold"),
    [("Mask R-CNN", 0.5), ("Cascade R-CNN", 0.5), ("FCOS", 0.3), ("DETR", 0.3)],
)
def test_the_default_threshold_is_one_number_of_the_model(family, threshold):
    assert TorchDetector(build(family)).score_threshold == default_score_threshold(build(family)) == threshold
    assert TorchDetector(build(family), 0.1).score_threshold == 0.1


def test_sparse_heads_have_sigmoid_scores():
    cfg = get_config("mmdet::sparse_rcnn/sparse-rcnn_r50_fpn_1x_coco.py")
    assert default_score_threshold(build_config(cfg.model, "meta")) == 0.3


def test_threshold_leaves_heads_whose_scores_rise():
    model = build("Mask Scoring R-CNN")
    settings = model.roi_head.test_cfg
    with call_settings(model, 0.9):
        assert model.roi_head.test_cfg is settings


def test_threads_with_different_thresholds_get_what_each_alone_gets(detector, picture):
    thresholds = [0.0, 0.9, 0.05, 0.7, 0.3, 0.99, 0.1, 0.5] * 3
    expected = {t: detector(picture, bgr=True, score_threshold=t) for t in set(thresholds)}
    assert len({len(result) for result in expected.values()}) > 3
    with ThreadPoolExecutor(8) as pool:
        results = pool.map(lambda t: detector(picture, bgr=True, score_threshold=t), thresholds)
    for threshold, result in zip(thresholds, results, strict=True):
        np.testing.assert_array_equal(result.boxes, expected[threshold].boxes)
        np.testing.assert_array_equal(result.scores, expected[threshold].scores)


def test_calls_of_different_models_run_at_the_same_time():
    both = threading.Barrier(2)

    def call(model):
        with call_settings(model):
            both.wait(10)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(call, [nn.Linear(1, 1), nn.Linear(1, 1)]))


def test_a_tracing_excludes_calls(monkeypatch):
    """It waits for calls that run, also for their inner calls; later calls wait for it and print one line."""
    one, other, ended = nn.Linear(1, 1), nn.Linear(1, 1), threading.Event()
    events, lines = [], []
    monkeypatch.setattr(calls, "PATIENCE", 0.05)
    monkeypatch.setattr(calls, "note", lines.append)

    def trace(model):
        with tracing(model):
            events.append("tracing")
            ended.wait(10)
            events.append("traced")

    def call(model):
        with call_settings(model):
            events.append("called")

    with ThreadPoolExecutor(4) as pool:
        with call_settings(one):
            traces = [pool.submit(trace, model) for model in (one, other)]
            while len(calls._tracers) < 2:
                time.sleep(0.001)
            waiting = [pool.submit(call, model) for model in (one, other)]
            call(one)
            assert events == ["called"]
            while len(lines) < 2:
                time.sleep(0.001)
        ended.set()
        for each in (*traces, *waiting):
            each.result(10)
    assert events == ["called", *["tracing", "traced"] * 2, "called", "called"]
    assert len(lines) == 2
    with pytest.raises(KeyError), tracing(one):
        raise KeyError
    call(one)


def test_an_error_leaves_the_model_as_it_was(detector, picture, monkeypatch):
    model = copy.deepcopy(detector.model).train()
    other = type(detector)(model, precision="bf16")
    state = attributes(model)

    def fails(*arguments, **options):
        assert not any(module.training for module in model.modules())
        assert "forward" in vars(model.rpn_head.rpn_cls)
        raise RuntimeError("no memory")

    with monkeypatch.context() as patch:
        patch.setattr(type(model.roi_head), "predict", fails)
        with pytest.raises(RuntimeError, match="no memory"):
            other(picture, bgr=True)
    assert same(attributes(model), state) and model.training
    assert len(other(picture, bgr=True)) > 0, "the lock is free"


def test_copies_of_a_detector(detector, picture):
    expected = detector(picture, bgr=True).boxes
    for twin in (copy.deepcopy(detector), pickle.loads(pickle.dumps(detector))):
        np.testing.assert_array_equal(twin(picture, bgr=True).boxes, expected)


def test_bfloat16(picture, detector):
    mixed, types = dcnzoo.load(SHAPES, device="cpu", precision="bf16"), []
    assert "bf16" in repr(mixed)
    for layer in (mixed.model.rpn_head.rpn_cls, mixed.model.roi_head.mask_head.conv_logits):
        layer.register_forward_hook(lambda module, x, y: types.append((x[0].dtype, y.dtype)))
    one, other = (each(picture, bgr=True, score_threshold=0.6) for each in (detector, mixed))
    assert types[0] == (torch.bfloat16, torch.float32), "the scores of boxes are float32"
    assert types[-1] == (torch.bfloat16, torch.bfloat16), "the masks are not"
    assert one.names == other.names
    assert 0 < np.abs(one.boxes - other.boxes).max() < 8
    with pytest.raises(ValueError, match="precision: expected float32 or bf16, got 'int8'"):
        dcnzoo.load(SHAPES, device="cpu", precision="int8")
