"""Detector: needs an ONNX file and a picture, but neither torch nor OpenMMLab."""

import dataclasses
import json
import multiprocessing
import pickle
import re
import sys
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from dcnzoo.detect.backends.onnxruntime import release
from dcnzoo.detect.backends.openvino import make_core
from dcnzoo.detect.detections import Detections
from dcnzoo.detect.outputs import SCORE_THRESHOLD_KEY
from dcnzoo.detect.preprocessing import Preprocessing
from dcnzoo.detect.session import Session
from dcnzoo.detect.tiles import merge
from dcnzoo.export import Detector, export_onnx
from dcnzoo.ops import nms
from tests.helpers.commands import run as command
from tests.helpers.processes import only, run_code
from tests.helpers.processes import run_code as run

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

DYNAMIC = torch.export.Dim.DYNAMIC
CLASSES = ("cat", "dog", "eel")
FRACTIONS = [[0.1, 0.2, 0.5, 0.9], [0.0, 0.0, 1.0, 0.5], [0.3, 0.3, 0.4, 0.4]]  # relative to the image
PREPROCESSING = Preprocessing(CLASSES, True, (10.0, 20, 30), (100.0, 200, 300), (96, 64), True, 32)


class Model(nn.Module):
    """Boxes at fixed positions in the image without padding. Scores are the means of the channels."""

    def forward(self, images, img_shape):
        batch, _, height, width = images.shape
        extent = img_shape.flip(1).repeat(1, 2)[:, None].float()  # [N, 1, 4]
        boxes = torch.tensor(FRACTIONS) * extent
        area = (img_shape[:, 0] * img_shape[:, 1]).float()
        scores = images.sum((2, 3)) / area[:, None]
        labels = torch.tensor([2, 0, -1]).expand(batch, -1)
        ramp = torch.arange(width).float() / extent[:, :, 2]  # [N, 1]·[W]: 0 to 1 from left to right
        masks = (ramp[:, None, None] * 255).clamp(max=255).expand(batch, 3, height, width)
        return torch.cat([boxes, scores[..., None]], 2), labels, masks.to(torch.uint8)


def write(path, dynamic):
    shapes = ({0: DYNAMIC, 2: DYNAMIC, 3: DYNAMIC}, {0: DYNAMIC})
    export_onnx(
        Model(), (torch.zeros(2, 3, 64, 80), torch.tensor([[64, 80]] * 2)), path,
        dynamic_shapes=shapes if dynamic else None, input_names=["input", "img_shape"],
        output_names=["dets", "labels", "masks"], metadata=PREPROCESSING.to_metadata(),
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("detector")
    write(folder / "dynamic.onnx", True)
    write(folder / "static.onnx", False)
    rng = np.random.default_rng(0)
    picture = cv2.resize(rng.integers(0, 256, (5, 6, 3)).astype(np.uint8), (150, 110))
    cv2.imwrite(str(folder / "picture.png"), picture)
    return folder


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_threads_and_processes(backend, folder):
    """The boxes are those of one thread: an infer request of OpenVINO must not run twice at a time."""
    pytest.importorskip(backend)
    detector = Detector(folder / "dynamic.onnx", backend, score_threshold=0)
    picture = cv2.imread(str(folder / "picture.png"))
    pictures = [picture[:height] for height in (110, 90, 70, 50)]
    expected = [detector(each).boxes for each in pictures]
    processes = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
    for pool in (ThreadPoolExecutor(4), processes):
        with pool:
            results = list(pool.map(detector, pictures * 5))
        assert all(map(np.array_equal, (result.boxes for result in results), expected * 5))


def test_a_file_without_boxes(folder, monkeypatch):
    """An exported SOLO returns zeros: its boxes are those of its masks."""
    detector, picture = Detector(folder / "static.onnx", score_threshold=0), folder / "picture.png"
    masks, call = detector(picture).masks, Session.__call__

    def without_boxes(*args):
        outputs = call(*args)
        return {**outputs, "dets": outputs["dets"] * np.float32([0, 0, 0, 0, 1])}

    monkeypatch.setattr(Session, "__call__", without_boxes)
    boxes = [(np.nonzero(each.any(0))[0][[0, -1]], np.nonzero(each.any(1))[0][[0, -1]]) for each in masks]
    expected = [[x1, y1, x2 + 1, y2 + 1] for (x1, x2), (y1, y2) in boxes]
    assert detector(picture).boxes.tolist() == expected


def test_auto_without_a_gpu_that_works(folder, monkeypatch):
    """onnxruntime-gpu lists CUDA on every machine."""
    providers = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: providers)
    assert Detector(folder / "static.onnx", "onnxruntime").device == "cpu"
    with pytest.raises(ValueError, match="device: "):
        Detector(folder / "static.onnx", "onnxruntime", device="cuda")


