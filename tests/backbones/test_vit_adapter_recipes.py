"""Settings that only some configs of ``configs/vit_adapter`` have, compared with the authors' configs.

The values are those of czczup/ViT-Adapter at fd64a519, ``detection/configs``.
"""

import math

import numpy as np
import pytest
import torch
from mmcv.transforms import Compose
from mmdet.registry import MODELS
from mmengine.config import Config, ConfigDict
from mmengine.optim import build_optim_wrapper
from mmengine.registry import PARAM_SCHEDULERS, DefaultScope
from torch import nn

import dcnzoo.models  # noqa: F401
from tests.helpers.processes import ROOT


def config(name):
    return Config.fromfile(ROOT / f"configs/vit_adapter/{name}_coco.py")


def test_optimizer_of_sparse_rcnn():
    """Gradients are clipped, and the proposals have a quarter of the learning rate."""
    wrapper = config("sparse-rcnn_vit-adapter-deit-s_fpn_3x").optim_wrapper
    assert wrapper.clip_grad == dict(max_norm=1, norm_type=2)
    model = nn.ModuleDict({"rpn_head": nn.Embedding(2, 3), "roi_head": nn.Linear(2, 3)})
    groups = build_optim_wrapper(model, ConfigDict(wrapper)).param_groups
    rates = {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert rates[id(model.rpn_head.weight)] == pytest.approx((0.25e-4, 0.002 * 0.05))
    assert rates[id(model.roi_head.weight)] == pytest.approx((1e-4, 0.05))
    assert rates[id(model.roi_head.bias)] == pytest.approx((1e-4, 0.0))


@pytest.mark.parametrize("epochs", [25])
def test_schedule_of_mae(epochs):
    """It is mmcv's CosineAnnealing with min_lr_ratio: by epoch, after a warm-up of 2,000 iterations."""
    cfg, length = config(f"mask-rcnn_vit-adapter-mae-b_fpn_lsj-{epochs}e"), 2500
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1e-4)
    schedules = [
        PARAM_SCHEDULERS.build({**schedule, "optimizer": optimizer}) for schedule in cfg.param_scheduler
    ]
    rates = []
    for iteration in range(epochs * length):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        for schedule in schedules:
            if not schedule.by_epoch or (iteration + 1) % length == 0:
                schedule.step()
    steps = [0, 1000, 1999, 2100, length, 10 * length, (epochs - 1) * length]
    expected = [mmcv_rate(step // length, epochs, step) for step in steps]
    np.testing.assert_allclose([rates[step] for step in steps], expected, rtol=2e-3)


def mmcv_rate(epoch, epochs, iteration, base=1e-4, ratio=0.01, warmup=2000, start=0.001):
    rate = base * ratio + base * (1 - ratio) * (1 + math.cos(math.pi * epoch / epochs)) / 2
    return rate * (1 - (1 - iteration / warmup) * (1 - start)) if iteration < warmup else rate


def test_normalisation_of_dinov2_l():
    """Training uses 127.5; tests use ImageNet's mean and deviation, with which the AP was published."""
    cfg = config("mask-rcnn_vit-adapter-dinov2-l_fpn_3x")
    picture = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    with DefaultScope.overwrite_default_scope("mmdet"):
        preprocessor = MODELS.build({**cfg.model.data_preprocessor, "pad_size_divisor": 1})
        steps = [
            s for s in cfg.train_dataloader.dataset.pipeline if s["type"] in ("Normalize", "PackDetInputs")
        ]
        training = Compose(steps)({"img": picture.copy(), "img_id": 0})["inputs"]
        tested = Compose(cfg.test_dataloader.dataset.pipeline[-1:])({"img": picture.copy(), "img_id": 0})[
            "inputs"
        ]
    rgb = picture[..., ::-1].astype(np.float32)
    for inputs, mean, std in (
        (training, [127.5] * 3, [127.5] * 3),
        (tested, [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]),
    ):
        result = preprocessor({"inputs": [inputs], "data_samples": None})["inputs"][0]
        expected = ((rgb - mean) / std).transpose(2, 0, 1)
        np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-4)
    others = [step["type"] for step in cfg.train_dataloader.dataset.pipeline if step["type"] != "Normalize"]
    same = config("mask-rcnn_vit-adapter-deit-s_fpn_3x").train_dataloader.dataset.pipeline
    assert others == [step["type"] for step in same]
