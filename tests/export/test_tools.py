"""dcnzoo export, and dcnzoo test on the exported file."""

import os
import pickle
import re
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope

import dcnzoo
from dcnzoo.data.shapes import CLASSES, ShapesSpec, draw_image
from dcnzoo.detect.outputs import paste
from dcnzoo.detect.pictures import read
from dcnzoo.detect.session import Session
from dcnzoo.detect.timing import agreement
from dcnzoo.export import Detector, save_ir
from dcnzoo.openmmlab.export.verify import verify
from tests.helpers.commands import error_of, run
from tests.helpers.demo import small_settings
from tests.helpers.detectors import build, calibrate, config, loaded
from tests.helpers.processes import ROOT, python

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

SHAPES = "mask-rcnn_r14-mdconv_fpn_8e_shapes"
CONFIG = ROOT / f"configs/demo/{SHAPES}.py"
PICTURE = ROOT / "tests/data/color.jpg"


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with a config for a data set of 5 images, and a checkpoint that detects objects.

    The detector is the demo's with one level, which takes two thirds of the time to export.
    """
    work = tmp_path_factory.mktemp("deployment")
    cfg = Config.fromfile(CONFIG)
    cfg.merge_from_dict(small_settings(work / "data", train=1, test_dataloader__batch_size=1))
    cfg.model.test_cfg.rcnn.score_thr = 0.05
    model = cfg.model
    model.backbone.update(out_indices=(2,), stage_with_dcn=(False, False, True))
    model.neck.update(in_channels=model.neck.in_channels[-1:], num_outs=1)
    model.rpn_head.anchor_generator.strides = [16]
    for extractor in (model.roi_head.bbox_roi_extractor, model.roi_head.mask_roi_extractor):
        extractor.featmap_strides = [16]
    cfg.dump(work / "config.py")
    init_default_scope("mmdet")
    torch.manual_seed(3)
    detector = MODELS.build(cfg.model).eval()
    calibrate(detector, torch.randn(2, 3, 128, 128))
    torch.save({"state_dict": detector.state_dict(), "meta": {}}, work / "weights.pth")
    return work


def test_export_names_the_packages_it_needs(monkeypatch, tmp_path):
    """After `make setup`, onnx is not installed: only exports need it."""
    monkeypatch.setitem(sys.modules, "onnx", None)
    files = tmp_path / "config.py", tmp_path / "weights.pth"
    files[0].write_text("model = dict(type='RTMDet')")
    files[1].touch()
    message = error_of("export", *map(str, files))
    assert "import of onnx" in message and 'pip install "dcnzoo[mmdet,onnx]"' in message


@pytest.mark.parametrize(("model", "file"), [("mine.py", "mine.onnx"), ("run.1/", "run.1.onnx")])
def test_a_file_is_named_after_its_model(tmp_path, monkeypatch, model, file):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.1").mkdir()
    for name in ("mine.py", "run.1/config.py", "weights.pth", file):
        (tmp_path / name).write_text("")
    weights = ["weights.pth"] if model == "mine.py" else []
    assert f"got {file};" in error_of("export", model, *weights), "a file of the user, which is not replaced"


def load(work):
    return dcnzoo.load(work / "config.py", checkpoint=work / "weights.pth", device="cpu")


@pytest.fixture(scope="module")
def exported(work):
    path = work / "model.onnx"
    files = [work / "config.py", work / "weights.pth", "--out", path]
    output = run("export", *files, "--verify", "--input-img", PICTURE)
    return path, output


def test_export_verifies(exported):
    path, output = exported
    assert "detections agree between PyTorch and the file" in output
    model = onnx.load(path)
    assert [o.name for o in model.graph.output] == ["dets", "labels", "box_masks"]
    assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}
    axes = [[d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in model.graph.input]
    assert axes == [["batch", 3, "height", "width"], ["sizes", 2]]


@pytest.fixture(scope="module")
def evaluated(exported, work):
    """The detections in each image from the evaluation of the exported file."""
    path, _ = exported
    run(
        "test", work / "config.py", path, "--work-dir", work / "logs", "--out", work / "onnx.pkl", "--eval",
        "bbox", "--eval", "segm", "--show-dir", work / "shown", "--show-score-thr", 0.1,
    )  # fmt: skip
    return pickle.loads((work / "onnx.pkl").read_bytes())


def test_evaluation_finds_what_pytorch_finds(evaluated, work):
    files = work / "config.py", work / "weights.pth"
    run("test", *files, "--work-dir", work / "logs", "--out", work / "torch.pkl")
    theirs, ours = pickle.loads((work / "torch.pkl").read_bytes()), evaluated
    assert len(theirs) == len(ours) == 5 and len(list((work / "shown").glob("*.png"))) == 5
    for a, b in zip(theirs, ours, strict=True):
        a, b = a["pred_instances"], b["pred_instances"]
        assert len(a["scores"]) == len(b["scores"]) > 10
        np.testing.assert_allclose(a["bboxes"], b["bboxes"], rtol=1e-3, atol=1e-2)
        assert (a["labels"] == b["labels"]).float().mean() >= 0.99


def test_the_file_alone_is_enough(exported, evaluated):
    """``Detector`` on the pictures, compared with MMDetection's test loop and pipeline."""
    path, _ = exported
    detector = Detector(path)
    assert detector.classes == CLASSES
    for sample in evaluated:
        ours, theirs = detector(sample["img_path"], score_threshold=0), sample["pred_instances"]
        assert len(ours) == len(theirs["scores"]) > 10
        np.testing.assert_allclose(ours.boxes, theirs["bboxes"], rtol=1e-4, atol=1e-3)
        np.testing.assert_allclose(ours.scores, theirs["scores"], atol=1e-5)
        np.testing.assert_array_equal(ours.labels, theirs["labels"])
        assert ours.masks.shape == (len(ours), 128, 128)


