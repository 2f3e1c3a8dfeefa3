"""The families in MMDetection's table of exported detectors, and small versions of them.

A small version has the demo's ResNet-14 with DCNv2 and the family's own neck, head, losses and
post-processing. It learns the generated shapes in a minute on one core.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import mmdet
from mmengine.config import Config, ConfigDict

from dcnzoo.data.shapes import CLASSES

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "configs/demo/mask-rcnn_r14-mdconv_fpn_8e_shapes.py"
MMDET = Path(mmdet.__file__).parent / ".mim/configs"
WIDTH = 48  # of necks and heads
C2, C3, C4 = 64, 128, 256  # channels of the backbone's stages, at strides 4, 8 and 16


@dataclasses.dataclass(frozen=True)
class Family:
    """A family of detectors.

    Attributes:
        config: of MMDetection 3, the counterpart of the one in the table.
        kinds: of AP: of boxes, and of masks if it predicts those.
        epochs: of 640 images, for the small version.
        openvino: whether OpenVINO supports all operators of the graph (it lacks ``Scan``).
    """

    config: str
    kinds: tuple[str, ...] = ("bbox",)
    epochs: int = 4
    openvino: bool = True


MASKS = ("bbox", "segm")
FAMILIES = {
    "FCOS": Family("fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py"),
    "FSAF": Family("fsaf/fsaf_r50_fpn_1x_coco.py"),
    "RetinaNet": Family("retinanet/retinanet_r50_fpn_1x_coco.py"),
    "SSD": Family("ssd/ssd300_coco.py"),
    "YOLOv3": Family("yolo/yolov3_d53_8xb8-ms-608-273e_coco.py"),
    "Faster R-CNN": Family("faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py"),
    "Cascade R-CNN": Family("cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py"),
    "Mask R-CNN": Family("mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py", MASKS),
    "Cascade Mask R-CNN": Family("cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py", MASKS),
    "CornerNet": Family(
        "cornernet/cornernet_hourglass104_8xb6-210e-mstest_coco.py", epochs=8, openvino=False
    ),
    "DETR": Family("detr/detr_r50_8xb2-150e_coco.py", epochs=30),
    "PointRend": Family("point_rend/point-rend_r50-caffe_fpn_ms-1x_coco.py", MASKS),
}


def small(name: str) -> Config:
    """Return the demo's config with a small detector of the family, for training on the generated shapes."""
    family = FAMILIES[name]
    cfg = Config.fromfile(DEMO)
    backbone, preprocessor = cfg.model.backbone, cfg.model.data_preprocessor
    cfg.model = Config.fromfile(MMDET / family.config).model
    _narrow(cfg.model)
    cfg.model.backbone = backbone
    mask = "segm" in family.kinds
    cfg.model.data_preprocessor = dict(preprocessor, pad_mask=mask)
    ADJUST.get(name, _one_stage if "bbox_head" in cfg.model else _two_stage)(cfg.model)
    cfg.train_cfg.max_epochs = family.epochs
    cfg.param_scheduler[1].update(T_max=family.epochs, end=family.epochs)
    cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None  # the table evaluates
    for loader in (cfg.train_dataloader, cfg.test_dataloader):
        for step in loader.dataset.pipeline:
            if step.type == "LoadAnnotations":
                step.with_mask = mask
    cfg.test_evaluator.metric = list(family.kinds)
    cfg.randomness = dict(seed=0)
    return cfg


def _dicts(node) -> Iterator[ConfigDict]:
    if isinstance(node, dict):
        yield node
        node = list(node.values())
    if isinstance(node, (list, tuple)):
        for item in node:
            yield from _dicts(item)


def _narrow(model: ConfigDict) -> None:
    for part in _dicts(model):
        for key, value in part.items():
            if key in ("in_channels", "out_channels", "feat_channels", "conv_out_channels") and value == 256:
                part[key] = WIDTH
            elif key == "fc_out_channels":
                part[key] = 128
            elif key in ("stacked_convs", "num_convs"):
                part[key] = 1
            elif key == "num_classes":
                part[key] = len(CLASSES)


