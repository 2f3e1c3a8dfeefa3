"""Trainings that take less than a second, with a model of one weight."""

import itertools
from pathlib import Path

import dcnzoo.models  # noqa: F401  before mmdet, which needs torchvision's operators

# isort: split
import torch
from mmengine.dataset import pseudo_collate
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner

from dcnzoo.openmmlab.hooks import SummaryHook
from dcnzoo.openmmlab.saved import SavedCheckpoints

NUMBERS = itertools.count()  # runs with the same name in the same second would share a logger
SAVING = {"checkpoint": {"type": "AtomicCheckpointHook", "interval": 1}}
WITHOUT_VALIDATION = dict.fromkeys(("val_dataloader", "val_cfg", "val_evaluator"))


class Model(BaseModel):
    """Learns the mean of its inputs."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, inputs, mode):
        x = torch.stack(inputs)
        return {"loss": ((self.weight - x) ** 2).mean()} if mode == "loss" else [self.weight]


def numbers(values=range(3)):
    """A data set."""
    return [{"inputs": torch.tensor([float(value)])} for value in values]


class Score(BaseMetric):
    """A metric that returns the model's weight, which increases. Counts its calls."""

    calls = 0

    def process(self, data_batch, data_samples):
        self.results.append(float(data_samples[0]))

    def compute_metrics(self, results):
        type(self).calls += 1
        return {"score": results[0]}


class Began(Hook):
    """Records the epoch in which a training begins."""

    priority = "LOWEST"
    epoch = None

    def before_train(self, runner):
        self.epoch = runner.epoch

    def after_val_epoch(self, runner, metrics=None):
        assert self.epoch is not None, "before_train comes first, also of the last hook"


class Death(BaseException):
    """Ends the process while a hook runs."""


class Dies(Hook):
    """Ends the process before an epoch, or before an iteration."""

    def __init__(self, epoch=None, iteration=None, error=Death):
        self.epoch, self.iteration, self.error = epoch, iteration, error

    def before_train_epoch(self, runner):
        if runner.epoch == self.epoch:
            raise self.error

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == self.iteration:
            raise self.error


def make_runner(work_dir, name, model=None, epochs=4, values=range(3), **changes):
    """A runner with MMEngine's loops. ``changes`` replace its settings."""
    sampler = {"type": "DefaultSampler", "shuffle": False}
    loader = {"dataset": numbers(values), "batch_size": 1, "sampler": sampler, "collate_fn": pseudo_collate}
    evaluator = {"type": "mmengine.Evaluator", "metrics": []}
    settings = {
        **{f"{part}_dataloader": dict(loader) for part in ("train", "val", "test")},
        "train_cfg": {"by_epoch": True, "max_epochs": epochs, "val_interval": 2},
        **{"val_cfg": {}, "test_cfg": {}, "val_evaluator": evaluator, "test_evaluator": evaluator},
        "optim_wrapper": {"optimizer": {"type": "SGD", "lr": 0.1}},
        "experiment_name": f"{name} {next(NUMBERS)}",
    }
    return Runner(model or Model(), str(work_dir), **{**settings, **changes})


def train(work_dir, name, max_keep_ckpts=2, best=False, template="epoch_{}.pth", logs_epochs=True, **kwargs):
    """Train with the hooks of ``dcnzoo train`` that write files; return the runner."""
    hook = {"type": "AtomicCheckpointHook", "max_keep_ckpts": max_keep_ckpts, "interval": 1}
    hook["filename_tmpl"] = template
    if best:
        hook.update(save_best="score", rule="greater")
        kwargs.setdefault("val_evaluator", Evaluator([Score()]))
    logger = {"type": "LoggerHook", "log_metric_by_epoch": logs_epochs}
    hooks = [Began(), SummaryHook(SavedCheckpoints(Path(work_dir), template))]
    runner = make_runner(
        work_dir, name, default_hooks={"checkpoint": hook, "logger": logger}, custom_hooks=hooks, **kwargs
    )
    runner.train()
    return runner


def began(runner):
    return next(hook.epoch for hook in runner.hooks if isinstance(hook, Began))


def checkpoints(folder):
    return sorted(path.name for path in folder.glob("*.pth"))
