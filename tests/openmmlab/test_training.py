import contextlib
import random
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.evaluator import Evaluator
from mmengine.hooks import EMAHook, Hook
from mmengine.optim import OptimWrapper
from mmengine.registry import DATA_SAMPLERS, PARAM_SCHEDULERS
from mmengine.runner import EpochBasedTrainLoop
from torch.utils.data import Dataset, RandomSampler

from dcnzoo.layers import PackedDeformConv2d
from dcnzoo.openmmlab.checkpoints import load_file
from dcnzoo.openmmlab.config.packages import base_path
from dcnzoo.openmmlab.history import History
from dcnzoo.openmmlab.hooks import AtomicLocalBackend, ResumeHook
from dcnzoo.openmmlab.hooks.load_checkpoint import LoadCheckpointHook
from dcnzoo.openmmlab.hooks.schedules import replay_schedules
from dcnzoo.openmmlab.options import RunOptions, TrainOptions
from dcnzoo.openmmlab.runs import options as run_options
from dcnzoo.openmmlab.runs.batches import number_batches
from dcnzoo.openmmlab.runs.options import write_options
from dcnzoo.openmmlab.runs.recipe import RunConfig, read_config_file
from dcnzoo.openmmlab.runs.start import choose_start
from dcnzoo.utils.errors import UserError
from dcnzoo.utils.files import partial_of
from tests.helpers.training import (
    SAVING,
    WITHOUT_VALIDATION,
    Began,
    Death,
    Dies,
    Model,
    Score,
    began,
    checkpoints,
    make_runner,
    numbers,
    train,
)

# Damaged checkpoints


def cut_off(path):
    path.write_bytes(path.read_bytes()[:-1000])


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 16
    path.write_bytes(content)


def test_a_training_of_other_parameters_is_not_resumed(tmp_path):
    """A backbone of dcnzoo 0.2 had levels that nothing reads."""
    model = Model()
    model.level = torch.nn.Linear(2, 2)
    train(tmp_path, "with a level", model=model)
    with pytest.raises(UserError, match=r"^resume: .* parameters, .* got \d+: .*out_indices"):
        train(tmp_path, "without", resume=True)


def set_nan(path):
    content = torch.load(path)
    content["state_dict"]["weight"].fill_(float("nan"))
    torch.save(content, path)


@pytest.mark.parametrize("harm", [cut_off, flip_a_bit, set_nan])
def test_the_one_before_a_damaged_checkpoint_is_taken(tmp_path, harm):
    whole = train(tmp_path, "whole")
    harm(tmp_path / "epoch_4.pth")
    resumed = train(tmp_path, "resumed", resume=True)
    assert began(resumed) == 3
    load_file(tmp_path / "epoch_4.pth")  # written anew
    assert torch.equal(resumed.model.weight, whole.model.weight)

    for path in tmp_path.glob("*.pth"):
        harm(path)
    with pytest.raises(UserError, match=r"^resume: .* 2 damaged"):
        train(tmp_path, "nothing left", resume=True)
    for resume in (True, False):
        with pytest.raises(UserError, match=rf"^{tmp_path}/epoch_3.pth: .*(damaged|NaN)"):
            train(tmp_path, f"asked {resume}", resume=resume, load_from=str(tmp_path / "epoch_3.pth"))


def test_which_checkpoint_is_the_last(tmp_path):
    work, pointer = tmp_path / "work", tmp_path / "work" / "last_checkpoint"
    train(work, "first", max_keep_ckpts=-1)
    for number, name in enumerate((str(work / "epoch_3.pth"), "elsewhere/epoch_3.pth", "")):
        pointer.write_text(name)
        assert began(train(work, f"process ended before it wrote the name {number}", resume=True)) == 4
    copy = shutil.copytree(work, tmp_path / "copy", ignore=shutil.ignore_patterns("*.pth"))
    assert began(train(copy, "not that of the original", resume=True)) == 0
    shutil.rmtree(work)
    assert began(train(work, "nothing is there", resume=True)) == 0


