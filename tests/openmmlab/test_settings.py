"""No valid config is refused, and every mistake is named: two corpora, of which `make test` has a part.

``nox -s settings`` reads all configs of MMDetection and of the zoo, with every edit.
"""

import copy
import functools
import os
from collections import Counter
from pathlib import Path

import mmdet
import pytest
from mmengine.config import Config

from dcnzoo.compat.patches import Changes
from dcnzoo.openmmlab.config_check import check_config, find_problems
from dcnzoo.openmmlab.runner import read_config_file
from dcnzoo.utils.errors import UserError
from dcnzoo.zoo.training import REQUIRED

from ..processes import ROOT
from . import valid_configs

MMDETS = Path(mmdet.__file__).parent / ".mim" / "configs"
CONFIGS = sorted([*MMDETS.rglob("*.py"), *(ROOT / "configs").rglob("*.py")])
COMMANDS = {
    "train": dict(required=("model", *REQUIRED)),
    "test": dict(required=("model", "test_dataloader", "test_cfg", "test_evaluator")),
    "predict": dict(required=("model",), runs=False),
}
SAMPLE = [  # two stages, one stage, a DETR, masks by queries, of the zoo
    *(MMDETS / "faster_rcnn").glob("faster-rcnn_r50_fpn_1x_coco.py"),
    *(MMDETS / "rtmdet").glob("rtmdet_tiny_8xb32-300e_coco.py"),
    *(MMDETS / "detr").glob("detr_r50_8xb2-150e_coco.py"),
    *(MMDETS / "mask2former").glob("mask2former_r50_8xb2-lsj-50e_coco.py"),
    ROOT / "configs/demo/mask-rcnn_r14-mdconv_fpn_8e_shapes.py",
]
EDITS = 20  # of each config, in turn, beside those of the parts that it has
PARTS = 24 if os.environ.get("DCNZOO_SETTINGS") == "all" else 1


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
        if {*options["required"]} <= cfg.keys() and not unfit:
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
    monkeypatch.setattr("dcnzoo.openmmlab.config_check.print_log", lambda *args, **kwargs: None)
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
    assert sum(numbers.values()) > 100
