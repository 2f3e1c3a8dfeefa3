"""The files of results."""

import sys
import threading
import time

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from dcnzoo.cli.infer import command
from dcnzoo.detect.crops import Crops, encode, polygons_of
from dcnzoo.detect.detections import Detections
from dcnzoo.detect.detector import BaseDetector
from dcnzoo.detect.files import OutputNames, ResultFiles
from dcnzoo.utils.errors import UserError

cv2 = pytest.importorskip("cv2")


class Squares(BaseDetector):
    """Finds a square whose side is the value of the first pixel, and none in a black picture."""

    classes = ("square", "circle")
    device, score_threshold = "cpu", 0.3

    def prepare(self, picture, path=""):
        return picture

    def _detect(self, inputs, threshold):
        results = []
        for picture in inputs:
            side = int(picture[0, 0, 0])
            number = int(side > 0)
            masks = np.zeros((number, *picture.shape[:2]), bool)
            masks[:, :side, :side] = True
            boxes = np.tile(np.float32([0, 0, side, side]), (number, 1))
            results.append(
                Detections(boxes, np.full(number, 0.7, np.float32), np.zeros(number, np.int64), masks)
            )
        return results


def make_pictures(folder, number):
    folder.mkdir()
    for n in range(number):
        cv2.imwrite(str(folder / f"{n}.png"), np.full((9, 12, 3), n % 8, np.uint8))
    return [str(folder / f"{n}.png") for n in range(number)]