@pytest.mark.slow  # the two tests above compare the file with PyTorch
@pytest.mark.parametrize("ending", [".onnx", ".xml"])
def test_every_backend_detects_the_same(exported, evaluated, work, tmp_path, ending):
    path = exported[0]
    if ending == ".xml":
        pytest.importorskip("openvino")
        path = tmp_path / "model.xml"
        save_ir(exported[0], path)
    detectors = load(work), dcnzoo.load(path, device="cpu")
    assert detectors[1].classes == CLASSES and detectors[1].device == "cpu"
    pictures = sorted((work / "data/val").glob("*.png"))
    expected, results = (list(each(pictures)) for each in detectors)
    assert sum(map(len, expected)) > 20 and agreement(expected, results) >= 0.99
    assert all((a.masks == b.masks).mean() > 0.99 for a, b in zip(expected, results, strict=True))
    files = work / "data/annotations/val.json", work / "data/val"
    ours, theirs = (each.evaluate(files[0], images=files[1]) for each in detectors)
    assert theirs == pytest.approx(ours, abs=2e-3)


def test_exported_file_on_the_command_line(exported, work, tmp_path):
    models = [work / "config.py", "--checkpoint", work / "weights.pth"], [exported[0]]
    printed = [
        run("infer", *model[:1], PICTURE, *model[1:], "--out", tmp_path / model[0].stem) for model in models
    ]
    rows = [[line.split()[0] for line in text.splitlines()[2:-1]] for text in printed]
    assert rows[0] == rows[1] and rows[0]
    for option in ({"checkpoint": "x.pth"}, {"cfg_options": {"a": 1}}):
        with pytest.raises(
            ValueError, match=f"{next(iter(option))}: expected no value with an exported file"
        ):
            dcnzoo.load(exported[0], **option)


