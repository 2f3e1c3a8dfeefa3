"""The tools under torchrun and with Slurm's interface, in processes on the CPU."""

import contextlib
import json
import os
import pickle
import re
import socket
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from mmengine.config import Config

from dcnzoo.openmmlab.runs import ranks
from tests.helpers.demo import small_options
from tests.helpers.launching import CONFIG, ROOT, run
from tests.programs.crash import assert_same

SCALARS = "*/vis_data/scalars.json"
# With BatchNorm, each process would validate with its own running statistics.
GROUP_NORM = dict(type="GN", num_groups=4)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tmp_path_factory.mktemp("data") / "shapes"


@pytest.fixture
def port():
    """Return a free port below the range of outgoing connections, one of which could take it meanwhile."""
    for number in range(20000 + os.getpid() % 1000 * 10, 32768):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", number))
            return number
    raise OSError("no free port")


def precisions(output):
    return [re.findall(rf"coco/{kind}_mAP: (-?[\d.]+)", output)[-1] for kind in ("bbox", "segm")]


def logged(work, name):
    lines = [line for log in sorted(work.glob(SCALARS)) for line in log.read_text().splitlines()]
    return [entry[name] for entry in map(json.loads, lines) if "loss" in entry]


# Evaluation


@pytest.fixture(scope="module")
def trained(tmp_path_factory, data):
    work = tmp_path_factory.mktemp("trained")
    run(sys.executable, "tools/train.py", CONFIG, "--work-dir", work,
        *small_options(data, epochs=2, randomness__seed=1), "model.backbone.dcn=True")  # fmt: skip
    return work / Path(CONFIG).name, work / "epoch_2.pth"


@pytest.mark.slow
def test_several_processes_evaluate_as_one(trained, tmp_path, port):
    """Five images: with two or three processes, one of them has an image more than another."""
    config, checkpoint = trained
    outputs, predictions = [], []
    for processes in (1, 2, 3):
        out = tmp_path / f"{processes}.pkl"
        script = ["tools/dist_test.sh", config, checkpoint, processes]
        if processes == 1:
            script = [sys.executable, "tools/test.py", config, checkpoint]
        arguments = ["--verbose", "--work-dir", tmp_path / str(processes), "--out", out]
        outputs.append(run(*script, *arguments, PORT=port))
        predictions.append(pickle.loads(out.read_bytes()))
    assert precisions(outputs[0]) == precisions(outputs[1]) == precisions(outputs[2])
    assert float(precisions(outputs[0])[0]) > 0, "there is something to compare"
    ids = [[image["img_id"] for image in images] for images in predictions]
    assert ids[0] == ids[1] == ids[2] and len(set(ids[0])) == 5, "each image once, in its order"
    for several in predictions[1:]:
        for image, expected in zip(several, predictions[0], strict=True):
            for key in ("bboxes", "scores"):
                found, known = (x["pred_instances"][key] for x in (image, expected))
                np.testing.assert_allclose(found, known, atol=1e-4)


# Training


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [{}, dict(runner_type="FlexibleRunner", strategy=dict(type="DDPStrategy"))],
    ids=["DDP", "DDPStrategy"],
)
def test_two_processes_train(data, tmp_path, port, more):
    """Gradients are accumulated and the learning rate is scaled. Only the first process writes files."""
    norm = dict(norm_cfg=GROUP_NORM)
    more = {**more, "model": dict(backbone=norm, neck=norm)}
    imports = dict(imports=["dcnzoo.models", "tests.programs.audit"], allow_failed_imports=False)
    # without EMAHook, which fails with the strategies of FlexibleRunner
    lines = {"_base_": [str(ROOT / CONFIG)], "custom_imports": imports, "custom_hooks": [], **more}
    config, work, notes = tmp_path / "audited.py", tmp_path / "work", tmp_path / "notes"
    config.write_text("".join(f"{name} = {value!r}\n" for name, value in lines.items()))
    options = small_options(data, optim_wrapper__accumulative_counts=2, auto_scale_lr__base_batch_size=4)
    arguments = [config, 2, "--verbose", "--work-dir", work, "--auto-scale-lr", *options]
    output = run("tools/dist_train.sh", *arguments, PORT=port, AUDIT=notes, AUDITED=work)
    assert "Scaling the original LR by 2.0" in output
    # 2 processes · 2 images · 2 accumulated iterations = 8 images per step, twice the base batch size
    assert logged(work, "lr")[0] == pytest.approx(2 * 1.5e-3 * 0.05)
    assert len(logged(work, "lr")) == 8 / (2 * 2), "two processes share the images"

    written = {rank: set((tmp_path / f"notes.{rank}").read_text().splitlines()) for rank in (0, 1)}
    assert any("epoch_1.pth" in path for path in written[0])
    assert not written[1], "only the first process writes"
    assert sorted(p.name for p in work.glob("*.pth")) == ["epoch_1.pth"]

    options = ["--verbose", "--work-dir", work, *options]
    testing = run(sys.executable, "tools/test.py", config, work / "epoch_1.pth", *options,
                  RANK=0, AUDIT=notes, AUDITED=work)  # fmt: skip
    assert precisions(testing) == precisions(output)
    run("tools/dist_train.sh", config, 2, "--work-dir", work, "--resume", *options[3:], "--epochs", 2,
                PORT=port, AUDIT=notes, AUDITED=work)  # fmt: skip


