"""Mistakes are named before the first step, and looking for them changes nothing."""

import contextlib
import itertools
import os
import random
import shutil
from functools import partial
from pathlib import Path

import dcnzoo.models  # before mmdet, which needs mmcv.ops

# isort: split
import mmengine
import numpy as np
import pytest
import torch
from mmdet.datasets import AspectRatioBatchSampler
from mmengine.config import Config
from mmengine.dataset import DefaultSampler, InfiniteSampler, pseudo_collate
from mmengine.device import get_device
from mmengine.dist import init_dist
from mmengine.evaluator import BaseMetric, DumpResults, Evaluator
from mmengine.hooks import Hook
from mmengine.registry import METRICS
from torch.multiprocessing import start_processes
from torch.utils.data import Sampler

from dcnzoo.data.shapes import CLASSES
from dcnzoo.openmmlab.checkpoints import load_file
from dcnzoo.openmmlab.config.packages import base_path
from dcnzoo.openmmlab.history import History
from dcnzoo.openmmlab.options import TrainOptions
from dcnzoo.openmmlab.runs import execute, sanity
from dcnzoo.openmmlab.runs.device import require_device, use_device
from dcnzoo.openmmlab.runs.recipe import TRAINING, Recipe, read_config_file
from dcnzoo.utils.errors import UserError
from tests.helpers.demo import write_tiny_config
from tests.helpers.training import Model, Score, make_runner
from tests.programs.crash import assert_same


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Its pictures are drawn once."""
    folder = tmp_path_factory.mktemp("small")
    ema = [dict(type="EMAHook", momentum=0.1)]
    path = write_tiny_config(folder / "small.py", folder / "data", train=4, val=2, custom_hooks=ema)
    dcnzoo.train(path, work_dir=path.parent / "drawn", dry_run=True)
    return path


VAL, TRAIN = "val_dataloader.dataset.", "the file of the training"
KEYS = ("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")
NO_FILES = {f"{VAL}pipeline.0.type": "LoadImageFromNDArray"}  # as in a pipeline of inference
MISTAKES = {  # ordinary ones: options, and how the error begins after the name of the config
    "a class too many": (
        {
            "model.roi_head.bbox_head.num_classes": 4,
            "train_dataloader.dataset.metainfo": {"classes": CLASSES},
        },
        r"model\.roi_head\.bbox_head\.num_classes: ",
    ),
    "a part is missing": ({"optim_wrapper": None}, "optim_wrapper: "),
    "no such type": ({"model.backbone.type": "ResNett"}, r"model\.backbone: .*ResNett"),
    "no such setting": ({"model.neck.num_out": 5}, r"model\.neck: .*num_out"),
    "channels that do not fit": ({"model.neck.in_channels": [64, 128, 512]}, r"model\.neck"),
    "the evaluator's file is another": ({"val_evaluator.ann_file": TRAIN}, r"val_evaluator\.ann_file: "),
    "no annotations": ({"train_dataloader.dataset.ann_file": "annotations/no.json"}, ".*no.json"),
    "no pictures": ({f"{VAL}data_prefix.img": "nowhere/"}, ".*nowhere"),
    "the validation's pipeline fails": (NO_FILES, r".*00000\.png"),
    "masks of a model without masks": (
        {"model.roi_head.mask_head": None, "model.roi_head.mask_roi_extractor": None},
        "val_evaluator: .*segm",
    ),
}


def test_mistakes_are_named_and_the_repaired_config_trains_in_the_same_folder(config, tmp_path):
    work = tmp_path / "work"
    for name, (options, expected) in MISTAKES.items():
        train_file = str(config.parent / "data/annotations/train.json")
        options = {key: train_file if value == TRAIN else value for key, value in options.items()}
        with pytest.raises(UserError, match=rf"^(\S*small\.py: )?{expected}"):
            dcnzoo.train(config, work_dir=work, cfg_options=options)
        assert not [*work.glob("*.pth")], name
    dcnzoo.train(config, work_dir=work)
    assert (work / "epoch_1.pth").exists()


def test_a_training_uses_the_device_of_its_options(config, tmp_path):
    with pytest.raises(UserError, match=r"^device: "):
        options = TrainOptions(device="cuda:99", work_dir=tmp_path)
        execute.train(Recipe.read(config, {}, TRAINING), options, dry_run=True)


@pytest.mark.parametrize(("gpus", "kind"), [(0, "cpu"), (1, "cuda")])
def test_auto_is_one_device_for_trainings_and_detectors(monkeypatch, gpus, kind):
    """On a Mac, MMEngine would select its GPU."""
    monkeypatch.setattr(mmengine.device.utils, "DEVICE", "mps")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    with use_device("auto"):
        assert get_device() == require_device("auto").type == kind


def results(work):
    """Weights, their average, the optimizer, all logged values but times, and the best score."""
    last = load_file(work / "epoch_1.pth")
    hub = last["message_hub"]
    logged = {
        name: buffer._log_history.tolist()
        for name, buffer in hub["log_scalars"].items()
        if "time" not in name and "memory" not in name
    }
    keys = ("state_dict", "ema_state_dict", "optimizer", "param_schedulers")
    return [*(last[key] for key in keys), logged, History.read(work).validation]


@pytest.mark.parametrize(
    "options",
    [
        {},
        # the evaluator takes the truth from the predicted pictures
        {"val_evaluator.ann_file": None, f"{VAL}pipeline.3.meta_keys": (*KEYS, "instances")},
        {
            f"{loader}_dataloader.{key}": value
            for loader in ("train", "val")
            for key, value in (("num_workers", 1), ("persistent_workers", True))
        },
    ],
    ids=["file", "no file", "persistent workers"],
)
def test_a_training_has_the_same_bits_without_the_check(config, tmp_path, options):
    for folder, check in (("with", True), ("without", False)):
        dcnzoo.train(config, work_dir=tmp_path / folder, cfg_options=options, sanity=check)
    assert_same(results(tmp_path / "with"), results(tmp_path / "without"))


class Pictures:
    """A data set of random pictures; every third one is upright."""

    def __len__(self):
        return 9

    def __getitem__(self, index):
        noise = random.random() + np.random.rand() + torch.rand(1)  # noqa: NPY002
        return {"inputs": index + noise}

    def get_data_info(self, index):
        return {"width": 1 if index % 3 == 0 else 3, "height": 2}


class OwnSampler(Sampler):
    """A user's sampler, whose generator is its own."""

    def __init__(self, dataset, seed=None):
        self.length, self.generator = len(dataset), torch.Generator().manual_seed(3)

    def __len__(self):
        return self.length

    def __iter__(self):
        return iter(torch.randperm(self.length, generator=self.generator).tolist())


