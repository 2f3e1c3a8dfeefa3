"""No valid config is refused, and every mistake is named: two corpora, of which `make test` has a part.

``nox -s settings`` reads all configs of MMDetection and of the zoo, with every edit.
"""

import copy
import functools
import re
from collections import Counter
from itertools import groupby
from pathlib import Path

import mmdet
import pytest
from mmengine.config import Config
from mmengine.runner import Runner
from torch import nn

import dcnzoo
from dcnzoo.compat.patches import Changes
from dcnzoo.data.shapes import CLASSES
from dcnzoo.openmmlab.config.check import check_config, find_problems
from dcnzoo.openmmlab.config.tree import LOADERS
from dcnzoo.openmmlab.runs.reads import unread_of_model
from dcnzoo.openmmlab.runs.recipe import TEST, TRAINING, read_config_file
from dcnzoo.openmmlab.runs.separate_run import trial
from dcnzoo.utils.errors import UserError

from ..commands import error_of, run
from ..processes import ROOT
from . import valid_configs, wrong_configs

MMDETS = Path(mmdet.__file__).parent / ".mim" / "configs"
FILES = sorted([*MMDETS.rglob("*.py"), *(ROOT / "configs").rglob("*.py")])
CONFIGS = [
    file for file in FILES if "__main__" not in file.read_text(encoding="utf-8")
]  # others are programs
COMMANDS = {
    "train": dict(required=TRAINING),
    "test": dict(required=TEST),
    "predict": dict(required=("model",), runs=False),
}
SAMPLE = [  # two stages, one stage, a DETR, masks by queries, of the zoo
    *(MMDETS / "faster_rcnn").glob("faster-rcnn_r50_fpn_1x_coco.py"),
    *(MMDETS / "rtmdet").glob("rtmdet_tiny_8xb32-300e_coco.py"),
    *(MMDETS / "detr").glob("detr_r50_8xb2-150e_coco.py"),
    *(MMDETS / "mask2former").glob("mask2former_r50_8xb2-lsj-50e_coco.py"),
    ROOT / "configs/demo/mask-rcnn_r14-mdconv_fpn_8e_shapes.py",
]
PARTS = 24 if valid_configs.ALL else 1
EDITS = 6 if PARTS > 1 else 4  # of each config, in turn, beside those of the parts that it has
slow = functools.partial(pytest.param, marks=pytest.mark.slow)


@functools.cache
def read(path):
    return read_config_file(path)


@pytest.fixture
def bases_once():
    """Parse each base once: the texts of their children differ."""
    parsed = {}

    def parse(original, filename, *args, **kwargs):
        if "/.mim/" not in str(filename) and "/configs/" not in str(filename):
            return original(filename, *args, **kwargs)
        if filename not in parsed:
            parsed[filename] = original(filename, *args, **kwargs)
        return copy.deepcopy(parsed[filename])

    with Changes() as changes:
        changes.wrap(Config, "_file2dict", parse)
        yield


def refusals(path, cfg, published, edit):
    """The commands that refuse a config, and why; nothing if its base is not complete."""
    for command, options in COMMANDS.items():
        unfit = command == "test" and edit == "only for training"
        if all(map(cfg.get, options["required"])) and not unfit:
            try:
                check_config(cfg, path, **options)
            except UserError as error:
                lines = [line for line in error.args if not any(text in line for text in published)]
                if lines:
                    yield command, lines


def edited(path, cfg, folder, number):
    """Yield the name of each edit, and the config with it."""
    edits, others = valid_configs.edits(cfg)
    first = EDITS * number % len(edits)
    others = others if PARTS > 1 else others[number % 3 :: 3]
    for name, text in [*(edits[first:] + edits)[:EDITS], *others, ("as it is", "")]:
        (folder / "edited.py").write_text(f"_base_ = {str(path)!r}\n{text}")
        yield name, folder / "edited.py"
    yield "new style", valid_configs.in_new_style(cfg, folder)
    for file in valid_configs.in_other_formats(cfg, folder):
        yield file.name, file


