"""Exported files that other tools changed: ``nox -s tools``. docs/deploy.md has the table."""

import logging
import random

import onnxruntime
import pytest

import dcnzoo
from dcnzoo.data.shapes import ShapesSpec, draw_image
from dcnzoo.detect.backends.onnxruntime import release
from dcnzoo.detect.timing import agreement

onnx = pytest.importorskip("onnx")
onnxslim = pytest.importorskip("onnxslim")

PICTURES = [draw_image(ShapesSpec(), "val", number)[0] for number in range(4)]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    path = tmp_path_factory.mktemp("converters") / "model.onnx"
    dcnzoo.load("mask-rcnn_r14-mdconv_fpn_8e_shapes", device="cpu").export(path)
    return path


def simplify(path, out):
    onnx.save(onnxslim.slim(str(path)), out)


def optimise(path, out):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(out)
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def infer_shapes(path, out):
    from onnxruntime.quantization.shape_inference import quant_pre_process

    quant_pre_process(path, out, skip_symbolic_shape=True)


def quantise_weights(path, out):
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(path, out, weight_type=QuantType.QInt8)


def quantise_all(path, out):
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self):
            inputs = (dcnzoo.load(path).prepare(picture[..., ::-1])[0] for picture in PICTURES)
            self.remaining = iter([{"input": image} for image in inputs])

        def get_next(self):
            return next(self.remaining, None)

    quantize_static(path, out, Reader())


def update(path, out):
    onnx.save(onnx.version_converter.convert_version(onnx.load(path), 21), out)


def shuffle(path, out):
    """Write the nodes in another order, as some converters do."""
    model = onnx.load(path)
    nodes = list(model.graph.node)
    random.Random(0).shuffle(nodes)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, out)


def to_float16(path, out):
    from onnxruntime.transformers.float16 import convert_float_to_float16

    onnx.save(convert_float_to_float16(onnx.load(path), keep_io_types=True), out)


def newest_operators(path, out):
    onnx.save(onnx.version_converter.convert_version(onnx.load(path), 22), out)


INEXACT = [quantise_weights, quantise_all, to_float16]
OPENED = [simplify, optimise, infer_shapes, update, shuffle, quantise_weights, quantise_all]
REFUSED = [newest_operators]
# the converter of 1.31 gives one name to two nodes
(OPENED if release(onnxruntime.__version__) >= (1, 32) else REFUSED).append(to_float16)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("tool", OPENED)
def test_changed_files(tool, backend, exported, tmp_path, monkeypatch):
    monkeypatch.setattr(logging.root, "level", logging.ERROR)
    monkeypatch.chdir(tmp_path)  # tools write temporary files there
    pytest.importorskip(backend)
    tool(exported, tmp_path / "model.onnx")
    detector = dcnzoo.load(exported)
    expected = [detector(picture) for picture in PICTURES]
    assert sum(map(len, expected)) > 15
    changed = dcnzoo.export.Detector(tmp_path / "model.onnx", backend, edited=True)
    results = [changed(picture) for picture in PICTURES]
    assert agreement(expected, results) >= (0.9 if tool in INEXACT else 1)


@pytest.mark.parametrize("tool", REFUSED)
def test_files_that_onnxruntime_refuses(tool, exported, tmp_path):
    """If it opens one of them, correct the table in docs/deploy.md."""
    tool(exported, tmp_path / "model.onnx")
    pytest.importorskip("openvino")
    with pytest.raises(ValueError, match=r"expected an ONNX model that onnxruntime can load"):
        dcnzoo.load(tmp_path / "model.onnx", edited=True)
    openvino = dcnzoo.export.Detector(tmp_path / "model.onnx", "openvino", edited=True)
    detector = dcnzoo.load(exported)
    results = ([each(picture) for picture in PICTURES] for each in (detector, openvino))
    assert agreement(*results) >= 0.9
