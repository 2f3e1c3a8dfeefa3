"""The program for Ray in docs/scale.md: ``nox -s projects``."""

import json
import re

import cv2
import pytest

import dcnzoo
from dcnzoo.data.shapes import ShapesSpec, draw_image
from tests.helpers.processes import ROOT

ray = pytest.importorskip("ray", exc_type=ImportError)

MODEL = "mask-rcnn_r14-mdconv_fpn_8e_shapes"


def test_program(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    paths = [str(tmp_path / f"{number}.png") for number in range(4)]
    for number, path in enumerate(paths):
        cv2.imwrite(path, draw_image(ShapesSpec(), "val", number)[0])
    page = (ROOT / "docs/scale.md").read_text(encoding="utf-8")
    (program,) = re.findall(r"^```python\n(import ray\n.*?)^```$", page, re.DOTALL | re.MULTILINE)
    ray.init("local", num_cpus=2)
    try:
        exec(program, {"paths": paths, "model": MODEL})
    finally:
        ray.shutdown()
    lines = [line for file in (tmp_path / "detections").iterdir() for line in file.read_text().splitlines()]
    rows = {row["path"]: row for row in map(json.loads, lines)}
    detector = dcnzoo.load(MODEL)
    assert rows.keys() == set(paths)
    for path, row in rows.items():
        assert row["boxes"] == detector(path).boxes.tolist()
