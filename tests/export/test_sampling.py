"""DCNv3, DCNv4 and multi-scale attention in ONNX on onnxruntime, compared with the oracle in float64."""

import pytest
import torch
from torch import nn

import dcnzoo.ops
from dcnzoo.layers import DCNv3
from tests.helpers.graphs import assert_close, export, export_by_torchscript, run
from tests.helpers.modules import module_of
from tests.helpers.operators import random_boxes
from tests.op_cases import dcnv3, dcnv4, deform_roi_pool, ms_deform_attn

onnx = pytest.importorskip("onnx")

OPERATORS = {cases.NAME: cases for cases in (dcnv3, dcnv4, ms_deform_attn)}
SAMPLES = [  # no runtime accepts an empty tensor
    (name, sample)
    for name, cases in OPERATORS.items()
    for sample in cases.samples()
    if all(tensor.numel() for tensor in sample.tensors)
]
CHOSEN = ("asymmetric", "without center", "far outside", "two levels", "gaps between levels")


def call(name, sample):
    """A call of an operator as a model. The sizes of levels are constants of the graph."""
    return module_of(lambda *tensors: OPERATORS[name].call(type(sample)("", tensors, sample.kwargs)))


@pytest.mark.parametrize("opset", [18, pytest.param(21, marks=pytest.mark.slow)])
def test_dynamo_exporter(opset, tmp_path):
    singles = [(name, sample.to(torch.float32)) for name, sample in SAMPLES if sample.name in CHOSEN]
    assert len(singles) == 9

    @module_of
    def model(*args):
        args = iter(args)
        return [call(name, s)(*(next(args) for _ in s.tensors)) for name, s in singles]

    path = tmp_path / "model.onnx"
    args = tuple(tensor for _, s in singles for tensor in s.tensors)
    export(model, args, path, opset)
    file = onnx.load(path)
    onnx.checker.check_model(file, full_check=True)
    assert {node.domain for node in file.graph.node} <= {"", "ai.onnx"}
    for (name, sample), actual in zip(singles, run(path, *args), strict=True):
        assert_close(actual, OPERATORS[name].reference(sample.to(torch.float64)))


@pytest.mark.parametrize("name", [*OPERATORS, "roi_align", "deform_roi_pool", "nms"])
def test_torchscript_exporter(name, tmp_path):
    """Its arguments are values of a graph: numbers, switches, lists and tensors, by the operator's schema."""
    if name in OPERATORS:
        sample = next(s for n, s in SAMPLES if n == name and s.name in CHOSEN).to(torch.float32)
        model, tensors = call(name, sample), sample.tensors
    elif name == "nms":
        model, tensors = module_of(lambda *tensors: dcnzoo.ops.nms(*tensors, 0.3, offset=1)), random_boxes(20)
    else:
        tensors = (
            deform_roi_pool.make("example", 5).to(torch.float32).tensors[: 2 if name == "roi_align" else 3]
        )
        model = module_of(lambda *tensors: getattr(dcnzoo.ops, name)(*tensors, (3, 2), 0.5, 2))
    path = tmp_path / "model.onnx"
    export_by_torchscript(model, tensors, path, 16)
    (actual,), expected = run(path, *tensors), model(*tensors)
    torch.testing.assert_close(actual, expected, atol=1e-5 * max(1.0, expected.abs().max()), rtol=0)


@pytest.mark.parametrize("name", OPERATORS)
def test_double_and_points_that_are_no_numbers(name, tmp_path):
    sample = next(sample for n, sample in SAMPLES if n == name)
    sample.tensors[1].view(-1)[:6] = torch.tensor([float("nan"), 0, float("inf"), -float("inf"), 3e38, 0])
    path = str(tmp_path / "model.onnx")
    export(call(name, sample), sample.tensors, path)
    expected = OPERATORS[name].call(sample)
    if name != "dcnv4":  # offsets and mask are one tensor, so that the mask is not finite either
        assert expected.isfinite().all()
        assert_close(run(path, *sample.tensors)[0], expected, torch.float64)


def test_layer_at_other_batches_and_sizes(tmp_path):
    model = DCNv3(8, kernel_size=3, group=2).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    example, path = torch.randn(2, 7, 10, 8), str(tmp_path / "model.onnx")
    export(model, (example,), path, 18, dynamic=[(0, 1, 2)])
    for shape in ((2, 7, 10, 8), (1, 12, 5, 8), (3, 4, 4, 8)):
        x = torch.randn(shape)
        with torch.no_grad():
            assert_close(run(path, x)[0], model(x))


def test_attention_over_levels_of_other_sizes(tmp_path):
    """Batch, queries, pixels and level sizes are dynamic; the graph includes FlashDeformAttn's softmax."""
    model = module_of(dcnzoo.ops.flash_deform_attn)

    def arguments(batch, queries, sizes):
        areas = [height * width for height, width in sizes]
        starts = torch.tensor([0, *areas[:-1]]).cumsum(0)
        value, fields = torch.randn(batch, sum(areas), 3, 5), torch.randn(batch, queries, 3, 2 * 4 * 3)
        return value, torch.tensor(sizes), starts, fields

    path, example = str(tmp_path / "model.onnx"), arguments(2, 7, [(6, 9), (3, 5)])
    export(model, example, path, 18, dynamic=[(0, 1), (), (), (0, 1)])
    for args in (example, arguments(1, 4, [(5, 4), (8, 3)]), arguments(3, 11, [(2, 2), (1, 7)])):
        assert_close(run(path, *args)[0], model(*args))
