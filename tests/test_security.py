"""Untrusted and damaged files in every command: their content is never executed, and read whole or not."""

import os
import runpy
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import dcnzoo.models
from dcnzoo import zoo
from dcnzoo.openmmlab.checkpoints import CheckpointError
from dcnzoo.zoo import index

from .commands import invoke
from .demo import DEFORMABLE as CONFIG
from .demo import build_demo
from .processes import ROOT
from .test_compat_checkpoints import Harmful
from .test_tools import tiny
from .zoo.conftest import undisturbed  # noqa: F401  a fixture
from .zoo.server import Served, serving

MARK = "made by a checkpoint"


@pytest.fixture(scope="module")
def weights():
    return build_demo().state_dict()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tmp_path_factory.mktemp("data") / "shapes"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cv2.imwrite("image.png", np.full((96, 128, 3), 90, np.uint8))
    yield tmp_path
    assert not (tmp_path / MARK).exists()


@pytest.fixture
def run(folder, monkeypatch):
    """Runs a subcommand, or a tool by its path under tools/. Returns exit status and output."""

    def run(name, *arguments):
        monkeypatch.setattr(sys, "path", list(sys.path))
        monkeypatch.setenv("DCNZOO_TRACEBACK", "0")
        if "/" not in name:
            monkeypatch.setattr(sys, "argv", [])
            return invoke(name, *arguments)
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            runpy.run_path(str(ROOT / "tools" / f"{name}.py"), run_name="__main__")
        return 1, str(stopped.value)

    return run


def training(data, config=CONFIG):
    workers = [f"{loader}_dataloader.{setting}" for loader in ("train", "val", "test")
               for setting in ("num_workers=0", "persistent_workers=False")]  # fmt: skip
    return [config, "--work-dir", "work", *tiny(data, train=2, val=1, epochs=1), *workers]


def with_backbone(file):
    pretrained = f"dict(init_cfg=dict(_delete_=True, type='Pretrained', checkpoint={str(file)!r}))"
    Path("own.py").write_text(f"_base_ = {CONFIG!r}\nmodel = dict(backbone={pretrained})\n")
    return "own.py"


COMMANDS = {
    "train, load_from": lambda file, data: ("train", *training(data), f"load_from={file}"),
    "train, backbone": lambda file, data: ("train", *training(data, with_backbone(file))),
    "train --resume": lambda file, data: ("train", *training(data), "--resume", file),
    "test": lambda file, data: ("test", CONFIG, file, *training(data)[1:]),
    "infer": lambda file, data: ("infer", CONFIG, "image.png", "--checkpoint", file),
    "explain": lambda file, data: ("explain", CONFIG, "image.png", "--checkpoint", file),
    "export": lambda file, data: ("export", CONFIG, file, "--test-img", "image.png", "--shape", 96, 128),
    "publish_model": lambda file, data: ("model_converters/publish_model", file, "out.pth"),
    "benchmark": lambda file, data: ("analysis/benchmark", CONFIG, "--checkpoint", file, "--shape", 96, 128),
    "reproduce": lambda file, data: ("./reproduce", CONFIG, "--checkpoint", file, *training(data)[1:]),
}  # fmt: skip
SLOW = ("train, load_from", "test", "reproduce")


def slow(*commands):
    return [pytest.param(command, marks=pytest.mark.slow) for command in commands]


@pytest.mark.skipif(sys.platform != "linux", reason="posix.mkdir has another name elsewhere")
@pytest.mark.parametrize("command", [*(d for d in COMMANDS if d not in SLOW), *slow(*SLOW)])
def test_code_in_a_checkpoint_is_refused(run, folder, data, weights, command):
    torch.save({"state_dict": weights, "meta": {"x": Harmful(folder / MARK)}}, "harmful.pth")
    status, output = run(*COMMANDS[command]("harmful.pth", data))
    assert status == 1, output
    assert "harmful.pth: contains posix.mkdir, which is neither weights nor plain data" in output
    assert output.splitlines()[-1].startswith("error: ") and "Traceback" not in output


def flip_a_bit(path, value):
    """Change one bit of a tensor, without its CRC-32."""
    content = bytearray(path.read_bytes())
    position = content.index(value.numpy().tobytes())
    content[position] ^= 1
    path.write_bytes(content)


