"""Every option is used or refused."""

import dataclasses
import inspect
import json
import os
import re
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import click
import numpy as np
import pytest
import torch
from PIL import Image

import dcnzoo.cli
from dcnzoo.detect.detections import Detections
from dcnzoo.detect.detector import BaseDetector

from ..commands import error_of, invoke
from .test_cli import every_command

CLI = os.path.dirname(dcnzoo.cli.__file__)

COMMANDS = {
    context.info_name.removeprefix("dcnzoo "): context.command
    for context in every_command()
    if not isinstance(context.command, click.Group) and context.info_name != "dcnzoo run"
}
TEXTS = [
    (name, param.opts[-1] if isinstance(param, click.Option) else param.human_readable_name)
    for name, command in COMMANDS.items()
    for param in command.params
    if isinstance(param, click.Argument) or not param.is_flag
]


# None means not given; an empty text and 0 are given


@pytest.mark.parametrize(("command", "param"), TEXTS)
def test_an_empty_text_is_no_value(command, param):
    given = [param, ""] if param.startswith("-") else [""]
    message = error_of(*command.split(), *given, status=2)
    assert "empty text" in message and (param in message or given == [""])


# An option changes what the library is called with, or is refused by its name

MODELS = {"zoo": "mask-rcnn_r14_fpn_8e_shapes", "config": "own.py", "work directory": "work",
          ".onnx": "m.onnx", ".xml": "m.xml", ".pt2": "m.pt2"}  # fmt: skip
LOADED = [[model, *(["--checkpoint", "w.pth"] if kind == "config" else [])] for kind, model in MODELS.items()]
LINES = {
    "infer": [["infer", *words, "a.png"] for words in LOADED],
    "explain": [["explain", *words, "a.png"] for words in LOADED[:3]],
    "bench": [["bench", model] for model in MODELS.values()],
    "flops": [["flops", model] for model in ("own.py", "work")],
    "export": [
        ["export", "own.py", "w.pth"],
        ["export", "work"],
        ["export", "work", "--check"],
        ["export", "work", "--out", "x.pt2"],
    ],
    "test": [
        ["test", "own.py", "w.pth"],
        *(["test", "own.py", f"m{end}"] for end in (".onnx", ".xml", ".pt2")),
    ],
    "train": [["train", "own.py"], ["train", "work"], ["train", "--data", "fruits"]],
    "reproduce": [["reproduce", "own.py"]],
    "report": [["report", "work"], ["report", "work", "other"]],
}
VALUES = {
    "--out": ["new.png"], "--output-file": ["new.onnx"], "--shape": ["64", "96"], "--at": ["3,4"],
    "--box": ["1,2,3,4"], "--checkpoint": ["other.pth"], "--classes": ["fig"], "--layer": ["conv"],
    "--cfg-options": ["randomness.seed=1"], "--eval": ["segm"],
    "--labels": ["one"], "--images": ["fruits"], "--annotations": ["a.json"], "--exported": ["m.onnx"],
    "--save-video": ["new.mp4"], "--device": ["cuda:3"], "--test-img": ["a.png"], "--input-img": ["a.png"],
    "--int8": ["fruits"], "--data": ["fruits"], "--resume": ["other.pth"], "--work-dir": ["elsewhere"],
    "--show-dir": ["shown"], "--data-root": ["fruits"], "--opset-version": ["20"],
}  # fmt: skip
# an option that has an effect only beside another one
BESIDE = {
    ("test", "--show-score-thr"): ["--show-dir", "shown"], ("test", "--format-only"): ["--out", "x.json"],
    ("export", "--num-images"): ["--int8", "fruits"], ("export", "--test-img"): ["--verify"],
    ("bench", "--images"): ["--annotations", "a.json"], ("bench", "--annotations"): ["--images", "fruits"],
    ("report", "--labels"): [],
}  # fmt: skip
# change only what is printed, or the exit status
AFTERWARDS = {("infer", "--verbose"), ("flops", "--by-operator"), ("export", "work", "--check", "--strict")}


def value_of(param):
    """Return the words after an option: another value than the default."""
    if param.is_flag and param.opts[0] != "--resume":
        return []
    if (words := next((VALUES[name] for name in param.opts if name in VALUES), None)) is not None:
        return words
    if isinstance(param.type, click.Choice):
        return [next(choice for choice in reversed(param.type.choices) if choice != param.default)]
    return ["0.75"] if isinstance(param.type, click.types.FloatParamType) else ["17"]


def options():
    """Each option with each line that may have it; `make test` takes one of the lines in turn."""
    for name, lines in LINES.items():
        for number, param in enumerate(COMMANDS[name].params):
            option = param.opts[0]
            allowed = [
                line
                for line in lines
                if AFTERWARDS.isdisjoint([(name, option), (*line, option)])
                if option not in line and (line[1], option) != ("--data", "--report")  # always
            ]
            if isinstance(param, click.Option) and not param.hidden:
                for place, line in enumerate(allowed):
                    marks = [] if place == number % len(allowed) else [pytest.mark.slow]
                    yield pytest.param(line, param, marks=marks)


