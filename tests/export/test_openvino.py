"""OpenVINO: DeformConv of any exporter, and the IR. test_tools.py exports a detector."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dcnzoo.detect.session import Session
from dcnzoo.export import save_ir
from dcnzoo.ops import reference
from tests.helpers.graphs import assert_close
from tests.helpers.processes import run_code

onnx = pytest.importorskip("onnx")
openvino = pytest.importorskip("openvino")


def run(path, *args):
    session = Session(path, "openvino")
    feed = {name: arg.numpy() for name, arg in zip(session.inputs, args, strict=True)}
    return [torch.from_numpy(output) for output in session._run(feed)]


GEOMETRIES = [  # (stride, dilation, pads at both ends, groups, offset groups)
    ((1, 1), (1, 1), (0, 0, 0, 0), 1, 1),
    ((2, 1), (1, 2), (1, 0, 2, 1), 2, 1),
    ((1, 3), (2, 1), (2, 3, 0, 1), 1, 4),
]


def node(weight, bias, geometry, names, path):
    """Write ``DeformConv`` as another exporter might: without default attributes."""
    stride, dilation, pads, groups, offset_groups = geometry
    tensors = {"w": weight} | ({} if bias is None else {"b": bias})
    attributes = {
        "strides": stride, "dilations": dilation, "pads": pads, "group": groups, "offset_group": offset_groups
    }  # fmt: skip
    given = {key: value for key, value in attributes.items() if np.any(np.array(value) != (key != "pads"))}
    make, kind = onnx.helper.make_tensor_value_info, onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("DeformConv", names, ["y"], kernel_shape=weight.shape[2:], **given)],
        "graph",
        [make(name, kind, [None] * 4) for name in names if name not in ("", "w", "b")],
        [make("y", kind, [None] * 4)],
        [onnx.numpy_helper.from_array(value.numpy(), name) for name, value in tensors.items()],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 19)], ir_version=10)
    onnx.helper.set_model_props(model, {"dcnzoo": "kept"})
    onnx.save(model, path)


def samples(seed, geometry, with_bias, with_mask):
    """Random arguments and the result of the reference on the padded map."""
    generator = torch.Generator().manual_seed(seed)
    stride, dilation, (top, left, bottom, right), groups, offset_groups = geometry
    kernel, (height, width) = (3, 2), torch.randint(8, 14, (2,), generator=generator).tolist()
    input = torch.randn(2, 4, height, width, generator=generator)
    weight = torch.randn(6, 4 // groups, *kernel, generator=generator)
    padded = F.pad(input, (left, right, top, bottom))
    out = [
        (size - d * (k - 1) - 1) // s + 1
        for size, k, s, d in zip(padded.shape[2:], kernel, stride, dilation, strict=True)
    ]
    offset = 2 * torch.randn(2, 2 * 6 * offset_groups, *out, generator=generator)
    mask = torch.rand(2, 6 * offset_groups, *out, generator=generator) if with_mask else None
    bias = torch.randn(6, generator=generator) if with_bias else None
    tensors = [t if t is None else t.double() for t in (padded, weight, offset, mask, bias)]
    expected = reference.deform_conv(*tensors, stride, [0, 0], dilation, groups)
    return input, weight, offset, mask, bias, expected


@pytest.mark.parametrize(
    ("with_bias", "with_mask"), [(True, True), (False, True), (True, False), (False, False)]
)
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_deform_conv_of_any_exporter(geometry, with_bias, with_mask, tmp_path):
    for seed in range(6):
        input, weight, offset, mask, bias, expected = samples(seed, geometry, with_bias, with_mask)
        names = ["x", "w", "o", *(["b"] if with_bias else [""] if with_mask else []), *(["m"] * with_mask)]
        node(weight, bias, geometry, names, tmp_path / "model.onnx")
        given = [t for t in (input, offset, mask) if t is not None]
        (actual,) = run(tmp_path / "model.onnx", *given)
        assert_close(actual, expected)


def test_ir_needs_no_dcnzoo(tmp_path):
    input, weight, offset, mask, bias, expected = samples(0, GEOMETRIES[1], True, True)
    node(weight, bias, GEOMETRIES[1], ["x", "w", "o", "b", "m"], tmp_path / "model.onnx")
    save_ir(tmp_path / "model.onnx", tmp_path / "model.xml")
    program = f"""
import sys
sys.modules["dcnzoo"] = None
import numpy, openvino
exact = {{"INFERENCE_PRECISION_HINT": "f32"}}
model = openvino.Core().compile_model({str(tmp_path / "model.xml")!r}, "CPU", exact)
feed = [numpy.load({str(tmp_path)!r} + f"/{{i}}.npy") for i in range(3)]
numpy.save({str(tmp_path / "out.npy")!r}, model(feed)[0])
"""
    for i, value in enumerate((input, offset, mask)):
        np.save(tmp_path / f"{i}.npy", value.numpy())
    run_code(program)
    assert_close(torch.from_numpy(np.load(tmp_path / "out.npy")), expected)
    assert Session(tmp_path / "model.xml", "openvino").metadata["dcnzoo"] == "kept"
