"""Machines with their own network, host name and current folder, in namespaces: ``nox -s distributed``."""

import os
import re
import shutil
import signal
import time
from functools import cache

import pytest
import torch

from tests.helpers.demo import small_options
from tests.helpers.launching import CONFIG, ROOT, finish, ip, on_machine, run, start
from tests.programs import killing

HOSTS = "127.0.0.1 localhost\n127.0.1.1 machine-{}\n"  # as Debian and Ubuntu write it


def launch(machines, folder, *arguments, config=ROOT / CONFIG, own=(), only=range(3), **variables):
    """Start a run with a process per machine.

    Args:
        own: further arguments of each machine.
        only: the numbers of the machines that start it.
    """
    jobs = []
    for number, name in enumerate(machines):
        if number not in only:
            continue
        (folder / f"home{number}").mkdir(exist_ok=True)
        (folder / f"home{number}/hosts").write_text(HOSTS.format(number))
        lines = [f"cd {folder}/home{number}", "mount --bind hosts /etc/hosts"]
        words = [ROOT / "tools/dist_train.sh", config, 1, *arguments, *(own[number] if own else ())]
        lines.append(f"exec {' '.join(map(str, words))}")
        names = dict(NNODES=len(machines), NODE_RANK=number, MASTER_ADDR="10.77.0.1", PORT=29500)
        jobs.append(start(*on_machine(number, name, *lines), **{**names, **variables}))
    return jobs


def outputs(jobs, status):
    texts = [finish(job) for job in jobs]
    for job, text in zip(jobs, texts, strict=True):
        assert (job.returncode == 0) == (status == 0), text[-4000:]
    return texts


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    data = tmp_path_factory.mktemp("data")
    more = ["train_cfg.val_interval=1", "randomness.seed=1", "env_cfg.dist_cfg.timeout=100"]
    return [*small_options(data, epochs=2), *more]


@pytest.fixture(scope="module")
def train_alone(tmp_path_factory, options):
    """Train once with several processes of this machine; return the work directory."""

    @cache
    def train(processes):
        folder = tmp_path_factory.mktemp("alone")
        run("tools/dist_train.sh", CONFIG, processes, "--work-dir", folder, *options, PORT=29777)
        return folder

    return train


def assert_same_weights(*folders):
    first, second = (torch.load(f / "epoch_2.pth", weights_only=False)["state_dict"] for f in folders)
    assert all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.mark.slow
def test_three_machines(machines, options, train_alone, tmp_path):
    """Three machines train and validate like three processes of one machine."""
    work = tmp_path / "work"
    first, *_ = outputs(launch(machines, tmp_path, "--work-dir", work, *options), 0)
    assert "3 on 3 machines, 6 images per step" in first
    assert not [*tmp_path.glob("home*/.dist_test")]
    assert_same_weights(train_alone(3), work)
    for text in outputs(launch(machines, tmp_path, "--work-dir", work, *options), 1):
        assert (
            len(re.findall("^error: .*work-dir: expected a folder without checkpoints", text, re.MULTILINE))
            == 1
        )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rank", "phase", "epoch"), [(1, "training", 1), (1, "validation", 1), (0, "checkpoint", 2)]
)
def test_a_killed_process(machines, options, train_alone, tmp_path, rank, phase, epoch):
    """The launcher ends the other processes. A resumed training has the weights of an uninterrupted one.

    There are two machines, as a sum of three gradients has another order in the first step after a start.
    """
    work, config = ("--work-dir", tmp_path / "work"), killing.config(tmp_path, rank, phase, epoch)
    outputs(launch(machines[:2], tmp_path, *work, *options, config=config), 1)
    assert (work[1] / "epoch_1.pth").exists() and not (work[1] / "epoch_2.pth").exists()
    outputs(launch(machines[:2], tmp_path, *work, "--resume", *options), 0)
    assert_same_weights(train_alone(2), work[1])


@pytest.mark.slow
def test_a_machine_that_restarts(machines, options, train_alone, tmp_path):
    """Like a pod of Kubernetes, a machine ends all its processes and starts the job again within seconds."""
    words = ("--work-dir", tmp_path / "work", "--resume", *options)
    jobs = launch(machines[:2], tmp_path, *words, MAX_RESTARTS=3)
    deadline = time.monotonic() + 600
    while not (tmp_path / "work/epoch_1.pth").exists():
        assert time.monotonic() < deadline and jobs[0].poll() is None
        time.sleep(0.1)
    for process in ip("netns", "pids", machines[1]).split():
        os.kill(int(process), signal.SIGKILL)
    jobs += launch(machines[:2], tmp_path, *words, MAX_RESTARTS=3, only=[1])
    jobs.pop(1).wait()
    outputs(jobs, 0)
    assert_same_weights(train_alone(2), tmp_path / "work")


@pytest.mark.slow
def test_copies_of_the_data(machines, options, train_alone, tmp_path):
    """Each machine may have its copy elsewhere; agreement.py tests copies that differ."""
    train_alone(2)  # generates the data
    (data,) = {word.partition("=")[2] for word in options if "train_dataloader.dataset.data_root" in word}
    copy = shutil.copytree(data, tmp_path / "copy")
    both = [options, [word.replace(data.rstrip("/"), str(copy)) for word in options]]
    work = ("--work-dir", tmp_path / "work")
    outputs(launch(machines[:2], tmp_path, *work, own=both), 0)
    assert_same_weights(train_alone(2), work[1])