def test_a_checkpoint_from_elsewhere_removes_only_checkpoints(tmp_path):
    work = tmp_path / "work"
    train(work, "first", best=True)
    mine = tmp_path / "other.pth", work / "cfg.py"
    for path in mine:
        path.write_bytes(b"mine")
    file = torch.load(work / "epoch_3.pth", weights_only=True)
    names = ["../other.pth", str(mine[0]), "2.pth", "3.pth"]
    file["message_hub"]["runtime_info"].update(checkpoint_files=names, best_ckpt=str(mine[1]))
    torch.save(file, work / "3.pth")
    options = dict(max_keep_ckpts=1, template="{}.pth", best=True)
    train(work, "rest", resume=True, load_from=str(work / "3.pth"), **options)
    assert all(path.read_bytes() == b"mine" for path in mine)


def test_a_training_removes_only_the_temporary_files_of_a_killed_training(tmp_path):
    """An export and a report to the work directory may be running."""
    (killed := partial_of(tmp_path / "epoch_1.pth")).touch()
    running = [partial_of(tmp_path / name) for name in ("detector.onnx", "report.html", "detector.xml")]
    for path in running:
        path.touch()
    (folder := partial_of(tmp_path / "folder")).mkdir()
    train(tmp_path, "beside an export")
    assert not killed.exists() and all(path.exists() for path in [*running, folder])


@pytest.mark.parametrize(("operation", "number"), [("put", 1), ("put", 2), ("remove", 1), ("remove", 2)])
def test_one_best_and_two_last_checkpoints_wherever_it_dies(tmp_path, monkeypatch, operation, number):
    """The process dies before each file that the hook writes (last, best) and before each removal."""
    monkeypatch.setattr(Score, "calls", 0)
    train(tmp_path, "begin", epochs=3, best=True)
    function, left = getattr(AtomicLocalBackend, operation), number

    def die(self, *args):
        nonlocal left
        left -= 1
        if left == 0:
            raise Death
        function(self, *args)

    with monkeypatch.context() as patch, contextlib.suppress(Death):
        patch.setattr(AtomicLocalBackend, operation, die)
        train(tmp_path, "dies", resume=True, best=True)
    assert left == 0 and any(name.startswith("best") for name in checkpoints(tmp_path))
    runner = train(tmp_path, "rest", resume=True, best=True)
    assert checkpoints(tmp_path) == ["best_score_epoch_4.pth", "epoch_3.pth", "epoch_4.pth"]
    assert runner.message_hub.get_info("best_ckpt") == str(tmp_path / "best_score_epoch_4.pth")


# Random numbers


class Noisy(Dataset):
    """Every item draws from the three random generators that transforms use."""

    loaded = 0  # in this process

    def __len__(self):
        return 5

    def __getitem__(self, index):
        self.loaded += 1
        noise = np.random.rand() + 2 * random.random() + 3 * torch.rand(()).item()  # noqa: NPY002
        return {"inputs": torch.tensor([index + noise])}


class NoisyModel(Model):
    def forward(self, inputs, mode):
        inputs = [x * torch.rand(()) for x in inputs] if mode == "loss" else inputs
        return super().forward(inputs, mode)


@DATA_SAMPLERS.register_module()
class DrawsGlobally(RandomSampler):
    """A user's sampler, which draws from a global generator while it is read."""

    def __init__(self, dataset, seed=None):
        super().__init__(dataset)

    def __iter__(self):
        return (random.randrange(5) for _ in range(5))


def train_noisily(work_dir, name, workers, persistent, sampler, stop_at=None, seed=None, resume=False):
    by_epoch = sampler == "epochs"
    loader = {
        **{"dataset": Noisy(), "batch_size": 2, "num_workers": workers, "persistent_workers": persistent},
        "sampler": {"type": "DefaultSampler" if by_epoch else sampler},
        "collate_fn": pseudo_collate,
    }
    hook = dict(type="AtomicCheckpointHook", interval=1 if by_epoch else 5, by_epoch=by_epoch)
    length = {"max_epochs": 4} if by_epoch else {"max_iters": 12, "val_interval": 100}
    cfg = Config({"train_cfg": {"by_epoch": by_epoch, **length}, "train_dataloader": loader})
    number_batches(cfg)
    runner = make_runner(
        work_dir,
        name,
        NoisyModel(),
        **cfg,
        optim_wrapper={"optimizer": {"type": "SGD", "lr": 0.05, "momentum": 0.9}},
        default_hooks={"epoch_seed": {"type": "EpochSeedHook"}, "checkpoint": hook},
        custom_hooks=[Dies(iteration=stop_at, error=KeyboardInterrupt)],
        randomness={"seed": seed},
        resume=resume,
        **WITHOUT_VALIDATION,
    )
    runner.train()
    return runner


