"""dcnzoo export, and dcnzoo test on the exported file."""

import json
import pickle
import re
import sys

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope

import dcnzoo
from dcnzoo.cli import export
from dcnzoo.data.shapes import CLASSES
from dcnzoo.detect.session import Session
from dcnzoo.export import Detector
from dcnzoo.openmmlab.export import inputs
from dcnzoo.ops import has_ops
from dcnzoo.utils.errors import UserError
from tests.commands import error_of, run
from tests.test_tools import ROOT, tiny

from .detectors import calibrate

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

CONFIG = ROOT / "configs/demo/mask-rcnn_r14-mdconv_fpn_8e_shapes.py"


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with the demo's config for a data set of 5 images, and a checkpoint that detects objects."""
    from mmdet.registry import MODELS

    work = tmp_path_factory.mktemp("deployment")
    cfg = Config.fromfile(CONFIG)
    for setting in tiny(work / "data", train=1, val=5)[1:]:
        key, value = setting.split("=")
        cfg.merge_from_dict({key: int(value) if value.isdigit() else value})
    cfg.merge_from_dict({"model.test_cfg.rcnn.score_thr": 0.05, "test_dataloader.batch_size": 1})
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
    for file in files:
        file.touch()
    message = error_of("export", *map(str, files), "--simplify")
    assert "import of onnx" in message and 'pip install "dcnzoo[onnx]"' in message


def load(work):
    return dcnzoo.load(work / "config.py", checkpoint=work / "weights.pth", device="cpu").model


@pytest.fixture(scope="module")
def exported(work):
    path = work / "model.onnx"
    files = [work / "config.py", work / "weights.pth", "--out", path]
    output = run("export", *files, "--simplify", "--verify", "--show")
    return path, output


@pytest.mark.parametrize(
    ("shape", "size", "pad", "expected"),
    [
        (None, (200, 100), None, (64, 128)),  # the test pipeline's scale
        (None, (100, 200), None, (128, 64)),
        (None, (200, 100), dict(type="Pad", pad_to_square=True, pad_val=dict(img=114)), (128, 128)),
        (None, None, None, (128, 128)),  # the size of the generated image
        ((90, 200), (200, 100), None, (96, 224)),  # the requested shape, padded to a multiple of 32
    ],
)
def test_input_size(work, tmp_path, shape, size, pad, expected):
    path = None
    if size is not None:
        path = str(tmp_path / "image.png")
        cv2.imwrite(path, np.random.default_rng(0).integers(0, 255, (*size[::-1], 3)).astype(np.uint8))
    detector = load(work)
    cfg = detector.cfg
    if pad is not None:
        cfg.test_dataloader.dataset.pipeline.insert(2, pad)
    found = inputs.find_preprocessing(cfg, detector)
    picture = inputs.read_picture(path, found, shape)
    assert inputs.input_shape(found, picture, shape) == expected
    resized, images, area = inputs.model_input(detector, found, picture, expected)
    assert images.shape == (1, 3, *expected)
    if size is not None:  # the aspect ratio is kept
        assert resized.shape[1] / resized.shape[0] == pytest.approx(size[0] / size[1], rel=0.02)
    assert area == (expected if pad else resized.shape[:2])
    if not pad:
        assert inputs.model_input(detector, found, picture, (128, 96), filled=True)[2] == (128, 96)


def test_export_verifies_and_draws(exported):
    path, output = exported
    assert "detections agree between PyTorch and onnxruntime" in output
    assert f"drawn: {path.with_suffix('.png')}" in output
    assert cv2.imread(str(path.with_suffix(".png"))).std() > 10
    model = onnx.load(path)
    assert [o.name for o in model.graph.output] == ["dets", "labels", "masks"]
    assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}


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
    common = ["--work-dir", work / "logs", "--out", work / "torch.pkl"]
    run("test", work / "config.py", work / "weights.pth", *common)
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