@pytest.mark.slow
def test_openvinos_format(work, tmp_path):
    pytest.importorskip("openvino")
    paths = [tmp_path / f"model.{ending}" for ending in ("xml", "bin")]
    files = work / "config.py", work / "weights.pth"
    for _ in range(2):
        output = run("export", *files, "--verify", "--output-file", paths[0], "--force")
    assert "detections agree" in output and ", ".join(map(str, paths)) in output
    assert set(tmp_path.glob("model*")) == set(paths)
    run("test", work / "config.py", paths[0], "--work-dir", tmp_path / "logs")
    result = Detector(paths[0])(PICTURE, score_threshold=0)
    assert len(result) > 0 and result.masks.shape[1:] == result.image.shape[:2]


@pytest.mark.slow
@pytest.mark.parametrize(("to", "option"), [("onnx", "--int8"), ("onnx", "--fp16"), ("openvino", "--int8")])
def test_smaller_files(tmp_path, to, option):
    """Weights take half or a quarter of the size, and a trained detector keeps its detections."""
    if to == "openvino":
        pytest.importorskip("openvino")
    path = tmp_path / ("model.xml" if to == "openvino" else "model.onnx")
    (tmp_path / "pictures").mkdir()
    pictures = [tmp_path / f"pictures/{i}.png" for i in range(12)]
    for i, picture in enumerate(pictures):
        cv2.imwrite(str(picture), draw_image(ShapesSpec(), "val", i)[0])
    images = [tmp_path / "pictures", "--num-images", 6] if option == "--int8" else []
    run("export", SHAPES, "--out", path, option, *images)
    size = sum(file.stat().st_size for file in tmp_path.glob("model*"))
    detector = dcnzoo.load(SHAPES, device="cpu")
    assert size < 0.75 * 4 * sum(parameter.numel() for parameter in detector.model.parameters())
    expected, found = list(detector(pictures)), list(Detector(path)(pictures))
    assert sum(map(len, expected)) > 20 and agreement(expected, found) >= 0.9


def graph_of(path, height, width):
    """Write a model that takes images of one size and detects nothing."""
    model = onnx.parser.parse_model(f"""<ir_version: 9, opset_import: ["": 19]>
        nothing (float[1, 3, {height}, {width}] input) => (float[1, 4, 5] dets, int64[1, 4] labels)
        <float[1, 4, 5] zeros = {{{", ".join("0" * 20)}}}, int64[1, 4] none = {{-1, -1, -1, -1}}> {{
            dets = Identity(zeros)
            labels = Identity(none)
        }}""")
    onnx.save(model, path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], r"model\.onnx: input: .*\(1, 3, 64, 96\) or smaller, got \(1, 3, 128"),
        (["--device", "npu"], "device: .*'npu'"),
    ],
)
def test_mistakes_in_evaluation_end_in_one_line(work, tmp_path, arguments, message):
    path = tmp_path / "model.onnx"
    graph_of(path, 64, 96)
    arguments = [work / "config.py", path, "--work-dir", tmp_path / "logs", *arguments]
    assert re.search(f"^error: .*{message}", error_of("test", *arguments))


def test_no_file_before_it_is_complete(work, tmp_path, monkeypatch):
    """An existing file stays unchanged until all requested steps succeed."""

    def write_graph(model, args, path, **options):
        graph_of(path, 64, 96)

    def fails(path):
        raise RuntimeError("cannot be converted")

    monkeypatch.setattr("dcnzoo.openmmlab.export.export.export_onnx", write_graph)
    monkeypatch.setattr("dcnzoo.export.writing.to_float16", fails)
    path = tmp_path / "model.onnx"
    path.write_bytes(b"what was there")
    files = [work / "config.py", work / "weights.pth", "--out", path]
    output = run("export", *files, "--shape", 128, 128, "--fp16", "--force", status=1)
    assert "error: cannot be converted" in output.splitlines()
    assert path.read_bytes() == b"what was there" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("content", [b"no model", None], ids=["damaged", "not computable"])