@pytest.mark.parametrize(
    ("workers", "persistent", "sampler"),
    [
        (0, False, "epochs"),
        (2, True, "epochs"),
        pytest.param(2, False, "epochs", marks=pytest.mark.slow),
        (0, False, "InfiniteSampler"),
        (0, False, "DefaultSampler"),  # twelve batches are four epochs of it
        (0, False, "DrawsGlobally"),
        (2, True, "DrawsGlobally"),
        pytest.param(2, False, "InfiniteSampler", marks=pytest.mark.slow),
        pytest.param(2, True, "DefaultSampler", marks=pytest.mark.slow),
    ],
)
def test_a_resumed_run_draws_what_an_unbroken_one_draws(
    tmp_path, no_workers_left_behind, workers, persistent, sampler
):
    settings = dict(workers=workers, persistent=persistent, sampler=sampler)
    with pytest.raises(KeyboardInterrupt):
        train_noisily(tmp_path, "killed", stop_at=8, **settings)
    no_workers_left_behind()
    np.random.seed(3)  # noqa: NPY002  mmengine derives its seed from this
    resumed = train_noisily(tmp_path, "resumed", resume=True, **settings)
    whole = train_noisily(tmp_path / "whole", "whole", seed=resumed.seed, **settings)
    assert resumed.iter == whole.iter == 12
    assert torch.equal(resumed.model.weight, whole.model.weight)
    if sampler != "epochs" and not workers:
        skipped = 5  # iterations before the checkpoint
        assert whole.train_dataloader.dataset.loaded - resumed.train_dataloader.dataset.loaded >= skipped


def test_each_epoch_and_each_worker_draws_numbers_of_its_own(tmp_path):
    class Keep(Hook):
        seen = []

        def before_train_iter(self, runner, batch_idx, data_batch=None):
            self.seen += [x.item() % 1 for x in data_batch["inputs"]] + [torch.rand(()).item()]

    loader = {"num_workers": 2, "persistent_workers": True, "dataset": Noisy(), "collate_fn": pseudo_collate}
    hooks = dict(default_hooks={"epoch_seed": {"type": "EpochSeedHook"}}, custom_hooks=[Keep()])
    runner = make_runner(tmp_path, "own", **hooks)
    runner._train_dataloader.update(loader)
    runner.train()
    assert len(Keep.seen) == len(set(Keep.seen)) == 4 * 5 * 2


# Memory format


class Images(Model):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.Sequential(torch.nn.Conv2d(1, 6, 3), PackedDeformConv2d(6, 4, 3))
        torch.nn.init.normal_(self.layers[1].conv_offset.weight, std=0.5)

    def forward(self, inputs, mode):
        picture = torch.stack(inputs).view(-1, 1, 1, 1) * torch.linspace(-1, 1, 63).view(1, 1, 7, 9)
        loss = self.layers(picture).square().mean()
        return {"loss": loss} if mode == "loss" else [loss]


@pytest.mark.parametrize("update_buffers", [False, True])
def test_channels_last(tmp_path, update_buffers):
    trained = []
    for name in ("ChannelsLastHook", "OffsetStatisticsHook"):  # the latter changes nothing
        average = {"type": "EMAHook", "momentum": 0.5, "update_buffers": update_buffers}
        hooks = [average, {"type": name}]
        runner = make_runner(tmp_path / name, "format", Images(), values=range(1, 4), custom_hooks=hooks)
        runner.train()
        average = next(hook for hook in runner.hooks if isinstance(hook, EMAHook)).ema_model.module
        trained.append([dict(m.named_parameters()) for m in (runner.model, average)])
    for ours, plain in zip(*trained, strict=True):
        for name, weight in ours.items():
            torch.testing.assert_close(weight, plain[name])
            if weight.ndim == 4:
                assert weight.is_contiguous(memory_format=torch.channels_last), name
        assert not plain["layers.1.weight"].is_contiguous(memory_format=torch.channels_last)


