"""Deformable convolution in ONNX, run by onnxruntime, compared with the oracle in float64."""

import pytest
import torch
from torch import nn

import dcnzoo.ops
from dcnzoo.export import (
    export_onnx,
    translation_table,
)
from dcnzoo.layers import PackedDeformConv2d
from dcnzoo.utils.errors import UserError
from tests.op_cases import deform_conv as cases

from .graphs import assert_close, export, run

onnx = pytest.importorskip("onnx")

TARGETS = ("native", "gathernd")
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
    export(Call(sample), inputs(sample), path, opset, form=target)
    expected = cases.reference(sample.to(torch.float64)) if expected is None else expected
    assert_close(run(path, *inputs(sample))[0], expected, sample.tensors[0].dtype)


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "model.onnx")


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
    singles += [of_rank(rank) for rank in ((1, 3) if target == "gathernd" else (1,))]
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


def test_the_file_is_whole_or_not_there(tmp_path, monkeypatch):
    sample = cases.make("file", padding=1).to(torch.float32)
    path = tmp_path / "model.onnx"
    path.write_text("what was there")

    def fails(model, file):
        file.write_bytes(b"half a fi")
        raise OSError("disk full")

    monkeypatch.setattr(onnx, "save", fails)
    with pytest.raises(UserError, match="disk full"):
        export_onnx(Call(sample), inputs(sample), path)
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]
    assert path.read_text() == "what was there"


class Mirrored(nn.Module):
    """As mmagic's BasicVSR++."""

    def check_if_mirror_extended(self, frames):
        first, second = frames.chunk(2)
        return bool(torch.norm(first - second.flip(0)) == 0)

    def forward(self, frames):
        return frames if self.check_if_mirror_extended(frames) else frames + 1


def test_code_that_branches_on_values_is_named(path):
    with pytest.raises(ValueError, match=r"check_if_mirror_extended \(.*test_deform_conv\.py:\d+\)") as error:
        export_onnx(nn.Sequential(Mirrored()), (torch.randn(2, 3, 4, 4),), path)
    assert "\n" not in str(error.value)
