"""Results of many pictures: parts that are written while they are detected."""

import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from dcnzoo.detect.crops import Crops
from dcnzoo.detect.detections import Detections
from dcnzoo.detect.detector import BaseDetector
from dcnzoo.detect.parts import Parts, detect_into, rows
from dcnzoo.utils.errors import UserError

from ..processes import python

cv2 = pytest.importorskip("cv2")


class Squares(BaseDetector):
    """Finds a square whose side is the first pixel, and none in a black picture."""

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


SETTINGS = {"model": "abc", "score_threshold": 0.3}


def detect(folder, pictures, kind="jsonl", **options):
    parts = Parts(folder, kind, SETTINGS)
    return detect_into(parts, Squares(), parts.missing(pictures), **options)


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


def test_pandas_reads_the_rows(tmp_path):
    pandas = pytest.importorskip("pandas")
    pictures = make_pictures(tmp_path / "pictures", 3)
    (tmp_path / "text.jpg").write_text("no picture")
    pictures.append(str(tmp_path / "text.jpg"))
    detect(tmp_path / "out", pictures)
    (file,) = (tmp_path / "out").glob("*.jsonl")
    table = pandas.read_json(file, lines=True)
    assert len(Detections.from_row(table.iloc[2])) == 1


def test_other_settings_and_other_folders_are_refused(tmp_path):
    pictures = make_pictures(tmp_path / "pictures", 2)
    detect(tmp_path / "out", pictures)
    for change in ({"model": "other"}, {"score_threshold": 0.5}):
        with pytest.raises(UserError, match=next(iter(change))):
            Parts(tmp_path / "out", "jsonl", {**SETTINGS, **change})
    (tmp_path / "results.json").write_text("[1, 2]")
    with pytest.raises(UserError, match=r"results\.json"):
        Parts(tmp_path, "jsonl", SETTINGS)
    assert (tmp_path / "results.json").read_text() == "[1, 2]"


def test_a_full_disk_leaves_complete_parts(tmp_path, monkeypatch):
    monkeypatch.setattr("dcnzoo.detect.parts.ROWS", 4)
    pictures = make_pictures(tmp_path / "pictures", 20)
    parts, calls, fsync = Parts(tmp_path / "out", "jsonl", SETTINGS), [], os.fsync

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="cannot be written"):
        detect_into(parts, Squares(), pictures)
    assert len(read(tmp_path / "out")) == 8 and len(calls) == 3
    monkeypatch.setattr(os, "fsync", fsync)
    detect(tmp_path / "out", pictures)
    assert [row["path"] for row in read(tmp_path / "out")] == sorted(pictures)


CODE = """
import os, sys
from pathlib import Path
from dcnzoo.detect import parts
from tests.detect.test_parts import SETTINGS, Squares

class Killed(Squares):
    calls = 0
    def _detect(self, inputs, threshold):
        self.calls += 1
        if self.calls == int(sys.argv[3]):
            os._exit(9)
        return super()._detect(inputs, threshold)

parts.ROWS = 4
pictures = [str(path) for path in sorted(Path(sys.argv[1]).iterdir())]
folder = parts.Parts(sys.argv[2], "jsonl", SETTINGS)
parts.detect_into(folder, Killed(), folder.missing(pictures))
"""


def test_killed_and_repeated(tmp_path):
    pictures = make_pictures(tmp_path / "pictures", 30)
    root = Path(__file__).resolve().parents[2]
    for call, status in ((11, 9), (99, 0)):
        python("-c", CODE, tmp_path / "pictures", tmp_path / "out", call, status=status, cwd=root)
    detect(tmp_path / "whole", pictures)
    assert read(tmp_path / "out") == read(tmp_path / "whole")
    assert len([*(tmp_path / "out").iterdir()]) == 1 + 2 + 6, "the record, and parts of four rows"


def test_pictures_are_read_while_others_are_detected(tmp_path, monkeypatch):
    threads = set()

    def slow(image, bgr):
        threads.add(threading.current_thread())
        time.sleep(0.05)
        return np.full((9, 12, 3), 2, np.uint8)

    class Slow(Squares):
        def _detect(self, inputs, threshold):
            time.sleep(0.05)
            return super()._detect(inputs, threshold)

    monkeypatch.setattr("dcnzoo.detect.sources.read", slow)
    began = time.monotonic()
    results = [*Slow()([f"{n}.png" for n in range(20)])]
    assert [result.path for result in results] == [f"{n}.png" for n in range(20)]
    assert time.monotonic() - began < 1.7, "one after the other takes two seconds"
    assert threading.main_thread() not in threads
