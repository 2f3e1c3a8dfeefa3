"""Results of many pictures: parts that are written while they are detected."""

import json
import os
import shutil
import sys
import threading
import time
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from click.testing import CliRunner

from dcnzoo.cli.infer import command
from dcnzoo.detect.crops import Crops
from dcnzoo.detect.detections import Detections
from dcnzoo.detect.detector import BaseDetector
from dcnzoo.detect.rows import COLUMNS, Rows, rows, shard_of, write_results
from dcnzoo.detect.views import Names, coco_entries, polygons_of
from dcnzoo.utils.errors import UserError
from dcnzoo.utils.marks import is_detection

from ..processes import python_with_torch

cv2 = pytest.importorskip("cv2")


class Squares(BaseDetector):
    """Finds a square whose side is the first pixel, and none in a black picture."""

    classes = ("square", "circle")
    device, score_threshold = "cpu", 0.3

    def checksum(self):
        return "abc"

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


SETTINGS = {"model": "abc", "score_threshold": 0.3}


def detect(folder, pictures, kind="jsonl", **options):
    parts = Rows(folder, kind, SETTINGS)
    results = Squares()(parts.missing(pictures), **options)
    write_results(parts, results)
    return results.skipped


def make_pictures(folder, number):
    folder.mkdir()
    for n in range(number):
        cv2.imwrite(str(folder / f"{n}.png"), np.full((9, 12, 3), n % 8, np.uint8))
    return [str(folder / f"{n}.png") for n in range(number)]


def read(folder):
    return sorted(rows(folder), key=lambda row: row["path"])


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_rows_are_the_detections(tmp_path, kind):
    if kind == "parquet":
        pytest.importorskip("pyarrow")
    pictures = make_pictures(tmp_path / "pictures", 20)
    (tmp_path / "text.jpg").write_text("no picture")
    (tmp_path / "folder.jpg").mkdir()
    other = [str(tmp_path / name) for name in ("text.jpg", "folder.jpg", "later.png")]
    skipped = detect(tmp_path / "out", pictures + other, kind, batch_size=3)
    assert len(skipped) == 3
    by_path = {row["path"]: row for row in read(tmp_path / "out")}
    assert by_path.keys() == {*pictures, *other[:2]}, "a picture that cannot be opened has no row"
    assert all("expected" in by_path[path]["error"] for path in other[:2])
    detector = Squares()
    for path in pictures:
        row, expected = by_path[path], detector(path)
        assert row.get("error") is None and (row["width"], row["height"]) == (12, 9)
        result = Detections.from_row(row, detector.classes)
        for name in ("boxes", "scores", "labels", "masks"):
            np.testing.assert_array_equal(getattr(result, name), getattr(expected, name))
        assert result.names == expected.names == list(row["names"]) and result.path == path
        assert isinstance(result.crops, Crops)
    with pytest.raises(ValueError, match=r"text\.jpg"):
        Detections.from_row(by_path[other[0]])
    cv2.imwrite(other[2], np.full((9, 12, 3), 2, np.uint8))
    assert detect(tmp_path / "out", pictures + other, kind) == []
    assert len(read(tmp_path / "out")) == 23


def test_other_settings_and_other_folders_are_refused(tmp_path):
    pictures = make_pictures(tmp_path / "pictures", 2)
    detect(tmp_path / "out", pictures)
    for change in ({"model": "other"}, {"score_threshold": 0.5}):
        with pytest.raises(UserError, match=next(iter(change))):
            Rows(tmp_path / "out", "jsonl", {**SETTINGS, **change})
    (tmp_path / "results.json").write_text("[1, 2]")
    with pytest.raises(UserError, match=r"results\.json"):
        Rows(tmp_path, "jsonl", SETTINGS)
    assert (tmp_path / "results.json").read_text() == "[1, 2]"


def test_a_slow_detector_writes_a_part_every_minute(tmp_path, monkeypatch):
    monkeypatch.setattr("dcnzoo.detect.rows.SECONDS", 0)
    detect(tmp_path / "out", make_pictures(tmp_path / "pictures", 3))
    assert len([*(tmp_path / "out").glob("part-*")]) == 3


def test_a_full_disk_leaves_complete_parts(tmp_path, monkeypatch):
    monkeypatch.setattr("dcnzoo.detect.rows.ROWS", 4)
    pictures = make_pictures(tmp_path / "pictures", 20)
    parts, calls, fsync = Rows(tmp_path / "out", "jsonl", SETTINGS), [], os.fsync

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) >= 3:
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="cannot be written"):
        write_results(parts, Squares()(pictures))
    assert len(read(tmp_path / "out")) == 8
    monkeypatch.setattr(os, "fsync", fsync)
    detect(tmp_path / "out", pictures)
    assert [row["path"] for row in read(tmp_path / "out")] == sorted(pictures)


