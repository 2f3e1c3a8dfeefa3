"""``dcnzoo infer`` and ``dcnzoo explain`` from the command line, with the demo's detector."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmdet.apis import inference_detector
from torch import nn

import dcnzoo.models
from dcnzoo.cli.infer import DEMO_MODEL
from dcnzoo.data.shapes import CLASSES, ShapesSpec, draw_image
from dcnzoo.report import record_sampling
from tests.helpers.commands import invoke
from tests.helpers.demo import DEFORMABLE as CONFIG
from tests.helpers.demo import build_demo
from tests.helpers.explained import decoded, page_data

HEIGHT, WIDTH = 96, 150  # of the files; the detector's input is 82 × 128, padded to 96 × 128


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two images, and the weights of an untrained detector with random offsets."""
    folder = tmp_path_factory.mktemp("infer")
    detector = build_demo()
    for name, parameter in detector.named_parameters():
        if "conv_offset" in name:
            nn.init.normal_(parameter, std=0.1)
        elif name.endswith("fc_cls.bias"):
            # mostly the first class, sometimes another
            parameter.data.copy_(torch.tensor([2.0, 0.0, -9.0, 1.0]))
    torch.save({"state_dict": detector.state_dict(), "meta": {}}, folder / "weights.pth")
    pixels = np.random.default_rng(0)
    for name in ("a", "b/a"):
        (folder / name).parent.mkdir(exist_ok=True)
        image = cv2.resize(pixels.integers(0, 255, (6, 9, 3), dtype=np.uint8), (WIDTH, HEIGHT))
        cv2.imwrite(str(folder / f"{name}.png"), image)
    (folder / "text.png").write_text("not a picture")
    return folder


@pytest.fixture
def run(folder, monkeypatch):
    """Run a subcommand in the folder. Returns its exit status and output."""

    def run(*arguments, model=CONFIG, checkpoint="weights.pth"):
        monkeypatch.chdir(folder)
        weights = ["--checkpoint", checkpoint] if checkpoint else []
        return invoke(arguments[0], model, *arguments[1:], *weights)

    return run


def files_in(folder):
    return sorted(path.name for path in folder.glob("[!.]*"))


def detections(folder, image):
    detector = dcnzoo.load(CONFIG, checkpoint=folder / "weights.pth").model
    with record_sampling(detector) as fields:
        found = inference_detector(detector, str(folder / image)).pred_instances
    return found, fields


def test_infer_writes_what_the_detector_finds(run, folder, tmp_path):
    status, output = run(
        "infer", "a.png", "b/a.png", "--out", tmp_path, "--score-threshold", 0.2, "--verbose"
    )
    assert status == 0, output
    assert files_in(tmp_path) == ["a.png", "b", "detections.json"]
    assert cv2.imread(str(tmp_path / "b/a.png")).shape == (384, 600, 3)
    content = json.loads((tmp_path / "detections.json").read_text())
    assert content["info"]["description"] == f"detections of {Path(CONFIG).name}"
    sizes = [(image["file_name"], image["width"], image["height"]) for image in content["images"]]
    assert sizes == [("a.png", WIDTH, HEIGHT), ("b/a.png", WIDTH, HEIGHT)]
    names = {category["id"]: category["name"] for category in content["categories"]}
    for image in content["images"]:
        expected, _ = detections(folder, image["file_name"])
        expected = expected[expected.scores >= 0.2]
        found = [a for a in content["annotations"] if a["image_id"] == image["id"]]
        assert len(found) == len(expected) > 0
        x, y, w, h = np.array([a["bbox"] for a in found]).T
        np.testing.assert_allclose(np.stack([x, y, x + w, y + h], 1), expected.bboxes, atol=1e-4)
        assert [a["category_id"] - 1 for a in found] == expected.labels.tolist()
        scores = [a["score"] for a in found]
        np.testing.assert_allclose(scores, expected.scores, atol=1e-6)
        assert scores == sorted(scores, reverse=True)
        line = rf"{names[found[0]['category_id']]} +{scores[0]:.3f} +{x[0]:.1f} +{y[0]:.1f} "
        assert re.search(line, output)
    seconds = re.findall(r"^(?:b/)?a\.png: \d+ \w+.*, (\d+\.\d\d) s$", output, re.MULTILINE)
    assert len(seconds) == 2 and all(map(float, seconds))
    status, output = run("infer", "a.png", "b/a.png", "--out", tmp_path, "--batch-size", 2, "--force")
    assert status == 0 and len(output.splitlines()) == 3, "a line per picture, and the files"


