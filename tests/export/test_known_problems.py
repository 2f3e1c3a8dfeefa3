"""Known problems of ONNX files in runtimes."""

import numpy as np
import pytest

from tests.commands import run

onnx = pytest.importorskip("onnx")
from dcnzoo.export.known_problems import RUNTIMES, check  # noqa: E402

MAPS = [1, 3, 8, 9]


def write(path, operator, opset, inputs, domain="", kind="FLOAT", **attributes):
    """Write a graph of one node."""
    helper = onnx.helper
    values = [
        helper.make_tensor_value_info(name, dtype, shape)
        for name, (shape, dtype) in zip("abcde", inputs, strict=False)
    ]
    node = helper.make_node(operator, [value.name for value in values], ["y"], domain=domain, **attributes)
    output = helper.make_tensor_value_info("y", getattr(onnx.TensorProto, kind), None)
    graph = helper.make_graph([node], "graph", values, [output])
    opsets = [helper.make_opsetid("", opset), *([helper.make_opsetid(domain, 1)] if domain else [])]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


def floats(*shapes, kind=1):
    return [(shape, kind) for shape in shapes]


POINTS = MAPS, [1, 4, 4, 2]
ROIS = [*floats(MAPS, [4, 4]), ([4], 7)]


@pytest.mark.parametrize(("number", "expected"), [(3840, []), (3841, ["tensorrt"])])
def test_the_number_of_selected_values(number, expected, tmp_path):
    path = write(tmp_path / "model.onnx", "TopK", 19, [([1, 5000], 1), ([1], 7)])
    model = onnx.load(path)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([number]), "b"))
    del model.graph.input[1]
    model.graph.node[0].output.append("z")
    onnx.save(model, path)
    assert runtimes(check(path)) == expected


def test_an_input_with_a_default_is_dropped_by_tensorrt(tmp_path):
    path = write(tmp_path / "model.onnx", "Add", 19, floats([1], [1]))
    assert check(path) == []
    model = onnx.load(path)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(1, np.float32), "b"))
    onnx.save(model, path)
    assert runtimes(check(path)) == ["tensorrt"] and check(path, "onnxruntime", "openvino", "coreml") == []


@pytest.mark.parametrize(
    ("shape", "expected"),
    [("Cast <to = 7> (scattered)", ["tensorrt"]), ("Shape(scattered)", []), ("Cast <to = 7> (sizes)", [])],
)
def test_a_size_from_scatternd(shape, expected, tmp_path):
    """TensorRT refuses to compute a size from what ScatterND writes; the size of its output is no problem."""
    model = onnx.parser.parse_model(f"""<ir_version: 10, opset_import: ["": 19]>
        graph (float[6] x, int64[2] sizes, int64[1, 1] at, int64[1] row) => (float[A, B] y) {{
            scattered = ScatterND(sizes, at, row)
            shape = {shape}
            y = Expand(x, shape)
        }}""")
    onnx.save(model, tmp_path / "model.onnx")
    assert runtimes(check(tmp_path / "model.onnx")) == expected


def test_strict_is_an_exit_status(tmp_path):
    path = write(tmp_path / "model.onnx", "IsNaN", 19, floats([3]), kind="BOOL")
    assert runtimes(check(path)) == ["mnn"]
    run("export", "--check", str(path))
    run("export", "--check", str(path), "--strict", status=1)
    run("export", "--check", str(path), "--for", "tract", "--strict")


def runtimes(findings):
    return [finding.subject for finding in findings]


