"""The ways of CONTRIBUTING.md: which files of dcnzoo the main commands enter, and in which order."""

import re
import sys
from contextlib import contextmanager
from pathlib import Path

import cv2
import pytest

import dcnzoo
from dcnzoo.data.shapes import ShapesSpec, draw_image

from .commands import run
from .demo import PLAIN
from .distributed.launching import settings
from .processes import ROOT

pytestmark = pytest.mark.slow

PACKAGE = str(Path(dcnzoo.__file__).parent) + "/"
SHAPES = "mask-rcnn_r14-mdconv_fpn_8e_shapes"
FLOORS = (
    "cli", "diagnosis", "report", "zoo", "models", "openmmlab", "export", "data", "detect", "compat",
    "backbones", "layers", "ops", "utils",
)  # fmt: skip
# What a floor calls that a higher one has handed to it: hooks, patches, tensors that watch a call, iterators,
# functions with a decorator
CALLBACKS = {
    ("compat", "openmmlab"), ("compat", "export"),
    ("detect", "cli"), ("detect", "openmmlab"), ("export", "openmmlab"),
    ("layers", "compat"), ("layers", "openmmlab"), ("layers", "report"),
    # most functions of torch call torch.compiler.is_exporting, which an export replaces
    ("ops", "compat"), ("ops", "openmmlab"),
    ("utils", "detect"), ("utils", "openmmlab"), ("utils", "report"), ("utils", "zoo"),
}  # fmt: skip


def ways():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([^|`]+) \| ((?:`[\w/]+\.py`(?: → )?)+) \|$", text, re.MULTILINE)
    return {name: re.findall(r"`(.+?)`", files) for name, files in rows}


@contextmanager
def followed():
    """Yield the files of dcnzoo that are called, in the order of the first call, and the calls upwards."""
    files, upwards, importing = {}, set(), 0

    def name(frame):
        path = frame.f_code.co_filename
        return path[len(PACKAGE) :] if path.startswith(PACKAGE) else None

    def follow(frame, event, _):
        nonlocal importing
        file = name(frame)
        if file is None or event not in ("call", "return"):
            return
        if frame.f_code.co_name == "<module>":
            importing += 1 if event == "call" else -1
        elif event == "call" and not importing:
            files.setdefault(file, None)
            caller = frame.f_back
            while caller and not name(caller):
                caller = caller.f_back
            above, below = (
                each.split("/")[0].removesuffix(".py") for each in (file, (caller and name(caller)) or file)
            )
            if {above, below} <= set(FLOORS) and FLOORS.index(above) < FLOORS.index(below):
                upwards.add((below, above))

    sys.setprofile(follow)
    try:
        yield files, upwards
    finally:
        sys.setprofile(None)


def test_ways(tmp_path):
    work, file = tmp_path / "run", tmp_path / "model.onnx"
    picture = tmp_path / "pictures" / "shapes.png"
    picture.parent.mkdir()
    cv2.imwrite(str(picture), draw_image(ShapesSpec(), "val", 9)[0])
    tiny = settings(tmp_path / "data", 8, 4, 1, train_dataloader__batch_size=4)
    commands = {
        "predict": ("infer", SHAPES, picture, "--out", tmp_path / "shown"),
        "train with DCN": (
            *("train", PLAIN, "--work-dir", work), *tiny, "model.backbone.dcn=True",
        ),
        "export and verify": ("export", SHAPES, "--out", file, "--verify"),
        "predict with a file": ("infer", file, picture, "--out", tmp_path / "of_file"),
        "report": ("report", work),
    }  # fmt: skip
    described = ways()
    assert described.keys() == commands.keys()
    for name, command in commands.items():
        with followed() as (files, upwards):
            run(*command)
        assert len(described[name]) <= 11
        assert [file for file in files if file in described[name]] == described[name], name
        assert upwards <= CALLBACKS, name