class Noisy(Model):
    def forward(self, inputs, mode):
        return super().forward([each + torch.rand(1) for each in inputs], mode)


class Pass(Hook):
    """Records the pictures of a training and its validations."""

    def __init__(self):
        self.batches = []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.batches.append(data_batch["inputs"])

    before_val_iter = before_train_iter


def compare_trainings(rank, folder, kind, workers, ranks):
    """Compare trainings of ten steps with three validations on a rank, with and without the check."""
    if ranks > 1:
        torch.set_num_threads(1)  # a forked process cannot use the threads of its parent
        variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks}
        os.environ.update({name: str(value) for name, value in variables.items()})
        init_dist("pytorch", "gloo", init_method=f"file://{folder}/ranks", rank=rank, world_size=ranks)
    loader = {"dataset": Pictures(), "batch_size": 2, "num_workers": workers, "collate_fn": pseudo_collate}
    batches = {"batch_sampler": {"type": kind}} if kind is AspectRatioBatchSampler else {}
    own = {"type": DefaultSampler if batches else kind}
    ends = {"type": DefaultSampler} if kind is InfiniteSampler else own  # a validation ends
    results = []
    for check in (True, False):
        runner = make_runner(
            folder,
            "bits",
            Noisy(),
            train_dataloader=loader | {"sampler": own} | batches,
            val_dataloader=loader | {"sampler": ends} | batches,
            val_evaluator=Evaluator([Score()]),
            train_cfg={"by_epoch": False, "max_iters": 10, "val_interval": 4},
            randomness={"seed": 5},
            launcher="pytorch" if ranks > 1 else "none",
            custom_hooks=[seen := Pass()],
        )
        if check:
            runner.load_or_resume = partial(sanity.predict_one, runner)
        runner.train()
        results.append([seen.batches, runner.model.state_dict()])
    assert len(results[0][0]) > 10
    assert_same(*results)


KINDS = (DefaultSampler, InfiniteSampler, AspectRatioBatchSampler, OwnSampler)
ONCE = [*zip(KINDS, (2, 0, 0, 0), (1, 1, 1, 2), strict=True)]  # each value
OTHERS = [case for case in itertools.product(KINDS, (0, 2), (1, 2)) if case not in ONCE]


@pytest.mark.parametrize(
    ("kind", "workers", "ranks"),
    [*ONCE, *(pytest.param(*case, marks=pytest.mark.slow) for case in OTHERS)],
)
def test_each_sampler_yields_the_same_pictures(tmp_path, kind, workers, ranks):
    """The training and the validations see the same pictures, and the weights have the same bits."""
    if ranks == 1:
        compare_trainings(0, tmp_path, kind, workers, ranks)
    else:
        start_processes(compare_trainings, (tmp_path, kind, workers, ranks), ranks, start_method="fork")


