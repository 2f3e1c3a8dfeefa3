"""Known problems of ONNX files in runtimes."""

import pytest

from tests.commands import error_of, run

onnx = pytest.importorskip("onnx")
from dcnzoo.export.known_problems import RUNTIMES, check  # noqa: E402

MAPS, ROIS = [1, 3, 8, 9], [4, 5]


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


def runtimes(findings):
    return [finding.subject for finding in findings]


@pytest.mark.parametrize(
    ("opset", "mode", "sources"),
    [
        (19, {"mode": "bilinear"}, ["4813"]),
        (20, {"mode": "linear"}, ["1060", "4813"]),
        (20, {}, ["1060", "4813"]),
        (20, {"mode": "cubic"}, ["1060", "4813"]),
        (20, {"mode": "nearest"}, ["4813"]),
    ],
)
def test_grid_sample_in_tensorrt(opset, mode, sources, tmp_path):
    path = write(tmp_path / "m.onnx", "GridSample", opset, floats(MAPS, [1, 4, 4, 2]), **mode)
    findings = check(path, "tensorrt")
    assert [finding.source.rpartition("/")[2] for finding in findings] == sources
    assert runtimes(check(path, "openvino")) == ["openvino"] * (opset == 20)
    assert not check(path, "onnxruntime")


@pytest.mark.parametrize(
    ("opset", "kind", "fails"), [(19, 1, False), (19, 11, True), (20, 11, False), (19, 10, False)]
)
def test_types_of_grid_sample_in_onnxruntime(opset, kind, fails, tmp_path):
    path = write(
        tmp_path / "m.onnx", "GridSample", opset, floats(MAPS, [1, 4, 4, 2], kind=kind), kind="DOUBLE"
    )
    assert runtimes(check(path, "onnxruntime")) == ["onnxruntime"] * fails


@pytest.mark.parametrize(("opset", "fails"), [(16, False), (21, False), (22, True)])
def test_roi_align_in_onnxruntime(opset, fails, tmp_path):
    inputs = [*floats(MAPS, [4, 4]), ([4], onnx.TensorProto.INT64)]
    path = write(tmp_path / "m.onnx", "RoiAlign", opset, inputs)
    assert runtimes(check(path, "onnxruntime")) == ["onnxruntime"] * fails
    assert not check(path, "openvino")


@pytest.mark.parametrize(
    ("inputs", "node", "expected"),
    [
        (floats(MAPS), dict(operator="Relu"), []),
        (floats([1] * 5), dict(operator="Relu"), []),
        (floats([1] * 6), dict(operator="Relu"), ["coreml"]),
        (floats([1] * 5, [1, 1, 1, 1, 3]), dict(operator="GridSample"), ["tensorrt"] * 2 + ["openvino"] * 2),
        (floats(MAPS, [4, 3, 3, 3], [1, 18, 6, 7]), dict(operator="DeformConv"), ["tensorrt", "openvino"]),
        ([(MAPS, 1), ([], 7)], dict(operator="Gather"), ["coreml"]),
        ([(MAPS, 1), ([2], 7)], dict(operator="Gather"), []),
        ([(MAPS, 1), ([2], 6)], dict(operator="Gather"), []),
        (floats(MAPS), dict(operator="Relu", opset=26), ["tensorrt"]),
        (floats(MAPS), dict(operator="MMCVRoiAlign", domain="mmdeploy"),
         ["openvino", "tensorrt", "coreml", "onnxruntime"]),
        (floats(MAPS), dict(operator="FusedConv", domain="com.microsoft"), ["tensorrt", "coreml"]),
        (floats(MAPS), dict(operator="NhwcConv", domain="com.microsoft"), ["openvino", "tensorrt", "coreml"]),
        (floats(MAPS), dict(operator="Gelu"), []),
        (floats(MAPS), dict(operator="Gelu", opset=19), list(RUNTIMES)),
        (floats(MAPS), dict(operator="Relu6"), list(RUNTIMES)),
        (floats(MAPS, [4]), dict(operator="Upsample"), list(RUNTIMES)),
        (floats(MAPS), dict(operator="Normalizer", domain="ai.onnx.ml"), []),
        ([*floats(MAPS, [4, 4]), ([4], 7)], dict(operator="RoiAlign", mode="max"), ["onnxruntime"]),
    ],
)  # fmt: skip
def test_problems(inputs, node, expected, tmp_path):
    path = write(tmp_path / "m.onnx", inputs=inputs, **{"opset": 20, **node})
    findings = check(path)
    assert runtimes(findings) == expected
    assert all(finding.source.startswith("https://") for finding in findings)
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
    path = write(tmp_path / "m.onnx", "GridSample", 20, floats(MAPS, [1, 4, 4, 2]))
    lines = run("export", "--check", path, "--for", "tensorrt").splitlines()
    assert len(lines) == 2 and "onnx-tensorrt/pull/1060" in lines[0]
    assert len(run("export", "--check", path).splitlines()) == 3
    assert "no known problems in onnxruntime" in run("export", "--check", path, "--for", "onnxruntime")
    (tmp_path / "n.onnx").write_bytes(b"no model")
    assert "n.onnx: expected an ONNX file" in error_of("export", "--check", tmp_path / "n.onnx")
    assert "nowhere.onnx" in error_of("export", "--check", tmp_path / "nowhere.onnx")
