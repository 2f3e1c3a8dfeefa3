"""The ways of CONTRIBUTING.md: which files of dcnzoo the main commands enter, and in which order."""

import re
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

import dcnzoo

from .commands import run
from .demo import PLAIN
from .distributed.launching import settings
from .processes import ROOT

pytestmark = pytest.mark.slow

PACKAGE = str(Path(dcnzoo.__file__).parent) + "/"
FRUITS = "mask-rcnn_r14-mdconv_fpn_8e_fruits-nuts"


def ways():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([^|`]+) \| ((?:`[\w/]+\.py`(?: → )?)+) \|$", text, re.MULTILINE)
    return {name: re.findall(r"`(.+?)`", files) for name, files in rows}


@contextmanager
def followed():
    """Yield the files of dcnzoo that are called, in the order of the first call."""
    files, importing = {}, 0

    def follow(frame, event, _):
        nonlocal importing
        path = frame.f_code.co_filename
        if not path.startswith(PACKAGE) or event not in ("call", "return"):
            return
        if frame.f_code.co_name == "<module>":
            importing += 1 if event == "call" else -1
        elif event == "call" and not importing:
            files[path.removeprefix(PACKAGE)] = None

    sys.setprofile(follow)
    try:
        yield files
    finally:
        sys.setprofile(None)


def test_ways(tmp_path):
    work, file = tmp_path / "run", tmp_path / "model.onnx"
    picture = ROOT / "docs/images/fruits.jpg"
    tiny = settings(tmp_path / "data", 8, 4, 1, train_dataloader__batch_size=4)
    commands = {
        "predict": ("infer", FRUITS, picture, "--out", tmp_path),
        "train with DCN": (
            *("train", PLAIN, "--work-dir", work), *tiny, "model.backbone.dcn=True",
        ),
        "export and verify": ("export", FRUITS, "--out", file, "--verify"),
        "predict with a file": ("infer", file, picture, "--out", tmp_path / "of_file"),
        "report": ("report", work),
    }  # fmt: skip
    described = ways()
    assert described.keys() == commands.keys()
    for name, command in commands.items():
        with followed() as files:
            run(*command)
        assert len(described[name]) <= 12
        assert [file for file in files if file in described[name]] == described[name], name