def test_a_dry_run_writes_nothing(config, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    dcnzoo.train(config, work_dir="work", dry_run=True)
    assert not [*tmp_path.iterdir()] and "dry run" in capsys.readouterr().out
    for options in (
        {"optim_wrapper.optimizer.lr": "x"},
        {"model.rpn_head.loss_cls.loss_weight": float("inf")},
    ):
        with pytest.raises(UserError, match=r"optim_wrapper|^loss: "):
            dcnzoo.train(config, work_dir="work", cfg_options=options, dry_run=True)
    assert not [*tmp_path.iterdir()]
    dcnzoo.train(config, work_dir="work")
    shutil.copytree("work", "before")
    dcnzoo.train(config, work_dir="work", dry_run=True, resume=True, cfg_options={"train_cfg.max_epochs": 2})
    dcnzoo.train(config, work_dir="work", dry_run=True, force=True)
    assert sorted(path.name for path in Path("work").iterdir()) == sorted(
        p.name for p in Path("before").iterdir()
    )
    assert not Path("work.1").exists()


def test_a_resume_reads_its_checkpoint_once(config, tmp_path, monkeypatch):
    dcnzoo.train(config, work_dir=tmp_path)
    load, read = torch.load, []
    monkeypatch.setattr(torch, "load", lambda path, **options: read.append(path) or load(path, **options))
    dcnzoo.train(config, work_dir=tmp_path, resume=True)
    assert [str(path) for path in read if "epoch" in str(path)] == [str(tmp_path / "epoch_1.pth")]


def test_a_detector_with_a_teacher(config, tmp_path):
    """Its methods ``train`` and ``eval`` return nothing."""
    cfg = Config.fromfile(config)
    student = read_config_file(base_path("mmdet::ld/ld_r18-gflv1-r101_fpn_1x_coco.py", "")[0]).model
    student.update(teacher_ckpt=None, data_preprocessor=cfg.model.data_preprocessor)
    student.backbone.init_cfg = None
    student.bbox_head.num_classes = len(CLASSES)
    head = {key: value for key, value in student.bbox_head.items() if key != "loss_ld"}
    parts = {"backbone": student.backbone, "neck": student.neck, "bbox_head": {**head, "type": "GFLHead"}}
    student.teacher_config = {"model": {"type": "GFL", **parts}}
    cfg.model, cfg.val_evaluator.metric = student, "bbox"
    path = tmp_path / "distillation.py"
    cfg.dump(path)
    dcnzoo.train(path, work_dir=tmp_path / "work", dry_run=True)


class Own(BaseMetric):
    """Counts in a list of its own."""

    default_prefix = "own"

    def __init__(self):
        super().__init__()
        self.seen = []

    def process(self, data_batch, data_samples):
        self.seen += data_samples
        self.results.append(len(self.seen))

    def compute_metrics(self, results):
        return {"seen": results[-1]}


class Deletes(Own):
    """Deletes a folder at its end, like MMDetection's metrics for panoptic segmentation and tracking."""

    def __init__(self, folder):
        super().__init__()
        self.folder = folder

    def __del__(self):
        shutil.rmtree(self.folder, ignore_errors=True)  # an error here would appear in other tests


def test_metrics_that_write_or_delete_files_are_left_out(tmp_path):
    for name in ("dump", "deleted"):
        (tmp_path / name).mkdir()
    coco = METRICS.build({"type": "mmdet.CocoMetric", "outfile_prefix": str(tmp_path / "x")})
    metrics = [own := Own(), DumpResults(str(tmp_path / "dump/a.pkl")), Deletes(tmp_path / "deleted"), coco]
    sanity.predict_one(make_runner(tmp_path / "work", "writes", val_evaluator=Evaluator(metrics)))
    assert own.seen == [] and (tmp_path / "deleted").exists() and not [*(tmp_path / "dump").iterdir()]


def test_the_check_leaves_metrics_buffers_and_generators_as_they_were(tmp_path):
    class Changing(Model):
        def __init__(self):
            super().__init__()
            self.register_buffer("count", torch.zeros(()))

        def forward(self, inputs, mode):
            self.count += 1
            torch.rand(3)
            return super().forward(inputs, mode)

    own = Own()
    runner = make_runner(tmp_path, "state", Changing(), val_evaluator=Evaluator([own]))
    runner.model.train()
    before = torch.get_rng_state()
    sanity.predict_one(runner)
    assert own.results == own.seen == [] and runner.model.count == 0 and runner.model.training
    assert torch.equal(torch.get_rng_state(), before)