@pytest.mark.parametrize(
    ("stored", "given", "expected"), [(None, None, 0.3), (0.5, None, 0.5), (0.5, 0.1, 0.1)]
)
def test_the_default_threshold_is_that_of_the_file(folder, tmp_path, stored, given, expected):
    model = onnx.load(folder / "static.onnx")
    if stored is not None:
        onnx.helper.set_model_props(model, {**PREPROCESSING.to_metadata(), SCORE_THRESHOLD_KEY: str(stored)})
    onnx.save(model, tmp_path / "m.onnx")
    assert Detector(tmp_path / "m.onnx", score_threshold=given).score_threshold == expected


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("name", ["dynamic", "static"])
def test_from_a_picture_to_boxes(name, backend, folder):
    pytest.importorskip(backend)
    detector = Detector(folder / f"{name}.onnx", backend, score_threshold=0)
    assert detector.classes == CLASSES
    picture = cv2.imread(str(folder / "picture.png"))
    for image in (picture, picture.transpose(1, 0, 2).copy()):
        found = detector(image, bgr=True)
        height, width = image.shape[:2]
        # the pipeline's result by hand: scaled to fit into 96 × 64 (static: 80 × 64)
        most = (64, 80) if name == "static" else (np.inf, np.inf)
        factor = min(96 / max(height, width), 64 / min(height, width), most[0] / height, most[1] / width)
        small = cv2.resize(image, [int(n * factor + 0.5) for n in (width, height)])
        red, _, blue = (small[..., ::-1].mean((0, 1)) - (10, 20, 30)) / (100, 200, 300)
        means = [red, (small[..., 1].mean() - 20) / 200]
        np.testing.assert_allclose(found.scores, means, rtol=1e-4)
        assert abs(means[0] - blue) > 0.1, "else exchanged channels would not be seen"
        np.testing.assert_array_equal(found.labels, [2, 0])
        expected = np.array(FRACTIONS[:2]) * [width, height, width, height]
        np.testing.assert_allclose(found.boxes, expected, rtol=1e-5, atol=1e-4)
        assert found.masks.shape == (2, height, width)
        # the mask is set in the right half of the second box, which spans the width
        columns = found.masks[1, : height // 2].mean(0)
        assert (columns[: width // 2 - 2] == 0).all() and (columns[width // 2 + 3 :] == 1).all()
    threshold = float(found.scores.mean())
    assert len(detector(image, bgr=True, score_threshold=threshold)) == 1


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("name", ["dynamic", "static"])
def test_a_list_of_pictures(name, backend, folder):
    """Different sizes, and a batch size that does not divide their number: the results match single calls."""
    pytest.importorskip(backend)
    picture = cv2.imread(str(folder / "picture.png"))
    pictures = [picture, picture.transpose(1, 0, 2).copy(), str(folder / "picture.png"), picture[:50]] * 2
    detector = Detector(folder / f"{name}.onnx", backend, threads=1, score_threshold=-1)
    several = [*detector(pictures[:-1], batch_size=3)]
    assert len(several) == 7 and [*detector([])] == []
    for found, one in zip(several, pictures, strict=False):
        alone = detector(one)
        np.testing.assert_array_equal(found.boxes, alone.boxes)
        np.testing.assert_allclose(found.scores, alone.scores, rtol=1e-5)
        np.testing.assert_array_equal(found.masks, alone.masks)


def test_bench(folder):
    options = ["--max-iter", 1, "--num-warmup", 0, "--threads", 1]
    output = command("bench", folder / "dynamic.onnx", folder / "picture.png", *options)
    rows = re.findall(r"dynamic\.onnx, (\w+) +[\d.]+ +[\d.]+ +100\.0%$", output, re.MULTILINE)
    assert "onnxruntime" in rows


def test_with_numpy_pillow_and_the_runtime_only(folder):
    code = f"""
from dcnzoo.export import Detector
detector = Detector({str(folder / "dynamic.onnx")!r})
found = detector({str(folder / "picture.png")!r})
print([found.boxes.tolist(), found.scores.tolist(), found.names])
detector({str(folder / "picture.png")!r}, tile=64)
"""
    # packaging and protobuf are dependencies of onnxruntime
    output = run(only("numpy", "PIL", "onnxruntime", "packaging", "google") + code)
    found = Detector(str(folder / "dynamic.onnx"))(folder / "picture.png")
    boxes, scores, names = json.loads(output.replace("'", '"'))
    np.testing.assert_allclose(boxes, found.boxes)
    np.testing.assert_allclose(scores, found.scores, rtol=0.01)  # without OpenCV, pixels differ by one level
    assert names == ["eel", "cat"]


def test_overlapping_objects_of_tiles_are_merged_as_by_nms():
    generator = np.random.default_rng(0)
    corners = generator.integers(10, 40, (300, 2))  # in the middle of the tile: no object is cut
    boxes = np.hstack([corners, corners + generator.integers(1, 30, (300, 2))]).astype(np.float32)
    scores, labels = generator.random(300, np.float32), generator.integers(0, 3, 300)
    merged = merge([Detections(boxes, scores, labels)], [(slice(0, 80), slice(0, 80))], (80, 80))
    expected = set()
    for label in range(3):
        own = labels == label
        index = nms(torch.from_numpy(boxes[own]), torch.from_numpy(scores[own]), 0.5)
        expected |= {*map(tuple, boxes[own][index])}
    assert {*map(tuple, merged.boxes)} == expected and 100 < len(expected) == len(merged) < 300
    assert (np.diff(merged.scores) <= 0).all()


def test_a_signal_after_two_files(folder):
    """OpenVINO's cores set and restore the stack of signal handlers; torch's loaders handle SIGCHLD."""
    pytest.importorskip("openvino")
    code = f"""
import gc, signal, subprocess
from dcnzoo.detect.session import Session
signal.signal(signal.SIGCHLD, lambda *_: None)
sessions = [Session({str(folder / "static.onnx")!r}, "openvino") for _ in range(2)]
while sessions:
    sessions.pop(0)
    gc.collect()
subprocess.run(["true"])
print("alive")
"""
    assert run_code(code) == "alive\n"


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_files_that_are_no_detector(backend, folder, tmp_path, monkeypatch):
    pytest.importorskip(backend)
    model = onnx.load(folder / "static.onnx")
    model.graph.output.pop(0)
    raw = model.SerializeToString()
    del model.metadata_props[:]
    model.metadata_props.add(key="author", value="somebody")
    monkeypatch.setenv("HOME", str(tmp_path))
    for content, named in (
        (b"no model", r"x\.onnx: "),
        (b"", r"x\.onnx: "),
        (raw, "outputs.*labels, masks"),
        (model.SerializeToString(), r"x\.onnx: .*'author'"),
    ):
        (tmp_path / "x.onnx").write_bytes(content)
        with pytest.raises(ValueError, match=named):
            Detector("~/x.onnx", backend)
    with pytest.raises(FileNotFoundError, match=r"none\.onnx"):
        Detector(tmp_path / "none.onnx", backend)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_weights_outside_the_folder(backend, folder, tmp_path):
    """A downloaded model could name any file as its weights: both runtimes refuse that."""
    module = pytest.importorskip(backend)
    if backend == "onnxruntime" and release(module.__version__) < (1, 31):
        pytest.skip("this version reads any file")
    path = tmp_path / "model" / "x.onnx"
    path.parent.mkdir()
    model = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["" : 19]> g (float[1, 3, 2, 4] input) => (float[1, 3, 2, 4] sum)'
        "{ sum = Add(input, w) }"
    )
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.arange(4, dtype=np.float32), "w"))
    onnx.save(model, path, save_as_external_data=True, size_threshold=0, location="weights.bin")
    images = np.ones((1, 3, 2, 4), np.float32)
    np.testing.assert_array_equal(Session(path, backend)(images)["sum"], images + np.arange(4))
    path.with_name("weights.bin").rename(tmp_path / "weights.bin")
    (entry,) = (e for e in model.graph.initializer[0].external_data if e.key == "location")
    entry.value = "../weights.bin"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ValueError, match=r"x\.onnx: "):
        Session(path, backend)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_fixed_size_is_filled_with_the_padding_of_the_detector(backend, tmp_path):
    pytest.importorskip(backend)
    padding = dataclasses.replace(PREPROCESSING, pad_value=7.0)
    export_onnx(
        nn.ReLU(), (torch.zeros(2, 3, 4, 6),), tmp_path / "x.onnx", input_names=["input"],
        output_names=["y"], metadata=padding.to_metadata(),
    )  # fmt: skip
    images = np.ones((1, 3, 2, 5), np.float32)
    expected = np.full((1, 3, 4, 6), 7, np.float32)
    expected[..., :2, :5] = 1
    np.testing.assert_array_equal(Session(tmp_path / "x.onnx", backend)(images)["y"], expected)


