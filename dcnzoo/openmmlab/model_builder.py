"""A detector and an image to try it on, for tools that count or time."""

from collections.abc import Iterator

import torch
from mmengine.config import Config, ConfigDict
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import init_default_scope
from mmengine.runner import Runner

import dcnzoo.openmmlab.models  # noqa: F401  before mmdet, which needs mmcv.ops

# isort: split
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from torch import nn


def build_model(cfg: Config, checkpoint: str | None = None, trust: bool = False) -> nn.Module:
    """The config's model in evaluation mode, with the checkpoint's weights or with random ones."""
    if checkpoint is not None:
        from dcnzoo.openmmlab.detector import build

        return build(cfg, checkpoint, trust)[0]
    init_default_scope(cfg.get("default_scope", "mmdet"))
    for node in _dicts(cfg.model):  # nothing is downloaded for weights that make no difference
        node.pop("init_cfg", None)
        node.pop("teacher_ckpt", None)
    return revert_sync_batchnorm(MODELS.build(cfg.model)).eval()


def _dicts(node: object) -> Iterator[ConfigDict]:
    if isinstance(node, dict):
        yield node
    for value in node.values() if isinstance(node, dict) else node if isinstance(node, list | tuple) else ():
        yield from _dicts(value)


def random_batch(height: int, width: int) -> dict:
    """What a data loader would give for one image, [3, height, width], of noise."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)
    meta = dict.fromkeys(("img_shape", "ori_shape", "pad_shape", "batch_input_shape"), (height, width))
    return {"inputs": [image], "data_samples": [DetDataSample(metainfo={**meta, "scale_factor": (1.0, 1.0)})]}


def test_batches(cfg: Config, number: int) -> Iterator[dict]:
    """The first images of the config's test set, one at a time."""
    loader = dict(cfg.test_dataloader, batch_size=1)
    for index, batch in enumerate(Runner.build_dataloader(loader)):
        if index == number:
            return
        yield batch