SAME_LOADER = ("train, backbone", "train --resume", "reproduce")  # as the others


@pytest.mark.parametrize(
    "command", [*(c for c in (*COMMANDS, "dcnzoo.load") if c not in SAME_LOADER), *slow(*SAME_LOADER)]
)
def test_damaged_weights_are_refused(run, folder, data, weights, command):
    name = "backbone.layer1.0.conv1.weight"
    torch.save({"state_dict": weights, "meta": {}}, "bit.pth")
    flip_a_bit(Path("bit.pth"), weights[name])
    damaged = {**weights, name: weights[name].clone()}
    damaged[name].view(-1)[3] = float("nan")
    torch.save({"state_dict": damaged, "meta": {}}, "nan.pth")
    for file, text in (("bit.pth", "bit/data/"), ("nan.pth", name)):
        if command == "dcnzoo.load":
            with pytest.raises(CheckpointError, match=f"^{file}: expected .*{text}"):
                dcnzoo.load(CONFIG, checkpoint=file)
            continue
        status, output = run(*COMMANDS[command](file, data))
        assert status == 1 and "Traceback" not in output, output
        line = output.splitlines()[-1]
        assert line.startswith(f"error: {file}: expected") and text in line


def test_zoo_download(run, folder, tmp_path, monkeypatch):
    """A download does not unpickle the file. Loading it later is as safe as for any other file."""
    torch.save({"state_dict": {"w": torch.ones(1)}, "meta": {"x": Harmful(folder / MARK)}}, "harmful.pth")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    model = zoo.find("faster-rcnn_r50-mdconv-c3-c5_fpn_1x_coco")
    with serving(Served({"/harmful.pth": Path("harmful.pth").read_bytes()})) as server:
        monkeypatch.setattr(index.Model, "only_weights", lambda self: f"{server.url}/harmful.pth")
        status, output = run("zoo", "download", model.name, "--out", "there")
        assert status == 0, output
        status, output = run("infer", model.name, "image.png")
    assert status == 1 and "contains posix.mkdir" in output


def config_that_acts(folder):
    return f"import os\nos.mkdir({str(folder / MARK)!r})\n{Path(CONFIG).read_text()}"


@pytest.mark.parametrize("command", ["infer", *slow("explain", "export")])
def test_a_config_in_a_checkpoint_is_not_run(run, folder, data, weights, command):
    """mmdet's DetInferencer uses the config in the checkpoint if none is given. dcnzoo always passes one."""
    text = config_that_acts(folder)
    hub = {"log_scalars": {}, "runtime_info": {"cfg": text}, "resumed_keys": {}}
    meta = {"cfg": text, "config": text}
    torch.save({"state_dict": weights, "meta": meta, "message_hub": hub}, "x.pth")
    status, output = run(*COMMANDS[command]("x.pth", data))
    assert status == 0, output
    if command != "export":
        status, output = run(command, "image.png", "--checkpoint", "x.pth")
        assert (status == 2 and "MODEL" in output) or "'IMAGE'" in output


@pytest.mark.slow
def test_resume_does_not_run_the_config(run, folder, data):
    status, output = run("train", *training(data))
    assert status == 0, output
    checkpoint = torch.load("work/epoch_1.pth")
    checkpoint["meta"].update(config=config_that_acts(folder), cfg=config_that_acts(folder))
    torch.save(checkpoint, "changed.pth")
    status, output = run("train", *training(data), "train_cfg.max_epochs=2", "--resume", "changed.pth")
    assert status == 0, output
    assert (folder / "work/epoch_2.pth").exists() and not os.path.exists(MARK)


def test_class_names_are_text(run, folder, weights):
    names = ("<script>alert(1)</script>", "[/red][link=http://x]y[/link]", "\x1b]0;title\x07")
    torch.save({"state_dict": weights, "meta": {"dataset_meta": {"classes": names}}}, "x.pth")
    for command in ("infer", "explain"):
        options = ("--score-threshold", 0) if command == "infer" else ()
        status, output = run(*COMMANDS[command]("x.pth", None), *options)
        assert status == 0, output
        assert "\x1b" not in output
        assert command == "explain" or all(name in output for name in names[:2])
    pages = list(folder.rglob("*.html"))
    assert pages and not any("<script>alert" in page.read_text() for page in pages)
