"""What a training writes to its work directory."""

import re
from importlib import import_module
from operator import attrgetter
from pathlib import Path

import pytest
from mmengine.config import Config

from dcnzoo.openmmlab import hooks
from dcnzoo.openmmlab.hooks import resume
from dcnzoo.openmmlab.options import RunOptions, TrainOptions
from dcnzoo.openmmlab.runs.build import build_runner
from dcnzoo.openmmlab.runs.device import use_device
from dcnzoo.openmmlab.runs.dry_run import DryRunHook
from dcnzoo.openmmlab.runs.recipe import TRAINING, Recipe, read_config_file
from dcnzoo.openmmlab.runs.sanity import SanityHook
from dcnzoo.openmmlab.runs.start import Start
from dcnzoo.utils.errors import UserError
from tests.helpers.demo import PLAIN


@pytest.mark.parametrize("work_dir", ["runs/one", "runs/one/", "./runs/../runs/one", "{root}/runs/one"])
def test_paths_in_the_work_directory_move_with_it(tmp_path, monkeypatch, work_dir):
    root = tmp_path / "here"
    (root / "runs/one").mkdir(parents=True)
    monkeypatch.chdir(root)
    folder = Path(work_dir.format(root=root))
    (root / "runs/one/data").mkdir()
    for name in ("first.pth", "data/train.json"):
        (root / "runs/one" / name).touch()
    inside, outside = str(folder / "data/train.json"), str(root.parent / "data/val.json")
    options = {"load_from": f"{folder}/first.pth", "train_dataloader.dataset.ann_file": inside}
    options |= {"train_dataloader.dataset.data_root": "", "val_evaluator.ann_file": outside}
    options |= {"test_evaluator.ann_file": "data/val.json"}
    run = Recipe.read(PLAIN, options, TRAINING).with_options(RunOptions(work_dir=folder))
    (folder / "written.py").write_text(run.text())
    root.rename(tmp_path / "there")
    monkeypatch.chdir("/")
    moved = tmp_path / "there/runs/one"
    for _ in range(2):
        cfg = read_config_file(moved / "written.py")
        assert Path(cfg.load_from) == moved / "first.pth"
        assert Path(cfg.train_dataloader.dataset.ann_file) == moved / "data/train.json"
        assert cfg.val_evaluator.ann_file == outside and cfg.test_evaluator.ann_file == "data/val.json"
        # the training goes on in the new place
        run = Recipe(cfg).with_options(RunOptions(work_dir=moved))
        (moved / "written.py").write_text(run.text())
        assert run.text().count("fileDirname") == 2


def test_names_that_begin_as_the_work_directory_are_no_paths(tmp_path, monkeypatch):
    """A metric, and the annotations below a data_root, also if there is such a file below the working one."""
    monkeypatch.chdir(tmp_path)
    Path("coco/train").mkdir(parents=True)
    Path("coco/train.json").touch()
    dataset = {"data_root": "/data/", "ann_file": "coco/train.json", "data_prefix": {"img": "coco/train/"}}
    metric, hook = "coco/segm_mAP", "default_hooks.checkpoint"
    options = {f"train_dataloader.dataset.{key}": value for key, value in dataset.items()}
    options |= {f"{hook}.save_best": metric, "custom_hooks": [{"type": "Own", "monitor": metric}]}
    run = Recipe.read(PLAIN, options).with_options(RunOptions(work_dir="coco"))
    Path("coco/written.py").write_text(run.text())
    cfg = read_config_file("coco/written.py")
    assert (cfg.default_hooks.checkpoint.save_best, cfg.custom_hooks[0].monitor) == (metric, metric)
    assert {key: cfg.train_dataloader.dataset[key] for key in dataset} == dataset


BY_ITERATIONS = {"_delete_": True, "type": "IterBasedTrainLoop", "max_iters": 90, "val_interval": 30}
CHANGES = ("CheckpointHook.by_epoch True → False", "CheckpointHook.interval 1 → 30")


@pytest.mark.parametrize(
    ("hook", "interval", "by_epoch", "changes"),
    [
        (None, 30, False, CHANGES),
        ({"type": "CheckpointHook", "interval": 1}, 30, False, CHANGES),
        ({"type": "CheckpointHook", "interval": 7}, 7, False, CHANGES[:1]),
        ({"type": "CheckpointHook", "save_best": "auto"}, None, False, CHANGES[:1]),
        ({"type": "CheckpointHook", "interval": 1, "by_epoch": True}, 1, True, ()),
    ],
)
def test_a_loop_of_iterations_saves_by_iterations(tmp_path, hook, interval, by_epoch, changes):
    hooks = {"_delete_": True} if hook is None else {"_delete_": True, "checkpoint": hook}
    file = tmp_path / "own.py"
    file.write_text(f"_base_ = {PLAIN!r}\ntrain_cfg = {BY_ITERATIONS}\ndefault_hooks = {hooks}\n")
    run = Recipe.read(file, {}, TRAINING).with_options(TrainOptions(work_dir=tmp_path))
    written = run.cfg.default_hooks.checkpoint
    assert (written.get("interval"), written.by_epoch, run.changes) == (interval, by_epoch, changes)
    assert "max_keep_ckpts" not in written, "as in a training by epochs, all are kept"
    assert run.saved.template == ("epoch_{}.pth" if by_epoch else "iter_{}.pth")


