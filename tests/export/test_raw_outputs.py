"""The numpy code of tools/deployment decodes raw outputs and pastes masks as MMDetection does."""

import runpy

import numpy as np
import pytest
import torch
from mmdet.models.roi_heads.mask_heads.fcn_mask_head import _do_paste_mask
from torch.utils._pytree import tree_leaves

from dcnzoo.export.onnx import trace
from dcnzoo.export.options import ExportOptions
from dcnzoo.export.vmap import symbolic_batches
from dcnzoo.openmmlab.export import export
from dcnzoo.openmmlab.export.predict import RawHead, TracedRawHead
from tests.helpers.detectors import CONFIGS, RTMDET, Family, build, loaded, predict_batch, size
from tests.helpers.processes import ROOT

TOOLS = runpy.run_path(str(ROOT / "tools/deployment/decode.py"))


@pytest.mark.parametrize(
    ("family", "options"),
    [("FCOS", dict(offset=0.5)), ("RTMDet", {}), ("YOLOX", dict(yolox=True))],
)
def test_decoded_in_numpy(family, options, monkeypatch):
    monkeypatch.setitem(CONFIGS, "RTMDet", Family("rtmdet/rtmdet_tiny_8xb32-300e_coco.py", RTMDET))
    # no limit of candidates per level, because the tool has none
    cfg = dict(nms=dict(type="nms", iou_threshold=0.6), score_thr=0.3, nms_pre=100_000, max_per_img=100)
    detector = build(family, **cfg)
    images = torch.randn(1, 3, *size(family), generator=torch.Generator().manual_seed(3))
    raw = RawHead(detector)
    with torch.no_grad():
        values = torch.utils._pytree.tree_leaves(raw(images))
    outputs = dict(zip(raw.names(images), (value.numpy() for value in values), strict=True))
    assert {"scores_0", "boxes_0"} <= outputs.keys() and raw.strides == sorted(raw.strides)
    boxes, scores, labels = TOOLS["decode"](outputs, raw.strides, images.shape[2:], **options)
    (expected,) = predict_batch(detector, images)
    expected = expected[np.argsort(-expected.scores, kind="stable")[:100]]  # YOLOX's has no limit
    assert len(boxes) == len(expected) > 20
    np.testing.assert_allclose(scores, expected.scores, atol=1e-4)
    np.testing.assert_allclose(boxes * 1.5, expected.boxes, atol=0.05)
    assert (labels == expected.labels).all()


@pytest.mark.parametrize(
    ("family", "kinds"),
    [
        ("RetinaNet", ["scores", "boxes"]),
        ("FCOS", ["scores", "boxes", "factors"]),
        ("RTMDet-Ins", ["scores", "boxes", "kernel_preds", "mask_feat"]),
        ("CornerNet", ["tl_heats", "br_heats", "tl_embs", "br_embs", "tl_offs", "br_offs"]),
    ],
)
def test_names(family, kinds):
    """Offsets and kernels were called boxes or factors."""
    names = RawHead(build(family)).names(torch.randn(1, 3, *size(family)))
    assert list(dict.fromkeys(name.rpartition("_")[0] for name in names)) == kinds


@pytest.mark.parametrize("family", ["Mask R-CNN", "DETR", "Deformable DETR", "SOLO"])
def test_heads_that_need_more_than_features_are_refused(family):
    with pytest.raises(ValueError, match=r"^raw_outputs: .* not a single-stage detector"):
        RawHead(build(family))


@pytest.mark.parametrize("family", ["CornerNet", "RepPoints"])
def test_layers_and_functions_of_a_head_are_replaced(family):
    """``cummax`` of corner pooling has no translation; mmcv's convolution fixed the sizes of RepPoints."""
    detector, images = build(family), torch.randn(2, 3, 256, 320)
    with torch.no_grad(), symbolic_batches():
        program = trace(TracedRawHead(detector), (images,), ({0: "batch", 2: "height", 3: "width"},))
        assert torch.ops.aten.cummax.default not in {node.target for node in program.graph.nodes}
        images = torch.randn(1, 3, 384, 256)
        outputs = program.module()(images)
        expected = tree_leaves(RawHead(detector)(images))
    torch.testing.assert_close(tree_leaves(outputs), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["CornerNet", "RepPoints"])
def test_files_of_heads_with_such_layers(family, tmp_path):
    path, detector = tmp_path / "m.onnx", loaded(build(family), dict(type="PackDetInputs"))
    assert detector.export(path, raw_outputs=True, img_shape=None).shape is None


def test_a_file_of_any_size_is_compared_at_two(tmp_path, monkeypatch):
    """A size that the trace had fixed by mistake was not noticed."""
    detector = loaded(build("RetinaNet"), dict(type="PackDetInputs"))
    compared = []
    monkeypatch.setattr(export, "Session", lambda *_, **__: None)
    monkeypatch.setattr(export, "verify_raw_outputs", lambda network, _, shapes: compared.append(shapes))
    for shape in (None, (128, 192)):
        options = ExportOptions(tmp_path / "m.onnx", raw_outputs=True, shape=shape)
        export.verified(detector, export.make_plan(detector, options), options, options.files, [])
    assert compared == [[(1, 3, 640, 640), (2, 3, 384, 640)], [(1, 3, 128, 192)]]


def test_a_picture_to_verify_is_refused(tmp_path):
    """Raw outputs are compared for noise."""
    with pytest.raises(ValueError, match=r"^verify: .*raw_outputs"):
        ExportOptions(tmp_path / "m.onnx", raw_outputs=True, verify="picture.png")


def test_masks_pasted_in_numpy():
    """A part of the box is outside the picture."""
    mask, box = torch.rand(1, 1, 28, 28), torch.tensor([[-3.2, 5.1, 40.7, 33.3]])
    expected, _ = _do_paste_mask(mask, box, 48, 64, skip_empty=False)
    pasted = TOOLS["paste"](mask[0, 0].numpy(), box[0].numpy(), 48, 64)
    np.testing.assert_array_equal(pasted, expected[0].numpy() >= 0.5)