@pytest.fixture
def infer(tmp_path, monkeypatch):
    """Run ``dcnzoo infer`` in this process, in the folder, with the detector of squares."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("dcnzoo.load", lambda *args, **options: Squares())
    (tmp_path / "m.onnx").touch()

    def infer(*words):
        result = CliRunner().invoke(command, ["m.onnx", *map(str, words)])
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result.exit_code, result.stdout

    return infer


def test_names_do_not_control_the_terminal(infer, tmp_path):
    make_pictures(tmp_path / "photos", 1)
    (tmp_path / "photos/0.png").rename(tmp_path / "photos/\x1b[31mred.png")
    status, output = infer("photos", "--out", "out\x1b[0m")
    assert status == 0 and "\x1b" not in output and output.count("\\x1b") >= 3


def test_default_folders_are_numbered(infer, tmp_path):
    make_pictures(tmp_path / "photos", 3)
    for _ in range(3):
        assert infer("photos")[0] == 0
    assert {path.name for path in (tmp_path / "work_dirs").iterdir()} == {"infer", "infer_2", "infer_3"}
    with pytest.raises(AssertionError, match=r"0\.png"):
        infer("photos", "--out", "work_dirs/infer")
    assert infer("photos", "--out", "work_dirs/infer", "--force")[0] == 0


@pytest.mark.parametrize("batch_size", [1, 2, 3, 8, 16, 100])
def test_fewer_pictures_than_a_batch(monkeypatch, batch_size):
    """When the list ends, the last reads are awaited, not cancelled; closing a call cancels them."""
    reads, threads = [], set()

    def slow(image, bgr, channels):
        time.sleep(0.002)
        reads.append(image)
        threads.add(threading.current_thread())
        return np.full((9, 12, 3), 2, np.uint8)

    monkeypatch.setattr("dcnzoo.detect.sources.read", slow)
    for number in range(1, 13):
        paths = [f"{n}.png" for n in range(number)]
        assert [result.path for result in Squares()(paths, batch_size=batch_size)] == paths
    reads.clear()
    results = Squares()([f"{n}.png" for n in range(200)], batch_size=batch_size)
    next(results)
    joined = []
    monkeypatch.setattr(threading.Thread, "join", lambda thread, timeout=None: joined.append(thread))
    del results
    assert not joined, "the garbage collector may close it while a thread starts, which then waits for ever"
    monkeypatch.undo()
    assert len(reads) < 2 * batch_size + 8
    assert threading.main_thread() not in threads, "pictures are read while others are detected"


@pytest.mark.parametrize("case", range(8))
def test_polygons_are_the_masks_without_holes(case):
    """pycocotools draws the polygons as the masks: single pixels, lines, several parts, the border."""
    from pycocotools.mask import decode, frPyObjects, merge

    rng = np.random.default_rng(case)
    mask = np.zeros((37, 53), np.uint8)
    if case == 0:
        mask[4, 7] = 1
    elif case == 1:
        mask[:, 52] = mask[36] = 1
    elif case == 2:
        mask[:] = 1
    else:
        for _ in range(case):
            x, y, radius = rng.integers(0, 53), rng.integers(0, 37), int(rng.integers(1, 12))
            cv2.circle(mask, (int(x), int(y)), radius, 1, -1)
    crops = Crops.of(mask[None].astype(bool))
    polygons = polygons_of(crops.parts[0], crops.corners[0])
    again = decode(merge(frPyObjects(polygons, *mask.shape)))
    filled = np.zeros_like(mask)
    cv2.drawContours(filled, cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0], -1, 1, -1)
    assert np.array_equal(again, filled)


@pytest.mark.parametrize("size", [(1, 1), (9, 7), (40, 31), (900, 700)])
def test_masks_are_encoded_as_pycocotools_encodes_them(size, monkeypatch):
    """From the part with the object: at corners, over whole sides, single pixels, no pixel, all of them.

    An environment without torch has no pycocotools, either.
    """
    from pycocotools.mask import encode as expected

    for name in ("pycocotools", "pycocotools.mask"):
        monkeypatch.setitem(sys.modules, name, None)
    rng = np.random.default_rng(0)
    (height, width), masks = size, [np.zeros(size, bool), np.ones(size, bool)]
    for _ in range(40):
        y, x = np.sort(rng.integers(0, height + 1, 2)), np.sort(rng.integers(0, width + 1, 2))
        mask = np.zeros(size, bool)
        mask[y[0] : y[1], x[0] : x[1]] = rng.random((y[1] - y[0], x[1] - x[0])) > 0.3
        masks.append(mask)
    crops = Crops.of(np.stack(masks))
    for mask, part, corner in zip(masks, crops.parts, crops.corners, strict=True):
        assert encode(part, corner, size) == expected(np.asfortranarray(mask, np.uint8))


@pytest.mark.parametrize(
    ("name", "options", "format"),
    [
        ("a.jpg", [], "JPEG"),
        ("a.JPEG", [], "JPEG"),
        ("a #1.jpg", [], "JPEG"),
        ("a.bmp", [], "PNG"),
        ("a.jpg", ["--format", "png"], "PNG"),
        ("a.png", ["--format", "jpg"], "JPEG"),
        ("a.png", ["--jpeg"], "JPEG"),
    ],
)
def test_a_drawing_has_the_format_of_its_picture(infer, tmp_path, name, options, format):
    (tmp_path / "a").mkdir()
    cv2.imwrite(str(tmp_path / "a" / name), np.full((9, 12, 3), 3, np.uint8))
    assert infer(f"a/{name}", "--out", "out", *options)[0] == 0
    (file,) = (path for path in (tmp_path / "out").iterdir() if path.suffix != ".json")
    assert Image.open(file).format == format and file.suffix == {"PNG": ".png", "JPEG": ".jpg"}[format]


def test_empty_masks_stay_in_run_length_encoding():
    empty = np.zeros((1, 9, 12), bool)
    boxes = np.float32([[0, 0, 1, 1]])
    result = Detections(boxes, np.float32([0.5]), np.int64([0]), empty, ("a",))
    for polygons in (False, True):
        (annotation,) = result.to_coco(polygons=polygons)["annotations"]
        assert annotation["area"] == 0 and annotation["segmentation"]["size"] == [9, 12]


@pytest.mark.parametrize(
    ("images", "accepted"),
    [
        (["a/dog.png", "a/dog.jpg"], False),
        (["a/dog.png", "b/dog.png"], True),
        (["a/dog.png", "a/dog_2.png", "a/dog.v2.png"], True),
        (["a/dog.mp4", "a/dog.png"], False),
        (["http://one/dog.jpg", "http://other/dog.jpg"], False),
    ],
)
def test_a_text_is_of_one_picture(tmp_path, images, accepted):
    """Its name does not depend on other pictures: with ``--skip-existing``, they may come later."""
    files = dict(coco=False, video=None, polygons=False, force=False)
    if accepted:
        ResultFiles(tmp_path, images, "txt", **files)
    else:
        with pytest.raises(UserError) as error:
            ResultFiles(tmp_path, images, "txt", **files)
        assert all(image in str(error.value) for image in images)
    ResultFiles(tmp_path, images, "png", **files)


def test_names_of_files_keep_the_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    images = ["photos/a/0.png", "photos/b/0.png", str(tmp_path / "photos/b/0.jpg"), "./photos/c.v2.png"]
    names = OutputNames(images)
    assert [names.of(image) for image in images] == ["a/0", "b/0", "b/0_2", "c.v2"]
    assert [*map(names.relative, images)] == ["a/0.png", "b/0.png", "b/0.jpg", "c.v2.png"]
    for images, expected in (
        (["photos/0.png"], ["0"]),
        (["~/x.png", "photos/y.png"], ["home/x", "photos/y"]),
        (["http://host/x.jpg?d=a/b.png", "https://other/x.jpg", "x.png"], ["x", "x_2", "x_3"]),
        (["v.mp4#1", "v.mp4#2", "v/v.mp4#1"], ["v", "v_2", "v/v"]),
    ):
        names = OutputNames(images)
        assert [names.of(image) for image in images] == expected


def test_a_later_frame_replaces_no_file(infer, tmp_path):
    """The number of frames is not known before they are read: each file is checked when it is written."""
    writer = cv2.VideoWriter(str(tmp_path / "v.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 5, (64, 64))
    for _ in range(2):
        writer.write(np.zeros((64, 64, 3), np.uint8))
    writer.release()
    (tmp_path / "out").mkdir()
    (tmp_path / "out/v_2.png").write_text("of the user")
    result = CliRunner().invoke(command, ["m.onnx", "v.avi", "--out", "out"])
    assert isinstance(result.exception, UserError) and "out/v_2.png; --force" in str(result.exception)
    assert (tmp_path / "out/v_2.png").read_text() == "of the user"
    assert infer("v.avi", "--out", "out", "--force")[0] == 0
    assert Image.open(tmp_path / "out/v_2.png").format == "PNG"


def test_a_picture_that_is_named_twice_is_detected_once(infer, tmp_path):
    """Under its first name, also below a link."""
    make_pictures(tmp_path / "photos", 2)
    (tmp_path / "link").symlink_to("photos")
    status, output = infer("photos/1.png", "photos", "link", "./photos/0.png", "--out", "out", "--json")
    assert status == 0 and [line.partition(":")[0] for line in output.splitlines()[:-1]] == [
        "photos/1.png",
        "photos/0.png",
    ]
