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
from mmdet.testing import demo_mm_proposals, demo_track_inputs
from mmengine.config import Config
from mmengine.registry import DefaultScope
from torch import nn

from benchmarks.coverage.trial import (
    apart,
    expect,
    families,
    image_size,
    images,
    predict,
    prepare,
    read,
    train,
)
from dcnzoo.openmmlab.hooks.channels_last import to_channels_last

# families for which `representative` would choose a config without the family's main feature
REPRESENTATIVES = {
    "centernet": "centernet_r18-dcnv2_8xb16-crop512-140e_coco.py",
    "dcn": "mask-rcnn_r50-dconv-c3-c5_fpn_1x_coco.py",
    "dcnv2": "mask-rcnn_r50-mdconv-c3-c5_fpn_1x_coco.py",
    "glip": "glip_atss_swin-t_a_fpn_dyhead_16xb2_ms-2x_funtune_coco.py",
    "gcnet": "mask-rcnn_r50-gcb-r16-c3-c5_fpn_1x_coco.py",
    "guided_anchoring": "ga-faster-rcnn_r50_fpn_1x_coco.py",
    "libra_rcnn": "libra-faster-rcnn_r50_fpn_1x_coco.py",
    "regnet": "mask-rcnn_regnetx-3.2GF_fpn_1x_coco.py",
    "rtmdet": "rtmdet-ins_tiny_8xb32-300e_coco.py",
    "sort": "sort_faster-rcnn_r50_fpn_8xb2-4e_mot17train_test-mot17test.py",
    "strongsort": "strongsort_yolox_x_8xb4-80e_crowdhuman-mot20train_test-mot20test.py",
}
TEXTS = ("a cat", "dog", "red car")

FAMILIES = dict(families("mmdet", REPRESENTATIVES))


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
            loss = train(model, cfg, to_train(model, size))["loss"]
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


def detections(model: nn.Module, number: int, size: int) -> dict:
    """Return random images with texts for grounding detectors, and proposals for detectors without an RPN."""
    batch = images(number, size, alike=True, texts=[TEXTS] * number, custom_entities=True)
    shapes = [image.shape for image in batch["inputs"]]
    for sample, proposals in zip(batch["data_samples"], demo_mm_proposals(shapes, 20), strict=True):
        if not getattr(model, "with_rpn", True):
            sample.proposals = proposals
        sample.gt_instances.labels.zero_()  # a class that every detector has
    return batch


def persons() -> dict:
    """Return two images of one person and two of another, as for training ReID networks."""
    samples = [ReIDDataSample().set_gt_label(label) for label in (0, 0, 1, 1)]
    pictures = [torch.randint(0, 256, (3, 256, 128), dtype=torch.uint8) for _ in samples]
    return {"inputs": pictures, "data_samples": samples}


def use_small_bert(cfg: Config, folder: Path) -> None:
    """Write a BERT with random weights and a vocabulary of letters; the real one would be a download."""
    if "language_model" not in cfg.model:
        return
    cfg.model.language_model.name = str(folder)
    if "lang_model_name" in cfg.model.bbox_head:
        cfg.model.bbox_head.lang_model_name = str(folder)
    from transformers import BertConfig, BertModel, BertTokenizerFast

    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "?", *letters, *(f"##{c}" for c in letters)]
    (folder / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    BertModel(BertConfig(vocab_size=len(words))).save_pretrained(folder)


def result_of(family: str) -> str:
    """Return ``ok``, or the error in one line."""
    return apart(lambda: try_out(read(FAMILIES[family])))


@pytest.mark.parametrize("family", FAMILIES)
def test_family(family, record):
    record(family, FAMILIES[family], result_of(family))