def test_the_rate_of_the_base_settings_is_scaled_with_the_groups(tmp_path):
    """It is the one in the terminal; mmengine scales only the groups."""
    options = {
        "train_dataloader.batch_size": 2,
        "optim_wrapper.optimizer.lr": 0.02,
        "optim_wrapper.paramwise_cfg": {"custom_keys": {"backbone": {"lr_mult": 0}}},
        "auto_scale_lr": {"enable": True, "base_batch_size": 16},
    }
    recipe = Recipe.read(PLAIN, options, TRAINING)
    with use_device("cpu"):
        run = recipe.with_options(TrainOptions(work_dir=tmp_path, device="cpu"))
        runner = build_runner(run.cfg, Start(), training=run)
        wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
        runner.scale_lr(wrapper, runner.auto_scale_lr)
    assert wrapper.get_lr()["base_lr"] == [pytest.approx(0.0025)]
    assert {*wrapper.get_lr()["lr"]} == {0, 0.0025}


def test_an_option_leaves_a_given_schedule(tmp_path):
    given = {"param_scheduler.0.end": 70, "param_scheduler.1.milestones": [1, 2]}
    given |= {"default_hooks.checkpoint.type": "CheckpointHook", "optim_wrapper.loss_scale": 512.0}
    recipe = Recipe.read(PLAIN, given, TRAINING)
    cfg = recipe.with_options(TrainOptions(work_dir=tmp_path, epochs=4, amp=True)).cfg
    first, second = cfg.param_scheduler
    assert (first.end, second.milestones, second.end) == (70, [1, 2], 4)
    assert cfg.optim_wrapper.loss_scale == 512


def test_the_documented_order_of_the_hooks(tmp_path):
    custom = [{"type": "OffsetStatisticsHook"}]
    recipe = Recipe.read(PLAIN, {"custom_hooks": custom}, TRAINING)
    checks = [SanityHook(), DryRunHook()]
    with use_device("cpu"):
        run = recipe.with_options(TrainOptions(work_dir=tmp_path, patience=3, device="cpu"))
        runner = build_runner(run.cfg, Start(), training=run, summary=hooks.SummaryHook(), checks=checks)
    own = [hook for hook in runner.hooks if type(hook).__module__.startswith("dcnzoo.")]
    order = [(str(hook.priority), type(hook).__name__) for hook in own]
    assert order == re.findall(r"^([A-Z_]+) +(\w+Hook)\b", hooks.__doc__, re.MULTILINE)


def test_the_documented_steps_of_a_resume():
    rows = re.findall(r"``(\w+)/(\w+)\.py``: ``([\w.]+)``$", resume.__doc__, re.MULTILINE)
    assert len(rows) == 6
    for room, module, name in rows:
        assert attrgetter(name)(import_module(f"dcnzoo.openmmlab.{room}.{module}"))


def test_hooks_that_a_config_switches_off(tmp_path):
    off = {f"default_hooks.{name}": None for name in hooks.DEFAULT_HOOKS}
    with use_device("cpu"):
        run = Recipe.read(PLAIN, off, TRAINING).with_options(TrainOptions(work_dir=tmp_path, device="cpu"))
        runner = build_runner(run.cfg, Start(), training=run)
    kinds = {type(hook).__name__ for hook in runner.hooks}
    switched_off = {hook["type"] for hook in hooks.DEFAULT_HOOKS.values()} | {"CheckpointHook"}
    assert not kinds & switched_off


def test_a_config_without_hooks(tmp_path):
    (tmp_path / "own.py").write_text(f"_base_ = {PLAIN!r}\ndefault_hooks = dict(_delete_=True)\n")
    cfg = Recipe.read(tmp_path / "own.py").with_options(RunOptions(work_dir=tmp_path)).cfg
    assert isinstance(cfg, Config) and "AtomicCheckpointHook" in str(build_runner(cfg, Start()).hooks)


LINES = """
epochs = 3
model = dict(type="RetinaNet", test_cfg=dict(max_per_img=epochs))
train_cfg = dict(max_epochs=epochs)
param_scheduler = [dict(type="MultiStepLR", milestones=[2, 3]), dict(type="Own")]
"""


@pytest.mark.parametrize(
    "key",
    [
        *("param_scheduler.0.milestones.1", "param_scheduler.-1.type", "param_scheduler.2.type"),
        *("param_scheduler.type", "train_cfg.max_epochs.x", "model..type", "", "launcher"),
    ],
)
def test_options_that_cannot_be_merged(tmp_path, key):
    file = tmp_path / "own.py"
    file.write_text(LINES)
    with pytest.raises(UserError, match=f"^{file}: cfg_options: .*{key}"):
        read_config_file(file, {key: 3})


def test_options_for_a_dictionary_and_what_is_in_it(tmp_path):
    file = tmp_path / "own.py"
    file.write_text(LINES)
    options = {"model.test_cfg": {"a": 1}, "model.test_cfg.b": 2, "model.test": 3}
    cfg = read_config_file(file, options)
    assert cfg.model == dict(type="RetinaNet", test_cfg=dict(max_per_img=3, a=1, b=2), test=3)
    options = {"model": {"_delete_": True, "type": "ATSS"}}
    assert [read_config_file(file, options).model for _ in range(2)] == [{"type": "ATSS"}] * 2
