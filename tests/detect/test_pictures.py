"""From a picture to a model's input and back, compared with MMDetection's pipeline and OpenCV."""

import struct
import sys

import cv2
import numpy as np
import pytest
import torch
from mmcv import transforms
from mmdet.models.data_preprocessors import DetDataPreprocessor
from mmdet.registry import TRANSFORMS
from mmengine.registry import init_default_scope
from PIL import Image

from dcnzoo.detect.outputs import MASK_THRESHOLD, rescale_detections
from dcnzoo.detect.pictures import read, resized
from dcnzoo.detect.preprocessing import Preprocessing
from dcnzoo.openmmlab.export.preprocessing import preprocessing_of

CLASSES = ("cat", "dog")
LOAD = dict(type="LoadImageFromFile")
PACK = dict(type="PackDetInputs", meta_keys=("ori_shape", "img_shape", "scale_factor"))
CASES = {
    "coco": (dict(scale=(133, 80), keep_ratio=True), dict(bgr_to_rgb=True, pad_size_divisor=32)),
    "enlarged": (dict(scale=(400, 300), keep_ratio=True), dict(bgr_to_rgb=False, pad_size_divisor=1)),
    "squeezed": (dict(scale=(60, 50), keep_ratio=False), dict(rgb_to_bgr=True, pad_size_divisor=1)),
    "one number": (dict(scale=70, keep_ratio=True), dict(bgr_to_rgb=True, pad_size_divisor=1)),
}
GREY = dict(img=(114.0, 100.0, 90.0))
PADS = {
    "YOLOX": dict(pad_to_square=True, pad_val=GREY),
    "divisor": dict(size_divisor=32),
    "size": dict(size=(190, 150), pad_val=dict(img=7)),
    "square, divisor": dict(pad_to_square=True, size_divisor=32, pad_val=GREY),
}


@pytest.fixture(scope="module")
def picture():
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (12, 20, 3)).astype(np.uint8)
    return cv2.resize(coarse, (171, 97), interpolation=cv2.INTER_CUBIC)


def described(resize, settings, pad=None):
    preprocessor = DetDataPreprocessor(mean=[10.0, 20, 30], std=[50.0, 60, 70], **settings)
    pipeline = [LOAD, dict(type="Resize", **resize), dict(type="LoadAnnotations"), PACK]
    if pad is not None:
        pipeline.insert(2, dict(type="Pad", **pad))
    return pipeline, preprocessor, preprocessing_of(pipeline, preprocessor, CLASSES)


def run_pipeline(pipeline, path):
    init_default_scope("mmdet")
    results = dict(img_path=str(path))
    for step in pipeline:
        if step["type"] != "LoadAnnotations":
            results = TRANSFORMS.build(step)(results)
    return results


def assert_near(inputs, expected):
    """Compare within one grey level, because OpenCV computes in whole numbers."""
    difference = np.abs(inputs - expected.numpy())
    assert difference.max() <= 1.01 / 50 and difference.mean() <= 0.15 / 50


@pytest.mark.parametrize("upright", [False, True])
@pytest.mark.parametrize(
    "case", [*CASES.values(), *[(*CASES["coco"], pad) for pad in PADS.values()]], ids=[*CASES, *PADS]
)
def test_input_is_that_of_the_test_pipeline(case, upright, picture, tmp_path):
    cv2.imwrite(str(tmp_path / "p.png"), picture.transpose(1, 0, 2) if upright else picture)
    pipeline, preprocessor, ours = described(*case)
    results = run_pipeline(pipeline, tmp_path / "p.png")
    expected = preprocessor({"inputs": [results["inputs"]], "data_samples": [results["data_samples"]]})
    inputs, size = ours(read(tmp_path / "p.png"))
    seen, given = results["data_samples"].img_shape, results["data_samples"].ori_shape
    factor = results["data_samples"].scale_factor
    assert size == (round(given[0] * factor[1]), round(given[1] * factor[0]))
    assert ours.padded(size) == seen
    assert inputs.dtype == np.float32 and inputs.shape == tuple(expected["inputs"].shape)
    assert_near(inputs, expected["inputs"])


