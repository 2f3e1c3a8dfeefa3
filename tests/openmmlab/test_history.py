"""Losses and metrics by name, and the logs of a training that was resumed."""

import json

import numpy as np
import torch
from mmengine.evaluator import Evaluator
from torch import nn

from dcnzoo.openmmlab.history import History, loss_parts
from dcnzoo.openmmlab.hooks import SummaryHook
from dcnzoo.openmmlab.hooks.summary_metrics import labels
from dcnzoo.openmmlab.saved import SavedCheckpoints
from tests.helpers.training import Model, Score, make_runner, train


def test_parts_of_the_loss_and_names_of_metrics():
    """The names are those of MMDetection's heads: two stages, cascades, DETR's decoder layers, CenterNet."""
    names = {
        "class loss": ("loss_rpn_cls", "s0.loss_cls", "d3.loss_cls", "enc_loss_cls", "loss_heatmap"),
        "box loss": ("loss_rpn_bbox", "s2.loss_bbox", "d0.loss_iou", "dn_loss_bbox", "loss_dfl"),
        "mask loss": ("loss_mask", "loss_mask_iou", "loss_dice"),
    }
    losses = {name: 1.0 for part in names.values() for name in part} | {
        "loss_unknown": 9.0,
        "accuracy_cls": 9.0,
    }
    assert loss_parts(losses) == {part: len(each) for part, each in names.items()}
    metrics = {"coco/bbox_mAP": 0.5, "coco/bbox_mAP_l": -1.0, "coco/bbox_mAP_75": 0.4, "pascal_voc/mAP": -1.0}
    shown = {"coco/bbox_mAP": "box AP", "coco/bbox_mAP_75": "box AP75", "pascal_voc/mAP": "pascal_voc/mAP"}
    assert labels(metrics, most=None) == shown
    assert labels(metrics) == {"coco/bbox_mAP": "box AP"}
    assert labels({"accuracy/top1": np.float32(0.5), "name": "x"}) == {"accuracy/top1": "accuracy/top1"}


def write_log(folder, hour, step, began_after, rows):
    """Write the log of a start, with the rows of its training and validation."""
    log = folder / f"20261025_{hour:02}0000/vis_data/scalars.json"
    log.parent.mkdir(parents=True)
    first = {"step": step, "began_after": began_after}
    log.write_text("\n".join(map(json.dumps, [first, *rows])))


def test_logs_of_several_starts(tmp_path):
    """A training was resumed at 7, then again at 4."""
    for hour, steps in ((5, range(5, 7)), (3, range(1, 10)), (4, range(8, 15))):
        rows = [{"step": step, "epoch": step, "loss": 1.0} for step in steps]
        rows.append({"step": steps[-1], "time": 1.0, "coco/bbox_mAP": 0.5})
        write_log(tmp_path, hour, steps[0] - 1, steps[0] - 1, rows)
    history = History.read(tmp_path)
    assert [*history.training] == [*range(1, 7)] and [*history.validation] == [6]


def test_a_resumed_training_forgets_the_validations_after_its_checkpoint(tmp_path):
    options = {"best": True, "logs_epochs": False, "log_processor": {"by_epoch": False}, "max_keep_ckpts": -1}
    for epochs, interval in ((6, 1), (4, 2)):
        loop = {"by_epoch": True, "max_epochs": epochs, "val_interval": interval}
        train(tmp_path, "forgets", train_cfg=loop, **options)
        options |= {"resume": True, "load_from": str(tmp_path / "epoch_2.pth")}
    assert [*History.read(tmp_path).validation] == [1, 2, 4]


class Recall(Score):
    """Also an AP, and an AR, which save_best selects."""

    def compute_metrics(self, results):
        return {"coco/bbox_mAP": 0.5, "coco/AR@100": 0.75, **super().compute_metrics(results)}


def test_the_terminal_shows_the_metric_and_the_rate_of_the_training(tmp_path, capsys):
    """The metric is that of save_best; the rate is not that of a part with a multiplier."""
    rates = {
        "optimizer": {"type": "SGD", "lr": 0.1},
        "paramwise_cfg": {"custom_keys": {"weight": {"lr_mult": 0}}},
    }
    hook = {"type": "AtomicCheckpointHook", "save_best": "coco/AR@100", "rule": "greater"}
    evaluator, model = Evaluator([Recall()]), Model()
    model.bias = nn.Parameter(torch.zeros(1))
    runner = make_runner(
        tmp_path, "shown", model, custom_hooks=[SummaryHook(SavedCheckpoints(tmp_path))], optim_wrapper=rates,
        default_hooks={"checkpoint": hook}, val_evaluator=evaluator,
    )  # fmt: skip
    runner.train()
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    head = next(number for number, line in enumerate(lines) if line[:1] == ["epoch"])
    assert dict(zip(reversed(lines[head]), reversed(lines[head + 1]), strict=False))["lr"] == "0.1"
    assert next(line for line in lines if line[:1] == ["best"])[3:5] == ["coco/AR@100", "0.750,"]