# Losses


@pytest.mark.parametrize(("scaled", "iterations"), [(None, 5), (3, 8)])
def test_training_stops_at_a_loss_that_is_no_number(tmp_path, monkeypatch, scaled, iterations):
    seen = []

    def forward(self, inputs, mode):
        if mode != "loss":
            return [self.weight]
        seen.append(len(seen) + 1)
        loss = self.weight + (0 if len(seen) < 5 else float("nan"))  # a scaler skips the step
        return {"loss_a": loss + 1, "loss_b": loss * 0, "acc": loss * float("nan")}

    monkeypatch.setattr(Model, "forward", forward)
    if scaled:  # as in AmpOptimWrapper on a GPU
        scaler = SimpleNamespace(is_enabled=lambda: True)
        monkeypatch.setattr(OptimWrapper, "loss_scaler", scaler, raising=False)
    hooks = {
        "finite_loss": {"type": "FiniteLossHook", "scaled": scaled or 25},
        "checkpoint": {"type": "AtomicCheckpointHook", "interval": 1},
    }
    runner = make_runner(tmp_path, f"nan {scaled}", default_hooks=hooks)
    with pytest.raises(UserError, match=rf"^loss: .*loss_b nan in iteration {iterations}, .*resume=True"):
        runner.train()
    assert len(seen) == iterations
    saved = torch.load(tmp_path / "epoch_1.pth", weights_only=True)["state_dict"]["weight"]
    assert saved.isfinite().all()


def test_weights_that_the_last_step_damages_are_not_saved(tmp_path, monkeypatch):
    """The step's loss is finite: only its gradient is not."""
    steps = []

    def forward(self, inputs, mode):
        steps.append(mode)
        loss = self.weight * 0
        return {"loss": loss.sqrt() if steps.count("loss") == 6 else loss}

    monkeypatch.setattr(Model, "forward", forward)
    hooks = {**SAVING, "finite_loss": {"type": "FiniteLossHook"}}
    runner = make_runner(tmp_path, "damaged", default_hooks=hooks, **WITHOUT_VALIDATION)
    with pytest.raises(UserError, match=r"^weights: .* iteration 6, got NaN .* in weight.*resume=True"):
        runner.train()
    assert checkpoints(tmp_path) == ["epoch_1.pth"]


# Options of dcnzoo train


RTMDET = "mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py"


def schedule(name="dcnzoo::dcnv2/faster-rcnn_r50-mdconv-c3-c5_fpn_1x_coco.py", **changes):
    cfg = read_config_file(base_path(name, "")[0], changes)
    cfg.work_dir, cfg.launcher = cfg.get("work_dir") or "none", "none"
    return cfg, cfg.param_scheduler


def test_epochs_scale_the_schedule():
    cfg, (warm_up, steps) = schedule(**{"train_cfg.val_begin": 8})
    write_options(cfg, TrainOptions(epochs=3))
    assert (cfg.train_cfg.max_epochs, cfg.train_cfg.val_begin) == (3, 2)
    assert (warm_up.begin, warm_up.end, steps.end, steps.milestones) == (0, 125, 3, [2, 3])
    cfg, (warm_up, _) = schedule()
    warm_up.end = 12
    write_options(cfg, TrainOptions(epochs=1))
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
    built = PARAM_SCHEDULERS.build(warm_up, default_args=dict(optimizer=optimizer))
    optimizer.step()
    built.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1), "from the second iteration on"
    cfg, (warm_up, steps) = schedule()
    write_options(cfg, TrainOptions(epochs=36))
    assert (warm_up.end, steps.end, steps.milestones) == (1500, 36, [24, 33])
    for epochs, expected in ((30, (15, 30, 15, 28)), (1, (1, 2, 1, 1))):
        cfg, _ = schedule(RTMDET)
        write_options(cfg, TrainOptions(epochs=epochs))
        assert cfg.train_cfg.dynamic_intervals == [(expected[-1], 1)]
        cosine = cfg.param_scheduler[1]
        assert (cosine.begin, cosine.end, cosine.T_max, cfg.custom_hooks[1].switch_epoch) == expected
    cfg, _ = schedule(train_cfg={"_delete_": True, "type": "IterBasedTrainLoop", "max_iters": 9})
    with pytest.raises(UserError, match=r"^epochs: expected .*max_epochs.*'max_iters': 9"):
        write_options(cfg, TrainOptions(epochs=3))


