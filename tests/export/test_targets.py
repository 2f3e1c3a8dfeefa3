"""``verify`` runs a file in the runtime that it is for."""

import contextlib

import numpy as np
import pytest

import dcnzoo
from dcnzoo.detect.session import Session
from dcnzoo.export import targets

from ..processes import ROOT
from .detectors import build, loaded


@pytest.mark.parametrize(
    "wrong", ["dets", *(pytest.param(name, marks=pytest.mark.slow) for name in ("", "box_masks"))]
)
def test_a_file_is_compared_in_its_runtime(wrong, tmp_path, monkeypatch):
    """Here the runtime is onnxruntime, perhaps with wrong boxes or masks."""
    ran = []

    def open_file(path, names):
        session = Session(path)

        def run(inputs):
            ran.append(path)
            outputs = session._run(inputs)
            return [1 - value if name == wrong else value for name, value in zip(names, outputs, strict=True)]

        return run

    monkeypatch.setitem(targets.OPEN, "mnn", open_file)
    if wrong == "dets":  # a detector of boxes is exported in less time
        steps = dict(type="Resize", scale=(128, 96), keep_ratio=True), dict(type="PackDetInputs")
        detector = loaded(build("RetinaNet"), *steps)
    else:
        detector = dcnzoo.load("mask-rcnn_r14-mdconv_fpn_8e_shapes", device="cpu")
    refused = pytest.raises(ValueError, match="verify: expected 99 % of the detections to agree")
    with refused if wrong else contextlib.nullcontext():
        options = dict(shape=(96, 128), runtime="mnn", img_shape=None, verify=ROOT / "tests/data/color.jpg")
        result = detector.export(tmp_path / "x.onnx", **options)
        assert result.agreement.holds and not any("not compared" in each.text for each in result.findings)
    assert ran


def test_a_runtime_that_is_not_installed(tmp_path, monkeypatch):
    def missing(path, names):
        raise ModuleNotFoundError("No module named 'MNN'")

    monkeypatch.setitem(targets.OPEN, "mnn", missing)
    session = type("", (), dict(backend="onnxruntime", path="x", output_names=[]))()
    assert list(targets.runtimes(session, "mnn")) == ["onnxruntime"]


@pytest.mark.parametrize("runtime", targets.OPEN)
def test_a_small_graph(runtime, tmp_path):
    """Run by ``nox -s runtimes`` where the packages are."""
    pytest.importorskip({"mnn": "MNN"}.get(runtime, runtime))
    import torch

    layer = torch.nn.Conv2d(3, 4, 3).eval()
    path = tmp_path / "x.onnx"
    torch.onnx.export(
        layer, (torch.zeros(1, 3, 8, 9),), path, dynamo=False, input_names=["input"], output_names=["y"]
    )
    image = np.random.default_rng(0).standard_normal((1, 3, 8, 9), np.float32)
    (output,) = targets.OPEN[runtime](str(path), ["y"])({"input": image})
    with torch.no_grad():
        np.testing.assert_allclose(output.reshape(1, 4, 6, 7), layer(torch.from_numpy(image)), atol=1e-5)
