"""External data of ONNX files: only files in the same folder are read, whatever the runtime allows."""

import numpy as np
import pytest

from dcnzoo.export.external import locations
from dcnzoo.export.runtime import Session

onnx = pytest.importorskip("onnx")
from onnx import TensorProto, helper  # noqa: E402

WEIGHTS = np.arange(4, dtype=np.float32)


def tensor(location, name="w"):
    made = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, "offset": "0", "length": "16"}.items():
        made.external_data.add(key=key, value=value)
    return made


def model(initializers=(), nodes=(), **others):
    nodes = [*nodes, helper.make_node("Add", ["input", "w"], ["sum"])]
    shape = [1, 3, 2, 4]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("input", "sum")]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], initializers)
    opsets = [helper.make_opsetid("", 19)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9, **others).SerializeToString()


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "model"
    (folder / "deeper").mkdir(parents=True)
    for file in ("secret.bin", "model/inside.bin", "model/deeper/inside.bin"):
        WEIGHTS.tofile(tmp_path / file)
    (folder / "link.bin").symlink_to("../secret.bin")
    (folder / "out").symlink_to("..")
    return folder


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_in_its_folder_and_elsewhere(folder, backend, monkeypatch):
    pytest.importorskip(backend)
    monkeypatch.chdir(folder)
    images, path = np.ones((1, 3, 2, 4), np.float32), folder / "x.onnx"
    for location in ("inside.bin", "deeper/inside.bin", "deeper/../inside.bin"):
        path.write_bytes(model([tensor(location)]))
        for name in ("x.onnx", path):
            np.testing.assert_array_equal(Session(name, backend)(images)["sum"], images + WEIGHTS)
    for location in (
        "../secret.bin",
        "deeper/../../secret.bin",
        "link.bin",
        "out/secret.bin",
        "/etc/hostname",
    ):
        path.write_bytes(model([tensor(location)]))
        with pytest.raises(ValueError, match=rf"x\.onnx: .*'{location}'"):
            Session(path, backend)


def constant(location):
    return helper.make_node("Constant", [], ["w"], value=tensor(location))


def branch(location):
    out = helper.make_tensor_value_info("w", TensorProto.FLOAT, [4])
    return helper.make_graph([constant(location)], "b", [], [out])


def sparse(location):
    made = onnx.SparseTensorProto(dims=[4])
    made.values.CopyFrom(tensor(location))
    made.indices.CopyFrom(helper.make_tensor("i", TensorProto.INT64, [4], [0, 1, 2, 3]))
    return made


def wherever(location):
    """A model for each place in onnx.proto that can hold a tensor."""
    branches = {"then_branch": branch(location), "else_branch": branch("inside.bin")}
    opsets = [helper.make_opsetid("", 19)]
    function = helper.make_function("own", "f", [], ["w"], [constant(location)], opsets)
    yield "initializer", model([tensor("inside.bin"), tensor(location, "v")])
    yield "attribute", model(nodes=[constant(location)])
    yield "attributes", model(nodes=[helper.make_node("X", [], ["w"], domain="y", values=[tensor(location)])])
    yield "subgraph", model(nodes=[helper.make_node("If", ["c"], ["w"], **branches)])
    yield "function", model(functions=[function])
    sparsely = onnx.ModelProto.FromString(model())
    sparsely.graph.sparse_initializer.add().CopyFrom(sparse(location))
    yield "sparse", sparsely.SerializeToString()
    trained = onnx.ModelProto.FromString(model())
    trained.training_info.add().algorithm.initializer.append(tensor(location))
    yield "training", trained.SerializeToString()


@pytest.mark.parametrize("where", [name for name, _ in wherever("")])
def test_in_every_place(where, folder):
    for location in ("../secret.bin", "inside.bin"):
        (folder / "x.onnx").write_bytes(dict(wherever(location))[where])
        assert location in locations(folder / "x.onnx")
    (folder / "x.onnx").write_bytes(dict(wherever("../secret.bin"))[where])
    with pytest.raises(ValueError, match=r"x\.onnx: .*secret\.bin"):
        Session(folder / "x.onnx")


def field(number, content):
    return bytes([number << 3 | 2, len(content)]) + content


KEY, VALUE = b"\x0a\x08location", b"\x12\x0d../secret.bin"


@pytest.mark.parametrize(
    "entry", [KEY + VALUE, VALUE + KEY, b"\x8a\x00" + KEY[1:] + VALUE, field(2, b"inside.bin") + KEY + VALUE]
)
def test_unusual_encodings(folder, entry):
    content = field(7, field(5, field(13, entry)))
    assert onnx.ModelProto.FromString(content).graph.initializer[0].external_data[0].value == "../secret.bin"
    (folder / "x.onnx").write_bytes(content)
    assert locations(folder / "x.onnx") == {"../secret.bin"}


@pytest.mark.parametrize("level", range(4))
def test_tags_beyond_32_bits(folder, level):
    """protobuf drops the upper bits of a tag, which could hide a field from a reader that keeps them."""
    content = KEY + VALUE
    for place, number in enumerate((13, 5, 7)):
        content = field(number, content)
        if place == level:  # the field number plus 2^32, in five bytes
            content = bytes([content[0] | 0x80, 0x80, 0x80, 0x80, 0x10]) + content[1:]
    if level == 3:
        content = b"\x3a" + b"\xff" * 9 + b"\x01" + content[2:]  # a length beyond the file
    (folder / "x.onnx").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.onnx: .*damaged"):
        locations(folder / "x.onnx")


def test_every_truncation_is_refused_or_harmless(folder):
    path = folder / "x.onnx"
    path.write_bytes(model([onnx.numpy_helper.from_array(WEIGHTS, "w")]))
    assert locations(path) == set()
    content = model([tensor("../secret.bin")])
    for size in range(len(content)):
        path.write_bytes(content[:size])
        try:
            found = locations(path)
        except ValueError as error:
            assert str(error).startswith(f"{path}: ")
        else:
            assert found in (set(), {"../secret.bin"})