@pytest.mark.parametrize("to_rgb", [False, True])
@pytest.mark.parametrize("pad", [None, "before", "after"])
def test_normalised_in_the_pipeline(picture, tmp_path, to_rgb, pad):
    steps = [dict(type="Normalize", mean=[10.0, 20, 30], std=[50.0, 60, 70], to_rgb=to_rgb)]
    if pad:
        value = dict(img=(0.5, 1, 2.0) if pad == "after" else (114.0, 100, 90))
        steps.insert(len(steps) * (pad == "after"), dict(type="Pad", size_divisor=32, pad_val=value))
    pipeline = [LOAD, dict(type="Resize", **CASES["coco"][0]), *steps, PACK]
    cv2.imwrite(str(tmp_path / "p.png"), picture)
    inputs, _ = preprocessing_of(pipeline, DetDataPreprocessor(), CLASSES)(read(tmp_path / "p.png"))
    assert_near(inputs[0], run_pipeline(pipeline, tmp_path / "p.png")["inputs"])
    for twice in (dict(mean=[1.0, 2, 3], std=[1.0, 1, 1]), dict(bgr_to_rgb=True)):
        with pytest.raises(ValueError, match="data_preprocessor: cannot be stored"):
            preprocessing_of(pipeline, DetDataPreprocessor(**twice), CLASSES)


def test_metadata_holds_all(picture):
    _, _, ours = described(*CASES["coco"])
    again = Preprocessing.from_metadata(ours.to_metadata())
    assert again == ours and again.classes == CLASSES
    np.testing.assert_array_equal(again(picture)[0], ours(picture)[0])
    for metadata in ({}, *({"dcnzoo": text} for text in ("no json", "[1]", '{"mean": [1, 2, 3]}'))):
        with pytest.raises(ValueError, match="detector"):
            Preprocessing.from_metadata(metadata)


RESIZE = dict(type="Resize", scale=(133, 80), keep_ratio=True)
STORED = {  # steps after or in place of LOAD, and settings of the data preprocessor
    "Pillow": [dict(RESIZE, backend="pillow")],  # BoxInst and CondInst
    "float32": [dict(LOAD, to_float32=True), RESIZE],  # Mask2Former
    "names": [dict(type="mmcv.LoadImageFromFile"), dict(RESIZE, type="mmcv.Resize")],
    "classes": [dict(type=transforms.LoadImageFromFile), dict(RESIZE, type=transforms.Resize)],
    "defaults": [dict(RESIZE, clip_object_border=False, interpolation="bilinear")],
    "never": [RESIZE, dict(type="RandomFlip", prob=0.0), dict(type="LoadAnnotations", with_mask=True)],
    "server": [dict(LOAD, backend_args=dict(backend="petrel")), RESIZE],
    "YOLOX": [dict(RESIZE, scale=(64, 64)), dict(type="Pad", pad_to_square=True, pad_val=GREY)],
}


@pytest.mark.parametrize("steps", STORED.values(), ids=STORED)
@pytest.mark.parametrize("settings", [{}, dict(pad_value=114, pad_size_divisor=32)], ids=["", "grey"])
def test_stored_as_the_pipeline_reads(steps, settings, picture, tmp_path):
    steps = steps if "Load" in str(steps[0]["type"]) else [LOAD, *steps]
    preprocessor = DetDataPreprocessor(mean=[10.0, 20, 30], std=[50.0, 60, 70], bgr_to_rgb=True, **settings)
    ours = preprocessing_of([*steps, PACK], preprocessor, CLASSES)
    ours = Preprocessing.from_metadata(ours.to_metadata())
    local = [{key: value for key, value in step.items() if key != "backend_args"} for step in [*steps, PACK]]
    for size in ((97, 171), (300, 90), (80, 133)):
        cv2.imwrite(str(tmp_path / "p.png"), cv2.resize(picture, size[::-1]))
        results = run_pipeline(local, tmp_path / "p.png")
        expected = preprocessor({"inputs": [results["inputs"]], "data_samples": [results["data_samples"]]})
        np.testing.assert_allclose(ours(read(tmp_path / "p.png"))[0], expected["inputs"], atol=1e-5)


class Darker(transforms.BaseTransform):
    """A user's step, which changes only large pictures."""

    def transform(self, results):
        if results["img"].shape[0] > 1000:
            results["img"] = results["img"] // 2
        return results


