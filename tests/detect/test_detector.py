"""``dcnzoo.load``: one interface for the zoo, for configs, for work directories and for exported files."""

import dataclasses
import io
import json
import pickle
import re
import shutil
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmdet.apis import inference_detector
from mmengine.config import Config
from PIL import Image

import dcnzoo
from dcnzoo.data.shapes import CLASSES, ShapesSpec, draw_image, make_shapes
from dcnzoo.detect import pictures, sources
from dcnzoo.detect.crops import Crops
from dcnzoo.detect.detections import Detections
from dcnzoo.detect.detector import BaseDetector
from dcnzoo.detect.drawing import encoded
from dcnzoo.detect.tiles import windows
from dcnzoo.openmmlab.detector import Features
from dcnzoo.report.explain_detector import explain
from dcnzoo.utils.errors import UserError
from tests.helpers.commands import run
from tests.helpers.demo import DEFORMABLE, build, small_options
from tests.helpers.server import Served, serving

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
    assert content["info"]["description"] == f"detections of {MODEL}"
    assert content["categories"][2] == {"id": 3, "name": CLASSES[2]}
    with pytest.raises(ValueError, match=f"categories cat, got {CLASSES[0]}"):
        dataclasses.replace(first, classes=("cat",)).to_coco(content)
    annotations = [each for each in content["annotations"] if each["image_id"] == 2]
    assert [each["category_id"] - 1 for each in annotations] == second.labels.tolist()
    assert [each["id"] for each in content["annotations"]] == [*range(1, len(first) + len(second) + 1)]
    for annotation, box, mask in zip(annotations, second.boxes, second.masks, strict=True):
        x, y, width, height = annotation["bbox"]
        np.testing.assert_allclose([x, y, x + width, y + height], box, rtol=1e-6)
        assert np.array_equal(decode(annotation["segmentation"]), mask)
        assert annotation["area"] == mask.sum() and annotation["iscrowd"] == 0


def test_inputs(detector, folder, tmp_path):
    """A picture in every form gives the same objects."""
    path = folder / "0.png"
    expected = detector(str(path))
    bgr = cv2.imread(str(path))
    rgb = np.ascontiguousarray(bgr[..., ::-1])
    planes = torch.from_numpy(rgb).permute(2, 0, 1)
    content = path.read_bytes()
    for image in (Image.open(path), rgb, planes, planes / 255, content, io.BytesIO(content)):
        assert_equal(detector(image), expected)
    assert_equal(detector(bgr, bgr=True), expected)
    assert expected.path == str(path) and detector(rgb).path == ""
    with torch.autocast("cpu", torch.bfloat16):
        best = detector(rgb, max_detections=1)
    assert best.names == expected.names[:1] and best.boxes.dtype == best.scores.dtype == np.float32
    np.testing.assert_allclose(best.boxes, expected.boxes[:1], atol=3)
    for several in (detector([path, rgb], batch_size=2), detector(torch.stack([planes.flip(2), planes]))):
        assert_equal([*several][1], expected, rtol=1e-4)
    for images in (folder, str(folder / "*.png")):
        assert [result.path for result in detector(images)] == [str(folder / f"{i}.png") for i in range(3)]
    video = cv2.VideoWriter(str(tmp_path / "x.avi"), cv2.VideoWriter_fourcc(*"FFV1"), 5, (128, 128))
    if not video.isOpened():
        pytest.skip("the rest needs an OpenCV with the codec FFV1")
    for _ in range(2):
        video.write(bgr)
    video.release()
    frames = [*detector(tmp_path / "x.avi")]
    assert [frame.path for frame in frames] == [f"{tmp_path}/x.avi#{number}" for number in (1, 2)]
    assert_equal(frames[1], expected, rtol=0.05)


def test_a_grey_array_is_a_grey_picture(detector, folder, tmp_path):
    grey = cv2.imread(str(folder / "0.png"), cv2.IMREAD_GRAYSCALE)
    cv2.imwrite(str(tmp_path / "grey.png"), grey)
    expected = detector(np.stack([grey] * 3, 2))
    for image in (grey, grey[..., None], torch.from_numpy(grey), tmp_path / "grey.png"):
        result = detector(image)
        assert_equal(result, expected)
        assert (result.image == grey[..., None]).all()


