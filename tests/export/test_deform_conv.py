"""Deformable convolution in ONNX, run by onnxruntime, compared with the oracle in float64."""

import contextlib
import inspect

import pytest
import torch
from torch import nn

import dcnzoo.ops
from dcnzoo.compat import patches, torchvision_ops
from dcnzoo.compat.patches import Changes
from dcnzoo.export import (
    export_onnx,
    register_deform_conv2d_onnx_op,
    register_onnx_ops,
    registration,
    translation_table,
)
from dcnzoo.layers import PackedDeformConv2d
from dcnzoo.ops import reference as oracle
from dcnzoo.utils.errors import UserError
from tests.modules import module_of
from tests.op_cases import deform_conv as cases

from .graphs import EXPORTERS, assert_close, export, run

onnx = pytest.importorskip("onnx")

TARGETS = ("native", "gathernd", "gatherelements", "gridsample")
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
    export("torchscript", Call(sample), inputs(sample), path, opset, form=target)
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
    export("dynamo", calls, args, path, form=target)
    onnx.checker.check_model(onnx.load(path), full_check=True)
    for sample, actual in zip(singles, run(path, *args), strict=True):
        assert_close(actual, cases.reference(sample.to(torch.float64)))
    assert ("DeformConv" in nodes(path)) == (target == "native")


@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize("target", daily("gathernd"))
def test_other_batches_and_sizes(exporter, target, path):
    model = PackedDeformConv2d(
        6, 8, (3, 2), stride=(2, 1), padding=(1, 2), groups=2, modulated=True, offset_groups=3, mask_groups=2
    ).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    example = torch.randn(2, 6, 9, 11)
    export(exporter, model, (example,), path, dynamic=[(0, 2, 3)], form=target)
    for shape in ((2, 6, 9, 11), (1, 6, 12, 7), (5, 6, 3, 20)):
        x = torch.randn(shape)
        with torch.no_grad():
            assert_close(run(path, x)[0], model(x))


@pytest.mark.parametrize("target", daily("gathernd", "native"))
def test_normalisation_after_two_layers_by_torchscript(target, path):
    """torch's exporter needs the number of channels, which it infers from the nodes."""
    layers = [PackedDeformConv2d(3, 6, 3, padding=1), PackedDeformConv2d(6, 4, 3, padding=1, modulated=True)]
    model = nn.Sequential(*layers, nn.InstanceNorm2d(4)).eval()
    for layer in layers:
        nn.init.normal_(layer.conv_offset.weight, std=0.3)
    x = torch.randn(2, 3, 7, 9)
    export("torchscript", model, (x,), path, form=target)
    with torch.no_grad():
        assert_close(run(path, x)[0], model(x))


@pytest.mark.parametrize("opset", [12, 16, 19, 20])
@pytest.mark.parametrize("target", TARGETS)
def test_every_opset(target, opset, path):
    sample = cases.make("opset", offset_groups=2, padding=1).to(torch.float32)
    first = {"native": 19, "gridsample": 16}.get(target, 12)
    if opset >= first:
        warns = target == "gridsample" and opset >= 20  # TensorRT's parser reads the mode of opset 20 wrongly
        with pytest.warns(UserWarning, match="TensorRT") if warns else contextlib.nullcontext():
            compare(sample, target, path, opset)
        return
    with pytest.raises(Exception, match=rf"at least {first} .*{target}.* {opset}"):
        compare(sample, target, path, opset)


@pytest.mark.parametrize("dtype", ["double", "half", "half with float points"])
@pytest.mark.parametrize("target", TARGETS[:3])  # onnxruntime's GridSample supports only float32
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
    if rank == 3 and target in ("native", "gridsample"):
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
@pytest.mark.parametrize("use_mask", [True, False])
def test_torchvisions_operator(use_gathernd, use_mask, path, torchvision_op):
    """``register_deform_conv2d_onnx_op`` for torchvision's operator, as in the published package."""
    register_deform_conv2d_onnx_op(use_gathernd=use_gathernd, enable_openvino_patch=True)
    sample = cases.make("torchvision", channels=4, offset_groups=2, mask_groups=2, padding=1, stride=(2, 1))
    input, weight, offset, mask, bias = sample.to(torch.float32).tensors
    if not use_mask:
        mask = torch.zeros(len(input), 0)

    @module_of
    def model(input, offset):
        return torchvision_op(input, weight, offset, mask, bias, 2, 1, 1, 1, 1, 1, 1, 2, use_mask)

    torch.onnx.export(model, (input, offset), path, dynamo=False, opset_version=12)
    assert ("GatherND" in nodes(path)) == use_gathernd
    assert ("GatherElements" in nodes(path)) == (not use_gathernd)
    tensors = [input, weight, offset, mask if use_mask else None, bias]
    tensors = [None if t is None else t.double() for t in tensors]
    expected = oracle.deform_conv(*tensors, stride=(2, 1), padding=(1, 1), dilation=(1, 1), groups=1)
    assert_close(run(path, input, offset)[0], expected)