@pytest.mark.parametrize(
    ("step", "word"),
    [
        (dict(type="Pad", size_divisor=32, padding_mode="edge"), "Pad"),
        (dict(type="RandomFlip", prob=0.5), "RandomFlip"),
        (dict(type="Resize", scale=(8, 8), interpolation="area"), "Resize: interpolation='area' cannot"),
        (dict(type="Resize", scale_factor=0.5), "scale_factor"),
        (dict(type="PhotoMetricDistortion"), "PhotoMetric"),
        (dict(type="CLAHE"), "CLAHE"),
        (dict(type="FixShapeResize", width=64, height=64), "FixShapeResize"),
        (dict(type=Darker), "Darker"),
        (dict(type="TestTimeAug", transforms=[[RESIZE], [PACK]]), "TestTimeAug"),
    ],
)
def test_what_cannot_be_described(step, word):
    with pytest.raises(ValueError, match=rf"test_pipeline: .*{word}"):
        preprocessing_of([LOAD, step, PACK], DetDataPreprocessor(), CLASSES)


def test_two_resizes_are_refused():
    """MMDetection divides boxes by the factor of the second resize only, so its own boxes are misplaced."""
    with pytest.raises(ValueError, match=r"Resize.* cannot be stored"):
        preprocessing_of([LOAD, RESIZE, RESIZE, PACK], DetDataPreprocessor(), CLASSES)


PAD = dict(type="Pad", size_divisor=32)


@pytest.mark.parametrize("second", [RESIZE, PAD])
def test_steps_after_padding_are_refused(second):
    """The file resized first: an input of 96 × 160 in place of MMDetection's 80 × 120."""
    with pytest.raises(ValueError, match=rf"{second['type']}: the step after Pad cannot be stored"):
        preprocessing_of([LOAD, PAD, second, PACK], DetDataPreprocessor(), CLASSES)