@pytest.mark.parametrize("part", range(PARTS))
def test_valid_edits(tmp_path, monkeypatch, bases_once, part):
    (tmp_path / "own_classes.py").write_text(valid_configs.OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("dcnzoo.openmmlab.config.errors.print_log", lambda *args, **kwargs: None)
    refused, numbers = [], Counter()
    for number, path in enumerate(SAMPLE if PARTS == 1 else CONFIGS):
        if number % PARTS != part:
            continue
        try:
            cfg = read(path)
        except (UserError, FileNotFoundError):
            continue  # packages that are not installed, or a missing base
        published = {problem.text for problem in find_problems(cfg) if problem.stops}
        for name, file in edited(path, cfg, tmp_path, number):
            numbers[name] += 1
            try:
                problems = [*refusals(file, read_config_file(file), published, name)]
            except (UserError, FileNotFoundError) as error:
                problems = [("read", error.args)]
            refused += [(path.name, name, *problem) for problem in problems]
    print(f"{sum(numbers.values())} configs, {len(refused)} refused")
    assert not refused, f"{len(refused)}: {refused[:20]}"
    assert sum(numbers.values()) > 50


# Mistakes without an error: a warning says that nobody reads the key; and errors of code that names no key
SILENT = {
    "train_cfg.max_epochs: [3]",
    "model.test_cfg.rcnn.max_per_image: 100",
    "model.train_cfg.debg: False",  # no code reads debug
    "model.train_cfg.rpn.debg: False",
    "model.train_cfg.rcnn.debg: False",
    "model.roi_head.bbox_roi_extractor.featmap_strides: [4, 8, 0, 32]",
    # steps of RandomResize and RandomChoiceResize, which give their other settings to an inner class
    "train_dataloader.dataset.pipeline.3.keep_rato: True",
    "train_dataloader.dataset.pipeline.3.transforms.0.0.keep_rato: True",
    "train_dataloader.dataset.pipeline.3.transforms.1.0.keep_rato: True",
    "train_dataloader.dataset.pipeline.3.transforms.1.2.keep_rato: True",
}


def refuse(*args, **kwargs):
    raise UserError("not refused")


@pytest.mark.watched
@pytest.mark.parametrize("path", [*map(slow, SAMPLE[:-1]), SAMPLE[-1]], ids=lambda path: path.stem)
def test_mistakes_are_named(tmp_path, monkeypatch, path):
    """By the command: in one to three lines with the key, before data are read or anything is written."""
    monkeypatch.setattr("dcnzoo.openmmlab.config.errors.print_log", lambda *args, **kwargs: None)
    monkeypatch.setattr("dcnzoo.openmmlab.runs.execute.load_data", lambda *args: None)
    monkeypatch.setattr(Runner, "train", refuse)
    monkeypatch.setattr(Config, "pretty_text", "")  # formatting the config takes most of the time
    cases, passed = [*wrong_configs.mistakes(read(path))], set()
    for key, value in cases if PARTS > 1 else cases[::18]:
        changed = copy.deepcopy(read(path))
        wrong_configs.make(changed, key, value)
        key_of = re.sub(r"\.[12]$", "", key).rpartition(".")[2]  # of a step: the pipeline
        name = str(value) if key_of == "type" and isinstance(value, str) else key_of
        name = "such.pth" if "no/such.pth" in str(value) else name
        if not any(name in line for line in wrong_configs.refused(tmp_path, monkeypatch, changed)):
            passed.add(f"{key}: {value!r}")
    assert passed <= SILENT
    assert len(cases) > 300 and not [*tmp_path.glob("work/*.p*")]


FAMILIES = [next(files) for _, files in groupby(CONFIGS, lambda path: path.parent.name) if PARTS > 1]


@pytest.mark.parametrize("path", FAMILIES, ids=lambda path: path.parent.name)
def test_reads_of_each_family(path):
    """No setting of a published config is an unknown key of the code that reads it."""
    try:
        cfg = read(path)
    except (UserError, FileNotFoundError):
        pytest.skip("its packages are not installed")
    if "model" in cfg and "type" in cfg.model:
        try:
            with trial(cfg):
                findings = unread_of_model(cfg, nn.Linear(1, 1))
        except FileNotFoundError:
            pytest.skip("expects a file of weights")
        print(path.parent.name, *findings)
        assert not [finding for finding in findings if finding.stops]


IN_OLD_STYLE = """_base_ = {base!r}
from mmdet.datasets import CocoDataset
from mmdet.evaluation import CocoMetric as Metric
train_dataloader = dict(dataset=dict(type=CocoDataset, shapes=None))
val_evaluator = dict(type=Metric)
"""
IN_NEW_STYLE = """from mmengine.config import read_base
with read_base():
    from .base import *
from mmdet.datasets import CocoDataset
from mmdet import evaluation
from own import OwnHook
seed = 3
train_dataloader['dataset'].update(type=CocoDataset)
val_evaluator.update(type=evaluation.CocoMetric)
custom_hooks = [dict(type=OwnHook)]
"""


@pytest.mark.parametrize("text", [IN_OLD_STYLE, IN_NEW_STYLE, "_base_ = 'base.py'"])
def test_classes_become_names(tmp_path, monkeypatch, text):
    """So that the checked data set and metric replace MMDetection's; also in the dump of a config."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own.py").write_text("class OwnHook:\n    pass\n")
    base = read(SAMPLE[0]).pretty_text.replace("'CocoDataset'", "'mmdet.datasets.coco.CocoDataset'")
    (tmp_path / "base.py").write_text(base)
    (tmp_path / "config.py").write_text(text.format(base=str(SAMPLE[0])))
    cfg = read_config_file(tmp_path / "config.py")
    assert cfg.train_dataloader.dataset.type == "CocoDataset" and cfg.val_evaluator.type == "CocoMetric"
    assert not {"CocoDataset", "Metric", "evaluation", "OwnHook"} & cfg.keys()
    (tmp_path / "dump.py").write_text(cfg.pretty_text)
    again = read_config_file(tmp_path / "dump.py")
    assert again.train_dataloader == cfg.train_dataloader
    if text is IN_NEW_STYLE:
        assert again.custom_hooks[0].type == "own.OwnHook" and cfg.custom_hooks[0].type.__name__ == "OwnHook"


@pytest.mark.parametrize("style", ["new.py", slow("child.json"), slow("dump.py"), slow("child.yaml")])
def test_commands_read_every_format(tmp_path, monkeypatch, style):
    cfg = read_config_file(SAMPLE[-1])
    cfg.model.backbone.pop("init_cfg", None)
    files = {file.name: file for file in valid_configs.in_other_formats(cfg, tmp_path)}
    file = files.get(style) or valid_configs.in_new_style(cfg, tmp_path)
    monkeypatch.chdir(tmp_path)  # the data is in a folder there
    small = [f"{loader}.dataset.shapes.{part}=2" for loader in LOADERS for part in ("train", "val")]
    work_dir = tmp_path / "work"
    run("train", file, "--work-dir", work_dir, "--epochs", 1, "--cfg-options", *small)
    assert [path.name for path in work_dir.glob("*.py")] == [f"{file.stem}.py"]
    assert "box AP" in run("test", work_dir)
    assert dcnzoo.load(file, checkpoint=work_dir / "epoch_1.pth").classes == CLASSES


def test_exit_in_a_config(tmp_path):
    (tmp_path / "config.py").write_text(f"_base_ = {str(SAMPLE[0])!r}\nimport sys\nsys.exit(0)\n")
    assert "config.py, line 3: SystemExit" in error_of("train", tmp_path / "config.py")