@pytest.mark.parametrize("channels", [1, 4])
def test_pictures_of_other_numbers_of_channels(tmp_path, channels):
    """MMDetection's own result of the same array; what does not exist is one error."""
    cfg = Config.fromfile(DEFORMABLE)
    cfg.model.backbone.in_channels = channels
    cfg.model.data_preprocessor.update(mean=[100.0], std=[50.0], bgr_to_rgb=False)
    cfg.dump(tmp_path / "c.py")
    torch.manual_seed(0)
    torch.save({"state_dict": build(cfg.model).state_dict(), "meta": {}}, tmp_path / "c.pth")
    detector = dcnzoo.load(tmp_path / "c.py", tmp_path / "c.pth", device="cpu", score_threshold=0)
    array = np.random.default_rng(0).integers(0, 256, (96, 128, channels), dtype=np.uint8)
    expected = inference_detector(detector.model, array).pred_instances
    result = detector(array, max_detections=5)
    np.testing.assert_allclose(result.scores, expected.scores.sort(descending=True)[0][:5], rtol=1e-5)
    assert result.image.shape == (96, 128, 3) and len(detector(array, tile=64)) and result.draw()
    file = tmp_path / "a.png"
    cv2.imwrite(str(file), array[..., 0])
    if channels == 1:
        for image in (array[..., 0], file, Image.open(file)):
            assert_equal(detector(image, max_detections=5), result)
        options = ["--checkpoint", tmp_path / "c.pth", "--score-threshold", 1, "--out", tmp_path / "out"]
        assert "none above 1; the best: " in run("infer", tmp_path / "c.py", file, *options)
    else:
        with pytest.raises(ValueError, match=rf"expected an array \[H, W, {channels}\]"):
            detector(file)
    with pytest.raises(ValueError, match=r"expected \[H, W"):
        detector(array.repeat(3, 2))
    for call in (lambda: detector.export(tmp_path / "m.onnx"), lambda: explain(detector, file)):
        with pytest.raises(ValueError, match="3 channels"):
            call()


