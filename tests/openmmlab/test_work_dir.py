"""How a training starts in a folder, and that it overwrites nothing."""

import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

import dcnzoo
from dcnzoo.openmmlab.options import TrainOptions
from dcnzoo.openmmlab.runs import execute
from dcnzoo.openmmlab.runs.recipe import Recipe, RunConfig
from dcnzoo.openmmlab.runs.start import Start, choose_start, claim, require_new_config
from dcnzoo.utils import lock
from dcnzoo.utils.errors import UserError
from dcnzoo.utils.folders import is_work_dir
from dcnzoo.utils.lock import lock_work_dir
from tests.helpers.demo import PLAIN, small_options, write_tiny_config
from tests.helpers.formats import fruits, write_yolo
from tests.helpers.processes import ROOT

NO_CHECKPOINT, TRAINED = r"^resume: expected a checkpoint in ", r"^work_dir: .*resume=True.*force=True"
ONLY_BEST = r"^work_dir: [^;]*; force=True"
OTHER = r"^(resume|load_from): expected a checkpoint in .*force=True"
EARLIER = r"^resume: expected the last checkpoint .*epoch_2.pth; use another"
LAST = Start("last/epoch_2.pth", resumes=True)
CLUSTER = {"launcher": "pytorch"}
STARTS = [  # work_dir, resume, force, other settings, Start or the message
    *[("empty", resume, force, {}, Start()) for resume in (None, False) for force in (False, True)],
    ("empty", None, False, {"load_from": "other.pth"}, Start()),
    ("empty", None, False, {"load_from": "missing.pth"}, r"^load_from: .*missing.pth"),
    ("empty", None, False, {"load_from": "~/other.pth"}, Start()),
    ("others", None, False, {}, Start()),  # files of the user
    ("others", None, True, {}, Start()),
    ("gone", True, False, {}, NO_CHECKPOINT),  # last_checkpoint is a copy
    ("best", True, False, CLUSTER, NO_CHECKPOINT),
    ("last", "other.pth", False, CLUSTER, OTHER),
    ("last", None, False, {**CLUSTER, "resume": True, "load_from": "other.pth"}, OTHER),
    ("empty", True, False, {}, NO_CHECKPOINT),
    ("empty", True, False, CLUSTER, Start()),
    ("empty", True, False, {**CLUSTER, "load_from": "other.pth"}, Start()),
    ("empty", None, False, {"resume": True}, Start()),
    ("empty", None, False, {"resume": True, "load_from": "other.pth"}, Start("other.pth", resumes=True)),
    ("empty", "other.pth", False, {}, Start("other.pth", resumes=True)),
    ("empty", "missing.pth", False, {}, r"^resume: .*missing.pth"),
    ("empty", "", False, {}, r"^resume: expected a file, got an empty"),
    ("best", True, False, {}, NO_CHECKPOINT),
    ("best", None, False, {}, ONLY_BEST),
    ("best", None, True, {}, Start(replaces=True)),
    ("last", None, False, {}, TRAINED),
    ("last", None, True, {"load_from": "other.pth"}, Start(replaces=True)),
    ("last", None, True, {"resume": True}, Start(replaces=True)),
    ("last", True, False, {"load_from": "other.pth"}, LAST),
    ("last", None, False, {"resume": True}, LAST),
    ("last", None, False, {"resume": True, "load_from": "other.pth"}, OTHER),
    ("last", True, True, {}, r"^force: .*both"),
    ("last", "last/epoch_2.pth", False, {}, LAST),
    ("last", "link/epoch_2.pth", False, {}, Start("link/epoch_2.pth", resumes=True)),
    ("last", "last/epoch_1.pth", False, {}, EARLIER),
    ("last", "other.pth", False, {}, OTHER),
    ("last", "other.pth", True, {}, Start("other.pth", resumes=True, replaces=True)),
    ("best", "other.pth", False, {}, OTHER),
    ("best", "https://host/epoch_1.pth", False, {}, OTHER),
]  # fmt: skip


@pytest.mark.parametrize(("folder", "resume", "force", "settings", "expected"), STARTS)
def test_how_a_training_starts(tmp_path, monkeypatch, capsys, folder, resume, force, settings, expected):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", ".")
    files = ("best/best_coco_bbox_mAP_epoch_1.pth", "last/epoch_1.pth", "last/epoch_2.pth", "other.pth")
    for name in files:
        Path(name).parent.mkdir(exist_ok=True)
        torch.save({"state_dict": {}}, name)
    for name in ("gone", "others/best_pictures"):
        Path(name).mkdir(parents=True)
    Path("gone/last_checkpoint").write_text(str(tmp_path / "last/epoch_1.pth"))
    Path("others/best_practices.md").touch()
    Path("link").symlink_to("last")
    run = RunConfig(Config({"work_dir": folder, "launcher": "none", "train_cfg": {}, **settings}))
    if isinstance(expected, Start):
        assert choose_start(run, resume, force) == expected
        is_new = (resume is True or "resume" in settings) and not (expected.resumes or expected.replaces)
        assert ("a new training starts" in capsys.readouterr().out) == is_new
    else:
        with pytest.raises(UserError, match=expected):
            choose_start(run, resume, force)


