"""dcnzoo replaces only files that it has written: ``dcnzoo.utils.files.output_files`` and the commands."""

import hashlib
import json
import os

import cv2
import numpy as np
import pytest
from mmengine.config import Config
from mmengine.runner import Runner

import dcnzoo.models  # noqa: F401  first: mmengine needs mmcv._ext
from dcnzoo.data.shapes import CLASSES
from dcnzoo.detect.detections import Detections
from dcnzoo.utils.errors import UserError
from dcnzoo.utils.files import RECORD, output_files, write_text

from ..commands import error_of, invoke, run
from ..demo import DEFORMABLE

DEMO = "mask-rcnn_r14-mdconv_fpn_8e_shapes"


def write(path, text="new", command="infer", **options):
    with output_files(command, **options) as claim:
        write_text(claim(path), text)


def test_a_command_replaces_only_its_own_unchanged_files(tmp_path):
    path = tmp_path / "out" / "a.txt"
    write(path, "first")
    write(path, "second")
    for reason, command in (("of another command", "report"), ("changed", "infer")):
        if reason == "changed":
            path.write_text("edited")
        before = path.read_text()
        with pytest.raises(UserError, match=r"a\.txt.*--force"):
            write(path, command=command)
        assert path.read_text() == before, reason
    write(path, "third", force=True)
    write(path, "fourth")
    assert path.read_text() == "fourth"
    path.write_text("equal")
    write(path, "equal", force=True)  # from now on it is the command's own file
    write(path, "fifth")
    assert path.read_text() == "fifth"


def test_files_that_were_not_written_are_not_recorded(tmp_path):
    mine = tmp_path / "mine.txt"
    mine.write_text("mine")
    with pytest.raises(ZeroDivisionError), output_files("infer", force=True) as claim:
        claim(mine)
        write_text(claim(tmp_path / "b.txt"), "written before the error")
        1 / 0  # noqa: B018
    write(tmp_path / "b.txt")
    with pytest.raises(UserError, match="mine"):
        write(mine)


def test_places_where_nothing_is_written(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "none")
    os.mkfifo(tmp_path / "pipe")
    for place in (tmp_path, tmp_path / "file" / "x", tmp_path / "link", tmp_path / "pipe", "/proc/dcnzoo/x"):
        with pytest.raises(UserError, match=str(place).removesuffix("/x")):
            write(place)
    for name in ("a.jpg", "a.txt"):
        with pytest.raises(UserError, match="input"):
            write(tmp_path / name, inputs=[tmp_path / "a.jpg"], force=True)
    (tmp_path / RECORD).write_text("[1\n3\nnull\n")
    with pytest.raises(UserError, match="--force"):
        write(tmp_path / "file")
    assert sorted(path.name for path in tmp_path.iterdir()) == [RECORD, "file", "link", "pipe"]


def hashes(folder):
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    """A user's folder: pictures, annotations, results, and a config with the demo's data in it."""
    folder = tmp_path_factory.mktemp("mine")
    for name in (
        "photos/a.png",
        "photos/b.jpg",
        "labels/a.txt",
        "all.json",
        "all.bbox.json",
        "model.onnx",
        "weights.pth",
        "page.html",
        "run/report.html",
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        if "photos" in name:
            cv2.imwrite(str(folder / name), np.zeros((64, 64, 3), np.uint8))
        else:
            (folder / name).write_text("mine")
    coco = {
        "images": [{"id": 1, "file_name": "a.png", "width": 64, "height": 64}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 9, 9], "area": 81, "iscrowd": 0,
             "segmentation": [[1, 1, 10, 1, 10, 10, 1, 10]]}
        ],
        "categories": [{"id": number, "name": name} for number, name in enumerate(CLASSES, 1)],
    }  # fmt: skip
    for name in ("coco.json", "data/train.json"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(coco))
    (folder / "data/a.png").symlink_to(folder / "photos/a.png")
    data = {"type": "CocoDataset", "metainfo": {"classes": CLASSES}, "ann_file": f"{folder}/coco.json"}
    data |= {"data_prefix": {"img": f"{folder}/photos"}, "test_mode": True, "pipeline": [], "_delete_": True}
    config = f"""
_base_ = {DEFORMABLE!r}
test_dataloader = dict(dataset={data})
test_evaluator = dict(ann_file={data["ann_file"]!r})
"""
    (folder / "config.py").write_text(config)
    return folder


