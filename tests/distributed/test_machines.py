"""Machines with their own network, host name and current folder, in namespaces: ``nox -s machines``."""

import contextlib
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from .launching import CONFIG, ROOT, finish, settings, start

MACHINES = 3


def ip(*words):
    return subprocess.run(["ip", *map(str, words)], capture_output=True, text=True, check=True)


@pytest.fixture(scope="module")
def machines():
    """Network namespaces at a switch; the link of machine N is eN, its address 10.77.0.(N + 1)."""
    names = [f"dcnzoo{os.getpid()}m{number}" for number in range(MACHINES)]
    switch = f"dcnzoo{os.getpid()}switch"
    with contextlib.ExitStack() as stack:
        try:
            for name in (switch, *names):
                ip("netns", "add", name)
                stack.callback(ip, "netns", "del", name)
            subprocess.run(["unshare", "-mu", "true"], check=True, capture_output=True)
            ip("-n", switch, "link", "add", "name", "bridge", "type", "bridge")
            ip("-n", switch, "link", "set", "bridge", "up")
            for number, name in enumerate(names):
                ends = ("type", "veth", "peer", "name", f"p{number}", "netns", switch)
                ip("link", "add", f"e{number}", "netns", name, *ends)
                ip("-n", switch, "link", "set", f"p{number}", "master", "bridge", "up")
                ip("-n", name, "addr", "add", f"10.77.0.{number + 1}/24", "dev", f"e{number}")
                for link in ("lo", f"e{number}"):
                    ip("-n", name, "link", "set", link, "up")
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"the system allows no namespaces: {getattr(error, 'stderr', error)}")
        yield names


def launch(machines, folder, *arguments, hidden=None):
    """Start a training with a process per machine; ``hidden``: a folder that only machine 0 sees."""
    jobs = []
    for number, name in enumerate(machines):
        (folder / f"home{number}").mkdir(exist_ok=True)
        lines = [f"echo machine-{number} > /proc/sys/kernel/hostname", f"cd {folder}/home{number}"]
        if hidden and number:
            lines += [f"mkdir -p {folder}/other{number}", f"mount --bind {folder}/other{number} {hidden}"]
        command = [ROOT / "tools/dist_train.sh", ROOT / CONFIG, 1, *arguments]
        lines.append(f"exec {' '.join(map(str, command))}")
        script = "; ".join(lines)
        names = dict(NNODES=len(machines), NODE_RANK=number, MASTER_ADDR="10.77.0.1", PORT=29500,
                     GLOO_SOCKET_IFNAME=f"e{number}")  # fmt: skip
        jobs.append(start("ip", "netns", "exec", name, "unshare", "-mu", "sh", "-c", script, **names))
    return jobs


def outputs(jobs, status):
    texts = [finish(job) for job in jobs]
    for job, text in zip(jobs, texts, strict=True):
        assert (job.returncode == 0) == (status == 0), text[-4000:]
    return texts


def weights(work, epoch):
    return torch.load(work / f"epoch_{epoch}.pth", weights_only=False)["state_dict"]


@pytest.mark.slow
def test_three_machines(machines, tmp_path):
    """They train and validate as three processes of one machine, and resume only with a common folder."""
    work, alone = tmp_path / "work", tmp_path / "alone"
    options = [*settings(tmp_path / "data", train=8, val=4), "randomness.seed=1"]
    first, *_ = outputs(launch(machines, tmp_path, "--work-dir", work, *options), 0)
    assert "3 on 3 machines, 6 images per step" in first
    assert not [*tmp_path.glob("home*/.dist_test")]
    finish(start("tools/dist_train.sh", CONFIG, MACHINES, "--work-dir", alone, *options, PORT=29777))
    expected = weights(alone, 1)
    assert all(torch.equal(value, expected[name]) for name, value in weights(work, 1).items())

    for text in outputs(launch(machines, tmp_path, "--work-dir", work, *options), 1):
        assert len(re.findall(r"^error: rank 0 on machine-0: work_dir", text, re.MULTILINE)) == 1, text
    arguments = ("--work-dir", work, "--resume", "--epochs", 2, *options)
    for text in outputs(launch(machines, tmp_path, *arguments, hidden=work), 1):
        assert re.search(
            r"^error: rank 1 on machine-1: resume: expected .*epoch_1.pth", text, re.MULTILINE
        ), text
    new = tmp_path / "new"
    new.mkdir()
    first, *_ = outputs(launch(machines, tmp_path, "--work-dir", new, *options, hidden=new), 0)
    assert len(re.findall("machine-1, machine-2 ha(s|ve) another folder", first)) == 1, first
    assert (new / "epoch_1.pth").exists() and not [*tmp_path.glob("other*/*.pth")]


def kill_rank_1(machines):
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            names = (folder / "environ").read_bytes().split(b"\0")
            if {b"RANK=1", b"GLOO_SOCKET_IFNAME=e1"} <= {*names}:
                os.kill(int(folder.name), signal.SIGKILL)


def cut_link_1(machines):
    ip("-n", machines[1], "link", "set", "e1", "down")


@pytest.mark.slow
@pytest.mark.parametrize("end", [kill_rank_1, cut_link_1])
def test_a_machine_that_ends_is_named(machines, tmp_path, end):
    work = tmp_path / "work"
    options = [*settings(tmp_path / "data", epochs=60), "env_cfg.dist_cfg.timeout=60"]
    jobs = launch(machines, tmp_path, "--work-dir", work, *options)
    deadline = time.monotonic() + 250
    while not (work / "last_checkpoint").exists():
        assert time.monotonic() < deadline and jobs[0].poll() is None
        time.sleep(0.1)
    end(machines)
    try:
        first, _, last = outputs(jobs, 1)
    finally:
        ip("-n", machines[1], "link", "set", "e1", "up")
    for text in (first, last):
        named = r"^error: (one or more of )?rank 1 on machine-1(, rank \d on machine-\d)* ended; --resume"
        assert re.search(named, text, re.MULTILINE), text[-3000:]
