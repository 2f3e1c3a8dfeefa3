"""Deformable convolution in ONNX, run by onnxruntime, compared with the oracle in float64."""

import inspect

import pytest
import torch
from torch import nn

import dcnzoo.ops
from dcnzoo.export import (
    export_onnx,
    register_deform_conv2d_onnx_op,
    register_onnx_ops,
    translation_table,
)
from dcnzoo.layers import PackedDeformConv2d
from dcnzoo.ops import reference as oracle
from tests.helpers.graphs import assert_close, export, export_by_torchscript, needs_torchvision, run
from tests.helpers.modules import module_of
from tests.op_cases import deform_conv as cases

onnx = pytest.importorskip("onnx")

TARGETS = ("native", "gathernd", "gatherelements")
FEW = ("asymmetric", "asymmetric v1 without bias", "mask alone", "all groups differ")  # one per form
SAMPLES = [s for s in cases.samples() if s.tensors[0].shape[0] > 0]  # no runtime accepts an empty batch


class Call(nn.Module):
    """A call of the operator as a model, with weight and bias as parameters."""

    def __init__(self, sample):
        super().__init__()
        _, weight, offset, mask, bias = sample.tensors
        self.weight = nn.Parameter(weight)
        self.bias = None if bias is None else nn.Parameter(bias)
        self.offset, self.mask = offset is not None, mask is not None
        self.kwargs = sample.kwargs
        self.function = (None, dcnzoo.ops.deform_conv1d, dcnzoo.ops.deform_conv2d, dcnzoo.ops.deform_conv3d)[
            weight.dim() - 2
        ]

    def forward(self, input, *points):
        points = list(points)
        offset = points.pop(0) if self.offset else None
        mask = points.pop(0) if self.mask else None
        return self.function(input, self.weight, offset, mask, self.bias, **self.kwargs)


def inputs(sample):
    input, _, offset, mask, _ = sample.tensors
    return tuple(t for t in (input, offset, mask) if t is not None)


def nodes(path):
    return {node.op_type for node in onnx.load(path).graph.node}


def compare(sample, target, path, opset=19, expected=None):
    export_by_torchscript(Call(sample), inputs(sample), path, opset, form=target)
    expected = cases.reference(sample.to(torch.float64)) if expected is None else expected
    assert_close(run(path, *inputs(sample))[0], expected, sample.tensors[0].dtype)


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "model.onnx")


@pytest.mark.parametrize(
    ("target", "sample"),
    [
        pytest.param(
            t, s, id=f"{t} {s.name}", marks=[] if s.name in FEW or t == "native" else pytest.mark.slow
        )
        for t in TARGETS
        for s in SAMPLES
    ],
)
def test_torchscript_exporter(sample, target, path):
    compare(sample.to(torch.float32), target, path)
    deformed = any(tensor is not None for tensor in sample.tensors[2:4])  # otherwise a plain convolution
    assert ("DeformConv" in nodes(path)) == (target == "native" and deformed)


RANKS = {  # axes
    1: dict(size=(13,), kernel=(3,), stride=2, padding=1, dilation=2),
    3: dict(size=(5, 6, 7), kernel=(3, 1, 2), stride=(1, 2, 1), padding=(1, 0, 1), dilation=(1, 1, 2)),
}


def of_rank(rank):
    return cases.make("rank", offset_groups=3, mask_groups=2, groups=2, **RANKS[rank]).to(torch.float32)


def daily(*targets):
    """Mark the other targets as slow (``make test-all``): the exporter takes seconds."""
    return [t if t in targets else pytest.param(t, marks=pytest.mark.slow) for t in TARGETS]


@pytest.mark.parametrize("target", daily("native"))
def test_dynamo_exporter(target, path):
    singles = [s.to(torch.float32) for s in SAMPLES if s.name in FEW]
    singles += [of_rank(rank) for rank in ((1, 3) if target.startswith("gather") else (1,))]
    assert len(singles) > len(FEW)

    calls = nn.ModuleList(map(Call, singles)).eval()

    def forward(*args):
        args = iter(args)
        return [call(*(next(args) for _ in inputs(s))) for call, s in zip(calls, singles, strict=True)]

    calls.forward = forward
    args = tuple(t for s in singles for t in inputs(s))
    export(calls, args, path, form=target)
    onnx.checker.check_model(onnx.load(path), full_check=True)
    for sample, actual in zip(singles, run(path, *args), strict=True):
        assert_close(actual, cases.reference(sample.to(torch.float64)))
    assert ("DeformConv" in nodes(path)) == (target == "native")


@pytest.mark.parametrize("target", daily("gathernd"))
def test_other_batches_and_sizes(target, path):
    model = PackedDeformConv2d(
        6, 8, (3, 2), stride=(2, 1), padding=(1, 2), groups=2, modulated=True, offset_groups=3, mask_groups=2
    ).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    example = torch.randn(2, 6, 9, 11)
    export(model, (example,), path, dynamic=[(0, 2, 3)], form=target)
    for shape in ((2, 6, 9, 11), (1, 6, 12, 7), (5, 6, 3, 20)):
        x = torch.randn(shape)
        with torch.no_grad():
            assert_close(run(path, x)[0], model(x))


@pytest.mark.parametrize("opset", [12, 16, 19, 20])
@pytest.mark.parametrize("target", TARGETS)
def test_every_opset(target, opset, path):
    sample = cases.make("opset", offset_groups=2, padding=1).to(torch.float32)
    if target == "native" and opset < 19:
        with pytest.raises(Exception, match=rf"opset_version: expected 19 .*{target}.* {opset}"):
            compare(sample, target, path, opset)
    else:
        compare(sample, target, path, opset)