def test_a_smaller_file_is_run_before_it_replaces_another(content, work, tmp_path, monkeypatch):
    """It is not compared, and once was not even opened."""

    def convert(path):
        if content is not None:
            path.write_bytes(content)

    def write_graph(model, args, path, **options):
        graph_of(path, 64, 96)  # smaller than the input that the export says

    monkeypatch.setattr("dcnzoo.openmmlab.export.export.export_onnx", write_graph)
    monkeypatch.setattr("dcnzoo.export.writing.to_float16", convert)
    path, detector = tmp_path / "model.onnx", load(work)
    path.write_bytes(b"what was there")
    options = dict(shape=(128, 128), precision="float16", img_shape=None, force=True)
    with pytest.raises(ValueError, match=r"model\.onnx: |precision: expected a file that onnxruntime runs"):
        detector.export(path, **options)
    assert path.read_bytes() == b"what was there" and list(tmp_path.iterdir()) == [path]
    detector.export(path, verify=False, **options)
    assert path.read_bytes() != b"what was there"


def test_differences_fail(work, exported):
    """``verify`` with a file that differs from the model, in its network or in its preprocessing."""
    path, _ = exported
    detector, pictures, batches = load(work), [read(PICTURE)[:250]], []

    class Recorded(Detector):
        def __call__(self, images, **options):
            batches.append([image.shape[:2] for image in images])
            return super().__call__(images, **options)

    assert verify(detector, Recorded(path), pictures).holds
    wide, high = (250, 320), (320, 250)
    assert batches == [[wide], [high], [wide, high]]
    other = Detector(path)
    object.__setattr__(other._preprocessing, "rgb", not other._preprocessing.rgb)
    with torch.no_grad():
        detector.model.roi_head.bbox_head.fc_reg.bias += 0.3
    for changed in (Detector(path), other):
        with pytest.raises(ValueError, match=r"verify: expected 99 % .*: \d+ of \d+ "):
            verify(detector, changed, pictures)


def semi_supervised(teacher):
    detector = config("RetinaNet")
    preprocessor = detector["data_preprocessor"]
    settings = dict(
        type="SemiBaseDetector",
        detector=detector,
        semi_train_cfg={},
        semi_test_cfg=dict(predict_on="teacher"),
        data_preprocessor=dict(type="MultiBranchDataPreprocessor", data_preprocessor=preprocessor),
    )
    network = MODELS.build(settings).eval()
    network.teacher = teacher
    return network


@pytest.mark.parametrize("family", ["RetinaNet", pytest.param("Mask R-CNN", marks=pytest.mark.slow)])
def test_a_file_of_a_fixed_size(family, tmp_path):
    """A picture of another orientation is shrunk with a warning, but the comparison gives none."""
    steps = dict(type="Resize", scale=(128, 64), keep_ratio=True), dict(type="PackDetInputs")
    network, path = build(family), tmp_path / "model.onnx"
    if family == "RetinaNet":  # also of a semi-supervised detector, whose data preprocessor has no pad_value
        network = semi_supervised(network)
    detector = loaded(network, *steps)
    with pytest.warns(
        UserWarning, match=r"^shape: .*64 × 128 in place of 64 × 120: .* multiples of 32"
    ) as own:
        result = detector.export(path, shape=(64, 120), verify=PICTURE)
    assert not any("shrunk" in str(each.message) for each in own), "not of the export's own pictures"
    assert result.agreement.holds and result.agreement.number >= 100
    assert result.shape == (64, 128) and result.files == (path,)
    with pytest.warns(UserWarning, match="shrunk to the file's input, 64 × 128"):
        result.load()(np.zeros((90, 60, 3), np.uint8))


@pytest.mark.slow
def test_other_detectors_are_called_during_an_export(tmp_path):
    """Calls wait or run; their results and the file are right."""
    steps = dict(type="Resize", scale=(128, 96), keep_ratio=True), dict(type="PackDetInputs")
    detector, other = (loaded(build("RetinaNet"), *steps) for _ in range(2))
    picture, ended = read(PICTURE), threading.Event()
    expected, results = other(picture, score_threshold=0), []

    def serve():
        while not ended.is_set():
            results.append(other(picture, score_threshold=0))

    with ThreadPoolExecutor(1) as pool:
        served = pool.submit(serve)
        try:
            assert detector.export(tmp_path / "m.onnx", verify=PICTURE).agreement.holds
        finally:
            ended.set()
    served.result()
    assert results and all(np.allclose(each.boxes, expected.boxes, atol=1e-3) for each in results)


