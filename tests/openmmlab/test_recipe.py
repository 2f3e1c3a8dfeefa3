"""What a training writes to its work directory."""

from pathlib import Path

import pytest
from mmengine.config import Config

from dcnzoo.openmmlab.options import RunOptions, TrainOptions
from dcnzoo.openmmlab.runs.execute import build_runner
from dcnzoo.openmmlab.runs.recipe import TRAINING, Recipe, read_config_file

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
