"""tools/deployment/cpp: a detector in C++, with OpenVINO alone."""

import shutil
import subprocess

import cv2
import numpy as np
import pytest

import dcnzoo
from dcnzoo.data.shapes import ShapesSpec, draw_image
from tests.helpers.processes import ROOT

openvino = pytest.importorskip("openvino")


@pytest.mark.slow
def test_detections_are_those_of_python(tmp_path, monkeypatch):
    if shutil.which("cmake") is None:
        pytest.skip("cmake is not installed")
    monkeypatch.chdir(tmp_path)
    prefix = f"-DCMAKE_PREFIX_PATH={openvino.__path__[0]}/cmake"
    subprocess.run(["cmake", "-S", ROOT / "tools/deployment/cpp", "-B", "build", prefix], check=True)
    subprocess.run(["cmake", "--build", "build"], check=True)
    picture = cv2.resize(draw_image(ShapesSpec(), "val", 9)[0], (180, 120))
    cv2.imwrite("picture.ppm", picture)
    detector = dcnzoo.load("mask-rcnn_r14-mdconv_fpn_8e_shapes", device="cpu")
    detector.export("model.xml", shape=(128, 128), verify=False)
    expected = dcnzoo.load("model.xml")("picture.ppm", score_threshold=0.3)
    command = ["build/detect", "model.xml", "picture.ppm"]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    values = np.array([line.split() for line in lines], float)[: len(expected)]
    assert len(expected) >= 3 and values[:, 0].tolist() == expected.labels.tolist()
    # the program does not round the resized picture to whole grey levels
    np.testing.assert_allclose(values[:, 1], expected.scores, atol=0.01)
    np.testing.assert_allclose(values[:, 2:], expected.boxes, atol=0.5)