REFUSED = [
    ["infer", DEMO, "photos", "--out", "photos"],
    ["infer", DEMO, "photos", "--txt", "--out", "labels"],
    ["infer", DEMO, "photos", "--out", "/proc/dcnzoo"],
    ["test", "config.py", "weights.pth", "--show-dir", "photos", "--work-dir", "LOGS"],
    ["test", "config.py", "weights.pth", "--out", "all.json", "--format-only"],
    ["report", "run", "--out", "all.html"],
    ["explain", DEMO, "photos/a.png", "--out", "page.html"],
    ["explain", DEMO, "photos/a.png", "--out", "photos/a.png"],
    ["export", DEMO, "--out", "model.onnx"],
    ["export", DEMO, "--out", "/proc/dcnzoo/model.onnx"],
    ["browse", DEFORMABLE, "--out", "photos/a.png/x"],
    ["data", "convert", "labelme", "photos", "all.json"],
    ["data", "split", "coco.json", "all.json", "val.json"],
    ["data", "check", "coco.json", "--fix", "all.json"],
    ["data", "check", "coco.json", "--fix", "coco.json"],
    ["data", "config", "coco.json", "coco.json", "page.html", "--images", "photos"],
    ["train", "--data", "data", "--work-dir", "."],
    ["train", DEFORMABLE, "--report", "--work-dir", "run"],
    ["reproduce", DEMO, "--out", "all.json"],
    ["reproduce", DEMO, "--out", "/proc/dcnzoo/rows.jsonl"],
]


@pytest.mark.parametrize("arguments", REFUSED, ids=lambda words: "-".join(words).replace("/", ":"))
def test_commands_replace_no_file_of_the_user(mine, tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(mine)
    before = hashes(mine)
    message = error_of(*(str(tmp_path) if word == "LOGS" else word for word in arguments))
    assert any(text in message for text in ("--force", "cannot be written", "input")), message
    assert hashes(mine) == before


def test_training_beside_its_config(tmp_path, monkeypatch):
    """The config in the work directory is the user's own file until dcnzoo has written it."""
    monkeypatch.chdir(tmp_path)
    config, text = tmp_path / "mine.py", f"_base_ = {DEFORMABLE!r}"
    config.write_text(text)
    (tmp_path / "best_coco_bbox_mAP_epoch_1.pth").touch()
    for reason in ("without checkpoints", "mine.py"):
        assert reason in error_of("train", "mine.py", "--work-dir", ".")
        (tmp_path / "best_coco_bbox_mAP_epoch_1.pth").unlink(missing_ok=True)
    assert config.read_text() == text
    config.rename("other.py")
    monkeypatch.setattr(Runner, "train", stop)
    monkeypatch.setattr(Config, "pretty_text", property(unformatted))
    assert "stopped" in error_of("train", "other.py", "--work-dir", "run")  # before its first checkpoint
    assert "stopped" in error_of("train", "run", "--work-dir", "run")


def unformatted(cfg):  # formatting takes seconds
    return "".join(f"{key} = {value!r}\n" for key, value in cfg.to_dict().items())


def stop(*args):
    raise ValueError("stopped")


def test_a_command_can_run_twice(mine, tmp_path, monkeypatch):
    monkeypatch.chdir(mine)
    for _ in range(2):
        run("infer", DEMO, "photos", "--txt", "--out", tmp_path)
        run("data", "check", "coco.json", "--fix", tmp_path / "fixed.json")
    (tmp_path / "a.txt").write_text("edited")
    error_of("infer", DEMO, "photos", "--txt", "--out", tmp_path)
    run("infer", DEMO, "photos", "--txt", "--out", tmp_path, "--force")


def test_an_interrupted_video_leaves_the_detections_of_its_frames(tmp_path, monkeypatch):
    writer = cv2.VideoWriter(str(tmp_path / "v.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 10, (128, 128))
    for _ in range(4):
        writer.write(np.zeros((128, 128, 3), np.uint8))
    writer.release()
    save = Detections.save

    def interrupted(result, path):
        if path.name == "v_3.png":
            raise KeyboardInterrupt
        save(result, path)

    monkeypatch.setattr(Detections, "save", interrupted)
    status, output = invoke("infer", DEMO, tmp_path / "v.avi", "--out", tmp_path / "out")
    assert status == 130 and output.splitlines()[-1].startswith("interrupted")
    images = json.loads((tmp_path / "out/detections.json").read_text())["images"]
    assert [image["file_name"].rpartition("#")[2] for image in images] == ["1", "2"]
