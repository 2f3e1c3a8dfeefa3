"""Whole detectors in ONNX, compared with MMDetection's predictions."""

import itertools
from bisect import bisect
from functools import cache, partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmcv.ops import DeformConv2d, batched_nms
from mmdet.models.detectors import SemiBaseDetector
from mmdet.models.necks import BFP
from mmdet.models.roi_heads.mask_heads.fcn_mask_head import _do_paste_mask
from mmdet.registry import TASK_UTILS
from mmengine.config import ConfigDict
from torch import nn

from dcnzoo.detect.outputs import MASK_THRESHOLD, rescale_detections
from dcnzoo.detect.session import Session
from dcnzoo.export import export_onnx, save_ir
from dcnzoo.export.fixed_size import ABSENT, keep_boxes, roi_align_pyramid
from dcnzoo.export.options import ExportOptions
from dcnzoo.export.result import Agreement
from dcnzoo.export.vmap import symbolic_batches
from dcnzoo.openmmlab.export.deployed import without_border
from dcnzoo.openmmlab.export.export import make_plan, write_detector
from dcnzoo.openmmlab.export.mixins.layers import running_max
from dcnzoo.openmmlab.export.nms import suppress
from dcnzoo.openmmlab.export.pictures import predicting_part
from dcnzoo.openmmlab.export.predict import Predictor, RawHead
from dcnzoo.openmmlab.export.verify import verify_raw_outputs
from dcnzoo.ops import reference_boxes
from tests.helpers.detectors import (
    CONFIGS,
    WIDTH,
    agreement_of,
    assert_agreement,
    build,
    has_dcn,
    loaded,
    padded,
    size,
)
from tests.helpers.graphs import run
from tests.helpers.modules import module_of
from tests.helpers.processes import run_code

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

DYNAMIC = torch.export.Dim.DYNAMIC
STANDARD = {"", "ai.onnx"}
# Families that share all code with others, although their predictions differ. An export takes up to a minute,
# so that only `make test-all` runs them.
ALIKE = ("FSAF", "RetinaNet", "Faster R-CNN", "Cascade R-CNN", "Conditional DETR", "DAB-DETR", "SOLOv2")


def export(detector, path, images, dynamic=False, **options):
    write_detector(Predictor(detector), images, ExportOptions(path, **options), dynamic=dynamic, metadata={})


def outputs_of(detector, images):
    model = Predictor(detector)
    with torch.no_grad():
        return dict(zip(model.output_names, (t.numpy() for t in model(images)), strict=True))


@pytest.mark.parametrize(
    "family",
    [pytest.param(f, marks=[pytest.mark.slow] if f in ALIKE else []) for f in CONFIGS],
)
def test_a_batch_of_two_sizes_is_predicted_as_by_mmdetection(family):
    few = dict(max_per_img=50) if family == "PointRend" else {}  # points take seconds
    detector = build(family, dcn := has_dcn(family), **few)
    assert any("conv_offset" in name for name, _ in detector.named_parameters()) == dcn
    images, sizes = padded(family)
    assert_agreement(detector, images, sizes)


@pytest.mark.slow  # `make test` exports a detector in test_tools.py
@pytest.mark.parametrize(("family", "dynamic"), list(itertools.product(CONFIGS, (True, False))))
def test_runtimes(family, dynamic, tmp_path):
    detector = build(family, dcn := has_dcn(family) and not dynamic)
    height, width = size(family)
    path = tmp_path / "model.onnx"
    export(detector, path, torch.randn(1, 3, height, width), dynamic)
    graph = onnx.load(path).graph
    operators = {node.op_type for node in graph.node}
    assert {node.domain for node in graph.node} <= STANDARD
    own = any(isinstance(module, DeformConv2d) for module in detector.modules())  # RepPoints
    own |= family == "TOOD"  # its head calls deform_conv2d
    assert ("DeformConv" in operators) == (dcn or own)
    shapes = [(1, height, width)]
    # with random weights, 1e-6 in a larger picture moves boxes of Sparse R-CNN's six stages by 25 pixels
    if several := dynamic and family != "Sparse R-CNN":
        # MMDetection itself accepts only multiples of the strides for these
        more = 32 if family in ("YOLOv3", "YOLOX", "RTMDet-Ins", "SOLOv2") else 37
        shapes += [(2, height, width), (1, height + more, width - 32), (3, width, height)]
    for backend in ("onnxruntime", "openvino"):
        # with this seed, no two of CornerNet's random corners have nearly the hundredth score
        torch.manual_seed(1)
        session, total = Session(path, backend), Agreement(0, 0)
        for batch, *shape in shapes:
            total += agreement_of(detector, torch.randn(batch, 3, *shape), run=session)
        if several:
            total += agreement_of(detector, *padded(family), run=session)
        assert total.number >= 50 and total.holds, (backend, total)