@pytest.mark.slow
def test_the_next_export_removes_what_a_killed_one_left(tmp_path):
    code = f"""
import os, sys
from dcnzoo.openmmlab.export import export
from tests.helpers.detectors import build, loaded
steps = dict(type="Resize", scale=(128, 96), keep_ratio=True), dict(type="PackDetInputs")
write = export.write_detector
export.write_detector = lambda *args, **kwargs: (write(*args, **kwargs), os._exit(9))
loaded(build("RetinaNet"), *steps).export({str(tmp_path / "m.onnx")!r}, verify=False)
"""
    python("-c", code, status=9, PYTHONPATH=str(ROOT))
    for path in [*tmp_path.rglob("*"), *tmp_path.iterdir()]:
        os.utime(path, (0, 0))
    assert [*tmp_path.iterdir()] and not (tmp_path / "m.onnx").exists()
    steps = dict(type="Resize", scale=(128, 96), keep_ratio=True), dict(type="PackDetInputs")
    (file,) = loaded(build("RetinaNet"), *steps).export(tmp_path / "m.onnx", verify=False).files
    assert [*tmp_path.iterdir()] == [file]


def test_pictures_without_their_size(exported):
    """A caller that passes only images gets detections of the whole input."""
    session = onnxruntime.InferenceSession(exported[0])
    images = np.random.default_rng(0).standard_normal((2, 3, 96, 128), np.float32)
    dets, labels, box_masks = session.run(None, {"input": images})
    pasted = paste(box_masks[0], dets[0, :, :4], (96, 128), 0.5).whole()
    assert pasted[labels[0] >= 0].any((1, 2)).mean() > 0.5
    same, *_ = session.run(None, {"input": images, "img_shape": np.array([[96, 128]] * 2)})
    smaller, *_ = session.run(None, {"input": images, "img_shape": np.array([[96, 128], [64, 64]])})
    np.testing.assert_array_equal(dets, same)
    np.testing.assert_array_equal(dets[0], smaller[0])
    assert smaller[1, :, :4].max() <= 64 < dets[1, :, :4].max()


@pytest.mark.slow
def test_forms_of_the_sizes(work, exported, tmp_path):
    """img_shape may have no default, as onnxruntime-web cannot feed inputs with one, or be left out."""
    session, detector = onnxruntime.InferenceSession(exported[0]), load(work)
    images = np.random.default_rng(0).standard_normal((2, 3, 96, 128), np.float32)
    sizes = {"img_shape": np.array([[96, 128], [64, 64]])}
    detector.export(tmp_path / "required.onnx", img_shape="required")
    graph = onnx.load(tmp_path / "required.onnx").graph
    assert [value.name for value in graph.input] == ["input", "img_shape"]
    assert "img_shape" not in {tensor.name for tensor in graph.initializer}
    required = onnxruntime.InferenceSession(tmp_path / "required.onnx")
    with pytest.raises(ValueError, match="img_shape"):
        required.run(None, {"input": images})
    for expected, output in zip(
        *(s.run(None, {"input": images, **sizes}) for s in (session, required)), strict=True
    ):
        np.testing.assert_array_equal(output, expected)
    assert detector.export(tmp_path / "none.onnx", img_shape=None, verify=PICTURE).agreement.holds
    unsized = onnxruntime.InferenceSession(tmp_path / "none.onnx")
    assert [value.name for value in unsized.get_inputs()] == ["input"]
    for expected, output in zip(*(s.run(None, {"input": images}) for s in (session, unsized)), strict=True):
        np.testing.assert_array_equal(output, expected)
    with pytest.warns(UserWarning, match="no input img_shape"):
        Session(tmp_path / "none.onnx")(images, sizes["img_shape"])
    with pytest.raises(ValueError, match=r"^img_shape: "):
        detector.export(tmp_path / "none.onnx", img_shape="never")
