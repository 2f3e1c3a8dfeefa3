"""Every kind of layer, in both exporters of torch, at every legal opset, run by onnxruntime."""

import onnxruntime
import pytest
import torch
from torch import nn

from dcnzoo.export import opsets, register_onnx_ops, registration, translation_table
from dcnzoo.layers import (
    MultiScaleDeformableAttention,
    PackedDeformConv1d,
    PackedDeformConv2d,
    PackedDeformConv3d,
    PackedDeformConvTranspose2d,
)
from dcnzoo.ops import roi_align, roi_align_rotated

onnx = pytest.importorskip("onnx")


class Layers(nn.Module):
    """One layer of each kind."""

    def __init__(self, attends=True, transposes=True):
        super().__init__()
        self.attends, self.transposes = attends, transposes
        torch.manual_seed(0)
        self.separable = PackedDeformConv2d(4, 6, 3, padding=1, modulated=True, prediction="separable")
        self.line, self.volume = PackedDeformConv1d(4, 6, 3), PackedDeformConv3d(4, 6, 3)
        self.transposed = PackedDeformConvTranspose2d(
            4, 6, (3, 2), stride=2, padding=1, output_padding=1, groups=2, modulated=True, offset_groups=3
        )
        self.attention = MultiScaleDeformableAttention(16, num_heads=2, num_levels=1, num_points=4)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.2)

    def forward(self, x, query, points):  # [1, 4, 8, 10], [1, 5, 16], [1, 5, 1, 2]
        tokens = torch.cat([x, x, x, x], 1).flatten(2).transpose(1, 2)
        shapes, starts = torch.tensor([[8, 10]]), torch.tensor([0])
        arguments = dict(spatial_shapes=shapes, level_start_index=starts)
        read = query.sum() + points.sum()
        if self.attends:
            read = self.attention(query, value=tokens, reference_points=points, **arguments)
        volume = self.volume(x[:, :, None].expand(-1, -1, 4, -1, -1))
        larger = self.transposed(x) if self.transposes else x.clone()
        return self.separable(x), self.line(x[:, :, 0]), volume, larger, read


INPUTS = torch.randn(1, 4, 8, 10), torch.randn(1, 5, 16), torch.rand(1, 5, 1, 2)


ALL = [(False, opset) for opset in opsets.TORCHSCRIPT] + [(True, opset) for opset in (None, *opsets.DYNAMO)]
QUICK = {(False, opset) for opset in (12, 16, 20)} | {(True, None)}  # where something begins or ends


@pytest.mark.parametrize(
    ("dynamo", "opset"),
    [pytest.param(*case, marks=[] if case in QUICK else pytest.mark.slow) for case in ALL],
)
def test_layers(dynamo, opset, tmp_path):
    register_onnx_ops()
    # torch's older exporter has no unflatten at opset 12
    transposes = opset is None or opset >= opsets.FIRST_OF_OPERATOR["deform_conv_transpose"]
    model, path = Layers(attends=opset != 12, transposes=transposes).eval(), str(tmp_path / "layers.onnx")
    values = dict(zip(("x", "query", "points"), INPUTS, strict=True))
    given = {} if opset is None else {"opset_version": opset}
    with torch.no_grad():
        expected = model(*INPUTS)
        torch.onnx.export(model, INPUTS, path, dynamo=dynamo, input_names=list(values), **given)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    feed = dict(
        zip((node.name for node in session.get_inputs()), map(torch.Tensor.numpy, INPUTS), strict=False)
    )
    for actual, reference in zip(session.run(None, feed), expected, strict=True):
        torch.testing.assert_close(torch.from_numpy(actual), reference, atol=1e-5, rtol=1e-5)
    (written,) = (each.version for each in onnx.load(path).opset_import if each.domain == "")
    assert written == (opset or registration._default_opset())
    operators = {node.op_type for node in onnx.load(path).graph.node}
    assert ("DeformConv" in operators) == (written >= opsets.FIRST["native"])


@pytest.mark.parametrize("opset", [17, pytest.param(24, marks=pytest.mark.slow)])
def test_one_opset_beyond(opset, tmp_path):
    register_onnx_ops()
    with pytest.raises(ValueError, match=rf"opset_version: expected 18 to 23 .* got {opset}"):
        torch.onnx.export(Layers().eval(), INPUTS, tmp_path / "x.onnx", opset_version=opset)


def test_a_table_of_another_opset(tmp_path):
    """DeformConv of opset 19 in a file of opset 18 would be invalid."""
    register_onnx_ops()
    table, path = translation_table(19), tmp_path / "x.onnx"
    layer = PackedDeformConv2d(4, 6, 3).eval()
    with pytest.raises(ValueError, match=r"opset_version: expected 18, .* got 19"):
        torch.onnx.export(layer, INPUTS[:1], path, opset_version=18, custom_translation_table=table)


class Maximum(nn.Module):
    def forward(self, x):
        return roi_align(x, torch.tensor([[0.0, 1, 1, 5, 6]]), (2, 2), pool_mode="max")


class Rotated(nn.Module):
    def forward(self, x):
        return roi_align_rotated(x, torch.tensor([[0.0, 1, 1, 5, 6, 0.5]]), (2, 2))


@pytest.mark.parametrize("dynamo", [False, True])
@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (Rotated(), "roi_align_rotated to ONNX: not supported"),
        (Maximum(), "pool_mode: expected 'avg', got 'max'"),
    ],
    ids=["rotated", "maximum"],
)
def test_refusals_are_read_at_once(model, reason, dynamo, tmp_path):
    register_onnx_ops()
    with pytest.raises((ValueError, NotImplementedError)) as caught:  # torch's older exporter passes on both
        torch.onnx.export(model, (INPUTS[0],), tmp_path / "x.onnx", dynamo=dynamo, opset_version=19)
    assert reason in str(caught.value) and len(str(caught.value)) < 300