CODE = """
import os, sys
import dcnzoo, dcnzoo.cli
from dcnzoo.detect import detections, rows
from tests.detect.test_rows import Squares

_, last, drawn, *sys.argv[1:] = sys.argv

class Killed(Squares):
    calls = 0
    def _detect(self, inputs, threshold):
        self.calls += 1
        if self.calls == int(last):
            os._exit(9)
        return super()._detect(inputs, threshold)

def draw(result, original=detections.Detections.draw):
    if result.path.endswith(drawn):
        os._exit(9)
    return original(result)

detections.Detections.draw = draw
dcnzoo.load = lambda *args, **options: Killed()
rows.ROWS = 4
dcnzoo.cli.main()
"""


def start(folder, call, *options, drawn="-", status=0):
    """Detect in the folder's pictures; the process dies at this call of the detector, or at this drawing."""
    command = ("infer", folder / "m.onnx", folder / "photos", *options)
    return python_with_torch(CODE, call, drawn, *command, status=status)


@pytest.mark.parametrize(
    "options",
    [["--jpeg"], pytest.param(["--txt", "--json"], marks=pytest.mark.slow), ["--format", "jsonl"]],
)
def test_killed_and_repeated(tmp_path, options):
    """The same command continues without --force; all files are those of one run."""
    make_pictures(tmp_path / "photos", 30)
    (tmp_path / "photos/5.png").write_text("no picture")
    os.rename(tmp_path / "photos/3.png", os.fsencode(tmp_path / "photos") + b"/\xff.png")  # not UTF-8
    (tmp_path / "m.onnx").touch()

    def infer(out, call, drawn="-", status=1, *more):
        return start(tmp_path, call, "--out", tmp_path / out, *options, *more, drawn=drawn, status=status)

    infer("out", 11, status=9)
    assert "--jpeg" not in options or is_detection(tmp_path / "out"), "also before the end"
    if "--format" not in options:
        output = infer("out", 99, "-", 1, "--score-threshold", "0.6").stdout
        assert "continued" not in output, "another command"
    if "--jpeg" in options:
        before = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").glob("*.*g")}
        infer("out", 99, drawn="/27.png", status=9)
        (tmp_path / "out/1.jpg").unlink()
        for name in ("2.jpg", "detections.json"):  # as a kill leaves them
            half = tmp_path / "out" / f".{hash(name) & 0xFFFF:016x}.{'a' * 16}.partial.x"
            half.write_bytes(b"half")
            os.utime(half, (0, 0))
        assert sum(file.exists() and file.stat().st_mtime_ns == before[file] for file in before) >= 3
    infer("out", 7, status=9)
    output = infer("out", 99).stdout
    assert "--format" in options or "continued" in output
    infer("whole", 99)
    if "--format" in options:
        assert read(tmp_path / "out") == read(tmp_path / "whole")
        assert infer("out", 99).stdout.strip().endswith("skipped: 1 of 30 images"), "of the run before"
        return
    contents = [
        {file.name: file.read_bytes() for file in (tmp_path / out).iterdir() if file.name[0] != "."}
        for out in ("out", "whole")
    ]
    settings = [json.loads(files.pop("results.json")) for files in contents]
    times = {"texts": 0, "dcnzoo.sha256": 0}
    assert settings[0] | times == settings[1] | times
    assert contents[0] == contents[1] and len(contents[0]) + 1 == 31 + (options != ["--jpeg"])
    content = json.loads(contents[0]["detections.json"])
    names = [f"{n}.png" for n in range(30) if n not in (3, 5)]
    assert [Path(image["file_name"]).name for image in content["images"]] == [*sorted(names), "\udcff.png"]
    infer("out", 99)  # a finished command starts again