@pytest.mark.parametrize("dtype", ["double", "half", "half with float points"])
@pytest.mark.parametrize("target", TARGETS)
def test_other_types(target, dtype, path):
    sample = cases.make("double", size=(40, 70), spread=1.0, padding=1)
    if dtype != "double":
        points = [t if "float" in dtype else t.half() for t in sample.to(torch.float32).tensors[2:4]]
        sample = sample.to(torch.float16)
        sample = type(sample)("half", (*sample.tensors[:2], *points, *sample.tensors[4:]), sample.kwargs)
    compare(sample, target, path)


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("target", [*TARGETS, "auto"])
def test_one_and_three_axes(rank, target, path):
    sample = of_rank(rank)
    if rank == 3 and target == "native":
        with pytest.raises(Exception, match=rf"axes .*{target}.* 3"):
            compare(sample, target, path)
    else:
        compare(sample, target, path)


@pytest.mark.parametrize("target", TARGETS[1:])
def test_offsets_that_are_no_numbers(target, path):
    """As in the operator, NaN and infinite offsets sample zeros, without a read outside the map."""
    sample = cases.make("nan", padding=1).to(torch.float32)
    for index, value in enumerate((float("nan"), float("inf"), -float("inf"), 3e38, -1e20)):
        sample.tensors[2][:, :, index, 3] = value
    expected = dcnzoo.ops.deform_conv2d(*sample.tensors, **sample.kwargs)
    assert expected.isfinite().all()
    compare(sample, target, path, expected=expected)


@pytest.mark.parametrize("use_gathernd", [True, False])
def test_the_published_packages_function(use_gathernd, path):
    """The function has the name and arguments of deform_conv2d_onnx_exporter's, for dcnzoo's operator."""
    register_deform_conv2d_onnx_op(use_gathernd=use_gathernd, enable_openvino_patch=True)
    sample = cases.make("seed", offset_groups=2, mask_groups=2, padding=1).to(torch.float32)
    torch.onnx.export(Call(sample), inputs(sample), path, dynamo=False, opset_version=12)
    assert ("GatherND" in nodes(path), "GatherElements" in nodes(path)) == (use_gathernd, not use_gathernd)
    assert_close(run(path, *inputs(sample))[0], cases.reference(sample.to(torch.float64)))


@needs_torchvision
@pytest.mark.parametrize("dynamo", [False, True])
@pytest.mark.parametrize("use_mask", [True, False])
def test_torchvisions_operator(dynamo, use_mask, path):
    from torchvision.ops import deform_conv2d

    register_deform_conv2d_onnx_op()
    sample = cases.make("torchvision", channels=4, offset_groups=2, mask_groups=2, padding=1, stride=(2, 1))
    input, weight, offset, mask, bias = sample.to(torch.float32).tensors
    mask = mask if use_mask else None
    model = module_of(lambda input, offset: deform_conv2d(input, offset, weight, bias, (2, 1), 1, 1, mask))
    options = dict(opset_version=19, custom_translation_table=translation_table()) if dynamo else {}
    torch.onnx.export(model, (input, offset), path, dynamo=dynamo, **{"opset_version": 12, **options})
    assert ("DeformConv" in nodes(path)) == dynamo and ("GatherND" in nodes(path)) == (not dynamo)
    tensors = [None if t is None else t.double() for t in (input, weight, offset, mask, bias)]
    expected = oracle.deform_conv(*tensors, stride=(2, 1), padding=(1, 1), dilation=(1, 1), groups=1)
    assert_close(run(path, input, offset)[0], expected)


def test_torchs_exporter_with_the_table(path):
    layer, inputs = PackedDeformConv2d(3, 4, 3, padding=1).eval(), (torch.randn(1, 3, 8, 9),)
    export = torch.onnx.export
    register_onnx_ops()
    assert torch.onnx.export is export, "nothing of torch is replaced"
    with pytest.raises(torch.onnx.errors.OnnxExporterError, match=r"dcnzoo\.deform_conv"):
        torch.onnx.export(layer, inputs, path, dynamo=True)
    torch.onnx.export(
        layer, inputs, path, dynamo=True, opset_version=19, custom_translation_table=translation_table()
    )
    assert "DeformConv" in nodes(path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((19, "scatter"), "deform_conv: .*'scatter'"),
        ((18, "native"), "opset_version: .*19 .*'native'.* 18"),
    ],
)
def test_impossible_requests(arguments, message):
    with pytest.raises(ValueError, match=message):
        translation_table(*arguments)
    with pytest.raises(ValueError, match=r"deform_conv: .*nope"):
        register_onnx_ops("nope")


class Mirrored(nn.Module):
    """As mmagic's BasicVSR++."""

    def check_if_mirror_extended(self, frames):
        first, second = frames.chunk(2)
        return bool(torch.norm(first - second.flip(0)) == 0)

    def forward(self, frames):
        return frames if self.check_if_mirror_extended(frames) else frames + 1


def test_code_that_branches_on_values_is_named(path):
    line = inspect.getsourcelines(Mirrored.check_if_mirror_extended)[1] + 2
    with pytest.raises(ValueError, match=rf" in .*test_deform_conv\.py:{line}: ") as error:
        export_onnx(nn.Sequential(Mirrored()), (torch.randn(2, 3, 4, 4),), path)
    assert "\n" not in str(error.value)