def test_bfloat16_in_openvino(tmp_path):
    """Where the CPU multiplies bfloat16, results are rounded; a pickled session keeps its precision."""
    pytest.importorskip("openvino")
    model = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["" : 19]> g (float[1, 3, 16, 16] input) => (float[1, 8, 14, 14] y)'
        "{ y = Conv(input, w) }"
    )
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((8, 3, 3, 3)).astype(np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    onnx.save(model, tmp_path / "x.onnx")
    images = rng.standard_normal((1, 3, 16, 16)).astype(np.float32)
    exact = Session(tmp_path / "x.onnx", "openvino")(images)["y"]
    session = Session(tmp_path / "x.onnx", "openvino", precision="bf16")
    for each in (session, pickle.loads(pickle.dumps(session))):
        error = np.abs(each(images)["y"] - exact).max() / np.abs(exact).max()
        multiplies = "BF16" in make_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        assert error < 0.02 and (error > 1e-4) == multiplies
    for backend, precision in (("onnxruntime", "bf16"), ("openvino", "fp16")):
        with pytest.raises(ValueError, match=rf"^precision: .* openvino, got '{precision}'"):
            Session(tmp_path / "x.onnx", backend, precision=precision)


def test_wrong_arguments(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    for backend, error in (("ncnn", ValueError), ("openvino", ImportError)):
        with pytest.raises(error, match=rf"(?i)backend: .*{backend}"):
            Detector(folder / "dynamic.onnx", backend)
    with pytest.raises(ValueError, match=r"^threads: expected at least 1, got 0"):
        Detector(folder / "dynamic.onnx", threads=0)
    for shape in ((1, 4, 5, 6), (3, 5, 6)):
        message = re.escape(f"input: expected shape (any, 3, any, any) or smaller, got {shape}")
        with pytest.raises(ValueError, match=message):
            Session(folder / "dynamic.onnx")(np.zeros(shape, np.float32))


@pytest.mark.parametrize(
    ("device", "provider", "number", "name"),
    [("cpu", "CPU", None, "cpu"), (torch.device("cpu"), "CPU", None, "cpu"),
     ("cuda", "CUDA", "0", "cuda:0"), ("cuda:1", "CUDA", "1", "cuda:1"), ("auto", "CUDA", "0", "cuda:0")],
)  # fmt: skip
def test_a_device_is_used(folder, monkeypatch, device, provider, number, name):
    """The test's session records the requested providers, and runs on the CPU."""
    import onnxruntime

    original, requested = onnxruntime.InferenceSession, []

    class Recorded(original):
        def __init__(self, path, options, providers):
            requested.extend(providers)
            super().__init__(path, options, providers=["CPUExecutionProvider"])

        def get_providers(self):
            return [requested[0][0], "CPUExecutionProvider"]

    monkeypatch.setattr(onnxruntime, "InferenceSession", Recorded)
    both = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: both)
    detector = Detector(folder / "dynamic.onnx", device=device)
    assert requested == [(f"{provider}ExecutionProvider", {} if number is None else {"device_id": number})]
    assert detector.device == name and name in repr(detector)


@pytest.mark.parametrize("device", ["cuda:1", "cuda:x", "cuda:-1", "gpu", "", "cpu:1", "cuda:0:1", "meta"])
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_device_is_refused(folder, monkeypatch, backend, device):
    """It is also refused if onnxruntime only warns that it cannot use the GPU, and uses the CPU."""
    runtime = pytest.importorskip(backend)
    with pytest.raises(ValueError, match=r"^device: expected .*cpu"):
        Detector(folder / "dynamic.onnx", backend, device)
    if backend == "onnxruntime" and device == "cuda:1":
        both = ["CUDAExecutionProvider", "CPUExecutionProvider"]
        monkeypatch.setattr(runtime, "get_available_providers", lambda: both)
        with pytest.raises(ValueError, match=r"^device: expected .*uses CPUExecutionProvider"):
            Detector(folder / "dynamic.onnx", backend, device)


def test_a_runtime_that_is_too_old(folder, monkeypatch):
    import onnxruntime

    def refuse(*args, **kwargs):
        raise RuntimeError("NOT_IMPLEMENTED : Could not find an implementation for DeformConv(19) node")

    monkeypatch.setattr(onnxruntime, "InferenceSession", refuse)
    monkeypatch.setattr(onnxruntime, "__version__", "1.24.4")
    with pytest.raises(
        ValueError, match=r"expected onnxruntime 1\.25 or later for DeformConv, got 1\.24\.4: "
    ):
        Detector(folder / "dynamic.onnx")


def test_the_test_loop_knows_what_the_pipeline_has_padded(monkeypatch):
    """100 × 50 pixels are resized to 80 × 40 and padded to 80 × 80: boxes are scaled by 80 / 100 only."""
    from mmdet.structures import DetDataSample

    from dcnzoo.openmmlab.export import deployed

    class Fixed(deployed.Session):
        output_names, metadata = ("dets", "labels"), {}

        def __init__(self, *args):
            pass

        def __call__(self, images, sizes):
            np.testing.assert_array_equal(sizes, [[80, 80]])
            box = np.array([[[8, 16, 40, 60, 0.5]]], np.float32)
            return {"dets": box, "labels": np.zeros((1, 1), np.int64)}

    monkeypatch.setattr(deployed, "Session", Fixed)
    detector = deployed.DeployedDetector(
        "x.onnx", "onnxruntime", "cpu", dict(type="mmdet.DetDataPreprocessor")
    )
    meta = dict(img_shape=(80, 80), ori_shape=(50, 100), scale_factor=(0.8, 0.8))
    (sample,) = detector(torch.zeros(1, 3, 96, 96), [DetDataSample(metainfo=meta)])
    np.testing.assert_allclose(sample.pred_instances.bboxes.numpy(), [[10, 20, 50, 75]])
    meta = dict(img_shape=(80, 80), ori_shape=(40, 160))  # from a pipeline that does not say how it resized
    (sample,) = detector(torch.zeros(1, 3, 96, 96), [DetDataSample(metainfo=meta)])
    np.testing.assert_allclose(sample.pred_instances.bboxes.numpy(), [[16, 8, 80, 30]])