@pytest.fixture
def infer(tmp_path, monkeypatch):
    """Run the command in this process, in the folder, with squares."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("dcnzoo.load", lambda *args, **options: Squares())
    (tmp_path / "m.onnx").touch()

    def infer(*words):
        result = CliRunner().invoke(command, ["m.onnx", *map(str, words)])
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result.exit_code, result.stdout

    return infer


def test_each_picture_once(infer, tmp_path):
    """By several names: of a folder and its file, with ./ and through a link beside the folder."""
    make_pictures(tmp_path / "a", 2)
    (tmp_path / "link").symlink_to("a")
    (tmp_path / "list.txt").write_text("a/0.png\nlink/../a/0.png\n~/none.png\n~/none.png\n")
    names = ("a", "./a/0.png", tmp_path / "a/1.png", "list.txt", ".")
    status, output = infer(*names, "--format", "jsonl", "--out", "rows")
    assert status == 1 and "skipped: 1 of 3" in output
    assert [row["path"] for row in read("rows")] == ["a/0.png", "a/1.png"]
    infer(*names[:3], "--json", "--out", "files")
    images = json.loads((tmp_path / "files/detections.json").read_text())["images"]
    assert [image["file_name"] for image in images] == ["0.png", "1.png"], "relative to their folder"


def test_rows_of_other_options_or_of_another_folder(infer, tmp_path, monkeypatch):
    """In the other folder, the same name is another picture."""
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "m.onnx").touch()
        make_pictures(tmp_path / folder / "photos", 1)
    options = ("photos", "--format", "jsonl", "--out", tmp_path / "rows")
    monkeypatch.chdir(tmp_path / "a")
    assert infer(*options)[0] == 0
    with pytest.raises(AssertionError, match="max_detections"):
        infer(*options, "--max-detections", 1)
    monkeypatch.chdir(tmp_path / "b")
    with pytest.raises(AssertionError, match="folder"):
        infer(*options)


def test_options_in_another_order_are_the_same_command(infer, tmp_path, monkeypatch):
    make_pictures(tmp_path / "photos", 2)
    folders, locked = set(), Rows.locked
    monkeypatch.setattr(Rows, "locked", lambda rows: folders.add(rows.folder) or locked(rows))
    for words in (
        ["--jpeg", "--out", "out"],
        ["--out", "out", "--jpeg"],
        ["--verbose", "--jpeg", "--out", "out"],
    ):
        assert infer("photos", *words)[0] == 0
    assert len(folders) == 1


def test_names_do_not_control_the_terminal(infer, tmp_path):
    make_pictures(tmp_path / "photos", 1)
    (tmp_path / "photos/0.png").rename(tmp_path / "photos/\x1b[31mred.png")
    status, output = infer("photos", "--out", "out\x1b[0m")
    assert status == 0 and "\x1b" not in output and output.count("\\x1b") >= 3


def test_with_ray_all_paths_are_absolute(infer, tmp_path, monkeypatch):
    calls = []
    cluster = ModuleType("ray")
    cluster.detect_on_cluster = lambda *args, **options: calls.append((*args[2:4], options["checkpoint"]))
    monkeypatch.setitem(sys.modules, "dcnzoo.ray", cluster)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "w.pth").touch()
    (tmp_path / "list.txt").write_text("a.png\n~/b.png\nhttp://host/c.png\n")
    infer("list.txt", "--checkpoint", "w.pth", "--ray", "auto", "--format", "jsonl", "--out", "rows")
    images = [str(tmp_path / "a.png"), str(tmp_path / "home/b.png"), "http://host/c.png"]
    assert calls == [(str(tmp_path / "m.onnx"), images, str(tmp_path / "w.pth"))]


def test_a_task_that_ray_repeats_writes_the_same_part(infer, tmp_path, monkeypatch):
    """Also if it is slow, or if more pictures can be opened the second time."""
    for name in ("ray", "ray.data"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "dcnzoo.ray", None)  # the import below is undone after the test
    del sys.modules["dcnzoo.ray"]
    from dcnzoo.ray import _Write

    pictures = make_pictures(tmp_path / "photos", 5)
    Path(pictures[2]).rename(tmp_path / "later.png")
    for number, seconds in ((4, 0), (5, 60)):
        monkeypatch.setattr("dcnzoo.detect.rows.SECONDS", seconds)
        write = _Write(str(tmp_path / "out"), "jsonl", Squares().checksum(), "m.onnx")
        assert write({"path": pictures}) == {"other": []}
        assert len(read(tmp_path / "out")) == number
        if number == 4:
            os.replace(tmp_path / "later.png", pictures[2])
    other = _Write(str(tmp_path / "other"), "jsonl", "another checksum", "m.onnx")
    assert len(other({"path": pictures})["other"]) == 1 and not (tmp_path / "other").exists()


def test_the_same_rows_twice_at_once(infer, tmp_path, monkeypatch):
    """The second of two equal commands is refused: each picture would have two rows."""
    make_pictures(tmp_path / "photos", 5)
    command = ("photos", "--format", "jsonl", "--out", "rows", "--shard", "1/2")
    detect = Squares._detect

    def again(self, inputs, threshold):
        monkeypatch.setattr(Squares, "_detect", detect)
        with pytest.raises(AssertionError, match="another process runs the same command"):
            infer(*command)
        assert infer(*command[:-1], "2/2")[0] == 0, "another shard"
        return detect(self, inputs, threshold)

    monkeypatch.setattr(Squares, "_detect", again)
    assert infer(*command)[0] == 0
    assert len([*rows("rows")]) == len({row["path"] for row in rows("rows")}) == 5
    assert not [*Path("rows").glob(".lock*")]


def test_shards_do_not_depend_on_the_list(infer, tmp_path):
    """A picture that is added between two jobs leaves none of the others without a row."""
    pictures = make_pictures(tmp_path / "photos", 30)
    sizes = [sum(shard_of(path, 3) == number for path in pictures) for number in (1, 2, 3)]
    assert sum(sizes) == 30 and min(sizes) > 2
    for number in (1, 2, 3):
        infer("photos", "--format", "jsonl", "--shard", f"{number}/3", "--out", "rows")
        for name in ("00", "05", "9z"):
            shutil.copy(pictures[0], tmp_path / f"photos/{name}{number}.png")
    assert {f"photos/{n}.png" for n in range(30)} <= {row["path"] for row in rows("rows")}


def test_default_folders_are_numbered(infer, tmp_path):
    """A second command has a folder of its own; rows of the same settings are continued."""
    make_pictures(tmp_path / "photos", 3)
    results = tmp_path / "work_dirs"
    for _ in range(2):
        assert infer("photos")[0] == 0
    for threshold in ("0.2", "0.2", "0.3"):
        assert infer("photos", "--format", "jsonl", "--score-threshold", threshold)[0] == 0
    assert infer("photos/0.png", "--txt")[0] == 0
    expected = {
        "infer": "files",
        "infer_2": "files",
        "infer_3": "jsonl",
        "infer_4": "jsonl",
        "infer_5": "files",
    }
    formats = {p.parent.name: json.loads(p.read_text())["format"] for p in results.glob("*/results.json")}
    assert formats == expected and len([*rows(results / "infer_3")]) == 3


def test_parts_that_another_program_has_written_again(tmp_path):
    pictures = make_pictures(tmp_path / "pictures", 3)
    (tmp_path / "text.png").write_text("no picture")
    pictures.append(str(tmp_path / "text.png"))
    detect(tmp_path / "out", pictures)
    (file,) = (tmp_path / "out").glob("part-*")
    expected, parts = read(tmp_path / "out"), Rows(tmp_path / "out", "jsonl")
    for options in ({}, {"separators": (",", ":")}, {"sort_keys": True}):
        file.write_text("\n\n".join(json.dumps(row, **options) for row in expected))
        assert (
            read(tmp_path / "out")
            == expected
            == sorted(parts.in_order(pictures), key=lambda row: row["path"])
        )
        assert parts.missing([*pictures, "other.png"]) == ["other.png"] and parts.failures(pictures) == 1
    for text in ("[1, 2]", "{", '{"a": 1}', '{"path": "', '{"path": ["a"]}'):
        file.write_text(text)
        with pytest.raises(UserError, match=file.name):
            parts.missing(pictures)


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_names_that_are_not_text(tmp_path, kind):
    """They are escaped, and all rows have the same columns: pandas reads either."""
    if kind == "parquet":
        pytest.importorskip("pyarrow")
    (picture,) = make_pictures(tmp_path / "pictures", 1)
    pictures = [picture, str(tmp_path / "\udcff.png"), str(tmp_path / "\udcfe.png")]
    cv2.imwrite(str(tmp_path / "a.png"), np.full((9, 12, 3), 3, np.uint8))
    os.rename(tmp_path / "a.png", pictures[1])
    Path(pictures[2]).write_text("no picture")
    for _ in range(2):
        detect(tmp_path / "out", pictures, kind)
    parts = Rows(tmp_path / "out", kind)
    for row in read(tmp_path / "out"):
        assert list(row) == list(COLUMNS) and row["path"].isprintable()
    assert (
        len(read(tmp_path / "out")) == 3 and parts.missing(pictures) == [] and parts.failures(pictures) == 1
    )
    found = [*parts.in_order(pictures)]
    assert found[1]["boxes"] == [[0, 0, 3, 3]] and [row["path"] for row in found] == pictures


def test_a_video_of_pictures_starts_again_after_a_kill(tmp_path):
    make_pictures(tmp_path / "photos", 12)
    (tmp_path / "m.onnx").touch()
    for name, call, status in (("a", 7, 9), ("a", 99, 0), ("whole", 99, 0)):
        out = ("--save-video", tmp_path / f"{name}.mp4", "--out", tmp_path / name)
        start(tmp_path, call, *out, status=status)
    videos = [cv2.VideoCapture(str(tmp_path / f"{name}.mp4")) for name in ("a", "whole")]
    frames = [video.get(cv2.CAP_PROP_FRAME_COUNT) for video in videos]
    assert frames == [12, 12]


def test_a_picture_that_was_changed_after_its_row(tmp_path):
    pictures = make_pictures(tmp_path / "pictures", 6)
    detect(tmp_path / "out", pictures)
    parts = Rows(tmp_path / "out", "jsonl")
    assert parts.missing([*pictures, "http://host/a.png"], changed=True) == ["http://host/a.png"]
    cv2.imwrite(pictures[0], np.full((9, 12, 3), 5, np.uint8))
    os.utime(pictures[0], ns=(time.time_ns() + 10**10, time.time_ns() + 10**10))
    assert parts.missing(pictures, changed=True) == pictures[:1] and parts.missing(pictures) == []
    time.sleep(0.05)
    cv2.imwrite(pictures[1], np.full((9, 12, 3), 2, np.uint8))
    os.utime(pictures[1], ns=(0, 0))  # as `cp -p` and `mv` of an old file leave it
    assert parts.missing(pictures, changed=True) == pictures[:2]
    write_results(parts, Squares()(pictures[:1]))
    result = [*parts.in_order(pictures)]
    assert [row["path"] for row in result] == pictures, "the other rows of its part stay"
    for unopened in (None, ["none.png"]):
        assert len([*parts.in_order([*pictures, "none.png"], unopened)]) == 6
    with pytest.raises(UserError, match=r"none\.png"):
        [*parts.in_order([*pictures, "none.png"], [])]
    assert result[0]["boxes"] == [[0, 0, 5, 5]]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 8, 16, 100])
def test_fewer_pictures_than_a_batch(monkeypatch, batch_size):
    """The reads of the last batch are awaited, not cancelled, when the list ends; a closed call cancels."""
    reads, threads = [], set()

    def slow(image, bgr):
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
    """As pycocotools draws them: single pixels, lines, several parts, the border."""
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
    polygons = polygons_of(mask)
    again = decode(merge(frPyObjects(polygons, *mask.shape)))
    filled = np.zeros_like(mask)
    cv2.drawContours(filled, cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0], -1, 1, -1)
    assert np.array_equal(again, filled)


def test_empty_masks_stay_in_run_length_encoding():
    empty = np.zeros((1, 9, 12), bool)
    boxes = np.float32([[0, 0, 1, 1]])
    row = Detections(boxes, np.float32([0.5]), np.int64([0]), empty, ("a",)).to_row()
    for polygons in (False, True):
        _, (annotation,) = coco_entries(row, 0, 0, polygons)
        assert annotation["area"] == 0 and annotation["segmentation"]["size"] == [9, 12]


def test_names_of_files_keep_the_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    images = ["photos/a/0.png", "photos/b/0.png", str(tmp_path / "photos/b/0.jpg"), "./photos/c.v2.png"]
    names = Names(images)
    assert [names[image] for image in images] == ["a/0", "b/0", "b/0_2", "c.v2"]
    assert [*map(names.relative, images)] == ["a/0.png", "b/0.png", "b/0.jpg", "c.v2.png"]
    for images, expected in (
        (["photos/0.png"], ["0"]),
        (["~/x.png", "photos/y.png"], ["home/x", "photos/y"]),
        (["http://host/x.jpg?d=a/b.png", "https://other/x.jpg", "x.png"], ["x", "x_2", "x_3"]),
        (["v.mp4#1", "v.mp4#2", "v/v.mp4#1"], ["v", "v_2", "v/v"]),
    ):
        names = Names(images)
        assert [names[image] for image in images] == expected


@pytest.mark.parametrize("name", ["detections.json", "0.txt", "classes.txt", "results.json"])
def test_a_corrected_result_is_not_replaced(infer, tmp_path, name):
    """The same command replaces its files, but none that somebody has changed since."""
    make_pictures(tmp_path / "photos", 3)
    options = "photos", "--txt", "--json", "--out", "out"
    for _ in range(2):
        assert infer(*options)[0] == 0
    path = tmp_path / "out" / name
    corrected = path.read_bytes().replace(b"square", b"Square") + b"\n"
    path.write_bytes(corrected)
    with pytest.raises(AssertionError, match=name):
        infer(*options)
    assert path.read_bytes() == corrected
    infer(*options, "--force")
    assert path.read_bytes() != corrected