@pytest.mark.slow  # `make test` verifies the file of test_tools.py, also on an empty picture
def test_the_number_of_objects(tmp_path):
    """Mask heads run on no objects, some, and all rows, and on a batch with an image without objects."""
    detector = build("Mask R-CNN", score_thr=0.2)
    noise = torch.randn(1, 3, *size("Mask R-CNN"))

    def count(batch):
        return (outputs_of(detector, batch)["labels"] >= 0).sum(1).tolist()

    objects = cache(lambda step: count(noise * (step / 2**17))[0])  # contrast, in steps

    def least(number):  # contrast that yields so many objects
        return bisect(range(2**14), number - 1, key=objects)

    counts = [[0], [5], [20], [100], [100, 0]]
    scales = {0: 0.0, 100: 1.0} | {n: (least(n) + least(n + 1)) / 2 / 2**17 for n in (5, 20)}
    batches = [torch.cat([noise * scales[number] for number in numbers]) for numbers in counts]
    assert [count(batch) for batch in batches] == counts
    path = tmp_path / "model.onnx"
    export(detector, path, noise, dynamic=True)
    for backend, threads in itertools.product(("onnxruntime", "openvino"), (1, 2)):
        session = Session(path, backend, threads=threads)
        for batch, expected in zip(batches, counts, strict=True):
            assert (session(batch.numpy())["labels"] >= 0).sum(1).tolist() == expected
            agreement = agreement_of(detector, batch, run=session)
            assert agreement.number == sum(expected) and agreement.matched >= 0.99 * agreement.number


@pytest.mark.slow
def test_equal_files(tmp_path):
    """The order of nodes no longer depends on the seed of Python's hashes."""
    code = """import sys, dcnzoo.models; from tests.export.test_detectors import build, export, torch
export(build("Mask R-CNN", True), sys.argv[1], torch.zeros(1, 3, 160, 192))"""
    for seed in "12":
        run_code(code, tmp_path / f"{seed}.onnx", PYTHONHASHSEED=seed)
    assert (tmp_path / "1.onnx").read_bytes() == (tmp_path / "2.onnx").read_bytes()


def test_graphs_for_one_size(tmp_path):
    balanced = build("RetinaNet")
    balanced.neck = nn.Sequential(balanced.neck, BFP(WIDTH, 5))
    for raw_outputs in (False, True):  # the file of raw outputs was dynamic, and failed at most sizes
        options = ExportOptions(tmp_path / "m.onnx", raw_outputs=raw_outputs)
        plan = make_plan(loaded(balanced, dict(type="PackDetInputs")), options)
        assert plan.shape == (640, 640)
        assert [finding.text for finding in plan.findings] == ["the size of the input is fixed, 640 × 640"]