@pytest.fixture
def server(folder, monkeypatch):
    for name in ("http_proxy", "all_proxy", "DCNZOO_MIRROR", "DCNZOO_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    files = {"/0.png": (folder / "0.png").read_bytes(), "/text.png": b"no picture"}
    with serving(Served(files)) as server:
        yield server


def test_addresses(detector, folder, server, monkeypatch):
    address = f"{server.url}/0.png"
    server.files["/0.png?size=1"] = server.files["/0.png"]
    for each in (address, f"{address}?size=1"):
        result = detector(each)
        assert_equal(result, detector(folder / "0.png"))
        assert result.path == each
    several = detector([f"{server.url}/none.png", f"{server.url}/text.png", address])
    assert [result.path for result in several] == [address]
    assert ["404" in several.skipped[0], "text.png" in several.skipped[1]] == [True, True]
    monkeypatch.setattr(pictures, "LIMIT", 1000)
    with pytest.raises(ValueError, match=rf"image: {address}: expected at most 1,000 bytes"):
        detector(address)
    monkeypatch.setenv("DCNZOO_OFFLINE", "1")
    with pytest.raises(ValueError, match="DCNZOO_OFFLINE"):
        detector(address)


def test_home_folder(detector, folder, tmp_path, monkeypatch):
    home = shutil.copytree(folder, tmp_path / "home")
    monkeypatch.setenv("HOME", str(home))
    assert len(detector("~/0.png")) == len(detector([Path("~/0.png")]).__next__())
    assert [Path(result.path).name for result in detector("~")] == ["0.png", "1.png", "2.png"]
    assert [Path(result.path).name for result in detector("~/[12].png")] == ["1.png", "2.png"]
    run("infer", MODEL, "~/0.png", "--out=~/found", "--json")
    assert (home / "found/detections.json").is_file()


def test_mistakes_in_python(detector, folder):
    calls = {
        "image: s3://x/a.jpg: ": lambda: detector("s3://x/a.jpg"),
        "^batch_size: expected an integer ≥ 1, got '2'": lambda: detector(folder, batch_size="2"),
        "^batch_size: expected an integer ≥ 1, got 0": lambda: detector.evaluate(
            "x", images="", batch_size=0
        ),
        "^max_detections: expected an integer ≥ 0, got -1": lambda: detector(folder, max_detections=-1),
        "^score_threshold: .* at most 1, got '0.5'": lambda: detector(folder, score_threshold="0.5"),
        "^score_threshold: .* at most 1, got 1.5": lambda: detector(folder, score_threshold=1.5),
        "^score_threshold: .* at most 1, got nan": lambda: detector(folder, score_threshold=float("nan")),
        "^classes: expected .*zebra": lambda: detector(folder, classes=["zebra"]),
        "image: expected a path, .* got int": lambda: detector(3),
        "bytes": lambda: detector(b"no picture"),
        "nope.json": lambda: detector.evaluate("nope.json", images=folder),
    }
    for message, call in calls.items():
        with pytest.raises((ValueError, TypeError, FileNotFoundError), match=message):
            call()
    results = detector([folder, folder / "0.png"])
    assert len(list(results)) == 1 and "got the folder" in results.skipped[0]


def test_a_call_predicts_in_evaluation_mode(folder):
    detector = dcnzoo.load(MODEL, device="cpu")
    expected = detector(folder / "0.png")
    detector.model.train()
    detector.model.neck.eval()
    before = {name: value.clone() for name, value in detector.model.state_dict().items()}
    assert_equal(detector(folder / "0.png"), expected)
    assert detector.model.backbone.training and not detector.model.neck.training
    assert all(torch.equal(value, before[name]) for name, value in detector.model.state_dict().items())


def test_a_model_that_is_not_finite_is_no_skipped_picture(folder, tmp_path):
    """Such a model is an error, also in a list of pictures."""
    picture = folder / "0.png"
    for weight in ("rpn_head.rpn_cls", "backbone.conv1"):  # without proposals, or without finite maps
        detector = dcnzoo.load(MODEL, device="cpu")
        torch.nn.init.constant_(detector.model.get_submodule(weight).weight[:1], float("nan"))
        with pytest.raises(ValueError, match="expected finite"):
            detector(picture)
    with pytest.raises(ValueError, match="expected finite"):
        list(detector([picture, picture]))


@pytest.mark.parametrize("dtype", [torch.int32, torch.bool, torch.complex64])
def test_weights_of_another_kind_are_refused(detector, tmp_path, dtype):
    weights = {name: value.to(dtype) for name, value in detector.model.state_dict().items()}
    torch.save({"state_dict": weights}, tmp_path / "weights.pth")
    with pytest.raises(UserError, match="floating-point"):
        dcnzoo.load(MODEL, checkpoint=tmp_path / "weights.pth", device="cpu")


def test_a_picture_of_one_tile_is_detected_as_without_tiles():
    """Its boxes are those of the model's own NMS, which may leave boxes with an IoU above .5."""

    class Two(BaseDetector):
        classes, device, score_threshold = ("a",), "cpu", 0.3

        def prepare(self, picture, path=""):
            return picture

        def _detect(self, inputs, threshold):
            boxes = np.float32([[0, 0, 10, 10], [0, 0, 10, 6]])
            return [Detections(boxes, np.float32([0.9, 0.8]), np.zeros(2, int)) for _ in inputs]

    picture = np.zeros((40, 60, 3), np.uint8)
    assert len(Two()(picture, tile=64)) == len(Two()(picture)) == 2
    assert len(Two()(picture, tile=50)) < 4, "the tiles' boxes are merged"


class Blocks(BaseDetector):
    """Finds each block of one colour, with a box or, as SOLO, with zeros; a tile shows it a part of some."""

    classes, device, score_threshold = ("a", "b"), "cpu", 0.3

    def __init__(self, boxes=True, masks=True):
        self.boxes, self.masks, self.batches = boxes, masks, []

    def prepare(self, picture, path=""):
        return picture

    def _detect(self, inputs, threshold):
        self.batches.append(len(inputs))
        return [self._of(picture[..., 0]) for picture in inputs]

    def _of(self, values):
        colours = np.unique(values[values > 0])
        masks = values == colours[:, None, None]
        boxes = Crops.of(masks).boxes()
        # a part of an object is more certain than the object, as in the worst case
        scores = 0.9 - masks.sum((1, 2)) / 20_000
        result = Detections(boxes, scores, colours // 100, masks if self.masks else None)
        return result if self.boxes else dataclasses.replace(result, boxes=0 * boxes).with_boxes()


# in a picture of 70 × 160: (x1, y1, x2, y2) of objects in tiles of 64, whose columns start at 0, 48 and 96
BLOCKS = {10: (3, 5, 21, 12), 110: (100, 30, 110, 66), 20: (40, 20, 62, 30), 120: (51, 40, 95, 69)}


@pytest.mark.parametrize(("boxes", "masks"), [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("turned", [True, False])
def test_objects_in_tiles_are_where_they_are_in_the_picture(boxes, masks, turned):
    """One object is cut by a tile, one ends at the first pixels of a tile, one mask belongs to each."""
    picture = np.zeros((70, 160, 3), np.uint8)
    for colour, (x1, y1, x2, y2) in BLOCKS.items():
        picture[y1:y2, x1:x2] = colour
    expected = {colour: [*box] for colour, box in BLOCKS.items()}
    if turned:
        picture = picture.transpose(1, 0, 2).copy()
        expected = {colour: [y1, x1, y2, x2] for colour, (x1, y1, x2, y2) in expected.items()}
    detector = Blocks(boxes, masks)
    result = detector(picture, tile=64, batch_size=4)
    assert detector.batches == [4, 2], "two rows of three tiles"
    found = [(label, box) for label, box in zip(result.labels.tolist(), result.boxes.tolist(), strict=True)]
    assert sorted(found) == sorted((colour // 100, box) for colour, box in expected.items())
    for i, (x1, y1, x2, y2) in enumerate(result.boxes.astype(int) if masks else ()):
        assert result.masks[i][y1:y2, x1:x2].all() and result.masks[i].sum() == (y2 - y1) * (x2 - x1)
    assert np.array_equal(result.boxes, Crops.of(result.masks).boxes() if masks else result.boxes)


def test_an_object_in_two_tiles_has_no_pieces():
    """A long object, complete in one tile, is cut in the next one, where the piece's IoU with it is small."""
    picture = np.zeros((64, 112, 3), np.uint8)
    picture[10:20, 3:58] = 10  # tiles from 0 and 48: the second one has its last 10 columns
    for mirrored in (picture, picture[:, ::-1].copy()):
        (box,) = Blocks()(mirrored, tile=64).boxes.tolist()
        assert box == ([3, 10, 58, 20] if mirrored is picture else [54, 10, 109, 20])


@pytest.mark.parametrize(("size", "tile", "starts"), [(160, 64, [0, 48, 96]), (161, 64, [0, 32, 64, 97])])
def test_tiles_overlap_by_a_quarter(size, tile, starts):
    rows = windows((40, size), tile)
    assert [(row.start, row.stop, column.start) for row, column in rows] == [(0, 40, at) for at in starts]


@pytest.mark.parametrize(("tile", "most"), [(None, 4 + 2), (32, 1 + 2)])
def test_pictures_that_are_read_ahead(monkeypatch, tile, most):
    """With tiles, a batch is of tiles of one picture."""
    number, pictures = [], [np.full((40, 40, 3), 10, np.uint8)] * 12
    read = sources.read
    monkeypatch.setattr(sources, "read", lambda *args: number.append(1) or read(*args))
    next(Blocks()(pictures, tile=tile, batch_size=4))
    assert len(number) <= most + (4 if tile is None else 1)


def test_crops_are_masks():
    masks = np.random.default_rng(0).random((5, 9, 7)) > 0.8
    masks[2] = False
    crops = Crops.of(masks)
    result = Detections(np.zeros((5, 4)), np.ones(5), np.zeros(5, int), crops)
    assert np.array_equal(result.masks, masks) and np.array_equal(crops[4], masks[4])
    index = np.array([True, False, True, False, True])
    assert np.array_equal(result[index].masks, masks[index])
    assert np.array_equal(pickle.loads(pickle.dumps(result)).masks, masks)
    assert Detections(np.zeros((0, 4)), np.ones(0), np.zeros(0, int)).masks is None


def test_a_model_without_boxes(detector, folder, monkeypatch):
    """SOLO's boxes are zeros: those of its masks are returned, also to the files and to the metrics."""

    def without_boxes(sample):
        instances = sample.pred_instances
        instances.bboxes = torch.zeros_like(instances.bboxes)
        return instances

    masks = detector(folder / "0.png").masks
    monkeypatch.setattr("dcnzoo.openmmlab.detector.instances_of", without_boxes)
    result = detector(folder / "0.png")
    assert len(result) > 1 and np.array_equal(result.masks, masks)
    for (x1, y1, x2, y2), mask in zip(result.boxes, masks, strict=True):
        rows, columns = np.nonzero(mask)
        assert (x1, y1, x2, y2) == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)


def test_choice_of_objects(detector, folder):
    whole = detector(folder / "0.png")
    name = whole.names[-1]
    chosen = detector(folder / "0.png", classes=[name])
    assert set(chosen.names) == {name} and len(chosen) == whole.names.count(name)
    few = detector(folder / "0.png", max_detections=2)
    np.testing.assert_array_equal(few.scores, whole.scores[:2])
    np.testing.assert_array_equal(detector(folder / "0.png", classes=name).scores, chosen.scores)
    none = detector(folder / "0.png", score_threshold=1.0)
    assert not len(none) and none.names == [] and none.to_coco()["annotations"] == [] and none.draw()


@pytest.fixture(scope="module")
def result(detector, folder):
    return detector(folder / "0.png", score_threshold=0.05)


def test_selection(result):
    assert len(result) > 2
    for index in (0, 1, -1):
        one = result[index]
        assert len(one) == 1 and one.scores[0] == result.scores[index] and one.path == result.path
        assert np.array_equal(one.masks[0], result.masks[index])
    assert [len(each) for each in result] == [1] * len(result)
    good = result[result.scores > result.scores[1]]
    assert len(good) == 1 and len(result[:2]) == 2 and len(result[len(result) :]) == 0
    with pytest.raises(IndexError):
        result[len(result)]


def test_other_packages_results(result):
    supervision = pytest.importorskip("supervision")
    theirs = result.to_supervision()
    assert np.array_equal(theirs.xyxy, result.boxes) and np.array_equal(theirs.mask, result.masks)
    assert list(theirs.data["class_name"]) == result.names and len(theirs) == len(result)
    drawn = supervision.BoxAnnotator().annotate(result.image.copy(), theirs)
    assert drawn.shape == result.image.shape and (drawn != result.image).any()
    assert len(result[:0].to_supervision()) == 0


def test_a_notebook_shows_the_picture(result):
    assert Image.open(io.BytesIO(result._repr_png_())).size == result.draw().size
    assert dataclasses.replace(result, image=None)._repr_png_() is None


def test_png_with_and_without_opencv(result, monkeypatch):
    picture = result.draw()
    for module in (cv2, None):
        monkeypatch.setitem(sys.modules, "cv2", module)
        content = io.BytesIO(encoded(picture, "PNG"))
        assert Image.open(content).tobytes() == picture.tobytes()


@pytest.mark.parametrize(
    ("size", "drawn"), [((10, 1200), (10, 1200)), ((1, 20000), (1, 20000)), ((100, 150), (600, 900))]
)
def test_narrow_pictures_are_not_enlarged_without_a_limit(size, drawn):
    image = np.zeros((*size[::-1], 3), np.uint8)
    result = Detections(np.float32([[0, 0, 1, 1]]), np.float32([0.5]), np.array([0]), image=image)
    assert result.draw().size == drawn


def test_features(detector, folder):
    features = detector.features(folder / "0.png")
    assert len(features) == len(features.strides) == detector.model.neck.num_outs
    for feature, stride, following in zip(features, features.strides, features.strides[1:], strict=False):
        assert feature.shape[:2] == (1, detector.model.neck.out_channels) and following == 2 * stride
    text = repr(detector)
    assert "\n" not in text and "MaskRCNN" in text and "cpu" in text and detector.names[0] in text


@pytest.mark.parametrize(
    ("size", "strides"), [((250, 333), (8, 16, 32, 64)), ((33, 65), (4, 8, 16, 32)), ((130, 40), (64, 128))]
)
def test_strides_of_a_size_that_they_do_not_divide(size, strides):
    maps = [torch.zeros(1, 1, *(-(-n // stride) for n in size)) for stride in strides]
    assert Features(maps, size).strides == strides
    assert Features([torch.zeros(1, 1, 37, 37)], (518, 518)).strides == (14,), "patches of 14 pixels"


def test_unknown_labels_are_numbers():
    result = Detections(np.zeros((2, 4)), np.ones(2), np.array([1, 7]), classes=("a", "b"))
    assert result.names == ["b", "7"] and repr(result) == "Detections(1 b, 1 7)"


# Evaluation


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    """The demo's data set with 12 validation images."""
    path = tmp_path_factory.mktemp("data") / "shapes"
    make_shapes(path, ShapesSpec(train=1, val=12))
    return path


def test_evaluation_equals_that_of_the_test_command(detector, coco, tmp_path):
    output = run("test", MODEL, "--verbose", *small_options(coco, train=1, val=12), "--work-dir", tmp_path)
    metrics = detector.evaluate(coco / "annotations/val.json", images=coco / "val", batch_size=2)
    for kind, name in (("bbox", "box"), ("segm", "mask")):
        for suffix, metric in (("", "AP"), ("_50", "AP50"), ("_75", "AP75"), ("_s", "AP, small")):
            printed = re.findall(rf"coco/{kind}_mAP{suffix}: +(-?[\d.]+)", output)[-1]
            assert round(metrics[f"{name} {metric}"], 3) == float(printed) > 0.5
    assert "box AP, large" not in metrics, "no object is large"


def test_evaluation_maps_categories_by_name(detector, coco, tmp_path):
    content = json.loads((coco / "annotations/val.json").read_text())
    expected = detector.evaluate(coco / "annotations/val.json", images=coco / "val")
    for category in content["categories"]:
        category["id"] = 90 - category["id"]
    for annotation in content["annotations"]:
        annotation["category_id"] = 90 - annotation["category_id"]
    (tmp_path / "other.json").write_text(json.dumps(content))
    assert detector.evaluate(tmp_path / "other.json", images=coco / "val") == pytest.approx(expected)
    content["categories"][0]["name"] = "zebra"
    (tmp_path / "zebra.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"annotations: .*zebra.json: expected .*; got zebra"):
        detector.evaluate(tmp_path / "zebra.json", images=coco / "val")
    with pytest.raises(FileNotFoundError, match=r"00000\.png"):
        detector.evaluate(coco / "annotations/val.json", images=tmp_path)


def test_evaluation_without_detections(detector, coco, monkeypatch):
    nothing = np.zeros((0, 4)), np.zeros(0), np.zeros(0, int)
    none = Detections(*nothing, classes=CLASSES, image=np.zeros((128, 128, 3), np.uint8))
    monkeypatch.setattr(detector, "_results", lambda images, *_, **options: [none] * len(images))
    metrics = detector.evaluate(coco / "annotations/val.json", images=coco / "val")
    assert metrics["box AP"] == 0 and "mask AP" not in metrics


# Several images


def test_bad_images_are_skipped_and_named(detector, folder, tmp_path, capsys):
    names = [folder / "0.png", tmp_path / "text.png", tmp_path / "missing.png", folder / "1.png"]
    names.append(tmp_path / "x.avi")
    for name in (names[1], names[-1]):
        name.write_text("no picture")
    for batch_size in (1, 3):
        results = detector(names, batch_size=batch_size)
        assert [result.path for result in results] == [str(folder / "0.png"), str(folder / "1.png")]
        assert len(results.skipped) == 3
        lines = capsys.readouterr().err.splitlines()
        for name, line in zip((*names[1:3], names[4]), lines, strict=True):
            assert line.startswith("skipped: ") and str(name) in line
    with pytest.raises(ValueError, match=r"text\.png"):
        detector(names[1])
    with pytest.raises(FileNotFoundError):
        detector(tmp_path / "missing.avi")


def test_channels_last(detector, folder):
    plain = dcnzoo.load(MODEL, device="cpu", channels_last=False)
    assert_equal(detector(folder / "0.png"), plain(folder / "0.png"), rtol=1e-4, atol=1e-3)
    for each, expected in ((detector, True), (plain, False)):
        weight = each.model.backbone.conv1.weight
        assert weight.is_contiguous(memory_format=torch.channels_last) == expected
