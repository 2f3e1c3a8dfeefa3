"""The tools under torchrun and with Slurm's interface, in processes on the CPU."""

import contextlib
import inspect
import itertools
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

from dcnzoo.data.shapes import CLASSES
from dcnzoo.openmmlab.runs import ranks

from ..crash import assert_same
from . import killing
from .launching import CONFIG, ROOT, run, settings

SCALARS = "*/vis_data/scalars.json"
# With BatchNorm, each process would validate with its own running statistics.
GROUP_NORM = dict(type="GN", num_groups=4)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tmp_path_factory.mktemp("data") / "shapes"


@pytest.fixture
def port():
    """A free port below those that the system gives to connections: one of these could take it meanwhile."""
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
        *settings(data, epochs=2, randomness__seed=1), "model.backbone.dcn=True")  # fmt: skip
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


def auditing_config(folder, **more):
    """A config with all of dcnzoo's hooks that logs which process writes files."""
    from mmengine.hooks import Hook
    from mmengine.registry import HOOKS

    import dcnzoo.openmmlab.hooks

    known = [getattr(dcnzoo.openmmlab.hooks, name) for name in dcnzoo.openmmlab.hooks.__all__]
    hooks = [cls.__name__ for cls in known if inspect.isclass(cls) and issubclass(cls, Hook)]
    hooks = [name for name in hooks if name in HOOKS.module_dict]  # not the summary, which `train` adds
    assert {"AtomicCheckpointHook", "ProgressHook"} <= set(hooks)
    default = ("AtomicCheckpointHook", "ProgressHook")  # in the base config
    given = {"PlateauEarlyStoppingHook": dict(monitor="coco/bbox_mAP", patience=3)}
    ours = [f"dcnzoo.{name}" for name in ("models", "openmmlab.hooks", "openmmlab.datasets")]
    lines = {
        "_base_": [str(ROOT / CONFIG)],
        "custom_imports": dict(imports=[*ours, "tests.distributed.audit"], allow_failed_imports=False),
        "custom_hooks": [dict(type=name, **given.get(name, {})) for name in hooks if name not in default],
        **more,
    }
    path = folder / "audited.py"
    path.write_text("".join(f"{name} = {value!r}\n" for name, value in lines.items()))
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [{}, dict(runner_type="FlexibleRunner", strategy=dict(type="DDPStrategy"))],
    ids=["DDP", "DDPStrategy"],
)
def test_two_processes_train(data, tmp_path, port, more):
    """With accumulated gradients and a scaled learning rate. Only the first process writes."""
    norm = dict(norm_cfg=GROUP_NORM)
    more = {**more, "model": dict(backbone=norm, neck=norm)}
    config, work, notes = auditing_config(tmp_path, **more), tmp_path / "work", tmp_path / "notes"
    options = settings(data, train=16, epochs=1, optim_wrapper__accumulative_counts=2,
                       auto_scale_lr__base_batch_size=4)  # fmt: skip
    arguments = [config, 2, "--verbose", "--work-dir", work, "--auto-scale-lr", *options]
    output = run("tools/dist_train.sh", *arguments, PORT=port, AUDIT=notes, AUDITED=work)
    assert "Scaling the original LR by 2.0" in output
    # 2 processes · 2 images · 2 accumulated iterations = 8 images per step, twice the base batch size
    assert logged(work, "lr")[0] == pytest.approx(2 * 1.5e-3 * 0.05)
    assert len(logged(work, "lr")) == 16 / (2 * 2), "two processes share the images"

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
        words = ("--work-dir", tmp_path / name, *options, *settings(data, epochs=2, randomness__seed=1))
        run("tools/dist_train.sh", CONFIG, 2, *words, PORT=port)
        states.append(torch.load(tmp_path / name / "epoch_2.pth", weights_only=False))
    for key in ("state_dict", "optimizer"):
        assert_same(*(state[key] for state in states))
    losses = [logged(tmp_path / name, "loss") for name in ("with", "without")]
    assert losses[0] == losses[1]


SMALL_VIT_ADAPTER = """
_base_ = {base!r}
model = dict(
    backbone=dict(
        vit=dict(embed_dim=24, depth=4, num_heads=3), pretrained=False, conv_inplane=4, deform_num_heads=3,
        window=[3, None, 3, None]),
    neck=dict(in_channels=[24] * 4, out_channels=32),
    bbox_head=dict(in_channels=32, feat_channels=32, stacked_convs=1, num_classes={classes}))
steps = [dict(type="LoadImageFromFile"), dict(type="LoadAnnotations", with_bbox=True),
         dict(type="Resize", scale=(256, 256)), dict(type="PackDetInputs")]
train_dataloader = dict(
    batch_size=1, num_workers=0, persistent_workers=False, dataset=dict(
        _delete_=True, type="ShapesDataset", data_root={data!r}, shapes=dict(train=4, val=1),
        ann_file="annotations/train.json", data_prefix=dict(img="train/"), pipeline=steps))
train_cfg = dict(max_epochs=1)
val_dataloader = val_cfg = val_evaluator = None
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["atss", "gfl"])
def test_vit_adapter_trains_in_two_processes(tmp_path, port, name):
    """Two steps. These heads do not read the map of stride 4, whose parameters have no gradient."""
    base = str(ROOT / f"configs/vit_adapter/{name}_vit-adapter-deit-s_fpn_3x_coco.py")
    text = SMALL_VIT_ADAPTER.format(base=base, data=f"{tmp_path}/shapes/", classes=len(CLASSES))
    (tmp_path / "small.py").write_text(text)
    work = tmp_path / "work"
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={port}"]
    run(sys.executable, *launcher, "-m", "dcnzoo", "train", tmp_path / "small.py", "--work-dir", work)
    assert (work / "epoch_1.pth").exists()


def test_dist_train_on_one_of_several_machines():
    names = dict(PYTHON="echo", NNODES=8, NODE_RANK=3, MASTER_ADDR="first", PORT=23456)
    words = run("tools/dist_train.sh", CONFIG, 4, "--resume", **names).split()
    given = "--nnodes=8 --node_rank=3 --nproc_per_node=4 --master_addr=first --master_port=23456 --resume"
    assert {"torch.distributed.run", *given.split()} <= set(words)
    assert words[words.index("--launcher") + 1] == "pytorch"


def test_the_port_of_another_job(port):
    """With a launcher that restarts, the processes of both would join each other."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
        other.listen()
        for script in ("dist_train", "dist_test"):
            words = (f"tools/{script}.sh", *("a.py", "a.pth")[: 1 + (script == "dist_test")], 2)
            assert str(port) in run(*words, status=1, PORT=port, MAX_RESTARTS=1)
            assert "train.py" in run("tools/dist_train.sh", "a.py", 2, NODE_RANK=1, PORT=port, PYTHON="echo")


