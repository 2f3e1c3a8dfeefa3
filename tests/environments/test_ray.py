"""The recipe for Ray Data in docs/scale.md: ``nox -s ray``."""

import re
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("ray", exc_type=ImportError)
import psutil  # Ray contains it
import pyarrow.dataset

import dcnzoo
from dcnzoo.data.shapes import ShapesSpec, draw_image

PAGE = Path(__file__).resolve().parents[2] / "docs/scale.md"
MODEL = "mask-rcnn_r14-mdconv_fpn_8e_shapes"
COUNT = 200


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "pictures").mkdir()
    for number in range(COUNT):
        picture, _ = draw_image(ShapesSpec(), "val", number)
        cv2.imwrite(str(tmp_path / f"pictures/{number}.jpg"), picture)
    (tmp_path / "pictures/7.jpg").write_text("no picture")
    recipe = re.search(
        r'^```python\n("""python predict.py .*?)^```', PAGE.read_text(), re.MULTILINE | re.DOTALL
    )
    (tmp_path / "predict.py").write_text(recipe[1])
    return tmp_path


def start(folder):
    command = [sys.executable, "predict.py", MODEL, "pictures", "results", "2"]
    return subprocess.Popen(command, cwd=folder)


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
        assert job.wait() == 0
    after = files(folder)
    assert before.items() <= after.items()
    rows = pyarrow.dataset.dataset(list(map(str, after))).to_table().to_pylist()
    assert sorted(row["path"] for row in rows) == sorted(f"pictures/{number}.jpg" for number in range(COUNT))
    detector = dcnzoo.load(MODEL)
    for row in rows:
        if row["path"] == "pictures/7.jpg":
            assert "7.jpg" in row["error"] and not row["names"]
            continue
        expected = detector(folder / row["path"])
        assert row["names"] == expected.names and row["error"] is None
        np.testing.assert_allclose(np.reshape(row["boxes"], (-1, 4)), expected.boxes, atol=1e-3)
    with start(folder) as job:
        assert job.wait() == 0
    assert files(folder) == after