@pytest.mark.parametrize(
    ("limit", "size"),
    [((None, None), (75, 133)), ((60, 200), (60, 106)), ((200, 50), (28, 50)), ((75, 133), (75, 133))],
)
def test_a_fixed_size_is_fitted_into(limit, size, picture):
    """The picture gets at most the pipeline's size and the graph's size; padding fills the rest."""
    _, _, ours = described(*CASES["coco"])
    inputs, found = ours(picture, limit)
    assert found == size
    padded = tuple(n if most else -(-n // 32) * 32 for n, most in zip(size, limit, strict=True))
    assert inputs.shape == (1, 3, *padded)


def test_padding_is_fitted_into_a_fixed_size(picture):
    _, _, ours = described(*CASES["coco"], PADS["YOLOX"])
    inputs, size = ours(picture, (64, 64))
    assert size == (36, 64) and inputs.shape == (1, 3, 64, 64)
    grey = (np.array(GREY["img"])[::-1] - [10, 20, 30]) / [50, 60, 70]
    np.testing.assert_allclose(inputs[0, :, 36:].reshape(3, -1).T, np.tile(grey, (28 * 64, 1)), rtol=1e-5)


def test_without_normalisation_or_resize(picture):
    ours = preprocessing_of([LOAD, PACK], DetDataPreprocessor(), CLASSES)
    inputs, size = ours(picture)
    np.testing.assert_array_equal(inputs[0], picture.transpose(2, 0, 1))
    assert size == picture.shape[:2]


@pytest.mark.parametrize("size", [(97, 171), (200, 31), (13, 400), (1, 1)])
def test_resized_as_opencv(size, picture):
    image = picture.astype(np.float32)
    expected = cv2.resize(image, size[::-1])
    np.testing.assert_allclose(resized(image, size), expected, atol=1e-2)
    region = (slice(2, 9), slice(size[1] // 2, None))
    np.testing.assert_allclose(resized(image, size, region), expected[region], atol=1e-2)


def test_masks_are_resized_as_a_whole_would_be():
    """Masks are resized only around each box, with the same result."""
    rng = np.random.default_rng(1)
    size, picture_size = (40, 56), (97, 171)
    boxes = np.array([[3.2, 4.1, 30.7, 22.9], [0, 0, 56, 40], [50, 30, 60, 45], [7, 7, 7, 7]], np.float32)
    soft = np.zeros((5, 64, 64), np.uint8)
    for mask, (x1, y1, x2, y2) in zip(soft, boxes.round().astype(int), strict=False):
        mask[y1:y2, x1:x2] = rng.integers(0, 256, (y2 - y1, x2 - x1))
    outputs = {
        "dets": np.concatenate([np.r_[boxes, np.zeros((1, 4))], np.full((5, 1), 0.5)], 1).astype(np.float32),
        "labels": np.array([1, 0, 1, 0, -1]),
        "masks": soft,
    }
    found = rescale_detections(outputs, size, picture_size, {MASK_THRESHOLD: "0.5"})
    assert len(found) == 4 and found.masks.shape == (4, *picture_size) and found.masks.dtype == bool
    for mask, whole in zip(found.masks, soft, strict=False):
        expected = cv2.resize(whole[:40, :56].astype(np.float32), picture_size[::-1]) >= 127.5
        assert (mask != expected).mean() < 1e-3
    assert found.masks[1].any() and not found.masks[3].any()
    np.testing.assert_allclose(found.boxes[0], boxes[0] * np.array([171 / 56, 97 / 40] * 2), rtol=1e-6)
    # MMDetection does not clip YOLOv3's boxes to the image; clipping costs 0.1 AP
    np.testing.assert_allclose(found.boxes[2], boxes[2] * np.array([171 / 56, 97 / 40] * 2), rtol=1e-6)
    lower = rescale_detections(outputs, size, picture_size, {MASK_THRESHOLD: "0.2"})
    assert lower.masks[0].sum() > found.masks[0].sum()


def test_pillow_reads_what_opencv_reads(picture, tmp_path, monkeypatch):
    (tmp_path / "text.jpg").write_text("no picture")
    (tmp_path / "empty.jpg").write_text("")
    cv2.imwrite(str(tmp_path / "p.png"), picture)
    deep = picture[..., 0].astype(np.uint16) * 256 + 3
    cv2.imwrite(str(tmp_path / "16.png"), deep)
    for _ in ("OpenCV", "Pillow"):
        np.testing.assert_array_equal(read(tmp_path / "p.png"), picture)
        np.testing.assert_array_equal(read(tmp_path / "16.png"), picture[..., :1].repeat(3, 2))
        for name in ("text.jpg", "empty.jpg"):
            with pytest.raises(ValueError, match=rf"image: .*{name}"):
                read(tmp_path / name)
        # the header of an image of 60,000 × 60,000 pixels
        (tmp_path / "huge.bmp").write_bytes(
            struct.pack("<2sIHHI", b"BM", 122, 0, 0, 54)
            + struct.pack("<IiiHHIIiiII", 40, 60_000, 60_000, 1, 24, 0, 0, 0, 0, 0, 0)
        )
        with pytest.raises(ValueError, match=r"image: .*huge.bmp.*3600000000"):
            read(tmp_path / "huge.bmp")
        with pytest.raises(FileNotFoundError):
            read(tmp_path / "none.jpg")
        monkeypatch.setitem(sys.modules, "cv2", None)
    turned = Image.fromarray(deep)
    turned.getexif()[0x0112] = 6  # EXIF: to be turned clockwise by 90 degrees
    turned.save(tmp_path / "turned.png", exif=turned.getexif())
    expected = np.rot90(picture[..., :1], -1).repeat(3, 2)
    np.testing.assert_array_equal(read(Image.open(tmp_path / "turned.png")), expected)
    for image, got in (
        (picture[..., :2], r"\[97, 171, 2\], uint8"),
        (picture.astype(float), r"\[97, 171, 3\], float64"),
        (picture[:0], r"\[0, 171, 3\], uint8"),
        (torch.zeros(3), r"\[3\]"),
        (torch.full((3, 4, 5), 1.5), r"\[4, 5, 3\], float32"),
        (Image.new("F", (4, 4)), "the mode F"),
        (3, "int"),
    ):
        with pytest.raises(ValueError, match=rf"image: .*got {got}"):
            read(image)


def test_masks_without_boxes():
    """Masks are not cut to boxes: SOLO's boxes are zeros, and RTMDet's masks reach beyond their boxes."""
    mask = np.zeros((1, 8, 8), np.uint8)
    mask[0, 2:5, 3:6] = 255
    outputs = {"dets": np.array([[0, 0, 0, 0, 0.5]], np.float32), "labels": np.array([0]), "masks": mask}
    np.testing.assert_array_equal(rescale_detections(outputs, (8, 8), (8, 8), {}).masks, mask > 0)