def test_an_example_with_maps_of_one_pixel(tmp_path):
    """Tracing treats an axis of size 1 as constant."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3, 8, 1), nn.GroupNorm(2, 4)).eval()
    axes = ({0: DYNAMIC, 2: DYNAMIC, 3: DYNAMIC},)
    with pytest.raises(ValueError, match=r"dynamic_shapes: .* sizes up to 8 .* larger example"):
        export_onnx(model, (torch.zeros(2, 3, 8, 32),), tmp_path / "model.onnx", dynamic_shapes=axes)
    export_onnx(model, (torch.zeros(2, 3, 16, 32),), tmp_path / "model.onnx", dynamic_shapes=axes)


def test_a_size_that_the_code_makes_a_constant(tmp_path):
    """Only the first line of torch's message was kept, which does not say what to do."""
    model = module_of(lambda x: x * int(x.shape[0]))
    with pytest.raises(ValueError, match=r"model: .*use a fixed size, got .* in .*specialized it to be"):
        export_onnx(model, (torch.ones(2, 3),), tmp_path / "m.onnx", dynamic_shapes=({0: "batch"},))


@pytest.mark.parametrize("names", [["a"], ["a", "b", "c"]])
def test_a_wrong_number_of_names(names, tmp_path):
    """It was accepted, so that the file of QueryInst had no masks."""
    model = module_of(lambda x: (x + 1, x * 2))
    with pytest.raises(ValueError, match=r"^output_names: expected 2, "):
        export_onnx(model, (torch.ones(2),), tmp_path / "m.onnx", output_names=names)
    assert not [*tmp_path.iterdir()]


def test_a_limit_of_the_caller(tmp_path):
    """``Dim("batch", max=8)`` was refused, as if a map had a width of 1."""
    model, path = nn.Conv2d(3, 2, 3).eval(), tmp_path / "model.onnx"
    axes = ({0: torch.export.Dim("batch", max=8), 2: DYNAMIC},)
    export_onnx(model, (torch.zeros(2, 3, 8, 9),), path, dynamic_shapes=axes)
    shape = onnx.load(path).graph.input[0].type.tensor_type.shape
    assert shape.dim[0].dim_param == "batch"
    x = torch.randn(5, 3, 11, 9)
    torch.testing.assert_close(run(path, x)[0], model(x).detach())


def test_an_onnxscript_without_the_slow_rule(tmp_path, monkeypatch):
    """Its absence was an ImportError."""
    from onnxscript.rewriter.rules import common

    monkeypatch.delattr(common, "slice_split_rule")
    export_onnx(module_of(lambda x: x + 1), (torch.ones(2),), tmp_path / "model.onnx")
    assert run(tmp_path / "model.onnx", torch.ones(2))[0].tolist() == [2, 2]


def test_boxes_of_mmdetection_1():
    """The coder of MMDetection 1 clips boxes to the centre of the last pixel."""
    coder = TASK_UTILS.build(dict(type="LegacyDeltaXYWHBBoxCoder", target_stds=[0.1, 0.1, 0.2, 0.2]))
    detector = build("Faster R-CNN")
    detector.rpn_head.bbox_coder = detector.roi_head.bbox_head.bbox_coder = coder
    assert_agreement(detector, torch.randn(2, 3, *size("Faster R-CNN")))


def test_a_range_up_to_a_float(tmp_path):
    """GRoIE's attention has such a range. onnxruntime refused the file, whose ``Range`` had two types."""
    scale = module_of(lambda x: x * torch.arange(0, x.shape[1] / 2).repeat(2))
    x = torch.randn(3, 8)
    export_onnx(scale, (x,), tmp_path / "model.onnx")
    np.testing.assert_allclose(run(tmp_path / "model.onnx", x)[0], scale(x).numpy())


def test_the_predicting_part_of_semi_supervised_detectors():
    parts = dict(teacher=build("RetinaNet"), student=build("FCOS"))
    for name in parts:
        semi = SemiBaseDetector.__new__(SemiBaseDetector)
        nn.Module.__init__(semi)
        semi.semi_test_cfg = dict(predict_on=name)
        semi.teacher, semi.student = parts.values()
        assert predicting_part(semi) is parts[name]
    assert predicting_part(parts[name]) is parts[name]


