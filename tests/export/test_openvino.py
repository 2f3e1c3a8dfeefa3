"""OpenVINO on exported graphs: the operator's cases, and whole detectors with DCNv2."""

import pytest
import torch

from dcnzoo.export import register_deform_conv2d_onnx_op, register_onnx_ops
from dcnzoo.export.runtime import Session
from dcnzoo.openmmlab.export.detectors import export_detector
from dcnzoo.openmmlab.export.verify import compare, predict
from tests.op_cases import deform_conv as cases

from .detectors import build, size
from .test_deform_conv import FEW, SAMPLES, TARGETS, Call, assert_close, by_torchscript, inputs

onnx = pytest.importorskip("onnx")
openvino = pytest.importorskip("openvino")


def run(path, *args):
    session = Session(path, "openvino")
    feed = {name: arg.numpy() for name, arg in zip(session.inputs, args, strict=True)}
    return [torch.from_numpy(output) for output in session._run(feed)]


@pytest.mark.parametrize(
    ("target", "sample"),
    [
        pytest.param(t, s, id=f"{t} {s.name}", marks=[] if s.name in FEW else pytest.mark.slow)
        for t in TARGETS[1:]  # OpenVINO's reader has no DeformConv
        for s in SAMPLES
    ],
)
def test_operator(target, sample, tmp_path):
    register_onnx_ops(target)
    single = sample.to(torch.float32)
    path = str(tmp_path / "model.onnx")
    by_torchscript(Call(single), inputs(single), path, 19)
    (actual,) = run(path, *inputs(single))
    assert_close(actual, cases.reference(single.to(torch.float64)))


@pytest.mark.parametrize("use_gathernd", [True, False])
def test_with_and_without_the_patch(use_gathernd, tmp_path):
    """``enable_openvino_patch``, which the published package needs, changes nothing here."""
    sample = cases.make("patch", offset_groups=2, padding=1).to(torch.float32)
    graphs = []
    for patch in (False, True):
        register_deform_conv2d_onnx_op(use_gathernd, enable_openvino_patch=patch)
        path = str(tmp_path / f"{patch}.onnx")
        by_torchscript(Call(sample), inputs(sample), path, 12)
        graphs.append([node.op_type for node in onnx.load(path).graph.node])
        assert_close(run(path, *inputs(sample))[0], cases.reference(sample.to(torch.float64)))
    assert graphs[0] == graphs[1]


@pytest.mark.slow
@pytest.mark.parametrize("family", ["RetinaNet", "Faster R-CNN", "Mask R-CNN"])
def test_detector(family, tmp_path):
    detector = build(family, dcn=True)
    height, width = size(family)
    path = tmp_path / "model.onnx"
    export_detector(detector, torch.randn(1, 3, height, width), path, dynamic=True, deform_conv="gathernd")
    assert "DeformConv" not in {node.op_type for node in onnx.load(path).graph.node}
    session = Session(path, "openvino")
    total = None
    for shape in ((1, 3, height, width), (2, 3, height + 37, width - 32)):
        images = torch.randn(shape)
        agreement = compare(session(images.numpy()), predict(detector, images))
        total = agreement if total is None else total + agreement
    assert total.found >= 100 and total.holds, total