def test_a_picture_without_objects_has_a_line_with_the_best(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), draw_image(ShapesSpec(), "val", 0)[0])
    best = dcnzoo.load(DEMO_MODEL)(tmp_path / "a.png", classes="cross", max_detections=1)
    options = ["--json", "--out", tmp_path / "out", "--classes", "cross", "--score-threshold"]
    _, output = invoke("infer", DEMO_MODEL, tmp_path / "a.png", *options, 0.999)
    assert f"none above 0.999; the best: cross {best.scores[0]:.2f}" in output


def test_video(tmp_path):
    """From a video, the command writes a video of the drawn frames with the same rate."""
    frames = [draw_image(ShapesSpec(), "val", number)[0] for number in range(3)]
    writer = cv2.VideoWriter(str(tmp_path / "in.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 5, (128, 128))
    for frame in frames:
        writer.write(frame)
    writer.release()
    out, folder = tmp_path / "out.mp4", tmp_path / "found"
    arguments = ["--out", folder, "--save-video", out]
    status, output = invoke("infer", DEMO_MODEL, tmp_path / "in.avi", *arguments)
    assert status == 0, output
    assert files_in(folder) == ["detections.json"]
    video = cv2.VideoCapture(str(out))
    assert video.get(cv2.CAP_PROP_FPS) == 5 and video.get(cv2.CAP_PROP_FRAME_COUNT) == 3
    before = (tmp_path / "in.avi").read_bytes()
    status, _ = invoke("infer", DEMO_MODEL, tmp_path / "in.avi", "--save-video", tmp_path / "in.avi")
    assert status == 1 and (tmp_path / "in.avi").read_bytes() == before


def test_options_of_the_output(tmp_path):
    """--json and --txt write only their files, with the detections that the other options keep."""
    cv2.imwrite(str(tmp_path / "a.png"), draw_image(ShapesSpec(), "val", 0)[0])
    whole = dcnzoo.load(DEMO_MODEL)(tmp_path / "a.png")
    name = whole.names[1]
    chosen = ["--classes", name, "--max-detections", 1]
    out = tmp_path / "out"
    status, output = invoke("infer", DEMO_MODEL, tmp_path / "a.png", "--out", out, "--json", "--txt", *chosen)
    assert status == 0 and files_in(out) == ["a.txt", "classes.txt", "detections.json"]
    assert (out / "classes.txt").read_text().split() == list(CLASSES)
    (annotation,) = json.loads((out / "detections.json").read_text())["annotations"]
    best = whole[np.array(whole.names) == name][:1]
    assert annotation["category_id"] == best.labels[0] + 1
    label, *values = (out / "a.txt").read_text().split()
    x1, y1, x2, y2 = best.boxes[0] / 128
    expected = [(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1, best.scores[0]]
    assert int(label) == best.labels[0]
    np.testing.assert_allclose([*map(float, values)], expected, atol=1e-5)
    assert f"written: {out}/detections.json and 1 file in {out}" in output
    assert re.search(r"a\.png: 1 \w+, (?!0\.00)\d+\.\d\d s", output), "the time of a single picture"


def test_pictures_that_cannot_be_read(folder, tmp_path):
    """Each is named once, and the command ends with an error."""
    names = [*folder.glob("*.png")][:1]
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_text("no picture")
    status, output = invoke(
        "infer", DEMO_MODEL, *names, tmp_path / "a.jpg", tmp_path / "b.jpg", "--out", tmp_path / "out"
    )
    assert status == 1 and "error: 2 images skipped" in output
    assert output.count("a.jpg") == output.count("b.jpg") == 1


def test_texts_go_on_after_a_kill(tmp_path):
    """The killed command leaves no half-written text; the next one runs only on the other pictures."""
    (tmp_path / "photos").mkdir()
    for number in range(6):
        cv2.imwrite(str(tmp_path / f"photos/{number}.png"), draw_image(ShapesSpec(), "val", number)[0])
    command = ["infer", DEMO_MODEL, str(tmp_path / "photos"), "--txt", "--out"]
    slow = "import time\nfrom dcnzoo.detect.files import ResultFiles\nadd = ResultFiles.add\n"
    slow += "ResultFiles.add = lambda *args: (add(*args), time.sleep(0.2))\nfrom dcnzoo.cli import main\n"
    killed = subprocess.Popen([sys.executable, "-c", f"{slow}main(*{[*command, str(tmp_path / 'out')]})"])
    while len([*tmp_path.glob("out/[0-9].txt")]) < 2 and killed.poll() is None:
        time.sleep(0.02)
    killed.kill()
    killed.wait()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("out/[0-9].txt")}
    status, output = invoke(*command, tmp_path / "out", "--skip-existing")
    assert status == 0 and 2 <= len(before) < 6 and output.count(" s\n") == 6 - len(before)
    assert all(path.stat().st_mtime_ns == written for path, written in before.items())
    invoke(*command, tmp_path / "whole")
    assert files_in(tmp_path / "out") == files_in(tmp_path / "whole") and len(before) < 6
    for path in (tmp_path / "whole").iterdir():
        assert path.read_text() == (tmp_path / "out" / path.name).read_text()


@pytest.mark.parametrize("threshold", [0.0, 0.9999])
def test_explain_starts_at_the_best_detection_or_in_the_middle(run, folder, tmp_path, threshold):
    file = tmp_path / "explain.html"
    limit = ["--cfg-options", f"model.test_cfg.rcnn.score_thr={threshold}"]
    assert run("explain", "a.png", "--out", file, *limit)[0] == 0
    found, _ = detections(folder, "a.png")
    x1, y1, x2, y2 = (
        found.bboxes[found.scores.argmax()].tolist() if threshold < 0.9 else (0, 0, WIDTH, HEIGHT)
    )
    data = page_data(file.read_text())
    np.testing.assert_allclose(data["box"], [(x1 + x2) / 2, (y1 + y2) / 2] * 2, rtol=1e-4)
    shown = found[found.scores >= 0.5] if threshold < 0.9 else []
    expected = np.array(shown.bboxes if len(shown) else []).tolist()
    np.testing.assert_allclose([box for box, _ in data["objects"]], expected, rtol=1e-4)


def test_explain_shows_what_was_recorded(run, folder, tmp_path):
    file = tmp_path / "explain.html"
    status, output = run("explain", "a.png", "--at", "75,30", "--out", file)
    assert status == 0 and f"written: {file}" in output
    data = page_data(file.read_text())
    assert file.stat().st_size < 300_000 and (data["width"], data["height"]) == (WIDTH, HEIGHT)
    assert data["box"] == [75, 30] * 2 and data["seen"] == [96, 128], "the page's positions are the file's"
    np.testing.assert_allclose(data["scale"], [HEIGHT / 82, WIDTH / 128])
    _, fields = detections(folder, "a.png")
    for layer, field in zip(data["layers"], fields, strict=True):
        offsets, _ = decoded(layer)
        assert layer["name"] == field.name and layer["input"] == [*field.input_size]
        np.testing.assert_allclose(offsets, field.offset.permute(2, 3, 0, 1), atol=1e-3)
        rows, columns = field.weight.shape[1:]
        assert re.search(rf"{field.name} +{rows}×{columns} +{field.offset.abs().mean():.3f} ", output)