@pytest.mark.slow
def test_raw_outputs_are_compared(tmp_path):
    detector, path = build("YOLOX"), tmp_path / "model.onnx"
    loaded(detector, dict(type="PackDetInputs")).export(
        path, shape=size("YOLOX"), img_shape=None, raw_outputs=True
    )
    with torch.no_grad():
        detector.bbox_head.multi_level_conv_obj[1].bias += 0.1
    for other in (detector, build("RetinaNet")):
        with pytest.raises(ValueError, match=r"raw_outputs|outputs of the head"):
            verify_raw_outputs(other, Session(path, device="cpu"), [(1, 3, *size("YOLOX"))])


def candidates(count):
    generator = torch.Generator().manual_seed(4)
    corner = torch.rand(3, count, 2, generator=generator) * 40
    boxes = torch.cat([corner, corner + 1 + torch.rand(3, count, 2, generator=generator) * 30], -1)
    scores = torch.rand(3, count, generator=generator)
    scores[0, ::3] = scores[2] = ABSENT
    return boxes, scores, torch.randint(0, 3, (3, count), generator=generator)


def best_boxes(boxes, scores, labels, threshold):
    """Return the indices of an image's boxes that NMS keeps, best first: class by class, in plain loops."""
    best = []
    for label in range(3):
        numbers = ((labels == label) & (scores >= 0)).nonzero()[:, 0]
        best += numbers[reference_boxes.nms(boxes[numbers], scores[numbers], threshold, 0)].tolist()
    return sorted(best, key=lambda i: -scores[i])[:12]


@pytest.mark.parametrize(("number", "threshold"), [(40, 0.0), (40, 0.4), (1, 0.4)])
def test_suppression(number, threshold, tmp_path):
    inputs = boxes, scores, labels = candidates(number)
    model = module_of(lambda boxes, scores, labels: keep_boxes(boxes, scores, labels, threshold, 12))
    path = tmp_path / "nms.onnx"
    export_onnx(model, inputs, path)
    openvino = Session(path, "openvino")
    feed = dict(zip(openvino.inputs, map(np.asarray, inputs), strict=True))
    read = map(torch.from_numpy, openvino._run(feed))  # at a threshold of 0, it kept one of three boxes
    for dets, index in (run(path, *inputs), read, model(*inputs)):
        assert index.min() >= 0 and index.max() < number
        for n in range(3):
            best = best_boxes(boxes[n], scores[n], labels[n], threshold)
            assert number == 1 or (n == 2) == (not best)
            assert index[n, : len(best)].tolist() == best
            assert torch.equal(dets[n, : len(best)], torch.cat([boxes[n], scores[n, :, None]], 1)[best])
            assert (dets[n, len(best) :] == torch.tensor([0, 0, 0, 0, ABSENT])).all()


SOFT = [
    dict(method="gaussian", sigma=0.2, min_score=0.2),
    dict(method="linear", iou_threshold=0.2, min_score=0.1),
    dict(method="naive", iou_threshold=0.4),
]


@pytest.mark.parametrize(
    "methods", [SOFT[:1], pytest.param(SOFT, marks=pytest.mark.slow)], ids=["one", "all"]
)
def test_soft_suppression(methods, tmp_path):
    boxes, scores, labels = candidates(40)
    methods = [ConfigDict(nms=dict(type="soft_nms", **method), max_per_img=30) for method in methods]

    @module_of
    def model(boxes, scores, labels):
        results = (torch.vmap(partial(suppress, cfg, ""))(boxes, scores, labels) for cfg in methods)
        return [part for dets, kept, _ in results for part in (dets, kept)]

    path = tmp_path / "nms.onnx"
    with symbolic_batches():
        export_onnx(model, (boxes, scores, labels), path, dynamic_shapes=({0: DYNAMIC},) * 3)
    openvino = Session(path, "openvino")
    feed = dict(zip(openvino.inputs, (boxes.numpy(), scores.numpy(), labels.numpy()), strict=True))
    results = [
        model(boxes, scores, labels),
        run(path, boxes, scores, labels),
        map(torch.from_numpy, openvino._run(feed)),
    ]
    for outputs in map(list, results):
        for cfg, dets, kept in zip(methods, outputs[::2], outputs[1::2], strict=True):
            assert (dets[2] == torch.tensor([0, 0, 0, 0, ABSENT])).all()
            for n in (0, 1):
                there = scores[n] >= 0
                expected, index = batched_nms(boxes[n, there], scores[n, there], labels[n, there], cfg.nms)
                expected, count = expected[:30], min(len(expected), 30)
                assert (dets[n, :, 4] >= 0).sum() == count > 10
                torch.testing.assert_close(dets[n, :count], expected, rtol=0, atol=2e-4)
                assert (kept[n, :count] == labels[n, there][index[:30]]).all()
                assert (dets[n, count:, 4] == ABSENT).all()


