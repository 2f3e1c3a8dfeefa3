"""Float16 and int8: sizes, what stays exact, and results beside those of the float32 file."""

import numpy as np
import pytest
import torch
from torch import nn

from dcnzoo.detect.session import Session
from dcnzoo.export import export_onnx, precision, save_ir
from dcnzoo.export.fixed_size import is_used, keep_boxes
from dcnzoo.export.options import ExportOptions, Int8
from dcnzoo.export.precision import to_float16, to_int8
from dcnzoo.layers import PackedDeformConv2d
from dcnzoo.utils.errors import UserError

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
ReferenceEvaluator = pytest.importorskip("onnx.reference").ReferenceEvaluator

WIDTH, SIZE = 64, (96, 128)


class Model(nn.Module):
    """A one-stage detector with boxes up to 1,000 pixels, which float16 rounds to half a pixel."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Sequential(nn.Conv2d(3, WIDTH, 3, 4, 1), nn.BatchNorm2d(WIDTH), nn.ReLU())
        self.deformable = PackedDeformConv2d(WIDTH, WIDTH, 3, padding=1, modulated=True)
        nn.init.normal_(self.deformable.conv_offset.weight, std=0.05)
        self.neck = nn.Sequential(nn.ReLU(), nn.Conv2d(WIDTH, WIDTH, 3, 4, 1), nn.ReLU())
        self.scores, self.sides = nn.Conv2d(WIDTH, 2, 1), nn.Conv2d(WIDTH, 4, 1)
        nn.init.normal_(self.stem[1].running_mean)
        nn.init.normal_(self.scores.weight)

    def forward(self, images):
        features = self.neck(self.deformable(self.stem(images)))
        scores = self.scores(features).sigmoid().permute(0, 2, 3, 1).flatten(1)
        sides = self.sides(features).exp().permute(0, 2, 3, 1).flatten(1, 2) * 20
        y, x = torch.meshgrid(torch.arange(6.0) * 16, torch.arange(8.0) * 16 + 1000, indexing="ij")
        centre = torch.stack([x, y], -1).reshape(-1, 2)
        boxes = torch.cat([centre - sides[..., :2], centre + sides[..., 2:]], -1)
        boxes = boxes.repeat_interleave(2, 1)
        labels = torch.tensor([0, 1]).repeat(48)[None]
        dets, index = keep_boxes(boxes, scores, labels, 0.6, 20)
        return dets, torch.where(is_used(dets[..., 4]), labels.gather(1, index), -1)


def images(seed):
    return torch.randn(1, 3, *SIZE, generator=torch.Generator().manual_seed(seed)).numpy()


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    path = tmp_path_factory.mktemp("smaller") / "model.onnx"
    names = dict(input_names=["input"], output_names=["dets", "labels"])
    export_onnx(Model().eval(), (torch.from_numpy(images(0)),), path, metadata={"key": "value"}, **names)
    return path


@pytest.fixture
def path(original, tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(original.read_bytes())
    return path


SAMPLES = [{"input": images(seed)} for seed in range(1, 9)]


def compare(session, original, within, share=0.9):
    """Check that most boxes are found again, with a place and a score that differ by at most ``within``."""
    expected, found = Session(original), session
    matched = total = 0
    for seed in range(20, 26):
        (a, a_labels), (b, b_labels) = (s(images(seed)).values() for s in (expected, found))
        there = a_labels[0] >= 0
        for box, label in zip(a[0, there], a_labels[0, there], strict=True):
            near = (np.abs(b[0, :, :4] - box[:4]).max(1) <= within[0]) & (b_labels[0] == label)
            matched += (near & (np.abs(b[0, :, 4] - box[4]) <= within[1])).any()
            total += 1
    assert total > 60 and matched >= share * total, f"{matched} of {total}"


def int8_layers(path):
    """The operators whose weights are int8."""
    graph = onnx.load(path).graph
    weights = {tensor.name for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.INT8}
    opened = {n.output[0] for n in graph.node if n.op_type == "DequantizeLinear" and n.input[0] in weights}
    return [n.op_type for n in graph.node if len(n.input) > 1 and n.input[1] in opened]


def test_float16(path, original):
    to_float16(path)
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert {value.type.tensor_type.elem_type for value in model.graph.input} == {onnx.TensorProto.FLOAT}
    assert [entry.value for entry in model.metadata_props if entry.key == "key"] == ["value"]
    assert path.stat().st_size < 0.6 * original.stat().st_size
    # coordinates in float16 would be off by up to 0.25
    compare(Session(path), original, within=(0.1, 5e-3))


def test_float16_of_a_resized_region(tmp_path):
    """``Resize`` reads its region and its scales as float32."""
    generator = np.random.default_rng(0)
    constants = dict(
        weight=generator.normal(size=(4, 3, 1, 1)),
        region=np.array([0, 0, 0.25, 0.25, 1, 1, 0.75, 0.75]),
        scales=np.array([1, 1, 2, 1.5]),
        last=generator.normal(size=(2, 4, 1, 1)),
    )
    model = onnx.parser.parse_model("""<ir_version: 9, opset_import: ["": 19]>
        resize (float[1, 3, 8, 8] input) => (float[N, C, H, W] output) {
            maps = Conv(input, weight)
            large = Resize(maps, region, scales)
                <mode = "linear", coordinate_transformation_mode = "tf_crop_and_resize">
            output = Conv(large, last)
        }""")
    for name, value in constants.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(value.astype(np.float32), name))
    onnx.save(model, tmp_path / "model.onnx")
    image = {"input": generator.normal(size=(1, 3, 8, 8)).astype(np.float32)}
    results = []
    for convert in (lambda path: None, to_float16):
        convert(tmp_path / "model.onnx")
        session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
        results += session.run(None, image)
    saved = onnx.load(tmp_path / "model.onnx").graph
    kinds = {tensor.name: tensor.data_type for tensor in saved.initializer}
    assert kinds["scales"] == kinds["region"] == onnx.TensorProto.FLOAT and "weight" not in kinds
    np.testing.assert_allclose(results[1], results[0], atol=2e-2)
    assert np.abs(results[1] - results[0]).max() > 0


def stripes(count):  # [1, 1, 2, count]: the sample between two columns shows the place
    return np.tile(np.arange(count) % 2, (1, 1, 2, 1)).astype(np.float32)


# operator, its exact input → nodes that compute y from x, the value of x, and constants. Rounded to float16,
# each value gives another result.
EXACT_CASES = {
    ("Cos", 0): ("y = Cos(x)", [[1000.3]], {}),
    ("Sin", 0): ("y = Sin(x)", [[1000.3]], {}),
    ("Floor", 0): ("y = Floor(x)", [[3.9999]], {}),
    ("Sqrt", 0): ("y = Sqrt(x)", [[1e6]], {}),
    ("TopK", 0): ("value, i = TopK(x, one)  y = Cast<to = 1>(i)", [[1000.1, 1000.2, 1000.4]], {}),
    ("GridSample", 1): ("y = GridSample(stripes, x)", [[[[0.30013, 0]]]], {"stripes": stripes(4001)}),
    ("RoiAlign", 1): (
        "y = RoiAlign<sampling_ratio = 1>(stripes, x, zero)",
        [[2000.8, 0, 2001.8, 1]],
        {"stripes": stripes(4001)},
    ),
    ("NonMaxSuppression", 0): (
        "i = NonMaxSuppression(x, scores, ten, half)  n = Size(i)  f = Cast<to = 1>(n)  y = Reshape(f, one)",
        [[[0, 2000.1, 1, 2000.3], [0, 2000.3, 1, 2000.45]]],
        {"scores": np.array([[[0.5, 0.6]]], np.float32)},
    ),
    ("NonMaxSuppression", 1): (
        "i = NonMaxSuppression(boxes, x, one, half)  f = Cast<to = 1>(i)  y = ReduceSum(f)",
        [[[1000.1, 1000.2]]],
        {"boxes": np.array([[[0, 0, 1, 1], [0, 5, 1, 6]]], np.float32)},
    ),
    ("DeformConv", 2): (
        "y = DeformConv<strides = [2, 2001]>(stripes, weight, x)",
        [[[[0]], [[1000.3]]]],
        {"stripes": stripes(2001)},
    ),
    ("DeformConv", 4): (
        "y = DeformConv<strides = [2, 2]>(stripes, weight, offset, , x)",
        [[[[7e4]]]],
        {
            "stripes": stripes(2),
            "offset": np.float32([[[[0]], [[1]]]]),
            "weight": np.full((1, 1, 1, 1), 1e-3, np.float32),
        },
    ),
}
FLOAT32_CASES = {
    "CumSum": ("y = CumSum(x, axis)", [[2048.0, 1, -2048]], {}),
    "Range": ("r = Range(low, high, step)  y = Mul(r, x)", [[1.0]], {
        "low": np.float32(2046), "high": np.float32(2052), "step": np.float32(1),
    }),
    "ConstantOfShape": ("c = ConstantOfShape(one)  y = Add(c, x)", [[1.5]], {}),
    "Constant": ("c = Constant<value_float = 70000.0>()  y = Div(x, c)", [[3.5]], {}),
    "Scan": (
        """s, y = Scan<num_scan_inputs = 1, body = step (float s, float v) => (float t, float u) {
            t = Add(s, v)
            u = Sub(t, start)
        }>(start, x)""",
        [1.0, 1],
        {"start": np.float32(2048)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", [*EXACT_CASES, *FLOAT32_CASES], ids=str)
def test_what_stays_in_float32(case, tmp_path):
    nodes, value, constants = {**EXACT_CASES, **FLOAT32_CASES}[case]
    value, path = np.array(value, np.float32), tmp_path / "model.onnx"
    shape = ", ".join(map(str, value.shape))
    model = onnx.parser.parse_model(f"""<ir_version: 9, opset_import: ["": 19]>
        case (float[{shape}] input) => (output) {{
            x = Mul(input, unit)
            {nodes}
            flat = Reshape(y, row)
            output = MatMul(flat, layer)
        }}""")
    constants = {
        "one": [1], "zero": [0], "ten": [10], "row": [-1, 1], "axis": 1,
        "unit": np.float32(1), "half": np.float32([0.5]),
        "weight": np.ones((1, 1, 1, 1), np.float32), "layer": np.ones((1, 1), np.float32),
        **constants,
    }  # fmt: skip
    for name, constant in constants.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(constant), name))
    onnx.save(model, path)
    results = []
    for convert in (lambda path: None, to_float16):
        convert(path)
        # not onnxruntime, which omits the rounding of nodes that it computes in float32
        results += ReferenceEvaluator(str(path)).run(None, {"input": value})
    np.testing.assert_allclose(results[1], results[0], rtol=2e-3, atol=2e-3)


def test_each_entry_of_the_tables_has_a_case():
    exact = {(name, i) for name, inputs in precision._EXACT.items() for i in inputs}
    assert exact == set(EXACT_CASES)
    assert precision._FLOAT32 - {name for name, _ in exact} <= {*FLOAT32_CASES, "If", "Loop"}  # as Scan


def test_int8(path, original):
    to_int8(path, SAMPLES)
    model = onnx.load(path)
    assert [entry.value for entry in model.metadata_props if entry.key == "key"] == ["value"]
    # without the layer that predicts offsets and the two that predict boxes; no batch normalisation is left
    assert int8_layers(path) == ["Conv", "Conv"]
    assert "DeformConv" in {node.op_type for node in model.graph.node}
    assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}
    compare(Session(path), original, within=(2.0, 0.05))

    openvino = pytest.importorskip("openvino")
    ir = path.with_suffix(".xml")
    save_ir(path, ir)
    session = Session(ir, "openvino")
    assert session.metadata["key"] == "value"
    kinds = [str(op.get_element_type()) for op in openvino.Core().read_model(ir).get_ops()
             if op.get_type_name() == "Constant" and len(op.get_output_shape(0)) == 4]  # fmt: skip
    assert sum("int8" in kind for kind in kinds) == 2
    compare(session, original, within=(2.0, 0.05))


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_int8_kernels_do_not_saturate(tmp_path, runtime):
    """CPUs without VNNI add two products in 16 bits: weights of 8 bits cost 16 % of this output."""
    pytest.importorskip(runtime)
    layers = (nn.Conv2d(3, 16, 1), nn.ReLU(), nn.Conv2d(16, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 1))
    model, path = nn.Sequential(*layers), tmp_path / "model.onnx"
    for parameter in model.parameters():
        nn.init.uniform_(parameter, 0.5, 1)
    x = torch.rand(1, 3, 9, 9) / 2 + 0.5
    export_onnx(model, (x,), path, input_names=["input"], output_names=["output"])
    to_int8(path, [{"input": x.numpy()}])
    tensors = (t for t in onnx.load(path).graph.initializer if t.data_type == onnx.TensorProto.INT8)
    assert 60 < max(np.abs(onnx.numpy_helper.to_array(tensor)).max() for tensor in tensors) <= 64
    with torch.no_grad():
        np.testing.assert_allclose(Session(path, runtime)(x.numpy())["output"], model(x), rtol=0.02)


def test_quantisers_of_others_leave_out_coordinates(tmp_path):
    """Nodes of coordinates have a prefix for exclusion: int8 coordinates cost ten times the layers' error."""
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.samples = iter(SAMPLES[:2])

        def get_next(self):
            return next(self.samples, None)

    layers = Model()
    model = nn.Sequential(layers.stem, layers.deformable, layers.neck).eval()
    path, x = tmp_path / "model.onnx", torch.from_numpy(images(0))
    export_onnx(model, (x,), path, deform_conv="gathernd", input_names=["input"])
    nodes = onnx.load(path).graph.node
    coordinates = [node.name for node in nodes if node.name.startswith("dcnzoo_")]
    assert {"Floor", "GatherND", "MatMul"} <= {node.op_type for node in nodes if node.name in coordinates}
    assert not any("Conv" in name for name in coordinates) and "stack_trace" not in str(nodes)
    with torch.no_grad():
        expected, errors = model(x), []
    for excluded in ([], coordinates):
        quantize_static(path, tmp_path / "int8.onnx", Reader(), nodes_to_exclude=excluded)
        session = onnxruntime.InferenceSession(tmp_path / "int8.onnx", providers=["CPUExecutionProvider"])
        (actual,) = session.run(None, {"input": x.numpy()})
        errors.append(np.abs(actual - expected.numpy()).mean() / expected.abs().mean().item())
    assert errors[1] < errors[0] / 3 and errors[1] < 0.05, errors


