"""Untrusted and damaged files in every command: nothing in them is executed, and none is read in part."""

import re
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import dcnzoo.models
from dcnzoo.openmmlab.checkpoints import CheckpointError
from tests.helpers.checkpoints import Harmful
from tests.helpers.commands import invoke
from tests.helpers.demo import DEFORMABLE as CONFIG
from tests.helpers.demo import build_demo, small_options

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


def training(data, config=CONFIG):
    return [config, "--work-dir", "work", *small_options(data, 2, 1)]


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
}  # fmt: skip
QUICK = ("dcnzoo.load", "train, backbone", "infer")
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in COMMANDS if name not in QUICK]


def flip_a_bit(path, value):
    """Change one bit of a tensor, without its CRC-32."""
    content = bytearray(path.read_bytes())
    position = content.index(value.numpy().tobytes())
    content[position] ^= 1
    path.write_bytes(content)


@pytest.mark.skipif(sys.platform != "linux", reason="posix.mkdir has another name elsewhere")
@pytest.mark.parametrize("command", [*QUICK, *SLOW])
def test_harmful_and_damaged_weights_are_refused(folder, data, weights, command):
    name = "backbone.layer1.0.conv1.weight"
    damaged = {**weights, name: weights[name].clone()}
    damaged[name].view(-1)[3] = float("nan")
    torch.save({"state_dict": weights, "meta": {"x": Harmful(folder / MARK)}}, "harmful.pth")
    torch.save({"state_dict": weights, "meta": {}}, "bit.pth")
    flip_a_bit(Path("bit.pth"), weights[name])
    torch.save({"state_dict": damaged, "meta": {}}, "nan.pth")
    for file, text in (
        ("harmful.pth", "contains posix.mkdir, which is neither weights nor plain data"),
        ("bit.pth", "expected .*bit/data/"),
        ("nan.pth", f"expected .*{name}"),
    ):
        if command == "dcnzoo.load":
            with pytest.raises(CheckpointError, match=f"^{file}: {text}"):
                dcnzoo.load(CONFIG, checkpoint=file)
            continue
        status, output = invoke(*COMMANDS[command](file, data))
        assert status == 1 and "Traceback" not in output, output
        assert re.match(f"error: {file}: {text}", output.splitlines()[-1])


def test_class_names_are_text_and_a_config_is_not_run(folder, weights):
    """mmdet's DetInferencer uses the config in the checkpoint if none is given. dcnzoo always passes one."""
    names = ("<script>alert(1)</script>", "[/red][link=http://x]y[/link]", "\x1b]0;title\x07")
    text = f"import os\nos.mkdir({str(folder / MARK)!r})\n{Path(CONFIG).read_text()}"
    hub = {"log_scalars": {}, "runtime_info": {"cfg": text}, "resumed_keys": {}}
    meta = {"cfg": text, "config": text, "dataset_meta": {"classes": names}}
    torch.save({"state_dict": weights, "meta": meta, "message_hub": hub}, "x.pth")
    for command in ("infer", "explain"):
        options = ("--score-threshold", 0) if command == "infer" else ()
        status, output = invoke(*COMMANDS[command]("x.pth", None), *options)
        assert status == 0, output
        assert "\x1b" not in output
        assert command == "explain" or all(name in output for name in names[:2])
    pages = list(folder.rglob("*.html"))
    assert pages and not any("<script>alert" in page.read_text() for page in pages)
