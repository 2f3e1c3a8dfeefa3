"""Count the operations of a detector."""

import itertools
from collections.abc import Iterable
from typing import Any

import torch
from mmdet.structures import DetDataSample
from mmdet.utils import get_test_pipeline_cfg
from mmengine.config import Config
from mmengine.runner import Runner
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from dcnzoo.openmmlab.config.errors import config_errors
from dcnzoo.openmmlab.export.preprocessing import preprocessing_of
from dcnzoo.utils.errors import UserError, one_line


def count(
    model: Any, shape: tuple[int, int] | None = None, images: int | None = None
) -> list[tuple[dict[str, int], tuple[int, ...]]]:
    """Count the operations of a detector for a picture, or for each of several; see :func:`count_operations`.

    Args:
        model: from :func:`dcnzoo.openmmlab.runs.build.build_model`.
        shape: height and width of a picture of noise (default: the output of the test pipeline).
        images: use this many images of the config's test set instead.
    """
    with config_errors(model.cfg):
        if images is None:
            batches: Iterable[dict] = [random_batch(*(shape or input_size(model.cfg, model)))]
        else:
            loader = Runner.build_dataloader(dict(model.cfg.test_dataloader, batch_size=1))
            batches = itertools.islice(loader, images)
        return [count_operations(model, batch) for batch in batches]


def random_batch(height: int, width: int) -> dict:
    """Return a batch of one image of noise, [3, height, width], in the format of a data loader."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)
    meta = dict.fromkeys(("img_shape", "ori_shape", "pad_shape", "batch_input_shape"), (height, width))
    return {"inputs": [image], "data_samples": [DetDataSample(metainfo={**meta, "scale_factor": (1.0, 1.0)})]}


def input_size(cfg: Config, model: nn.Module) -> tuple[int, int]:
    """Return the height and width of an image after the test pipeline.

    Raises:
        UserError: the pipeline does not resize images, or has a step that is not supported.
    """
    try:
        steps = preprocessing_of(get_test_pipeline_cfg(cfg), model.data_preprocessor, ())
    except (AttributeError, KeyError, ValueError) as error:
        raise UserError(f"shape: expected height and width with this config: {one_line(error)}") from error
    if steps.scale is None:
        raise UserError("shape: expected height and width: the test pipeline does not resize images")
    return steps.padded(steps.scale[::-1])


def count_operations(model: Any, batch: dict) -> tuple[dict[str, int], tuple[int, ...]]:
    """Count a forward pass's multiply-adds by operator; also return the shape of the backbone's input."""
    from dcnzoo.ops.flops import register

    register()
    model.requires_grad_(False)  # the counter fails at parts of parameters (DETR's queries) without a graph
    data = model.data_preprocessor(batch)
    with FlopCounterMode(display=False) as counter:
        model(data["inputs"], data["data_samples"], mode="tensor")
    counts = counter.get_flop_counts()["Global"]
    return {str(operator): flops // 2 for operator, flops in counts.items()}, tuple(data["inputs"].shape)
