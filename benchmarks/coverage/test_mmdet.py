"""A config of every family in MMDetection builds, predicts and trains.

A family is a folder of MMDetection's ``configs``; one config represents it. Its architecture is complete. A
trial is a prediction, then a training step with the config's own optimizer, on random images of 128 pixels
(or the smallest size that the model accepts), without pretrained weights.
"""

import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from mmdet.models.detectors import SemiBaseDetector
from mmdet.models.mot import OCSORT, BaseMOTModel, ByteTrack, DeepSORT
from mmdet.models.reid import BaseReID
from mmdet.structures import ReIDDataSample
from mmdet.testing import demo_track_inputs
from mmengine.config import Config
from mmengine.registry import DefaultScope
from torch import nn

from benchmarks.coverage.families import FAMILIES
from benchmarks.coverage.trial import (
    apart,
    detections,
    expect,
    image_size,
    predict,
    prepare,
    read,
    train,
    use_small_bert,
)
from dcnzoo.openmmlab.hooks.channels_last import to_channels_last


def try_out(cfg: Config) -> None:
    """Build the model, predict, and train for one step.

    Raises:
        Exception: something fails.
    """
    size = image_size(cfg)
    with tempfile.TemporaryDirectory() as folder, DefaultScope.overwrite_default_scope("mmdet"):
        use_small_bert(cfg, Path(folder))
        for augment in (cfg.model.get("data_preprocessor") or {}).get("batch_augments") or ():
            if augment.type == "BatchFixedSizePad":  # it pads to 1024 pixels, 64 times as many
                augment.size = (size, size)
        model = prepare(cfg)
        to_channels_last(model)  # as dcnzoo.load and trainings do on a CPU

        predict(model, to_predict(model, size))
        if not isinstance(
            model, DeepSORT
        ):  # also SORT and StrongSORT: detector and ReID are trained separately
            loss = train(model, cfg, to_train(model, size))
            expect(loss > 0, f"the loss is {loss}")


def to_predict(model: nn.Module, size: int) -> dict:
    if isinstance(model, BaseMOTModel):
        return demo_track_inputs(1, num_frames=2, image_shapes=(3, size, size))
    return detections(model, 1, size) if not isinstance(model, BaseReID) else persons()


def to_train(model: nn.Module, size: int) -> dict:
    if isinstance(model, BaseReID):
        return persons()
    if isinstance(model, SemiBaseDetector):
        branches = {name: detections(model, 2, size) for name in ("sup", "unsup_teacher", "unsup_student")}
        for batch in branches.values():
            for sample in batch["data_samples"]:
                sample.set_metainfo(dict(homography_matrix=np.eye(3, dtype=np.float32)))
        return {key: {name: b[key] for name, b in branches.items()} for key in ("inputs", "data_samples")}
    if isinstance(model, BaseMOTModel) and not isinstance(model, ByteTrack | OCSORT):
        shape = (3, size, size)
        return demo_track_inputs(1, 2, [0], shape, num_items=[2], num_classes=1, with_mask=True)
    return detections(model, 2, size)


def persons() -> dict:
    """Return two images of one person and two of another, as for training ReID networks."""
    samples = [ReIDDataSample().set_gt_label(label) for label in (0, 0, 1, 1)]
    pictures = [torch.randint(0, 256, (3, 256, 128), dtype=torch.uint8) for _ in samples]
    return {"inputs": pictures, "data_samples": samples}


def result_of(family: str) -> str:
    """Return ``ok``, or the error in one line."""
    return apart(lambda: try_out(read(FAMILIES[family])))


@pytest.mark.parametrize("family", FAMILIES)
def test_family(family, record):
    record(family, FAMILIES[family], result_of(family))
