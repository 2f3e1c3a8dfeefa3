"""``dcnzoo infer --ray`` and ``dcnzoo.ray.Detect``: ``nox -s projects``."""

import subprocess
import sys
import time

import cv2
import numpy as np
import pytest

pytest.importorskip("ray", exc_type=ImportError)
import ray
from dcnzoo.detect.rows import rows
from dcnzoo.ray import Detect
from ray.cluster_utils import Cluster

import dcnzoo
from dcnzoo.data.shapes import ShapesSpec, draw_image
from dcnzoo.detect.detections import Detections

MODEL = "mask-rcnn_r14-mdconv_fpn_8e_shapes"
COUNT = 2000


def write_pictures(folder, count):
    (folder / "pictures/x.jpg").mkdir(parents=True)
    for number in range(count):
        picture, _ = draw_image(ShapesSpec(), "val", number)
        name = f"{number}.png" if number % 2 else f"x.jpg/{number}.JPG"
        cv2.imwrite(str(folder / "pictures" / name), picture)
    (folder / "pictures/7.png").write_text("no picture")
    (folder / "pictures/9.png").write_bytes((folder / "pictures/1.png").read_bytes()[:200])
    (folder / "pictures/gone.png").symlink_to("nowhere")


@pytest.fixture
def cluster():
    """Two raylets; the driver uses the first."""
    cluster = Cluster(initialize_head=True, head_node_args=dict(num_cpus=1, object_store_memory=10**8))
    yield cluster, cluster.add_node(num_cpus=1, object_store_memory=10**8)
    cluster.shutdown()


def start(folder, cluster, *options, model=MODEL):
    command = ["infer", model, "pictures", "--out", "results", "--format", "parquet"]
    command += ["--ray", cluster.address, *options]
    return subprocess.Popen([sys.executable, "-m", "dcnzoo", *command], cwd=folder)


def wait_for(condition, job):
    while not condition():
        assert job.poll() is None, "the job has ended"
        time.sleep(0.1)


def files(folder):
    return {file: file.stat().st_mtime_ns for file in (folder / "results").glob("*.parquet")}


def test_no_row_is_lost_or_detected_twice(tmp_path, cluster):
    """After the end of the driver, then of a raylet."""
    cluster, raylet = cluster
    write_pictures(tmp_path, COUNT)
    with start(tmp_path, cluster) as job:
        wait_for(lambda: files(tmp_path), job)
        job.kill()
    before = files(tmp_path)
    with start(tmp_path, cluster) as job:
        wait_for(lambda: len(files(tmp_path)) > len(before) + 2, job)
        cluster.remove_node(raylet, allow_graceful=False)
        assert job.wait() == 1, "a picture cannot be opened"
    after = files(tmp_path)
    assert before.items() <= after.items()
    by_path = {row["path"]: row for row in rows(tmp_path / "results")}
    assert len([*rows(tmp_path / "results")]) == len(by_path) == COUNT
    paths = {str(path) for path in (tmp_path / "pictures").rglob("*.*") if not path.is_dir()}
    assert {*by_path} | {str(tmp_path / "pictures/gone.png")} == paths
    damaged = {path: row["error"] for path, row in by_path.items() if row["error"]}
    assert {path.rpartition("/")[2] for path in damaged} == {"7.png", "9.png"}
    detector = dcnzoo.load(MODEL)
    for path, row in [*by_path.items()][::20]:
        if path not in damaged:
            expected, result = detector(path), Detections.from_row(row, detector.classes)
            assert result.names == expected.names
            np.testing.assert_allclose(result.boxes, expected.boxes, atol=1e-3)
    for model, threshold in (("mask-rcnn_r14_fpn_8e_shapes", "0.3"), (MODEL, "0.5")):
        with start(tmp_path, cluster, "--score-threshold", threshold, model=model) as job:
            assert job.wait() == 1
        assert files(tmp_path) == after, "another model or other settings are refused"


def test_in_a_program(tmp_path):
    write_pictures(tmp_path, 10)
    paths = [str(tmp_path / "pictures" / name) for name in ("1.png", "7.png", "gone.png", "x.jpg")]
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