def test_checkpoints_and_intervals_in_a_shorter_training():
    """RTMDet saves each tenth of 300 epochs: a training of nine would have none to continue."""
    cfg, _ = schedule(RTMDET)
    assert cfg.default_hooks.checkpoint.interval == 10 and cfg.default_hooks.logger.interval == 50
    write_options(cfg, TrainOptions(epochs=9), {"train_cfg.dynamic_intervals"})
    assert (cfg.default_hooks.checkpoint.interval, cfg.default_hooks.logger.interval) == (1, 50)
    assert cfg.train_cfg.dynamic_intervals == [(280, 1)]


@pytest.mark.parametrize("epochs", [5, 9, 10, 15])
def test_a_cosine_of_half_the_epochs_ends_with_an_odd_number_of_epochs(epochs):
    """Shorter than the remaining epochs, the rate would rise again; longer, it would end too high."""
    cfg, _ = schedule(RTMDET)
    write_options(cfg, TrainOptions(epochs=epochs))
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.004)
    built = PARAM_SCHEDULERS.build(
        cfg.param_scheduler[1], default_args=dict(optimizer=optimizer, epoch_length=10)
    )
    rates = []
    for _ in range(10 * epochs):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        built.step()
    assert rates == sorted(rates, reverse=True) and rates[-1] == pytest.approx(0.0002, rel=0.2)


def test_batch_size_and_learning_rate():
    cfg, _ = schedule(RTMDET)
    cfg.param_scheduler += [dict(type="OneCycleLR", eta_max=0.01)]
    cfg.param_scheduler += [dict(type="CosineAnnealingMomentum", eta_min=0.8)]
    cfg.train_dataloader.sampler = dict(type="MultiSourceSampler", batch_size=5, source_ratio=[1, 4])
    write_options(cfg, TrainOptions(batch_size=10, lr=0.001, amp=True))
    assert cfg.train_dataloader.batch_size == cfg.train_dataloader.sampler.batch_size == 10
    assert cfg.optim_wrapper.optimizer.lr == 0.001 and cfg.optim_wrapper.type == "AmpOptimWrapper"
    cosine, cycle, momentum = cfg.param_scheduler[1:]
    # the rates become a quarter, like the learning rate; the momentum stays
    assert (cosine.eta_min, cycle.eta_max, momentum.eta_min) == (0.00005, 0.0025, 0.8)
    cfg.train_cfg = {"type": "IterBasedTrainLoop", "max_iters": 20, "val_interval": 5}
    cfg.default_hooks.pop("checkpoint", None)
    write_options(cfg, RunOptions())
    assert (cfg.default_hooks.checkpoint.by_epoch, cfg.default_hooks.checkpoint.interval) == (False, 5)


def test_patience_and_loggers(monkeypatch):
    cfg, _ = schedule()
    for patience in (3, 4):  # the config of a work directory already has the hook
        write_options(cfg, TrainOptions(patience=patience))
    (hook,) = cfg.custom_hooks
    assert (hook.type, hook.monitor, hook.patience) == ("PlateauEarlyStoppingHook", "coco/bbox_mAP", 4)
    assert cfg.default_hooks.checkpoint.save_best == "coco/bbox_mAP"
    cfg.default_hooks.checkpoint.update(save_best=["other/metric"], rule=["less"])
    write_options(cfg, TrainOptions(patience=4))
    assert (cfg.custom_hooks[0].monitor, cfg.custom_hooks[0].rule) == ("other/metric", "less")
    sets = {"type": "MultiDatasetsEvaluator", "dataset_prefixes": ["day", "night"]}
    sets["metrics"] = [{"type": "CocoMetric", "metric": ["bbox", "segm"]}] * 2
    cfg, _ = schedule(val_evaluator={"_delete_": True, **sets})
    write_options(cfg, TrainOptions(patience=4))
    assert cfg.custom_hooks[0].monitor == cfg.default_hooks.checkpoint.save_best == "day/coco/segm_mAP"
    cfg, _ = schedule(val_evaluator={"_delete_": True, "type": "VOCMetric"})
    with pytest.raises(UserError, match=r"^patience: .*CocoMetric"):
        write_options(cfg, TrainOptions(patience=4))
    monkeypatch.setattr(run_options, "find_spec", lambda name: True)
    for _ in range(2):
        write_options(cfg, TrainOptions(logger="tensorboard"))
        backends = [backend["type"] for backend in cfg.visualizer.vis_backends]
        assert backends == ["LocalVisBackend", "TensorboardVisBackend"]