def test_biases_are_constants_in_openvino(tmp_path):
    """Otherwise, int8 convolutions of some detectors of dynamic size are wrong: SSD lost half of its AP."""
    openvino = pytest.importorskip("openvino")
    model, size = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1)), torch.export.Dim.DYNAMIC
    path = tmp_path / "model.onnx"
    export_onnx(model, (torch.zeros(2, 3, 8, 8),), path, dynamic_shapes=({0: size, 2: size, 3: size},))
    save_ir(path, tmp_path / "model.xml")
    adds = [op for op in openvino.Core().read_model(tmp_path / "model.xml").get_ops()
            if op.get_type_name() == "Add"]  # fmt: skip
    assert [op.input_value(1).get_node().get_type_name() for op in adds] == ["Constant"] * 2


def test_float16_in_openvino(original, tmp_path):
    pytest.importorskip("openvino")
    save_ir(original, tmp_path / "half.xml", float16=True)
    assert (tmp_path / "half.bin").stat().st_size < 0.55 * original.stat().st_size
    compare(Session(tmp_path / "half.xml", "openvino"), original, within=(0.1, 5e-3))


def test_calibration_files(tmp_path):
    for i in range(10):
        file = tmp_path / f"{i}" / "picture.jpg"
        file.parent.mkdir()
        file.touch()
    assert [file.parent.name for file in Int8(tmp_path, 4).files] == ["0", "2", "5", "7"]
    assert len(Int8(tmp_path, 99).files) == 10
    with pytest.raises(UserError, match=r"^int8: expected a folder of images"):
        ExportOptions(tmp_path / "m.onnx", precision=Int8(tmp_path / "0" / "picture.jpg")).check()
