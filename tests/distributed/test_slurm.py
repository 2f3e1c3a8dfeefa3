"""The script for sbatch in docs/scale.md, on two machines with a real Slurm: ``nox -s distributed``."""

import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.helpers.demo import small_options
from tests.helpers.launching import CONFIG, ROOT, environment, on_machine, run

MISSING = [name for name in ("munged", "slurmctld", "slurmd", "sbatch") if not shutil.which(name)]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"needs Debian's slurm-wlm and munge: no {', '.join(MISSING)}"),
]
SETTINGS = """
ClusterName=test
SlurmctldHost=machine-0(10.77.0.1)
NodeName=machine-[0-1] NodeAddr=10.77.0.[1-2] CPUs=4
PartitionName=test Nodes=ALL Default=YES
SlurmUser=root
AuthInfo=socket={folder}/socket,cred_expire=5
StateSaveLocation={folder}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmdSpoolDir={folder}/%n
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
"""


@pytest.fixture(scope="module")
def slurm(machines, tmp_path_factory):
    """Start Slurm on two machines; return a function that runs a command on a machine."""
    folder = tmp_path_factory.mktemp("slurm")
    (folder / "slurm.conf").write_text(SETTINGS.format(folder=folder))
    (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")  # else slurmd looks for cgroups
    (folder / "hosts").write_text("127.0.0.1 localhost\n10.77.0.1 machine-0\n10.77.0.2 machine-1\n")
    (folder / "key").write_bytes(bytes(128))
    (folder / "key").chmod(0o600)
    path = f"{Path(sys.executable).parent}:/usr/sbin:/usr/bin:/sbin:/bin"
    variables = environment(SLURM_CONF=folder / "slurm.conf", PATH=path)

    def call(*words, machine=0):
        lines = [f"mount --bind {folder}/hosts /etc/hosts", f"exec {' '.join(map(str, words))}"]
        command = on_machine(machine, machines[machine], *lines)
        done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    files = [f"--{name}-file={folder}/{name}" for name in ("key", "pid", "log", "seed")]
    call("munged", "--force", f"--socket={folder}/socket", *files)
    call("slurmctld")
    for number in (0, 1):
        (folder / f"machine-{number}").mkdir()
        call("slurmd", "-N", f"machine-{number}", machine=number)
    return call


@pytest.fixture
def submit(slurm, tmp_path):
    """Return a function that submits the documented script, and returns a reader of ``scontrol show job``."""

    def call(tasks, config=CONFIG, options=()):
        text = (ROOT / "docs/scale.md").read_text()
        (script,) = re.findall(r"```bash\n(#!/bin/bash\n#SBATCH.*?)```", text, re.DOTALL)
        words = " ".join([config, *options])
        text = script.replace("CONFIG", words, 1).replace("/shared/", f"{tmp_path}/", 1)
        (tmp_path / "script").write_text(text)
        asked = "--nodes=2 --ntasks-per-node=1 --cpus-per-task=2 --gres=none --time=60"
        output = slurm("sbatch", asked, f"--array={tasks} --output={tmp_path}/%a.log", tmp_path / "script")
        job = output.split()[-1]

        def value(task, key):
            return re.search(rf"\b{key}=(\S+)", slurm("scontrol show job", f"{job}_{task}"))[1]

        return job, value

    return call


def wait_for(condition, folder):
    """Wait for a condition; fail 400 seconds after the last change in a folder, as a training can be slow."""
    state, since = None, time.monotonic()
    while not condition():
        files = {*folder.rglob("*")}  # a checkpoint for each epoch
        if files != state:
            state, since = files, time.monotonic()
        text = "".join(path.read_text()[-2000:] for path in folder.glob("*.log"))
        assert time.monotonic() < since + 400, text
        time.sleep(0.5)


def test_two_seeds_are_requeued(slurm, submit, tmp_path):
    """An administrator requeues one and the time limit the other; the weights are as without interruption."""
    options = [*small_options(tmp_path / "data", epochs=100), "train_cfg.val_interval=100"]
    job, value = submit("1-2", options=options)
    for seed in (1, 2):
        wait_for((tmp_path / f"seed_{seed}/last_checkpoint").exists, tmp_path)
    slurm("scontrol requeue", f"{job}_1")
    minutes = int(value(2, "RunTime").split(":")[1])
    slurm("scontrol update", f"JobId={job}_2", f"TimeLimit={minutes + 2}")
    wait_for(lambda: value(2, "Restarts") == "1", tmp_path)
    slurm("scontrol update", f"JobId={job}_2", "TimeLimit=60")
    for seed in (1, 2):
        wait_for(lambda: value(seed, "JobState") == "COMPLETED", tmp_path)  # noqa: B023 called at once
        assert value(seed, "Restarts") == "1"
        assert re.search(r"weights .*/epoch_\d+.pth", (tmp_path / f"{seed}.log").read_text())
    words = ("--auto-scale-lr", "--seed", 2, "--work-dir", tmp_path / "alone", *options)
    run("tools/dist_train.sh", CONFIG, 2, *words, PORT=29777)
    files = (tmp_path / name / "epoch_100.pth" for name in ("alone", "seed_2"))
    expected, weights = (torch.load(file, weights_only=False)["state_dict"] for file in files)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in expected.items())
