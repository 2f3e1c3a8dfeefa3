"""Commands load a checkpoint completely or fail with the reason. Also the lock of work directories."""

import errno
import os

import cv2
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

import dcnzoo.models  # noqa: F401  registers the layers
from dcnzoo.openmmlab.runs.loading import loader_errors
from dcnzoo.openmmlab.runs.recipe import read_config_file
from dcnzoo.utils.errors import UserError
from dcnzoo.utils.lock import lock_work_dir
from tests.helpers.commands import invoke
from tests.helpers.demo import PLAIN, small_options
from tests.helpers.variants import build

OPTION = "model.backbone.dcn=v2"


# The commands


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The weights of a deformable detector, and an image."""
    folder = tmp_path_factory.mktemp("loading")
    torch.save({"state_dict": build().state_dict(), "meta": {}}, folder / "weights.pth")
    pixels = np.random.default_rng(0).integers(0, 255, (96, 150, 3), dtype=np.uint8)
    cv2.imwrite(str(folder / "a.png"), pixels)
    return folder


@pytest.fixture
def run(folder, monkeypatch):
    """Run a subcommand in the folder. Returns its exit status and output."""

    def run(*arguments):
        monkeypatch.chdir(folder)
        return invoke(*arguments)

    return run


WEIGHTS = ["--checkpoint", "weights.pth"]


@pytest.mark.parametrize("command", ["infer", "test"])
def test_a_deformable_checkpoint_needs_its_option(run, command, tmp_path):
    """``infer`` is one of the commands that build a detector, ``test`` one of those that build a runner."""
    if command == "infer":
        arguments, options = ["a.png", *WEIGHTS, "--out", tmp_path / "found"], []
    else:
        arguments = ["weights.pth", "--work-dir", tmp_path / "work"]
        options = small_options(tmp_path / "data", train=1, val=2)
    arguments = [command, PLAIN, *arguments]
    status, output = run(*arguments, *options)
    assert status == 1 and "conv_offset" in output, output
    assert not (tmp_path / "found").exists()
    force = ["--force"] if command == "infer" else []
    for more in ([*(options or ["--cfg-options"]), OPTION], [*options, "--allow-partial", *force]):
        status, output = run(*arguments, *more)
        assert status == 0, output


# Configs and work directories


def test_errors_in_a_config_name_its_file(tmp_path):
    base, config = tmp_path / "base.py", tmp_path / "mine.py"
    config.write_text("_base_ = './base.py'\n")
    for text in ("model = dict(\n  a=)", "x = 1\nmodel = dict(a=undefined)"):
        base.write_text(text)
        with pytest.raises(UserError, match=rf"^config: {base}, line 2: "):
            read_config_file(config)


@pytest.mark.parametrize("has_checkpoint", [False, True])
def test_an_interrupted_training_says_how_to_continue(run, tmp_path, monkeypatch, has_checkpoint):
    def interrupt(*args, **kwargs):
        if has_checkpoint:
            (tmp_path / "work/epoch_1.pth").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr("dcnzoo.openmmlab.runs.execute.build_runner", interrupt)
    status, output = run("train", PLAIN, "--work-dir", tmp_path / "work")
    assert status == 130 and len(output.splitlines()) == 1
    assert ("--resume" in output and f"{tmp_path}/work" in output) == has_checkpoint


# One training at a time


def test_a_file_system_without_locks(tmp_path, monkeypatch, capsys):
    """NFS without lockd."""

    def refuse(*args):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", refuse)
    with lock_work_dir(tmp_path):
        assert "no locks" in capsys.readouterr().err
    monkeypatch.setattr("fcntl.flock", lambda *args: os.write(full, b"x"))
    with open("/dev/full", "wb", buffering=0) as file, pytest.raises(UserError, match="No space left"):
        full = file.fileno()
        with lock_work_dir(tmp_path):
            pass


class Unsendable:
    def __reduce__(self):
        raise OSError(errno.ENOSPC, "unable to allocate shared memory")


class Batches(Dataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        return Unsendable()


def test_a_batch_that_cannot_be_handed_over_ends_the_training():
    """A full /dev/shm has this effect; without the context, the loader waits for ever."""
    with pytest.raises(UserError, match=r"^num_workers: .*/dev/shm.*--shm-size"), loader_errors():
        next(iter(DataLoader(Batches(), num_workers=1, collate_fn=list)))
    with pytest.raises(RuntimeError, match=r"^other"), loader_errors():
        raise RuntimeError("other")