@pytest.mark.slow
def test_two_processes_have_the_same_bits_without_the_sanity_check(data, tmp_path, port):
    states = []
    for name, options in (("with", []), ("without", ["--no-sanity"])):
        words = ("--work-dir", tmp_path / name, *options, *small_options(data, epochs=2, randomness__seed=1))
        run("tools/dist_train.sh", CONFIG, 2, *words, PORT=port)
        states.append(torch.load(tmp_path / name / "epoch_2.pth", weights_only=False))
    for key in ("state_dict", "optimizer"):
        assert_same(*(state[key] for state in states))
    losses = [logged(tmp_path / name, "loss") for name in ("with", "without")]
    assert losses[0] == losses[1]


# Slurm and MPI, of which only the interfaces are available


def test_slurm_starts_a_task_per_gpu(tmp_path):
    srun, called = tmp_path / "srun", tmp_path / "called"
    srun.write_text('#!/bin/sh\nprintf \'%s\\0\' "$@" > "$CALLED"\n')
    srun.chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    arguments = ("part", "name", tmp_path / "a b.py", "out dir", "--cfg-options", "a=[1, 2]")
    run("tools/slurm_train.sh", *arguments, PATH=path, CALLED=called, GPUS=8, GPUS_PER_NODE=4)
    assert called.read_text().split("\0")[:-1] == [
        *("--partition=part", "--job-name=name", "--ntasks=8", "--ntasks-per-node=4", "--cpus-per-task=5"),
        *("--gres=gpu:4", "--kill-on-bad-exit=1", sys.executable, "-u", "tools/train.py"),
        *(str(tmp_path / "a b.py"), "--work-dir", "out dir", "--launcher", "slurm"),
        *("--cfg-options", "a=[1, 2]"),
    ]


@pytest.fixture
def no_process_group(monkeypatch):
    for name in ("set_multi_processing", "init_dist", "barrier", "distributed.destroy_process_group"):
        monkeypatch.setattr(f"dcnzoo.openmmlab.runs.ranks.{name}", lambda *_, **options: None)


@pytest.mark.parametrize("machines", [1, 2])
def test_slurms_gloo_uses_the_network_between_machines(monkeypatch, no_process_group, machines):
    """Slurm sets neither WORLD_SIZE nor MASTER_ADDR."""
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "GLOO_SOCKET_IFNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_LAUNCH_NODE_IPADDR", "10.1.2.3")
    monkeypatch.setattr(ranks, "address_towards", {"10.1.2.3": "10.1.2.4"}.get)
    monkeypatch.setattr(ranks, "interface_of", {"10.1.2.4": "ib0"}.get)
    slurm = Config(dict(launcher="slurm"))
    with mock.patch.dict(os.environ, SLURM_NNODES=str(machines)), ranks.joined(slurm):
        assert os.environ.get("GLOO_SOCKET_IFNAME") == (None if machines == 1 else "ib0")


def test_mpi_has_a_local_rank(no_process_group):
    """mmengine's runner reads LOCAL_RANK, but its launcher for MPI does not set it."""
    with mock.patch.dict(os.environ, OMPI_COMM_WORLD_LOCAL_RANK="1"):
        os.environ.pop("LOCAL_RANK", None)
        with ranks.joined(Config(dict(launcher="mpi"))):
            assert os.environ["LOCAL_RANK"] == "1"
