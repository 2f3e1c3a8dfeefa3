"""``dcnzoo.load``: one interface for the zoo, for configs, for work directories and for exported files."""

import shutil

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

import dcnzoo
from dcnzoo.data.shapes import CLASSES, ShapesSpec, draw_image
from dcnzoo.export.picture import Detections
from dcnzoo.utils.errors import UserError
from dcnzoo.zoo import download, find

from .commands import error_of, run

MODEL = "mask-rcnn_r14-mdconv_fpn_8e_shapes"
THRESHOLD = 0.5


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three pictures."""
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(3):
        cv2.imwrite(str(folder / f"{number}.png"), draw_image(ShapesSpec(), "val", number)[0])
    return folder


@pytest.fixture(scope="module")
def detector():
    return dcnzoo.load(MODEL, device="cpu")


def assert_equal(one, other, **tolerance):
    assert one.names == other.names and len(one) > 1
    np.testing.assert_allclose(one.boxes, other.boxes, **tolerance)
    np.testing.assert_allclose(one.scores, other.scores, **tolerance)
    assert (one.masks == other.masks).mean() > 0.999


def test_the_objects_of_a_picture(detector, folder, tmp_path):
    result = detector(folder / "0.png", score_threshold=THRESHOLD)
    assert detector.device == "cpu" and isinstance(detector.model, torch.nn.Module)
    assert detector.classes == result.classes == CLASSES
    _, truth = draw_image(ShapesSpec(), "val", 0)
    names = [CLASSES[each["label"]] for each in truth]
    assert sorted(result.names) == sorted(names)
    counts = (f"{names.count(name)} {name}" for name in set(names))
    assert all(count in repr(result) for count in counts)
    assert (np.diff(result.scores) <= 0).all() and result.scores.min() >= THRESHOLD
    assert result.masks.shape == (len(result), 128, 128)
    assert np.array_equal(result.image, cv2.imread(str(folder / "0.png"))[..., ::-1])
    result.save(tmp_path / "out.jpg")
    drawn = np.asarray(Image.open(tmp_path / "out.jpg"))
    assert drawn.shape == (600, 600, 3) and np.asarray(result.draw()).shape == drawn.shape
    x1, y1, x2, _ = (result.boxes[0] * 600 / 128).astype(int)
    plain = np.asarray(Image.fromarray(result.image).resize((600, 600), Image.Resampling.NEAREST))
    edge = np.abs(drawn[y1, x1:x2].astype(int) - plain[y1, x1:x2]).max(-1)
    assert (edge > 20).mean() > 0.5, "the edge of the box is drawn"
    with pytest.raises(ValueError, match=r"x\.txt"):
        result.save(tmp_path / "x.txt")


def test_coco(detector, folder):
    from pycocotools.mask import decode

    first, second = detector([folder / "0.png", folder / "1.png"])
    content = second.to_coco(first.to_coco())
    assert [image["file_name"] for image in content["images"]] == [first.path, second.path]
    assert content["categories"][2] == {"id": 3, "name": CLASSES[2]}
    annotations = [each for each in content["annotations"] if each["image_id"] == 2]
    assert [each["category_id"] - 1 for each in annotations] == second.labels.tolist()
    assert [each["id"] for each in content["annotations"]] == [*range(1, len(first) + len(second) + 1)]
    for annotation, box, mask in zip(annotations, second.boxes, second.masks, strict=True):
        x, y, width, height = annotation["bbox"]
        np.testing.assert_allclose([x, y, x + width, y + height], box, rtol=1e-6)
        assert np.array_equal(decode(annotation["segmentation"]), mask)


def test_inputs(detector, folder, tmp_path):
    """A picture in every form gives the same objects."""
    path = folder / "0.png"
    expected = detector(str(path))
    bgr = cv2.imread(str(path))
    rgb = np.ascontiguousarray(bgr[..., ::-1])
    planes = torch.from_numpy(rgb).permute(2, 0, 1)
    for image in (Image.open(path), rgb, planes, planes / 255):
        assert_equal(detector(image), expected)
    assert_equal(detector(bgr, bgr=True), expected)
    assert expected.path == str(path) and detector(rgb).path == ""
    several = [*detector([path, rgb], batch_size=2)]
    assert_equal(several[1], expected, rtol=1e-4)
    for images in (folder, str(folder / "*.png")):
        assert [result.path for result in detector(images)] == [str(folder / f"{i}.png") for i in range(3)]
    video = cv2.VideoWriter(str(tmp_path / "x.avi"), cv2.VideoWriter_fourcc(*"FFV1"), 5, (128, 128))
    if video.isOpened():
        for _ in range(2):
            video.write(bgr)
        video.release()
        frames = [*detector(tmp_path / "x.avi")]
        assert len(frames) == 2
        assert_equal(frames[1], expected, rtol=0.05)


def test_choice_of_objects(detector, folder):
    whole = detector(folder / "0.png")
    name = whole.names[-1]
    chosen = detector(folder / "0.png", classes=[name])
    assert set(chosen.names) == {name} and len(chosen) == whole.names.count(name)
    few = detector(folder / "0.png", max_detections=2)
    np.testing.assert_array_equal(few.scores, whole.scores[:2])
    with pytest.raises(ValueError, match=r"classes: .*got zebra"):
        detector(folder / "0.png", classes=["zebra"])
    none = detector(folder / "0.png", score_threshold=1.1)
    assert not len(none) and none.names == [] and none.to_coco()["annotations"] == [] and none.draw()


def test_work_directory(detector, folder, tmp_path):
    """The newest config and the last checkpoint; a folder without them is an error."""
    shutil.copy(find(MODEL).config, tmp_path / "config.py")
    with pytest.raises(UserError, match=r"checkpoint: .*weights"):
        dcnzoo.load(tmp_path)
    shutil.copy(download(MODEL), tmp_path / "epoch_8.safetensors")
    (tmp_path / "last_checkpoint").write_text("/moved/since/epoch_8.safetensors")
    (tmp_path / "config.py").write_text(
        (tmp_path / "config.py").read_text().replace("'./", f"'{find(MODEL).config.parent}/")
    )
    assert_equal(dcnzoo.load(tmp_path)(folder / "0.png"), detector(folder / "0.png"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"model: .*empty"):
        dcnzoo.load(tmp_path / "empty")


def test_unknown_labels_are_numbers():
    result = Detections(np.zeros((2, 4)), np.ones(2), np.array([1, 7]), classes=("a", "b"))
    assert result.names == ["b", "7"] and repr(result) == "Detections(1 b, 1 7)"


@pytest.mark.slow
def test_exported_file(detector, folder, tmp_path):
    """PyTorch and onnxruntime detect the same in the same picture, from the same command line and calls."""
    pytest.importorskip("onnxruntime")
    path = tmp_path / "model.onnx"
    run("export", MODEL, "--out", path, "--dynamic-export")
    exported = dcnzoo.load(path, device="cpu")
    assert exported.classes == detector.classes and exported.device == "cpu"
    for name in ("0.png", "1.png"):
        one, other = (each(folder / name, score_threshold=THRESHOLD) for each in (detector, exported))
        assert_equal(one, other, rtol=1e-3, atol=1e-2)
    printed = [run("infer", each, folder / "1.png", "--out", tmp_path / "out") for each in (MODEL, path)]
    rows = [[line.split()[0] for line in text.splitlines()[2:-1]] for text in printed]
    assert rows[0] == rows[1] and rows[0]
    for option in ({"checkpoint": "x.pth"}, {"cfg_options": {"a": 1}}):
        with pytest.raises(ValueError, match=f"{next(iter(option))}: expected none with an exported file"):
            dcnzoo.load(path, **option)
    assert str(path) in error_of("explain", path, folder / "0.png", status=2)