def soft_teacher(work, folder):
    """Write a config and a checkpoint: the teacher is the detector of ``work``, the student finds nothing."""
    cfg, folder = Config.fromfile(work / "config.py"), folder / "soft_teacher"
    folder.mkdir()
    preprocessor = dict(type="MultiBranchDataPreprocessor", data_preprocessor=cfg.model.data_preprocessor)
    cfg.model = dict(
        type="SoftTeacher", detector=cfg.model, data_preprocessor=preprocessor, semi_train_cfg={},
        semi_test_cfg=dict(predict_on="teacher"),
    )  # fmt: skip
    cfg.dump(folder / "config.py")
    weights = torch.load(work / "weights.pth")["state_dict"]
    parts = {"teacher": weights, "student": {key: torch.zeros_like(value) for key, value in weights.items()}}
    both = {f"{part}.{key}": value for part, values in parts.items() for key, value in values.items()}
    torch.save({"state_dict": both, "meta": {}}, folder / "weights.pth")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("semi", [False, True], ids=["Mask R-CNN", "Soft Teacher"])
def test_open_sizes_are_verified(work, tmp_path, semi):
    """Batches of two, another size and the other orientation."""
    folder = soft_teacher(work, tmp_path) if semi else work
    files = [folder / "config.py", folder / "weights.pth", "--out", tmp_path / "model.onnx"]
    output = run("export", *files, "--dynamic-export", "--verify")
    found = re.search(r"(\d+) of (\d+) detections agree between PyTorch and onnxruntime", output)
    assert int(found[2]) > 300, "100 in each of five images"


@pytest.mark.slow
def test_openvino(work, tmp_path):
    pytest.importorskip("openvino")
    path = tmp_path / "model.xml"
    files = work / "config.py", work / "weights.pth"
    output = run("export", *files, "--dynamic-export", "--verify", "--out", path)
    assert "agree between PyTorch and openvino" in output and f"{path}, {tmp_path / 'model.bin'}" in output
    assert sorted(file.name for file in tmp_path.glob("model*")) == ["model.bin", "model.xml"]
    run("test", work / "config.py", path, "--work-dir", tmp_path / "logs")
    detector = Detector(path, "openvino")
    assert detector.classes and len(detector(np.full((90, 120, 3), 99, np.uint8), score_threshold=0)) > 0


@pytest.mark.slow
def test_aotinductor(work, tmp_path):
    if not has_ops():
        pytest.skip("the operators are not compiled")
    path = tmp_path / "model.pt2"
    output = run("export", work / "config.py", work / "weights.pth", "--verify", "--out", path)
    assert "agree between PyTorch and aotinductor" in output
    assert [file.name for file in tmp_path.glob("model*")] == ["model.pt2"]
    run("test", work / "config.py", path, "--work-dir", tmp_path / "logs")
    found = Detector(path)(ROOT / "tests/data/color.jpg", score_threshold=0)
    assert len(found) > 0 and found.masks.shape[1:] == found.image.shape[:2]


@pytest.mark.slow
@pytest.mark.parametrize(("to", "option"), [("onnx", "--int8"), ("onnx", "--fp16"), ("openvino", "--int8")])
def test_smaller_files(exported, work, tmp_path, to, option):
    """Half or a quarter of the size, and the confident detections of the float32 file."""
    if to == "openvino":
        pytest.importorskip("openvino")
    whole, _ = exported
    path = tmp_path / ("model.xml" if to == "openvino" else "model.onnx")
    images = [ROOT / "tests/data"] if option == "--int8" else []
    files = work / "config.py", work / "weights.pth"
    run("export", *files, "--out", path, option, *images, "--num-images", 5)
    size = sum(file.stat().st_size for file in tmp_path.glob("model*"))
    assert size < 0.75 * whole.stat().st_size
    picture = ROOT / "tests/data/color.jpg"
    expected = Detector(whole)(picture, score_threshold=0)
    found = Detector(path)(picture, score_threshold=0)
    near = np.abs(found.boxes[:, None] - expected.boxes[:20]).max(-1) < 0.05 * max(found.masks.shape[1:])
    near &= found.labels[:, None] == expected.labels[:20]
    assert near.any(0).mean() >= 0.7


@pytest.mark.slow
def test_coco_format(exported, work):
    path, _ = exported
    run(
        "test", work / "config.py", path, "--work-dir", work / "logs", "--format-only", "--out",
        work / "results.json",
    )  # fmt: skip
    boxes, masks = (json.loads((work / f"results.{kind}.json").read_text()) for kind in ("bbox", "segm"))
    assert len(boxes) == len(masks) > 50
    assert masks[0]["segmentation"]["size"] == [128, 128]


