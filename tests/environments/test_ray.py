"""``dcnzoo infer --ray`` and ``dcnzoo.ray.Detect``: ``nox -s ray``."""

import subprocess
import sys
import time

import cv2
import numpy as np
import pytest

pytest.importorskip("ray", exc_type=ImportError)
import psutil  # Ray contains it
import ray

import dcnzoo
from dcnzoo.data.shapes import ShapesSpec, draw_image
from dcnzoo.detect.detections import Detections
from dcnzoo.detect.parts import rows
from dcnzoo.ray import Detect

MODEL = "mask-rcnn_r14-mdconv_fpn_8e_shapes"
COUNT = 200


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "pictures/sub").mkdir(parents=True)
    for number in range(COUNT):
        picture, _ = draw_image(ShapesSpec(), "val", number)
        name = f"{number}.png" if number % 2 else f"sub/{number}.JPG"
        cv2.imwrite(str(tmp_path / "pictures" / name), picture)
    (tmp_path / "pictures/7.png").write_text("no picture")
    (tmp_path / "pictures/gone.png").symlink_to("nowhere")
    return tmp_path


def start(folder, *options):
    command = ["infer", MODEL, "pictures", "--out", "results", "--format", "parquet", "--ray", "local"]
    return subprocess.Popen([sys.executable, "-m", "dcnzoo", *command, *options], cwd=folder)


def wait_for(condition, job):
    while not (result := condition()):
        assert job.poll() is None, "the job has ended"
        time.sleep(0.1)
    return result


def files(folder):
    return {file: file.stat().st_mtime_ns for file in (folder / "results").glob("*.parquet")}


def children(job):
    return psutil.Process(job.pid).children(recursive=True)


def kill(*processes):
    for process in processes:
        process.kill()
    assert not psutil.wait_procs(processes, timeout=60)[1]


def test_no_row_is_lost_or_detected_twice(folder):
    with start(folder) as job:
        wait_for(lambda: files(folder), job)
        kill(psutil.Process(job.pid), *children(job))
    before = files(folder)
    with start(folder) as job:
        wait_for(lambda: len(files(folder)) > len(before), job)
        kill(next(child for child in children(job) if "MapWorker" in " ".join(child.cmdline())))
        assert job.wait() == 1, "a picture cannot be opened"
    after = files(folder)
    assert before.items() <= after.items()
    by_path = {row["path"]: row for row in rows(folder / "results")}
    assert len([*rows(folder / "results")]) == len(by_path) == COUNT
    assert {*by_path} | {str(folder / "pictures/gone.png")} == {
        str(path) for path in (folder / "pictures").rglob("*.*")
    }
    detector = dcnzoo.load(MODEL)
    for path, row in by_path.items():
        if path.endswith("/7.png"):
            assert "7.png" in row["error"]
            continue
        expected, result = detector(path), Detections.from_row(row, detector.classes)
        assert result.names == expected.names and row["error"] is None
        np.testing.assert_allclose(result.boxes, expected.boxes, atol=1e-3)
    with start(folder, "--score-threshold", "0.5") as job:
        assert job.wait() == 1
    assert files(folder) == after, "other settings are refused"


def test_in_a_program(folder):
    paths = [str(folder / "pictures" / name) for name in ("1.png", "7.png", "gone.png", "sub")]
    ray.init("local", num_cpus=2)
    try:
        pictures = ray.data.from_items([{"path": path} for path in paths])
        found = pictures.map_batches(Detect, fn_constructor_args=[MODEL], concurrency=1).take_all()
    finally:
        ray.shutdown()
    by_path = {row["path"]: row for row in found}
    assert by_path.keys() == {*paths}
    assert [by_path[path]["error"] is None for path in paths] == [True, False, False, False]
    assert list(by_path[paths[0]]["names"]) == dcnzoo.load(MODEL)(paths[0]).names
