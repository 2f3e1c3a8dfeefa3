"""Exported detectors in Node.js, with its own runtime and that of browsers: ``nox -s clients``."""

import json
import os
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

import dcnzoo
from dcnzoo.detect.session import Session
from tests.helpers.demo import DEFORMABLE, build_demo
from tests.helpers.processes import ROOT

if "NODE" not in os.environ:
    pytest.skip("nox -s clients installs the packages", allow_module_level=True)

DUMP = """
const { writeFileSync } = await import("node:fs");
const values = Object.entries(outputs).map(([name, tensor]) => [name, Array.from(tensor.data, Number)]);
writeFileSync("outputs.json", JSON.stringify(Object.fromEntries(values)));
"""
HEIGHT, WIDTH, PICTURE = 96, 128, (80, 112)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("node")
    detector = build_demo()
    torch.save({"state_dict": detector.state_dict()}, folder / "weights.pth")
    options = {"model.test_cfg.rcnn.score_thr": 0.0, "model.test_cfg.rcnn.max_per_img": 20}
    loaded = dcnzoo.load(DEFORMABLE, checkpoint=folder / "weights.pth", device="cpu", cfg_options=options)
    loaded.export(folder / "model.onnx", img_shape="required", deform_conv="gathernd")
    return folder / "model.onnx"


@pytest.mark.parametrize("runtime", ["onnxruntime-node", "onnxruntime-web"])
def test_detections_are_those_of_python(model, runtime, tmp_path):
    image = np.zeros((1, 3, HEIGHT, WIDTH), np.float32)
    image[..., : PICTURE[0], : PICTURE[1]] = np.random.default_rng(0).standard_normal((3, *PICTURE))
    image.tofile(tmp_path / "input.f32")
    page = (ROOT / "docs/runtimes/javascript.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```js\n(// detect\.mjs.*?)```", page, re.S)
    (tmp_path / "detect.mjs").write_text(code + DUMP, encoding="utf-8")
    (tmp_path / "node_modules").symlink_to(Path(os.environ["NODE"]) / "node_modules")
    arguments = map(str, (runtime, model, "input.f32", HEIGHT, WIDTH, *PICTURE))
    command = ["node", "detect.mjs", *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    outputs = json.loads((tmp_path / "outputs.json").read_text())
    expected = Session(model, device="cpu")(image, np.array([PICTURE]))
    count = int((expected["labels"] >= 0).sum())
    assert count and len(done.stdout.splitlines()) == count
    assert expected["dets"][..., :4].max() <= max(PICTURE)
    for name, value in expected.items():
        output = np.array(outputs[name]).reshape(value.shape)
        np.testing.assert_allclose(output, value, atol=1 if name == "masks" else 1e-3, err_msg=name)