@pytest.fixture
def torchs_export(monkeypatch):
    """torch's unpatched ``torch.onnx.export``; undoes patches after the test."""
    monkeypatch.setattr(
        torch.onnx, "export", getattr(torch.onnx.export, "_without_dcnzoo", torch.onnx.export)
    )


def test_both_operators_in_torchs_default_exporter(path, torchvision_op, torchs_export):
    """torch itself exports torchvision's as ``DeformConv`` for any opset; runtimes support it from 19 on."""
    register_deform_conv2d_onnx_op()
    register_deform_conv2d_onnx_op(use_gathernd=False)  # the last call takes effect
    sample = cases.make("torchvision, dynamo", channels=4, padding=1, stride=(2, 1))
    input, weight, offset, _, bias = sample.to(torch.float32).tensors

    @module_of
    def model(input, offset):
        theirs = torchvision_op(
            input, weight, offset, offset.new_zeros(1, 0), bias, 2, 1, 1, 1, 1, 1, 1, 1, False
        )
        return theirs, dcnzoo.ops.deform_conv2d(input, weight, offset, None, bias, (2, 1), 1)

    torch.onnx.export(model, (input, offset), path, opset_version=18)
    assert "GatherElements" in nodes(path) and "GatherND" not in nodes(path)
    tensors = [t.double() for t in (input, weight, offset)]
    expected = oracle.deform_conv(*tensors, None, bias.double(), (2, 1), (1, 1), (1, 1), 1)
    for result in run(path, input, offset):
        assert_close(result, expected)


@pytest.fixture(scope="module")
def torchvision_op():
    """torchvision's operator or, where it has none that loads, dcnzoo's stand-in."""
    library = torch.library.Library("torchvision", "FRAGMENT")
    if not hasattr(torch.ops.torchvision, "deform_conv2d"):
        library.define("deform_conv2d(Tensor input, Tensor weight, Tensor offset, Tensor mask, Tensor bias, SymInt stride_h, SymInt stride_w, SymInt pad_h, SymInt pad_w, SymInt dilation_h, SymInt dilation_w, SymInt groups, SymInt offset_groups, bool use_mask) -> Tensor")
        library.impl("deform_conv2d", torchvision_ops.deform_conv2d, "CompositeExplicitAutograd")
        name = "torchvision::deform_conv2d"
        torch.library.register_fake(name, torchvision_ops.deform_conv2d, lib=library)
    yield torch.ops.torchvision.deform_conv2d
    library._destroy()


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


def test_an_exporter_that_another_program_has_wrapped(monkeypatch):
    """Its wrapper may have no parameter ``dynamo``. dcnzoo's keeps the signature of ``torch.onnx.export``."""
    signature, calls = inspect.signature(torch.onnx.export), []
    with monkeypatch.context() as patch:
        patch.setattr(torch.onnx, "export", lambda *args, **kwargs: calls.append(kwargs))
        with Changes() as changes:
            registration._PATCH.change(changes)
            torch.onnx.export(None, opset_version=20)
            torch.onnx.export(None, dynamo=False)
    assert ["custom_translation_table" in kwargs for kwargs in calls] == [True, False]
    with Changes() as changes:
        registration._PATCH.change(changes)
        assert inspect.signature(torch.onnx.export) == signature


def test_a_table_of_the_user_without_the_registration(path):
    layer, inputs = PackedDeformConv2d(3, 4, 3, padding=1).eval(), (torch.randn(1, 3, 8, 9),)
    registered = registration._PATCH in patches._patches
    patches.switch_off(registration._PATCH)
    try:
        with pytest.raises(torch.onnx.errors.OnnxExporterError, match=r"dcnzoo\.deform_conv"):
            torch.onnx.export(layer, inputs, path, dynamo=True)
        torch.onnx.export(
            layer, inputs, path, dynamo=True, opset_version=19, custom_translation_table=translation_table(19)
        )
    finally:
        if registered:
            patches.switch_on(registration._PATCH)
    assert "DeformConv" in nodes(path)


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