@pytest.mark.parametrize(
    ("inputs", "node", "expected"),
    [
        (floats(MAPS), dict(operator="Relu"), []),
        (floats([1] * 5), dict(operator="Relu"), []),
        (floats([1] * 6), dict(operator="Relu"), ["coreml"]),
        (floats([1] * 5, [1, 1, 1, 1, 3]), dict(operator="GridSample"), ["tensorrt"] * 2 + ["openvino"] * 2),
        (floats(MAPS, [4, 3, 3, 3], [1, 18, 6, 7]), dict(operator="DeformConv"),
         ["tensorrt", "mnn", "openvino"]),
        ([(MAPS, 1), ([], 7)], dict(operator="Gather"), ["coreml"]),
        ([(MAPS, 1), ([2], 7)], dict(operator="Gather"), []),
        (floats(MAPS), dict(operator="Relu", opset=25), []),
        (floats(MAPS), dict(operator="Relu", opset=26), ["tensorrt"]),
        (floats(MAPS), dict(operator="MMCVRoiAlign", domain="mmdeploy"),
         ["openvino", "onnxruntime", "coreml", "tensorrt", "mnn", "litert", "tract"]),
        (floats(MAPS), dict(operator="FusedConv", domain="com.microsoft"),
         ["tensorrt", "mnn", "litert", "tract"]),
        (floats(MAPS), dict(operator="NhwcConv", domain="com.microsoft"),
         ["openvino", "tensorrt", "mnn", "litert", "tract"]),
        (floats(MAPS), dict(operator="Gelu"), []),
        ([*floats([4, 2]), ([1, 1], 7), *floats([1, 2])], dict(operator="ScatterND"), []),
        ([*floats([4, 2]), ([1, 1], 7), *floats([1, 2])], dict(operator="ScatterND", reduction="none"),
         ["tensorrt"]),
        (floats(MAPS), dict(operator="Gelu", opset=19), list(RUNTIMES)),
        (floats(MAPS), dict(operator="Relu6"), list(RUNTIMES)),
        (floats(MAPS, [4]), dict(operator="Upsample"), list(RUNTIMES)),
        (floats(MAPS), dict(operator="Normalizer", domain="ai.onnx.ml"), []),
        (ROIS, dict(operator="RoiAlign", mode="max"), ["tract", "onnxruntime"]),
        (ROIS, dict(operator="RoiAlign", opset=21), ["tract"]),
        (ROIS, dict(operator="RoiAlign", opset=22), ["tract", "onnxruntime"]),
        (floats(*POINTS), dict(operator="GridSample", opset=19, mode="bilinear"), ["tensorrt"]),
        (floats(*POINTS), dict(operator="GridSample"), ["tensorrt"] * 2 + ["openvino"]),
        (floats(*POINTS), dict(operator="GridSample", mode="cubic"), ["tensorrt"] * 2 + ["openvino"]),
        (floats(*POINTS), dict(operator="GridSample", mode="nearest"), ["tensorrt", "openvino"]),
        (floats(*POINTS, kind=11), dict(operator="GridSample", opset=19, kind="DOUBLE"),
         ["tensorrt", "onnxruntime"]),
        (floats(*POINTS, kind=11), dict(operator="GridSample", kind="DOUBLE"),
         ["tensorrt"] * 2 + ["openvino"]),
    ],
)  # fmt: skip
def test_problems(inputs, node, expected, tmp_path):
    path = write(tmp_path / "m.onnx", inputs=inputs, **{"opset": 20, **node})
    findings = check(path)
    assert runtimes(findings) == expected
    assert all(finding.source.startswith(("https://", "docs/benchmarks/")) for finding in findings)
    for runtime in RUNTIMES:
        assert runtimes(check(path, runtime)) == [name for name in expected if name == runtime]


def test_an_old_onnxruntime(tmp_path, monkeypatch):
    path = write(tmp_path / "m.onnx", "DeformConv", 19, floats(MAPS, [4, 3, 3, 3], [1, 18, 6, 7]))
    for installed, fails in (("1.24.4", True), ("1.25.0", False)):
        version = "dcnzoo.export.known_problems.version"
        monkeypatch.setattr(version, lambda package, installed=installed: installed)
        assert runtimes(check(path, "onnxruntime")) == ["onnxruntime"] * fails


def test_nodes_in_a_loop(tmp_path):
    path = tmp_path / "m.onnx"
    model = onnx.parser.parse_model("""<ir_version: 10, opset_import: ["": 20]>
        outer (float[1, 3, 8, 9] m, float[1, 4, 4, 2] g) => (float[T, N, C, H, W] y)
        <int64 n = {2}, bool first = {1}> {
            y = Loop (n, first) <body = body (int64 i, bool c) => (bool d, float[N, C, H, W] s) {
                s = GridSample(m, g)
                d = Identity(c)
            }>
        }""")
    onnx.save(model, path)
    assert runtimes(check(path, "tensorrt")) == ["tensorrt"] * 2


def test_nodes_in_a_local_function(tmp_path):
    """The function is no operator; its nodes are checked, also with attributes of the call."""
    path = tmp_path / "m.onnx"
    model = onnx.parser.parse_model("""<ir_version: 10, opset_import: ["": 20, "mine": 1]>
        outer (float[1, 3, 8, 9] m, float[1, 4, 4, 2] g) => (float[N, C, H, W] y) {
            y = mine.sample <kind = "nearest"> (m, g)
        }
        <domain: "mine", opset_import: ["": 20]>
        sample <kind> (m, g) => (y) { y = GridSample <mode: string = @kind> (m, g) }""")
    onnx.save(model, path)
    assert [finding.source.rpartition("/")[2] for finding in check(path, "tensorrt")] == ["4813"]
    assert runtimes(check(path)) == ["tensorrt", "openvino"]


def test_command(tmp_path):
    path = write(tmp_path / "m.onnx", "GridSample", 20, floats(*POINTS))
    lines = run("export", "--check", path, "--for", "tensorrt").splitlines()
    assert len(lines) == 2 and "onnx-tensorrt/pull/1060" in lines[0]
    assert len(run("export", "--check", path).splitlines()) == 3
    assert "no known problems in onnxruntime" in run("export", "--check", path, "--for", "onnxruntime")