# Killed processes


@pytest.mark.slow
def test_a_killed_job_begins_anew_at_its_last_checkpoint(data, tmp_path, port):
    config, work = killing.config(tmp_path, rank=1, phase="training", epoch=2), tmp_path / "work"
    words = ("--resume", "--verbose", "--report", "--work-dir", work)
    arguments = [config, 2, *words, *settings(data, epochs=6)]
    output = run("tools/dist_train.sh", *arguments, PORT=port, MAX_RESTARTS=1)
    assert "resumed epoch: 2" in output and (work / "last_checkpoint").read_text().endswith("epoch_6.pth")
    assert logged(work, "step")[-8:] == list(range(5, 13)), "two steps per epoch"
    assert (work / "report.html").exists(), "the first process generates no data, which has a barrier"


# Slurm, of which only the interface is available

SRUN = """#!/bin/sh
printf '%s\\0' "${MASTER_PORT:-}" "$@" > "$CALLED"
"""


@pytest.fixture
def slurm(tmp_path):
    """Run a script with a fake srun; return its options, its command and the port."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/srun").write_text(SRUN)
    (tmp_path / "bin/srun").chmod(0o755)

    def call(script, *arguments, **extra):
        called, path = tmp_path / "called", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
        run(f"tools/{script}.sh", *arguments, PATH=path, CALLED=called, **extra)
        port, *words = called.read_text().split("\0")[:-1]
        options = [*itertools.takewhile(lambda word: word.startswith("-"), words)]
        return {"options": options, "command": words[len(options) :], "port": port}

    return call


def test_slurm_asks_for_a_task_per_gpu(slurm, tmp_path):
    odd = tmp_path / "a b.py"
    called = slurm("slurm_train", "part", "name", odd, "out dir", "--resume", "--cfg-options", "a=[1, 2]")
    gpus = "--ntasks=8 --ntasks-per-node=8 --cpus-per-task=5 --gres=gpu:8 --kill-on-bad-exit=1"
    assert called["options"] == ["--partition=part", "--job-name=name", *gpus.split()]
    assert called["port"] == "", "it depends on the job"
    assert called["command"] == [
        *(sys.executable, "-u", "tools/train.py", str(odd), "--work-dir", "out dir"),
        *("--launcher", "slurm", "--resume", "--cfg-options", "a=[1, 2]"),
    ]
    names = dict(GPUS=32, GPUS_PER_NODE=4, CPUS_PER_TASK=9, PORT=123, SRUN_ARGS="--account=me --time=1:00")
    called = slurm("slurm_test", "part", "name", "config.py", "file.pth", "--out", "x.pkl", **names)
    asked = "--ntasks=32 --ntasks-per-node=4 --cpus-per-task=9 --gres=gpu:4 --kill-on-bad-exit=1"
    assert called["options"][2:] == [*asked.split(), "--account=me", "--time=1:00"]
    assert called["port"] == "123"
    for more, gpus in ((dict(GPUS_PER_NODE=0), []), ({}, ["--gres=gpu:2"])):  # fewer GPUs than a node has
        called = slurm("slurm_train", "p", "n", "c.py", "w", GPUS=2, **more)
        assert [word for word in called["options"] if word.startswith("--gres")] == gpus


def test_mpi_has_a_local_rank(monkeypatch):
    """mmengine's runner reads it, and its launcher for MPI does not set it."""
    from mmengine.config import Config

    calls = []
    for name in ("set_multi_processing", "init_dist", "barrier"):
        monkeypatch.setattr(ranks, name, lambda *_, name=name, **options: calls.append(name))
    monkeypatch.setattr("torch.distributed.destroy_process_group", lambda: calls.append("destroy"))
    names = dict(RANK="3", SIZE="4", LOCAL_RANK="1")
    given = {f"OMPI_COMM_WORLD_{name}": value for name, value in names.items()}
    with mock.patch.dict(os.environ, {**given, "MASTER_ADDR": "first"}):
        os.environ.pop("LOCAL_RANK", None)
        with ranks.joined(Config(dict(launcher="mpi"))):
            assert os.environ["LOCAL_RANK"] == "1"
            calls.append("work")
    assert calls == ["set_multi_processing", "init_dist", "work", "barrier", "destroy"]