def run_in(folder, name="own.py", **changes):
    """The config of a training in a folder, from a config of this name."""
    cfg = Config({"work_dir": str(folder), "launcher": "none", "train_cfg": {}, **changes})
    object.__setattr__(cfg, "_filename", name)  # the file need not exist
    return RunConfig(cfg)


def files_of(folder):
    """The content of all files, without locks and records."""
    paths = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".training")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def trained(folder):
    """A work directory, with files of the user."""
    for name in ("20260101_000000/vis_data/config.py", "own.py", "notes/mine.txt", "last_checkpoint"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    torch.save({"state_dict": {}}, folder / "epoch_1.pth")
    return files_of(folder)


def test_force_renames_the_whole_folder(tmp_path):
    work = tmp_path / "work"
    for number in (1, 2):
        before = trained(work)
        with ExitStack() as stack:
            with claim(stack, run_in(work), force=True) as start:
                assert start.replaces and files_of(work) == before
            assert files_of(work) == {} and files_of(tmp_path / f"work.{number}") == before
            with pytest.raises(UserError, match="running training"), pytest.MonkeyPatch.context() as patch:
                patch.setattr(lock, "_ORPHANS_END", 0)
                stack.enter_context(lock_work_dir(work))
        assert not [*tmp_path.rglob(".training*")], "no lock is left"
    assert is_work_dir(tmp_path / "work.1") and not is_work_dir(work)


@pytest.mark.parametrize("what", ["link", "config", "annotations", "weights", "current folder", "out_dir"])
def test_folders_that_force_does_not_rename(tmp_path, monkeypatch, what):
    work, changes, name = tmp_path / "work", {}, "own.py"
    before = trained(work)
    if what == "link":
        work = tmp_path / "link"
        work.symlink_to("work")
    elif what == "config":
        name = str(work / "own.py")
    elif what == "annotations":
        data = {"type": "CocoDataset", "data_root": str(work), "ann_file": "notes/a.json"}
        changes["train_dataloader"] = {"dataset": {"type": "RepeatDataset", "dataset": data}}
    elif what == "weights":
        changes["load_from"] = str(work / "epoch_1.pth")
    elif what == "current folder":
        monkeypatch.chdir(work / "notes")
    else:
        changes["default_hooks"] = {"checkpoint": {"out_dir": str(tmp_path / "out")}}
    refused = pytest.raises(UserError, match=r"^force: .*another work_dir")
    with refused, ExitStack() as stack, claim(stack, run_in(work, name, **changes), force=True):
        pass
    assert files_of(tmp_path / "work") == before and not [*tmp_path.glob("*.1")]


def test_a_training_that_ends_while_another_waits_is_not_replaced(tmp_path, monkeypatch):
    def lock(folder):
        (tmp_path / "epoch_1.pth").touch()
        return ExitStack()

    monkeypatch.setattr("dcnzoo.openmmlab.runs.start.lock_work_dir", lock)
    recipe = Recipe.read(PLAIN, {"work_dir": str(tmp_path)})
    with pytest.raises(UserError, match=r"^work_dir: .*force=True"):
        execute.train(recipe, TrainOptions())


def test_a_file_of_the_user_with_the_name_of_the_config(tmp_path, monkeypatch):
    """It is an error, also as the config itself with ``work_dir="."``; a failed training's copy is not."""
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text("model = dict()  # mine\n# also mine\n")
    for folder in (".", tmp_path):
        with pytest.raises(UserError, match=r"^work_dir: .*own\.py.*another work_dir"):
            require_new_config(run_in(folder, str(tmp_path / "own.py")), Start())
    Path("work/20260101_000000/vis_data").mkdir(parents=True)
    Path("work/20260101_000000/vis_data/config.py").touch()
    Path("work/own.py").write_text("model = dict()\n")
    for name in ("own.py", "work/own.py"):
        require_new_config(run_in("work", name), Start())


def test_a_hand_written_config_stays_also_when_a_training_continues_elsewhere(tmp_path):
    """A checkpoint of another folder continues in a folder that has only the config."""
    work = tmp_path / "work"
    work.mkdir()
    config = write_tiny_config(work / "own.py", tmp_path / "data", train=4, val=2)
    config.write_text(f"# mine\n{config.read_text()}")
    torch.save({"state_dict": {}}, other := tmp_path / "other.pth")
    for settings in ({"resume": other}, {"cfg_options": {"resume": True, "load_from": str(other)}}):
        with pytest.raises(UserError, match=r"^work_dir: .*own\.py.*another work_dir"):
            dcnzoo.train(config, work_dir=work, **settings)


def test_a_folder_of_checkpoints_has_one_training(tmp_path, monkeypatch):
    """With one out_dir, two work directories of the same name share a folder of checkpoints."""
    monkeypatch.setattr(lock, "_ORPHANS_END", 0)
    run = run_in(tmp_path / "work", default_hooks={"checkpoint": {"out_dir": str(tmp_path / "out")}})
    refused = pytest.raises(UserError, match=r"running.* got .*out/work")
    with lock_work_dir(tmp_path / "out/work"), refused, ExitStack() as stack, claim(stack, run):
        pass


@pytest.mark.parametrize("own", ["ckpt_{}.pth", "out", "ckpt_{}.pth in out"])
def test_checkpoints_with_other_names_or_in_another_folder(tmp_path, monkeypatch, own):
    monkeypatch.chdir(tmp_path)
    hook, folder = {}, Path("out/work" if "out" in own else "work")
    if "ckpt" in own:
        hook["filename_tmpl"] = "ckpt_{}.pth"
    if "out" in own:
        hook["out_dir"] = "out"
    template = hook.get("filename_tmpl", "epoch_{}.pth")
    folder.mkdir(parents=True)
    for name in (template.format(1), template.format(2), f"best_coco_bbox_mAP_{template.format(1)}"):
        torch.save({"state_dict": {}}, folder / name)
    run = run_in("work", default_hooks={"checkpoint": hook})
    assert choose_start(run, resume=True).file == str(folder / template.format(2))
    with pytest.raises(UserError, match="force=True"):
        choose_start(run)


def test_own_data_in_a_used_folder(tmp_path, monkeypatch):
    """The folder ``data`` of the earlier training stays with that training."""
    monkeypatch.chdir(tmp_path)
    write_yolo(tmp_path / "fruits", fruits(tmp_path / "drawn"))
    work, before = tmp_path / "work", trained(tmp_path / "work")
    with pytest.raises(UserError, match=r"^work_dir: .*force=True"):
        dcnzoo.train(data="fruits", work_dir=work)
    assert files_of(work) == before, "nothing is written"
    runner = SimpleNamespace(train=lambda: None, logger=logging.getLogger("none"))
    monkeypatch.setattr(execute, "build_runner", lambda *_, **__: runner)
    dcnzoo.train(data="fruits", work_dir=work, force=True)
    assert files_of(tmp_path / "work.1") == before
    assert {*files_of(work)} == {"data/train.json", "data/val.json", "data/work.py"}
    (work / "epoch_1.pth").touch()
    write_yolo(work / "fruits", fruits(work / "drawn"))
    for path, argument in (("work/data", "force"), ("work", "force"), ("work/fruits", "force")):
        with pytest.raises(UserError, match=f"^{argument}: "):
            dcnzoo.train(data=path, work_dir=work, force=True)


@pytest.mark.slow
def test_two_processes_with_force_on_one_folder(tmp_path):
    """One process trains, the other is refused; the earlier files are in one renamed folder."""
    work = tmp_path / "work"
    before = trained(work)
    options = small_options(tmp_path / "data", train=4, val=2, epochs=40)  # longer than the second waits
    words = [sys.executable, "-m", "dcnzoo", "train", PLAIN, "--work-dir", work, "--force", *options]
    drawn = [*words[:6], tmp_path / "drawn", "--dry-run", *options]
    subprocess.run(drawn, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    jobs = [subprocess.Popen(words, cwd=ROOT, env=os.environ, **pipes) for _ in range(2)]
    texts = [job.communicate()[0] for job in jobs]
    assert sorted(job.returncode for job in jobs) == [0, 1], texts
    refused = texts[[job.returncode for job in jobs].index(1)]
    assert "without a running training" in refused, refused
    assert files_of(tmp_path / "work.1") == before and not (tmp_path / "work.2").exists()
    assert (work / "epoch_40.pth").exists()
    shutil.rmtree(work)


@HOOKS.register_module()
class SendsSigterm(Hook):
    """Sends the signal that Slurm and containers send, in the second epoch."""

    def before_train_epoch(self, runner):
        if runner.epoch == 1:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(1)  # the handler runs at the latest now


def test_sigterm_says_how_the_training_continues(tmp_path):
    config = write_tiny_config(
        tmp_path / "tiny.py",
        tmp_path / "data",
        train=2,
        val=1,
        epochs=2,
        custom_hooks=[{"type": "SendsSigterm"}],
    )
    with pytest.raises(KeyboardInterrupt, match=r"work: the option resume=True continues it"):
        dcnzoo.train(config, work_dir=tmp_path / "work")
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