class Rates(Hook):
    """Records the learning rate and momentum of each iteration."""

    def before_train(self, runner):
        self.rates = []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        group = runner.optim_wrapper.param_groups[0]
        self.rates.append((runner.epoch, group["lr"], group["momentum"]))


class NoProgress(Score):
    def compute_metrics(self, results):
        return {"score": 0.5}


WARM_UP = {"type": "LinearLR", "start_factor": 0.1, "by_epoch": False, "end": 20}
PLATEAU = {"type": "ReduceOnPlateauLR", "monitor": "score", "rule": "less", "patience": 0, "end": 4}
SCHEDULES = {
    "steps": [WARM_UP, {"type": "MultiStepLR", "milestones": [2, 3], "gamma": 0.3}],
    "iterations of epochs": [
        WARM_UP,
        {"type": "CosineAnnealingLR", "begin": 1, "T_max": 3, "end": 4, "convert_to_iter_based": True},
        {"type": "CosineAnnealingMomentum", "T_max": 4, "convert_to_iter_based": True},
    ],
    # its state has a function, which files of weights may not have
    "cycle": [{"type": "OneCycleLR", "eta_max": 0.5, "total_steps": 48, "by_epoch": False}],
    "metric": [PLATEAU],
    "warm-up and metric": [WARM_UP, PLATEAU],
    "two metrics": [{**PLATEAU, "type": "ReduceOnPlateauMomentum"}, {**PLATEAU, "cooldown": 1}],
    "iterations": [WARM_UP, {"type": "MultiStepLR", "by_epoch": False, "milestones": [6, 10]}],
}


def schedules_of(folder):
    """The states of the schedules at the end, and the values of each group."""
    last = load_file(Path(folder, "last_checkpoint").read_text())
    groups = [{**group, "params": None} for group in last["optimizer"]["param_groups"]]
    return last["param_schedulers"], groups


