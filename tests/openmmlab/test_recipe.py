"""What a training writes to its work directory."""

import re
from pathlib import Path

import pytest
from mmengine.config import Config

from dcnzoo.openmmlab.config import json_config
from dcnzoo.openmmlab.options import RunOptions, TrainOptions
from dcnzoo.openmmlab.runs.execute import build_runner
from dcnzoo.openmmlab.runs.recipe import TRAINING, Recipe, read_config_file
from dcnzoo.utils.errors import UserError

from ..demo import PLAIN


@pytest.mark.parametrize("work_dir", ["runs/one", "runs/one/", "./runs/../runs/one", "{root}/runs/one"])
def test_paths_in_the_work_directory_move_with_it(tmp_path, monkeypatch, work_dir):
    root = tmp_path / "here"
    (root / "runs/one").mkdir(parents=True)
    monkeypatch.chdir(root)
    folder = Path(work_dir.format(root=root))
    inside, outside = str(folder / "data/train.json"), str(root.parent / "data/val.json")
    options = {"load_from": f"{folder}/first.pth", "train_dataloader.dataset.ann_file": inside}
    options |= {"val_evaluator.ann_file": outside, "test_evaluator.ann_file": "data/val.json"}
    recipe = Recipe.read(PLAIN, options, TRAINING).with_options(RunOptions(work_dir=folder))
    (folder / "written.py").write_text(recipe.text())
    root.rename(tmp_path / "there")
    monkeypatch.chdir("/")
    moved = tmp_path / "there/runs/one"
    for _ in range(2):
        cfg = read_config_file(moved / "written.py")
        assert Path(cfg.load_from) == moved / "first.pth"
        assert Path(cfg.train_dataloader.dataset.ann_file) == moved / "data/train.json"
        assert cfg.val_evaluator.ann_file == outside and cfg.test_evaluator.ann_file == "data/val.json"
        # the training goes on in the new place
        recipe = Recipe(cfg).with_options(RunOptions(work_dir=moved))
        (moved / "written.py").write_text(recipe.text())
        assert recipe.text().count("fileDirname") == 2


def test_options_leave_the_config_that_was_read(tmp_path):
    recipe = Recipe.read(PLAIN, required=TRAINING)
    before = recipe.cfg.to_dict()
    changed = recipe.with_options(TrainOptions(work_dir=tmp_path, epochs=3, seed=1))
    assert recipe.cfg.to_dict() == before and changed.cfg.train_cfg.max_epochs == 3
    assert changed.changes[0] == "max_epochs 8 → 3" and changed.changes[-1] == "seed None → 1"


def test_a_config_without_hooks(tmp_path):
    (tmp_path / "own.py").write_text(f"_base_ = {PLAIN!r}\ndefault_hooks = dict(_delete_=True)\n")
    cfg = Recipe.read(tmp_path / "own.py").with_options(RunOptions(work_dir=tmp_path)).cfg
    assert isinstance(cfg, Config) and "AtomicCheckpointHook" in str(build_runner(cfg).hooks)


LINES = """
size = (64, 96)
train_pipeline = [dict(type="LoadImageFromFile"), dict(type="Resize", scale=size)]
test_pipeline = [dict(type="LoadImageFromFile"), dict(type="Resize", scale=(9, 9))]
data_root = "here/"
epochs = 3
rate = 0.1
note = "here/"
steps = [2, 3]
find_unused_parameters = True
model = dict(type="RetinaNet", test_cfg=dict(max_per_img=epochs))
train_dataloader = dict(dataset=dict(type="CocoDataset", data_root=data_root, pipeline=train_pipeline))
test_dataloader = dict(dataset={"type": "CocoDataset", "data_root": data_root, "pipeline": test_pipeline})
val_dataloader = test_dataloader
train_cfg = dict(max_epochs=epochs)
param_scheduler = [dict(type="MultiStepLR", milestones=steps), dict(type="Own", lists=[steps])]
custom_hooks = [dict(type="Own", strict=find_unused_parameters)]
optim_wrapper = dict(optimizer=dict(type="SGD", lr=2 * rate))
tta_pipeline = [dict(type="LoadImageFromFile"), dict(type="Resize", scale=(7, 7))]
"""
LOADER = "{}_dataloader.dataset.{}"
COPIES = {  # an option, and the settings that have its value
    "test_pipeline.1.scale": [LOADER.format(name, "pipeline") for name in ("test", "val")],
    "train_pipeline": [LOADER.format("train", "pipeline")],
    "data_root": [LOADER.format(name, "data_root") for name in ("train", "test", "val")],
    "size": ["train_dataloader.dataset.pipeline.1.scale"],
    "epochs": ["model.test_cfg.max_per_img", "train_cfg.max_epochs"],
    "rate": ["a setting"],
    "steps": ["param_scheduler.0.milestones"],
}


@pytest.mark.parametrize("dumped", [False, True])
def test_an_option_of_a_variable_names_the_settings(tmp_path, dumped):
    """The settings have copied the variable's value, so that the option would have no effect."""
    file = tmp_path / "own.py"
    file.write_text(LINES)
    if dumped:
        Config.fromfile(file).dump(file)
    for option, settings in COPIES.items():
        if dumped and option in ("size", "epochs", "rate", "steps"):
            continue  # may also be a key that a hook reads
        with pytest.raises(UserError) as error:
            read_config_file(file, {option: (5, 5)})
        assert str(error.value).startswith(f"{file}: cfg_options: ")
        name, found = re.search(r"cfg_options: (\w+): expected (.*), got", str(error.value)).groups()
        assert name == option.split(".")[0] and sorted(found.split(", ")) == sorted(settings)
    with pytest.raises(UserError) as error:
        read_config_file(file, {"data_root": "x", "model.type": "FCOS", "test_pipeline": []})
    assert [re.search(r"cfg_options: (\w+)", text)[1] for text in error.value.args] == [
        "data_root",
        "test_pipeline",
    ]
    valid = {"note": "two", "tta_pipeline.1.scale": (5, 5), "val_dataloader.batch_size": 2, "new": 1}
    valid |= {"find_unused_parameters": False, "param_scheduler.0.milestones": [4]}
    cfg = read_config_file(file, {**valid, "train_cfg.max_epochs": 9})
    assert cfg.note == "two" and cfg.tta_pipeline[1].scale == (5, 5) and cfg.train_cfg.max_epochs == 9


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("param_scheduler.0.milestones.1", "whole lists"),
        ("model..type", "names between the dots, got 'model..type'"),
        ("", "names between the dots, got ''"),
    ],
)
def test_options_that_cannot_be_merged(tmp_path, option, expected):
    file = tmp_path / "own.py"
    file.write_text(LINES)
    with pytest.raises(UserError, match=f"^{file}: cfg_options: .*{expected}"):
        read_config_file(file, {option: 3})


def test_the_test_pipeline_of_a_detector_in_json(tmp_path):
    file = tmp_path / "detector.json"
    file.write_text(json_config.write(read_config_file(PLAIN)))
    with pytest.raises(UserError, match=r"test_pipeline: expected test_dataloader\.dataset\.pipeline, got"):
        read_config_file(file, {"test_pipeline.1.scale": (5, 5)})
    cfg = read_config_file(file, {"test_dataloader.dataset.pipeline.1.scale": (5, 5)})
    assert cfg.test_dataloader.dataset.pipeline[1].scale == (5, 5)
