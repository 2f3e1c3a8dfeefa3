"""Every option is used or refused."""

from contextlib import suppress
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import click
import pytest
import torch
from mmengine.config import Config

from dcnzoo.detect.views import Views
from dcnzoo.openmmlab.runs.recipe import Recipe

from ..commands import error_of, invoke
from .test_cli import every_command

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
LINES = {
    "infer": [["infer", model, "a.png"] for model in MODELS.values()],
    "explain": [["explain", MODELS[kind], "a.png"] for kind in ("zoo", "config", "work directory")],
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
    "reproduce": [["reproduce", "own.py"], ["reproduce", "own.py", "--train"]],
    "report": [["report", "work"], ["report", "work", "other"]],
}
VALUES = {
    "--out": ["new.png"], "--output-file": ["new.onnx"], "--shape": ["64", "96"], "--at": ["3,4"],
    "--box": ["1,2,3,4"], "--checkpoint": ["other.pth"], "--classes": ["fig"], "--layer": ["conv"],
    "--cfg-options": ["model.a=1"], "--eval": ["segm"],
    "--labels": ["one"], "--images": ["fruits"], "--annotations": ["a.json"], "--exported": ["m.onnx"],
    "--save-video": ["new.mp4"], "--device": ["cuda:3"], "--test-img": ["a.png"], "--input-img": ["a.png"],
    "--int8": ["fruits"], "--data": ["fruits"], "--resume": ["other.pth"], "--work-dir": ["elsewhere"],
    "--show-dir": ["shown"], "--data-root": ["fruits"], "--opset-version": ["20"],
    "--format": ["jsonl"],
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


OPTIONS = [
    (line, param)
    for name, lines in LINES.items()
    for param in COMMANDS[name].params
    if isinstance(param, click.Option) and not param.hidden
    for line in lines
    if AFTERWARDS.isdisjoint([(name, param.opts[0]), (*line, param.opts[0])])
    if param.opts[0] not in line and (line[1], param.opts[0]) != ("--data", "--report")  # always
]


class Called(BaseException):
    """The library has everything that it needs."""


class Recorder:
    """Stand-ins of the library's functions, which note their calls."""

    def __init__(self, monkeypatch):
        self.calls, self._patch = [], monkeypatch

    def replace(self, path, result=None, last=False):
        def stand_in(*args, **kwargs):
            self.calls.append((path, repr(args), repr(sorted(kwargs.items()))))
            if last:
                raise Called
            return result

        self._patch.setattr(path, stand_in)


CFG = {
    "launcher": "none",
    "work_dir": "work_dirs/own",
    "model": {"type": "Model", "data_preprocessor": {}},
    "test_dataloader": {"dataset": {"type": "Data", "pipeline": [{"type": "Pack"}]}},
    "test_evaluator": {"type": "CocoMetric", "metric": "bbox", "ann_file": "a.json"},
    "default_hooks": {},
}


@pytest.fixture
def library(monkeypatch, tmp_path):
    """Replace what runs a model; return the function that runs a command and the calls that it makes."""
    monkeypatch.chdir(tmp_path)
    for name in ("work", "other", "fruits"):
        (tmp_path / name).mkdir()
    files = ("own.py", "m.onnx", "m.xml", "m.pt2", "a.png", "w.pth", "other.pth", "a.json", "fruits/a.png")
    for name in files:
        (tmp_path / name).touch()
    for name in ("zoo.training", "zoo.testing", "zoo.config_writer", "report.report", "report.detector"):
        import_module(f"dcnzoo.{name}")  # before the functions that they import are replaced
    recorder = Recorder(monkeypatch)
    source = SimpleNamespace(config=Path("own.py"), weights="w", entry=None)
    source.recipe = lambda options, required: Recipe.read(source.config, options, required)
    source.read_weights = source.require_weights = lambda: Path("w.pth")

    class Detector:
        classes, fuses = ("fig",), False

        def checksum(self):
            return "of the weights"

        def __init__(self, *args, **kwargs):
            recorder.calls.append(("Detector", repr(args), repr(sorted(kwargs.items()))))

        def __call__(self, *args, **kwargs):
            recorder.calls.append(("call", repr(args), repr(sorted(kwargs.items()))))
            raise Called

    def cfg_of(*args, **kwargs):
        recorder.calls.append(("cfg", repr(args), repr(sorted(kwargs.items()))))
        return Config(CFG, filename="own.py")

    def require_new(command, *names, mark="", force=False, beside=(), **others):
        recorder.calls.append(("new", repr((*names, *beside)), f"{mark} {force}"))
        return Path(names[0]) if names else None

    class Files(Views):
        def __init__(self, *args, **options):
            recorder.calls.append(("views", repr(args), repr(sorted(options.items()))))
            super().__init__(*args, **options)

    monkeypatch.setattr("dcnzoo.detect.views.Views", Files)
    for path in ("cli._options", "zoo.testing", "export.options", "detect.views"):
        monkeypatch.setattr(f"dcnzoo.{path}.require_new", require_new)
    for path in ("detect.exported.ExportedDetector", "openmmlab.detector.TorchDetector"):
        monkeypatch.setattr(f"dcnzoo.{path}", Detector)
    monkeypatch.setattr("dcnzoo.openmmlab.runs.recipe.read_config_file", cfg_of)
    monkeypatch.setattr("dcnzoo.openmmlab.runs.recipe.check_config", lambda *args: None)
    for path, result in {
        "zoo.source.resolve": source, "zoo.testing.resolve": source,
        "openmmlab.runs.execute.build": torch.nn.Identity(), "openmmlab.runs.device.require_device": None,
        "openmmlab.flops.count": [({"conv": 1}, (1, 3, 2, 2))], "detect.timing.exported": {},
        "detect.timing.pictures": [0],
        "detect.timing.measure": {}, "detect.timing.evaluate": None, "detect.timing.fastest": "",
        "zoo.testing.use_data": 1, "openmmlab.runs.execute.train": None,
        "zoo.testing.last_checkpoint": Path("w.pth"), "export.known_problems.check": [],
    }.items():  # fmt: skip
        recorder.replace(f"dcnzoo.{path}", result)
    recorder.replace("torch.set_num_threads")
    for path in ("openmmlab.export.export.export_detector", "report.detector.explain", "zoo.training.train",
                 "openmmlab.runs.execute.test", "report.report.write_report"):  # fmt: skip
        recorder.replace(f"dcnzoo.{path}", last=True)
    monkeypatch.setattr("dcnzoo.detect.timing.table", lambda timings: [["a"]])

    def run(*line):
        recorder.calls.clear()
        status, output = 0, ""
        with suppress(Called):
            status, output = invoke(*line)
        return status, output, list(recorder.calls)

    return run


def named(value):
    return value.opts[0] if isinstance(value, click.Option) else " ".join(value)


@pytest.mark.parametrize(("line", "param"), OPTIONS, ids=named)
def test_every_option_is_used_or_refused(library, line, param):
    name = param.opts[0]
    alone = "--check" in line or "x.pt2" in line
    beside = [] if alone else BESIDE.get((line[0], name), [])
    status, output, calls = library(*line, *beside, name, *value_of(param))
    if status:
        flags = [*param.opts, f"{param.name}:"]
        assert any(flag in output.splitlines()[-1] for flag in flags), output
    else:
        assert calls != library(*line, *beside)[2], "the option changes nothing"