@pytest.mark.parametrize(
    ("schedule", "batches"),
    [
        *((schedule, (3, 3)) for schedule in SCHEDULES),
        # with a metric, the schedules stay those of the checkpoint
        *(
            (schedule, batches)
            for schedule in SCHEDULES
            for batches in ((1, 2), (4, 1), (2, 2))
            if "metric" not in schedule
        ),
    ],
)
def test_a_resumed_training_has_the_learning_rate_of_its_settings(tmp_path, schedule, batches):
    """Like another batch size, another number of processes changes the number of iterations in an epoch.

    With equal batches, the first training has another learning rate and only the first schedule.
    """
    by_epoch = schedule != "iterations"
    sampler = {"type": "DefaultSampler" if by_epoch else "InfiniteSampler", "shuffle": False}
    loader = {"dataset": numbers(range(12)), "sampler": sampler, "collate_fn": pseudo_collate}
    saving = {"type": "AtomicCheckpointHook", "interval": 1 if by_epoch else 4, "by_epoch": by_epoch}

    def rates(folder, batch, epochs, resume=False, lr=0.01, schedules=SCHEDULES[schedule]):
        end = {"max_epochs": epochs} if by_epoch else {"max_iters": 4 * epochs}
        hook = Rates()
        make_runner(
            tmp_path / folder,
            folder,
            train_dataloader={**loader, "batch_size": batch},
            train_cfg={"by_epoch": by_epoch, "val_interval": 1, **end},
            val_evaluator=Evaluator([NoProgress()]),
            optim_wrapper={"optimizer": {"type": "SGD", "lr": lr, "momentum": 0.5}},
            param_scheduler=schedules,
            auto_scale_lr={"enable": True, "base_batch_size": 2},
            default_hooks={"checkpoint": saving},
            custom_hooks=[hook],
            resume=resume,
        ).train()
        return hook.rates

    first, second = batches
    others = {"lr": 0.05, "schedules": SCHEDULES[schedule][:1]} if first == second == 2 else {}
    rates("resumed", first, 2, **others)
    resumed = rates("resumed", second, 4, resume=True)
    uninterrupted = rates("uninterrupted", second, 4)
    assert len(resumed) == (2 * 12 // second if by_epoch else 8)
    np.testing.assert_allclose(resumed, uninterrupted[-len(resumed) :], rtol=1e-9)
    assert schedules_of(tmp_path / "resumed") == schedules_of(tmp_path / "uninterrupted")
    for folder in ("resumed", "uninterrupted"):
        validated = [*History.read(tmp_path / folder).validation]
        assert validated == [*range(1, 5 if by_epoch else 17)]


@pytest.mark.parametrize(("interval", "epoch"), [(2, 2), (3, 3)])
def test_checkpoints_by_iterations_in_a_training_by_epochs(tmp_path, monkeypatch, interval, epoch):
    """The interrupted epoch begins again. Its weights are not validated as the last epoch's."""
    monkeypatch.setattr(Score, "calls", 0)
    saving = {"checkpoint": {**SAVING["checkpoint"], "interval": interval, "by_epoch": False}}
    for resume, hooks in ((False, [Dies(iteration=9)]), (True, [Began()])):
        cfg = Config({"work_dir": str(tmp_path), "launcher": "none", "default_hooks": saving})
        cfg.train_cfg = {"max_epochs": 4}
        if resume:
            assert choose_start(RunConfig(cfg), True).resumes
        runner = make_runner(
            tmp_path,
            "by iterations",
            val_evaluator=Evaluator([Score()]),
            default_hooks=saving,
            custom_hooks=hooks,
            resume=resume,
        )
        with contextlib.suppress(Death):
            runner.train()
    assert (began(runner), runner.epoch, runner.iter) == (epoch, 4, 12)
    assert Score.calls == 2, "after the epochs 2 and 4"


class Logs(Hook):
    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        runner.visualizer.add_scalars({"my/norm": 7.5}, step=runner.iter + 1)


@pytest.mark.parametrize("kind", ["PlateauEarlyStoppingHook", "EarlyStoppingHook"])
def test_patience_counts_the_validations_before_a_resume(tmp_path, kind):
    """The training is resumed in the same folder, or from a checkpoint of another one."""
    hook = {"type": kind, "monitor": "score", "rule": "greater", "patience": 3}
    if kind == "EarlyStoppingHook":
        hook["min_delta"] = 0.1
    loop = {"by_epoch": True, "max_epochs": 9, "val_interval": 1}
    settings = {"train_cfg": loop, "val_evaluator": Evaluator([NoProgress()]), "default_hooks": SAVING}
    starts = (("a", 2, ""), ("b", 3, "a/epoch_2.pth"), ("b", None, ""), ("b", None, ""))
    for folder, dies_after, start in starts:
        options = {"resume": folder == "b", "load_from": str(tmp_path / start) if start else None}
        hooks = [hook, Logs(), Dies(dies_after)]
        runner = make_runner(tmp_path / folder, folder, custom_hooks=hooks, **settings, **options)
        with contextlib.suppress(Death):
            runner.train()
    assert runner.epoch == 4 and checkpoints(tmp_path / "b")[-1] == "epoch_4.pth"


def test_a_later_best_checkpoint_of_another_training_goes(tmp_path):
    """The last checkpoint is damaged, and with the new settings its epoch is not validated."""
    train(tmp_path, "first", best=True)
    cut_off(tmp_path / "epoch_4.pth")
    assert "best_score_epoch_4.pth" in checkpoints(tmp_path)
    loop = {"by_epoch": True, "max_epochs": 5, "val_interval": 5}
    train(tmp_path, "other", resume=True, best=True, train_cfg=loop)
    assert checkpoints(tmp_path) == ["best_score_epoch_5.pth", "epoch_4.pth", "epoch_5.pth"]


def test_resuming_from_weights_alone(tmp_path):
    train(tmp_path / "first", "first", epochs=2, best=True)
    checkpoint = torch.load(tmp_path / "first/epoch_2.pth", weights_only=False)
    torch.save({"state_dict": checkpoint["state_dict"], "meta": {}}, tmp_path / "published.pth")
    for name in ("published.pth", "first/best_score_epoch_2.pth"):
        file = str(tmp_path / name)
        runner = make_runner(tmp_path / "second", f"second {name}", load_from=file, resume=True)
        for hook in (LoadCheckpointHook(fine_tune=True), ResumeHook()):
            runner.register_hook(hook)
        with pytest.raises(UserError, match=rf"^resume: expected .*{file} without .*optimizer: .*load_from"):
            runner.train()


# A validation without objects has an AP of −1

KEY = "coco/bbox_mAP"


class Given(Score):
    """Returns the values of a list, one in each validation."""

    default_prefix = "coco"

    def __init__(self, values):
        super().__init__()
        self.values = iter(values)

    def compute_metrics(self, results):
        return {"bbox_mAP": next(self.values)}


def train_with_aps(work_dir, values, **hooks):
    loop = {"by_epoch": True, "max_epochs": len(values), "val_interval": 1}
    runner = make_runner(work_dir, "ap", train_cfg=loop, val_evaluator=Evaluator([Given(values)]), **hooks)
    runner.train()
    return runner


@pytest.mark.parametrize("save_best", [KEY, "auto"])
def test_undefined_ap_is_no_best_score(tmp_path, save_best):
    hook = {**SAVING["checkpoint"], "save_best": save_best}
    for values, best in (((-1.0, 0.0, -1.0), 2), ((-1.0, 0.0, -1.0, 0.3), 4)):
        runner = train_with_aps(tmp_path / str(best), values, default_hooks={"checkpoint": hook})
        assert checkpoints(tmp_path / str(best))[0] == f"best_coco_bbox_mAP_epoch_{best}.pth"
        assert runner.message_hub.get_info("best_score") == max(values)


def test_undefined_ap_does_not_end_the_patience(tmp_path):
    hook = {"type": "PlateauEarlyStoppingHook", "monitor": KEY, "patience": 2, "rule": "greater"}
    values = (0.3, -1.0, -1.0, -1.0, 0.2, -1.0, 0.2, 0.2, 0.2)
    assert train_with_aps(tmp_path, values, custom_hooks=[hook]).epoch == 7


GROUPS = [dict(lr=lr, momentum=momentum) for lr, momentum in [(0.1, 0.9), (0.01, 0.9), (0.1, 0.5)] * 3]


@pytest.mark.parametrize("schedule", ["steps", "iterations of epochs", "cycle", "iterations"])
def test_groups_with_equal_settings_have_the_rates_that_mmengine_gives_each(schedule):
    """Nine groups with three sets of settings, and the wrapper's group of its base settings."""

    def schedules():
        groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], **group} for group in GROUPS]
        wrapper = OptimWrapper(torch.optim.SGD(groups, lr=0.02, momentum=0.7))
        for settings in SCHEDULES[schedule]:
            settings = {**settings}
            build = PARAM_SCHEDULERS.get(settings.pop("type"))
            if settings.pop("convert_to_iter_based", False):
                build, settings["epoch_length"] = build.build_iter_from_epoch, 5
            yield build(wrapper, **settings)

    (stepped, replayed), length = ([*schedules()], [*schedules()]), 5
    for iteration in range(1, 3 * length + 1):
        for each in sorted(stepped, key=lambda schedule: schedule.by_epoch):
            if not each.by_epoch or iteration % length == 0:
                each.step()
    wrapper = replayed[0].optimizer
    loop = object.__new__(EpochBasedTrainLoop)
    runner = SimpleNamespace(param_schedulers=replayed, optim_wrapper=wrapper, train_loop=loop)
    checkpoint = {"meta": {"epoch": 3, "iter": 3 * length}, "optimizer": wrapper.state_dict()}
    replay_schedules(runner, checkpoint)
    for replayed_group, group in zip(wrapper.param_groups, stepped[0].optimizer.param_groups, strict=True):
        assert {**replayed_group, "params": None} == {**group, "params": None}
    assert checkpoint["param_schedulers"] == [each.state_dict() for each in stepped]