def _one_stage(model: ConfigDict) -> None:
    model.neck = dict(type="FPN", in_channels=[C3, C4], out_channels=WIDTH, num_outs=2)
    head = model.bbox_head
    if "anchor_generator" in head:
        head.anchor_generator.strides = [8, 16]
    else:  # FCOS
        head.update(strides=[8, 16], regress_ranges=((-1, 48), (48, 10**8)))
        head.norm_cfg = dict(type="GN", num_groups=8)


def _two_stage(model: ConfigDict) -> None:
    model.neck = dict(type="FPN", in_channels=[C3, C4], out_channels=WIDTH, num_outs=2)
    model.rpn_head.anchor_generator = dict(
        type="AnchorGenerator", scales=[4, 8], ratios=[1.0], strides=[8, 16]
    )
    head = model.roi_head
    for extractor in (head.bbox_roi_extractor, head.get("mask_roi_extractor", {})):
        if extractor.get("type") == "SingleRoIExtractor":
            extractor.update(featmap_strides=[8, 16], finest_scale=64)
            extractor.roi_layer.sampling_ratio = 1
    for part in _dicts([model.train_cfg.rcnn]):
        if part.get("type") == "RandomSampler":
            part.num = 32
    model.train_cfg.rpn_proposal.update(nms_pre=100, max_per_img=48)
    model.test_cfg.rpn.update(nms_pre=100, max_per_img=48)


def _pointrend(model: ConfigDict) -> None:
    _two_stage(model)
    model.roi_head.mask_roi_extractor.featmap_strides = [8]
    model.roi_head.point_head.fc_channels = WIDTH
    model.test_cfg.rcnn.update(subdivision_steps=3)  # 56 pixels across a box is enough here


def _ssd(model: ConfigDict) -> None:
    channels = [C3, C4, WIDTH, WIDTH]
    model.neck.update(in_channels=channels[:2], out_channels=channels, l2_norm_scale=None)
    model.neck.update(level_strides=(2, 2), level_paddings=(1, 1))
    model.bbox_head.in_channels = channels
    model.bbox_head.anchor_generator = dict(
        type="SSDAnchorGenerator", scale_major=False, input_size=128, strides=[8, 16, 32, 64],
        ratios=[[2], [2], [2], [2]], min_sizes=[24, 44, 64, 84], max_sizes=[44, 64, 84, 104],
    )  # fmt: skip


def _yolov3(model: ConfigDict) -> None:
    model.backbone.out_indices = (0, 1, 2)
    model.neck.update(in_channels=[C4, C3, C2], out_channels=[WIDTH, WIDTH, WIDTH // 2])
    model.bbox_head.update(
        in_channels=model.neck.out_channels, out_channels=[WIDTH] * 3, featmap_strides=[16, 8, 4]
    )
    model.bbox_head.anchor_generator.update(
        strides=[16, 8, 4],
        base_sizes=[
            [(104, 70), (70, 104), (84, 84)],
            [(70, 44), (44, 70), (56, 56)],
            [(40, 28), (28, 40), (32, 32)],
        ],
    )


def _cornernet(model: ConfigDict) -> None:
    """Put the corner heads on the finest map of an FPN instead of an hourglass."""
    model.backbone.out_indices = (0, 1, 2)
    model.neck = dict(type="FPN", in_channels=[C2, C3, C4], out_channels=WIDTH, num_outs=3)
    model.bbox_head.num_feat_levels = 1


def _detr(model: ConfigDict) -> None:
    model.backbone.out_indices = (2,)
    model.num_queries = 20
    model.neck.update(in_channels=[C4])
    for part, attentions in ((model.encoder, ["self_attn"]), (model.decoder, ["self_attn", "cross_attn"])):
        part.num_layers = 2
        for attention in attentions:
            part.layer_cfg[f"{attention}_cfg"].update(embed_dims=WIDTH, num_heads=4, dropout=0.0)
        part.layer_cfg.ffn_cfg.update(embed_dims=WIDTH, feedforward_channels=2 * WIDTH, ffn_drop=0.0)
    model.positional_encoding.num_feats = WIDTH // 2
    model.bbox_head.embed_dims = WIDTH
    model.test_cfg.max_per_img = 20


ADJUST = {"CornerNet": _cornernet, "SSD": _ssd, "YOLOv3": _yolov3, "DETR": _detr, "PointRend": _pointrend}