class Finds(BaseDetector):
    """Finds nothing, whatever it was loaded from."""

    classes, device, score_threshold, fuses = ("fig",), "cpu", 0.3, False
    model = SimpleNamespace(backend="onnxruntime")

    def __init__(self, *args, **kwargs):
        pass

    def checksum(self):
        return "of the weights"

    def prepare(self, picture, path=""):
        return picture

    def _detect(self, inputs, threshold):
        empty = np.zeros(0, np.float32)
        return [Detections(empty.reshape(0, 4), empty, np.zeros(0, np.int64)) for _ in inputs]


class Checked:
    """Replaces a recipe: a training or test that uses it ends, after the check of its options."""

    def __getattr__(self, name):
        sys.exit(0)


def described(value):
    """The text of an argument. Of other objects than values and options, the type."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = vars(value)
    if isinstance(value, dict):
        return {str(key): described(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [described(each) for each in value]
    is_text = isinstance(value, str | int | float | os.PathLike | None)
    return str(value) if is_text else type(value).__name__


def is_of_a_command(frame):
    folder, name = os.path.split(frame.f_code.co_filename)
    return folder == CLI and name[0] != "_"


@contextmanager
def followed():
    """Yield the calls of the library by commands, with their arguments, as texts."""
    calls = []

    def follow(frame, event, _):
        code = frame.f_code
        if event != "call" or not frame.f_back or not is_of_a_command(frame.f_back):
            return
        if is_of_a_command(frame) or code.co_filename.startswith("<frozen"):  # an import
            return
        several = bool(code.co_flags & inspect.CO_VARARGS) + bool(code.co_flags & inspect.CO_VARKEYWORDS)
        names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount + several]
        given = {name: described(frame.f_locals[name]) for name in names if name in frame.f_locals}
        # checksums of all parameters, and the folder of this run
        calls.append(re.sub(r"[0-9a-f]{16,}", "…", f"{code.co_name} {given}".replace(os.getcwd(), ".")))

    sys.setprofile(follow)
    try:
        yield calls
    finally:
        sys.setprofile(None)


ANNOTATIONS = {
    "images": [{"id": 1, "file_name": "a.png", "width": 40, "height": 30}],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9], "area": 81, "iscrowd": 0}
    ],
    "categories": [{"id": 1, "name": "fig"}],
}
WITHOUT = {}  # what commands without the option do


@pytest.fixture
def library(monkeypatch, tmp_path):
    """Return a function that runs a command: its status, output and calls. Detectors find nothing."""
    # a module has its own name of the class, if it was imported before
    exported = ("detect.exported.ExportedDetector", "detect.timing.ExportedDetector")
    for path in (*exported, "openmmlab.detector.TorchDetector"):
        monkeypatch.setattr(f"dcnzoo.{path}", Finds)
    monkeypatch.setattr("dcnzoo.openmmlab.runs.recipe.Recipe.read", lambda *args: Checked())
    monkeypatch.setattr("dcnzoo.openmmlab.runs.execute.build", lambda *args, **options: torch.nn.Identity())

    def run(folder, *line):
        for name in ("work/20260101_000000", "other", "fruits"):
            (tmp_path / folder / name).mkdir(parents=True)
        monkeypatch.chdir(tmp_path / folder)
        weights = ("w.pth", "other.pth", "work/epoch_1.pth")
        for name in ("m.onnx", "m.xml", "m.pt2", "own.py", *weights):
            Path(name).touch()
        for name, text in (("own.py", "model = dict()"), ("last_checkpoint", "epoch_1.pth")):
            Path("work", name).write_text(text)
        Path("a.json").write_text(json.dumps(ANNOTATIONS))
        for name in ("a.png", "fruits/a.png"):
            Image.new("RGB", (40, 30)).save(name)
        with followed() as calls:
            status, output = invoke(*line)
        return status, output, calls

    return run


def named(value):
    return value.opts[0] if isinstance(value, click.Option) else " ".join(value)


@pytest.mark.parametrize(("line", "param"), options(), ids=named)
def test_every_option_is_used_or_refused(library, line, param):
    name = param.opts[0]
    alone = "--check" in line or "x.pt2" in line
    beside = [] if alone else BESIDE.get((line[0], name), [])
    status, output, calls = library("with", *line, *beside, name, *value_of(param))
    words = (*line, *beside)
    if words not in WITHOUT:
        WITHOUT[words] = library("without", *words)
    before, _, others = WITHOUT[words]
    if status not in (0, before) or status == 2:
        flags = [*param.opts, f"{param.name}:"]
        assert any(flag in output.splitlines()[-1] for flag in flags), output
    else:
        assert calls != others, "the option changes nothing"
