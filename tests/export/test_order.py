"""Large logits: the detections of graphs are those of float64."""

import copy
import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dcnzoo.detect.session import Session
from dcnzoo.export.fixed_size import ABSENT
from dcnzoo.export.options import ExportOptions
from dcnzoo.openmmlab.export.export import write_detector
from dcnzoo.openmmlab.export.nms import positive_key
from dcnzoo.openmmlab.export.order import OrderByLogits, order_of_files
from dcnzoo.openmmlab.export.predict import Predictor
from dcnzoo.openmmlab.export.symbolic_sizes import data_sample
from dcnzoo.openmmlab.export.verify import compare_all
from dcnzoo.openmmlab.results import to_detections

from .detectors import build, decoded, size

# families whose scores are sigmoids, or products of two
FAMILIES = ("RetinaNet", "FCOS", "YOLOX", "Faster R-CNN", "GFL", "Deformable DETR")
SCORES = re.compile(r"(?<!fc)(_cls|_obj|_centerness|cls_branches)(\.\d+)?$")


@torch.no_grad()
def with_large_logits(family):
    """A detector many of whose logits are above 13, where different logits have one float32 sigmoid."""
    detector = build(family)
    layers = [layer for name, layer in detector.named_modules() if SCORES.search(name)]
    assert layers
    for layer in layers:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.weight *= 2.5
            layer.bias.fill_(14)
    return detector


@torch.no_grad()
def detections(detector, images):
    shape = tuple(images.shape[-2:])
    samples = [data_sample(shape, shape) for _ in images]
    results = detector(images, samples, mode="predict")
    return [to_detections(sample.pred_instances, -1) for sample in results]


def expected_of(detector, images):
    """The detections of float64, which has enough digits."""
    return detections(copy.deepcopy(detector).double(), images.double())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_traced_detector_orders_large_logits_as_float64(family):
    """MMDetection's own float32 predictions differ from those of float64."""
    detector, images = with_large_logits(family), torch.randn(2, 3, *size(family))
    expected = expected_of(detector, images)
    plain = compare_all(detections(detector, images), expected)
    assert plain.number >= 100 and not plain.holds
    with order_of_files():  # as a file is compared with PyTorch, if many scores are equal
        assert compare_all(detections(detector, images), expected).holds
    model = Predictor(detector)
    with torch.no_grad():
        outputs = {name: value.numpy() for name, value in zip(model.output_names, model(images), strict=True)}
    assert compare_all(decoded(outputs, [tuple(images.shape[2:])] * 2, tuple), expected).holds


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_files_order_large_logits_as_float64(family, tmp_path):
    detector, images = with_large_logits(family), torch.randn(2, 3, *size(family))
    expected, path = expected_of(detector, images), tmp_path / "model.onnx"
    write_detector(Predictor(detector), images[:1], ExportOptions(path), dynamic=False, metadata={})
    for backend in ("onnxruntime", "openvino"):
        outputs = Session(path, backend)(images.numpy())
        agreement = compare_all(decoded(outputs, [tuple(images.shape[2:])] * 2, tuple), expected)
        assert agreement.holds, (backend, agreement)


def test_equal_logits_keep_the_order_of_their_indices():
    x = torch.tensor([20.0, 15, 20, 18, 15, 20])
    with OrderByLogits():
        scores = x.sigmoid()
        assert scores.sort(descending=True).indices.tolist() == [0, 2, 5, 3, 1, 4]
        assert scores.topk(4).indices.tolist() == [0, 2, 5, 3]
    assert torch.equal(scores, x.sigmoid())


@pytest.mark.parametrize("factors", [1, 2, 3])
def test_the_key_has_the_order_of_exact_arithmetic(factors):
    logits = torch.stack([torch.linspace(-25, 75, 4001)[torch.randperm(4001)] for _ in range(factors)])
    with OrderByLogits():
        scores = torch.sigmoid(logits[0])
        for row in logits[1:]:
            scores = scores * row.sigmoid()
        ranks = positive_key(torch.where(logits[0] > -20, scores, ABSENT)[None])[0]
    assert (ranks[logits[0] <= -20] == ABSENT).all()
    log = F.logsigmoid(logits.double()).sum(0)
    present = logits[0] > -20
    order = ranks[present].argsort(descending=True, stable=True)
    # neighbours may be exchanged where the scores differ by less than float32 can tell
    low, high = log[present][order][1:], log[present][order][:-1]
    assert (low <= high + 1e-5 * torch.minimum(low.abs(), high.abs())).all()


def test_functions_without_an_order_of_logits_return_plain_values():
    x = torch.tensor([3.0, 1, 2])
    with OrderByLogits():
        scores = x.sigmoid()
        assert torch.equal((1 - scores).sort().indices, torch.tensor([0, 2, 1]))
        assert scores.max() == x.sigmoid().max() and torch.equal(torch.max(scores, scores), scores)
        assert torch.equal((scores * torch.tensor([0.1, 1, 1])).argsort(), torch.tensor([0, 1, 2]))