@pytest.mark.parametrize(
    ("axis", "shape", "dynamic"),
    [
        (2, (2, 3, 9, 4), True),
        pytest.param(1, (2, 1, 5), False, marks=pytest.mark.slow),
        pytest.param(-1, (2, 3, 4, 8), True, marks=pytest.mark.slow),
    ],
)
def test_running_max(axis, shape, dynamic, tmp_path):
    """The running maximum of corner pooling, for any length."""
    path = tmp_path / "cummax.onnx"
    x = torch.randint(-9, 9, shape).float()  # with equal values
    shapes = ({i: DYNAMIC for i, size in enumerate(shape) if size > 1},)
    model = module_of(lambda x: running_max(x, axis))
    export_onnx(model, (x,), path, dynamic_shapes=shapes if dynamic else None)
    inputs = [x]
    if dynamic:
        inputs += [torch.randn(1, shape[1], *(70 + size for size in shape[2:]))]
    for x in inputs:
        session = Session(path, "openvino")
        (read,) = session._run({next(iter(session.inputs)): x.numpy()})
        for actual in (*run(path, x), running_max(x, axis), torch.from_numpy(read)):
            torch.testing.assert_close(actual, torch.cummax(x, axis).values, rtol=0, atol=0)


def test_roi_align_in_the_graph(tmp_path):
    levels = [torch.randn(2, 3, 24 // s, 32 // s) for s in (1, 2)]
    corner = torch.rand(9, 2) * 64 - 4
    rois = torch.cat([torch.arange(9)[:, None] % 2, corner, corner + 1 + torch.rand(9, 2) * 60], 1)
    rois[2, 3] = rois[2, 1] - 4  # the root of a negative area
    rois[5, 4] = float("nan")
    arguments = [0.25, 0.125], [3, 2], 16.0, 2, "avg", True
    model = module_of(lambda a, b, rois: roi_align_pyramid([a, b], rois, *arguments))
    path = tmp_path / "roi.onnx"
    export_onnx(model, (*levels, rois), path)
    (pooled,), expected = run(path, *levels, rois), model(*levels, rois)
    np.testing.assert_allclose(pooled, expected, rtol=0, atol=1e-5)
    assert (pooled[[2, 5]] == 0).all() and (pooled != 0).flatten(1).any(1).sum() == 7
    openvino = Session(path, "openvino")
    (pooled,) = openvino._run(dict(zip(openvino.inputs, map(np.asarray, (*levels, rois)), strict=True)))
    np.testing.assert_allclose(pooled, expected, rtol=0, atol=1e-5)


def test_constants_in_a_graph_of_fixed_size(tmp_path):
    """Constant zeros as large as the results once tripled the file of a small Mask R-CNN."""
    openvino = pytest.importorskip("openvino")

    @module_of
    def model(a, b, rois):
        pooled = roi_align_pyramid([a, b], rois, [0.25, 0.125], [14, 14], 16.0, 0, "avg", True)
        return pooled

    levels = [torch.randn(1, 3, 24 // s, 32 // s) for s in (1, 2)]
    rois = torch.tensor([[0.0, 4, 6, 40, 30]]).repeat(50, 1)
    export_onnx(model, (*levels, rois), tmp_path / "model.onnx")
    save_ir(tmp_path / "model.onnx", tmp_path / "model.xml")
    stored = [op.get_byte_size() for op in openvino.Core().read_model(tmp_path / "model.xml").get_ops()
              if op.get_type_name() == "Constant"]  # fmt: skip
    assert max(stored) <= 3 * 14 * 14 * 4  # one RoI


def test_results_without_the_border_of_corner_nets_pipeline():
    """The pipeline pads on all sides: boxes in the padding are dropped, others shifted and clipped."""
    dets = [[20, 30, 40, 50, 0.9], [5, 12, 30, 40, 0.8], [0, 0, 9, 60, 0.7], [90, 80, 140, 120, 0.6]]
    outputs = dict(dets=np.array([*dets, [0] * 5], np.float32), labels=np.array([3, 1, 0, 2, -1]))
    found = without_border(outputs, np.array([15, 112, 10, 117]))
    assert found.labels.tolist() == [3, 1, 2]
    assert found.boxes.tolist() == [[10, 15, 30, 35], [0, 0, 20, 25], [80, 65, 130, 105]]


def test_masks_of_boxes_are_pasted_into_the_picture_as_by_mmdetection():
    """Pasting them into the input and resizing the result changed the mask AP by 0.0017."""
    size, picture_size = (33, 41), (132, 205)
    masks = F.interpolate(torch.rand(5, 1, 7, 7), (28, 28), mode="bicubic").clamp(0, 1)
    boxes = [[3.2, 4.1, 30.7, 22.9], [-5, -3, 12, 60], [10, 10, 10.5, 40], [50, 1, 60, 9], [20, 30, 9, 12]]
    outputs = {
        "dets": np.array([[*box, 0.5] for box in boxes], np.float32),
        "labels": np.array([1, 0, 1, -1, 2]),
        "box_masks": masks[:, 0].numpy(),
    }
    result = rescale_detections(outputs, size, picture_size, {MASK_THRESHOLD: "0.4"})
    rows = [0, 1, 2, 4]
    rescaled = torch.tensor(boxes)[rows] * torch.tensor([5.0, 4, 5, 4])
    expected, _ = _do_paste_mask(masks[rows], rescaled, *picture_size, skip_empty=False)
    expected = (expected >= 0.4).numpy()
    assert expected.any((1, 2)).all() and not expected.all((1, 2)).any()
    assert (result.masks != expected).sum() <= 2
    outside = {**outputs, "dets": outputs["dets"] + np.float32([100, 0, 100, 0, 0])}
    assert not rescale_detections(outside, size, picture_size, {}).masks.any()


def test_raw_outputs_of_two_stages():
    with pytest.raises(ValueError, match=r"raw_outputs: .*FasterRCNN"):
        RawHead(build("Faster R-CNN"))


def test_all_true(tmp_path):
    """RT-DETRv2, D-FINE and DEIMv2 of transformers have ``torch.equal`` or ``all`` in their traces."""
    model = module_of(lambda x: torch.ops.aten._is_all_true(x > 0))
    export_onnx(model, (torch.ones(2, 3),), tmp_path / "model.onnx")
    for x in (torch.ones(2, 3), torch.eye(2, 3)):
        assert run(tmp_path / "model.onnx", x)[0] == (x > 0).all()


def test_files_have_no_default_reduction(tmp_path):
    """TensorRT's parsers 10.1 to 10.8 refuse the attribute."""
    model = module_of(lambda x, index: x.index_put((index,), x[0]))
    args = torch.ones(4, 3), torch.tensor([2])
    export_onnx(model, args, tmp_path / "model.onnx")
    nodes = [node for node in onnx.load(tmp_path / "model.onnx").graph.node if node.op_type == "ScatterND"]
    assert nodes and not any(attribute.name == "reduction" for node in nodes for attribute in node.attribute)
    torch.testing.assert_close(run(tmp_path / "model.onnx", *args)[0], model(*args))


def test_what_the_exporter_does_not_know_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"aten\.cummin"):
        export_onnx(module_of(lambda x: x.cummin(1).values), (torch.randn(2, 3),), tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())