MISTAKES = [
    (2, ["--opset-version", 17], "--opset-version.* 17"),
    (2, ["--out", "model.pth"], r"--out.*\.onnx.* got model\.pth"),
    (2, ["--shape", 0, 2], "--shape"),
    (2, ["--skip-postprocess", "--verify", "--show"], "--show: .*--skip-postprocess"),
    (2, ["--out", "model.pt2", "--dynamic-export"], r"--dynamic-export: .*model\.pt2"),
    (2, ["--int8", "images", "--fp16"], "--int8: .*--fp16"),
    (2, ["--int8", "images", "--verify"], "--verify: .*--int8"),
    (1, ["--int8", "nowhere"], "--int8: .*nowhere"),
    (1, ["--opset-version", 18, "--deform-conv", "native"], "19 for deform_conv='native', got 18"),
    (1, ["--test-img", "nowhere.jpg"], "image: .*nowhere.jpg"),
    (1, ["--skip-postprocess"], "skip_postprocess: .*got MaskRCNN"),
    (1, ["--cfg-options", "model.backbone.base_channels=24"], r"weights\.pth: .*found \d+ .*\(backbone\."),
    (1, ["--cfg-options", "test_dataloader.dataset.pipeline.1.type=PhotoMetricDistortion"], "PhotoMetricDis"),
]


@pytest.mark.parametrize(("status", "arguments", "message"), MISTAKES)
def test_mistakes_end_in_one_line(work, tmp_path, status, arguments, message):
    files = [work / "config.py", work / "weights.pth", "--out", tmp_path / "no.onnx"]
    shape = [] if "PhotoMetricDis" in message or "--shape" in arguments else ["--shape", 128, 128]
    assert re.search(message, error_of("export", *files, *shape, *arguments, status=status))
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_that_is_none(work, tmp_path):
    (tmp_path / "broken.pth").write_bytes(b"no checkpoint")
    message = error_of("export", work / "config.py", tmp_path / "broken.pth", "--out", tmp_path / "no.onnx")
    assert re.match(r"error: .*broken\.pth: ", message) and len(message) < 300


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
    ("content", "arguments", "message"),
    [
        (b"no model", [], r"model\.onnx: "),
        (None, [], r"model\.onnx: input: .*\(1, 3, 64, 96\) or smaller, got \(1, 3, 128"),
        (None, ["--device", "npu"], "device: .*'npu'"),
        (None, ["--eval", "bboxes"], "metric.*bboxes"),
    ],
)
def test_mistakes_in_evaluation_end_in_one_line(work, tmp_path, content, arguments, message):
    path = tmp_path / "model.onnx"
    graph_of(path, 64, 96) if content is None else path.write_bytes(content)
    arguments = [work / "config.py", path, "--work-dir", tmp_path / "logs", *arguments]
    assert re.search(f"^error: .*{message}", error_of("test", *arguments))


def test_no_file_before_it_is_simplified(work, tmp_path, monkeypatch):
    """An existing file stays unchanged until all requested steps succeed."""
    import onnxslim

    import dcnzoo.openmmlab.export.detectors

    def write_graph(detector, images, path, **options):
        graph_of(path, 64, 96)

    def fails(path):
        raise RuntimeError("cannot be simplified")

    monkeypatch.setattr(dcnzoo.openmmlab.export.detectors, "export_detector", write_graph)
    monkeypatch.setattr(onnxslim, "slim", fails)
    path = tmp_path / "model.onnx"
    path.write_bytes(b"what was there")
    files = [work / "config.py", work / "weights.pth", "--out", path]
    message = error_of("export", *files, "--shape", 128, 128, "--simplify")
    assert message == "error: cannot be simplified"
    assert path.read_bytes() == b"what was there" and list(tmp_path.iterdir()) == [path]


def test_a_difference_fails(work, exported):
    """``--verify`` with a graph that differs from the model."""
    path, _ = exported
    detector = load(work)
    found = inputs.find_preprocessing(detector.cfg, detector)
    picture = inputs.read_picture(str(ROOT / "tests/data/color.jpg"), found)
    samples = [inputs.model_input(detector, found, picture, (128, 128))]

    def compare():
        return export._compare_detections(detector, Session(path), samples, "onnxruntime", "color.jpg", None)

    assert "agree" in compare()
    with torch.no_grad():
        detector.roi_head.bbox_head.fc_reg.bias += 0.3
    with pytest.raises(UserError, match=r"--verify: expected 99 % of the detections to agree: \d of \d+ "):
        compare()
