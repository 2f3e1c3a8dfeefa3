"""Every kind of layer, at every legal opset, run by onnxruntime."""

import re

import onnxruntime
import pytest
import torch
from torch import nn

from dcnzoo.export import export_onnx, opsets, translation_table
from dcnzoo.export.onnx import first_cause
from dcnzoo.layers import (
    MultiScaleDeformableAttention,
    PackedDeformConv1d,
    PackedDeformConv2d,
    PackedDeformConv3d,
    PackedDeformConvTranspose2d,
)
from tests.helpers.processes import ROOT

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


@pytest.mark.parametrize(
    "opset",
    [pytest.param(o, marks=[] if o == opsets.DEFAULT else pytest.mark.slow) for o in opsets.DYNAMO],
)
def test_layers(opset, tmp_path):
    model, path = Layers().eval(), str(tmp_path / "layers.onnx")
    with torch.no_grad():
        expected = model(*INPUTS)
    export_onnx(model, INPUTS, path, opset_version=opset, input_names=["x", "query", "points"])
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    feed = dict(
        zip((node.name for node in session.get_inputs()), map(torch.Tensor.numpy, INPUTS), strict=False)
    )
    for actual, reference in zip(session.run(None, feed), expected, strict=True):
        torch.testing.assert_close(torch.from_numpy(actual), reference, atol=1e-5, rtol=1e-5)
    operators = {node.op_type for node in onnx.load(path).graph.node}
    assert ("DeformConv" in operators) == (opset >= 19)


@pytest.mark.parametrize(
    "opset",
    [None, *(pytest.param(o, marks=[] if o in (18, 22) else pytest.mark.slow) for o in opsets.DYNAMO)],
)
def test_the_sentence_of_the_page(opset, tmp_path):
    """The argument that docs/deploy.md prints fits torch's default opset and any other."""
    page = (ROOT / "docs/deploy.md").read_text()
    argument = re.search(r"torch\.onnx\.export\(.*(custom_translation_table=.*)\)\n", page)[1]
    options = eval(f"dict({argument})", {"translation_table": translation_table})
    if opset:
        options["opset_version"] = opset
    model, path = Layers(attends=False, transposes=False).separable.eval(), tmp_path / "layer.onnx"
    torch.onnx.export(model, INPUTS[:1], path, verbose=False, **options)
    written = onnx.load(path)
    version = written.opset_import[0].version
    assert version == (opset or version)
    assert ("DeformConv" in {node.op_type for node in written.graph.node}) == (version >= 19)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {session.get_inputs()[0].name: INPUTS[0].numpy()})
    torch.testing.assert_close(torch.from_numpy(output), model(INPUTS[0]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("opset", [17, 24])
def test_one_opset_beyond(opset):
    with pytest.raises(ValueError, match=rf"opset_version: expected 18 to 23 .* got {opset}"):
        translation_table(opset)


def test_a_table_of_another_opset(tmp_path):
    """DeformConv of opset 19 in a file of opset 18 would be invalid."""
    table, path = translation_table(19), tmp_path / "x.onnx"
    layer = PackedDeformConv2d(4, 6, 3).eval()
    with pytest.raises(Exception) as caught:
        torch.onnx.export(layer, INPUTS[:1], path, opset_version=18, custom_translation_table=table)
    assert "opset_version: expected 18" in str(first_cause(caught.value))
