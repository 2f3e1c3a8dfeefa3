"""Small detectors of each family, whose weights detect objects, and their predictions."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.config import Config
from torch import nn

import dcnzoo.models  # noqa: F401  registers the layers
from dcnzoo.detect.detections import Detections
from dcnzoo.detect.outputs import rescale_detections
from dcnzoo.openmmlab.export.modes import data_sample
from dcnzoo.openmmlab.export.predict import Predictor
from dcnzoo.openmmlab.export.verify import Agreement, LowerIndexFirst, compare_all
from dcnzoo.openmmlab.results import to_detections

CLASSES = 5
WIDTH = 16

CONFIGS = {
    "FCOS": "fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py",
    "FSAF": "fsaf/fsaf_r50_fpn_1x_coco.py",
    "RetinaNet": "retinanet/retinanet_r50_fpn_1x_coco.py",
    "SSD": "ssd/ssd300_coco.py",
    "YOLOv3": "yolo/yolov3_d53_8xb8-ms-608-273e_coco.py",
    "YOLOX": "yolox/yolox_tiny_8xb8-300e_coco.py",
    "Faster R-CNN": "faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py",
    "Cascade R-CNN": "cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py",
    "Mask R-CNN": "mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py",
    "Cascade Mask R-CNN": "cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py",
    "CornerNet": "cornernet/cornernet_hourglass104_8xb6-210e-mstest_coco.py",
    "DETR": "detr/detr_r50_8xb2-150e_coco.py",
    "PointRend": "point_rend/point-rend_r50-caffe_fpn_ms-1x_coco.py",
    "Deformable DETR": "deformable_detr/deformable-detr-refine_r50_16xb2-50e_coco.py",
    "Conditional DETR": "conditional_detr/conditional-detr_r50_8xb2-50e_coco.py",
    "DAB-DETR": "dab_detr/dab-detr_r50_8xb2-50e_coco.py",
    "DINO": "dino/dino-4scale_r50_8xb2-12e_coco.py",
    "GFL": "gfl/gfl_r50_fpn_1x_coco.py",
    "PAA": "paa/paa_r50_fpn_1x_coco.py",
    "RepPoints": "reppoints/reppoints-moment_r50_fpn_1x_coco.py",
    "Double-Head": "double_heads/dh-faster-rcnn_r50_fpn_1x_coco.py",
    "Mask Scoring R-CNN": "ms_rcnn/ms-rcnn_r50_fpn_1x_coco.py",
    "Mask2Former": "mask2former/mask2former_r50_8xb2-lsj-50e_coco.py",
    "RTMDet-Ins": "rtmdet/rtmdet-ins_tiny_8xb32-300e_coco.py",
    "SOLO": "solo/solo_r50_fpn_1x_coco.py",
    "SOLOv2": "solov2/solov2_r50_fpn_1x_coco.py",
    "DDQ": "ddq/ddq-detr-4scale_r50_8xb2-12e_coco.py",
}
PLAIN = ("CornerNet", "YOLOX", "DDQ", "GFL", "PAA", "RepPoints", "Double-Head", "Mask Scoring R-CNN",
         "Mask2Former", "RTMDet-Ins", "SOLO", "SOLOv2")  # without DCN in the backbone  # fmt: skip
DEFORMABLE = ("Deformable DETR", "DINO", "DDQ")
PADDING_MASKED = ("DETR", "Conditional DETR", "DAB-DETR", *DEFORMABLE)


def has_dcn(family: str) -> bool:
    return family not in PLAIN


def dicts(node) -> Iterator[dict]:
    """A part of a config and all dictionaries in it."""
    if isinstance(node, dict):
        yield node
        node = list(node.values())
    if isinstance(node, (list, tuple)):
        for item in node:
            yield from dicts(item)


def narrow(cfg: dict, width: int = WIDTH, fc_width: int = WIDTH, classes: int = CLASSES) -> None:
    for part in dicts(cfg):
        for key, value in part.items():
            if key in ("feat_channels", "conv_out_channels") or (
                key in ("out_channels", "in_channels") and value in (256, 512)
            ):
                part[key] = width
            elif key == "fc_out_channels":
                part[key] = fc_width
            elif key in ("stacked_convs", "num_convs") and value > 1:
                part[key] = 1
            elif key == "num_classes":
                part[key] = classes


def config(family: str, dcn: bool = False) -> dict:
    register_all_modules()
    cfg = Config.fromfile(f"{mmdet_configs()}/{CONFIGS[family]}").model
    narrow(cfg)
    if family == "CornerNet":
        assert not dcn
        cfg.backbone.update(downsample_times=1, stage_channels=[WIDTH, 24], stage_blocks=[1, 1])
        cfg.backbone.feat_channel = WIDTH
        cfg.bbox_head.in_channels = WIDTH
        return cfg
    if family == "YOLOX":
        assert not dcn
        cfg.backbone.widen_factor = 0.125
        cfg.neck.update(in_channels=[32, 64, 128], out_channels=WIDTH)
        cfg.bbox_head.in_channels = WIDTH
        return cfg
    widths = [4 * 8 * 2**stage for stage in range(3)]
    cfg.backbone = dict(
        type="ResNet", depth=14, base_channels=8, stem_channels=8, norm_cfg=dict(type="BN"),
        num_stages=3, strides=(1, 2, 2), dilations=(1, 1, 1), out_indices=(0, 1, 2),
    )  # fmt: skip
    if dcn:
        cfg.backbone.update(dcn=True)
    if family == "SSD":  # the extra levels of SSD300, above c3 and c4
        cfg.backbone.out_indices = (1, 2)
        cfg.neck.update(in_channels=widths[1:], out_channels=[*widths[1:], *[WIDTH] * 4])
        cfg.neck.update(level_strides=(2, 2, 1, 1), level_paddings=(1, 1, 0, 0), l2_norm_scale=None)
        cfg.bbox_head.in_channels = cfg.neck.out_channels
    elif family in PADDING_MASKED:
        deformable = family in DEFORMABLE
        fixed = family in ("Conditional DETR", "DINO", "DDQ")  # the width of their encodings
        width = 256 if fixed else WIDTH
        cfg.backbone.out_indices = (0, 1, 2) if deformable else (2,)
        cfg.num_queries = 100
        cfg.neck.update(in_channels=widths if deformable else widths[2:], out_channels=width)
        if deformable:
            cfg.neck.norm_cfg.num_groups = 4
        for part, attentions in ((cfg.encoder, ["self_attn"]), (cfg.decoder, ["self_attn", "cross_attn"])):
            part.num_layers = 2 if deformable else 1
            for attention in attentions:
                part.layer_cfg[f"{attention}_cfg"].update(embed_dims=width, num_heads=4)
            part.layer_cfg.ffn_cfg.update(embed_dims=width, feedforward_channels=WIDTH)
        cfg.positional_encoding.num_feats = width // 2
        cfg.bbox_head.embed_dims = width
    elif family == "Mask2Former":
        head, attentions = cfg.panoptic_head, ("self_attn_cfg", "cross_attn_cfg")
        decoder, fusion = head.pixel_decoder, cfg.panoptic_fusion_head
        head.update(in_channels=widths, strides=[4, 8, 16], num_transformer_feat_level=2, num_queries=50)
        head.update(num_things_classes=CLASSES, loss_cls=dict(head.loss_cls, class_weight=[1.0] * 6))
        fusion.num_things_classes = CLASSES
        decoder.update(num_outs=2, norm_cfg=dict(type="GN", num_groups=4))
        decoder.encoder.layer_cfg.self_attn_cfg.num_levels = 2
        for part in (decoder.encoder, head.transformer_decoder):
            part.num_layers = 2
            for name in attentions:
                if name in part.layer_cfg:
                    part.layer_cfg[name].update(embed_dims=WIDTH, num_heads=4)
            part.layer_cfg.ffn_cfg.update(embed_dims=WIDTH, feedforward_channels=WIDTH)
        for part in (head, decoder):
            part.positional_encoding.num_feats = WIDTH // 2
    elif family == "RTMDet-Ins":
        norm = dict(type="BN")
        cfg.neck.update(in_channels=widths, out_channels=WIDTH, norm_cfg=norm)
        cfg.bbox_head.update(in_channels=WIDTH, feat_channels=WIDTH, norm_cfg=norm)
        cfg.bbox_head.anchor_generator.strides = [4, 8, 16]
    elif family == "YOLOv3":
        cfg.neck.update(in_channels=widths[::-1], out_channels=[WIDTH] * 3)
        cfg.bbox_head.update(in_channels=[WIDTH] * 3, out_channels=[WIDTH] * 3, featmap_strides=[16, 8, 4])
        cfg.bbox_head.anchor_generator.strides = [16, 8, 4]
    else:
        cfg.neck.update(in_channels=widths, out_channels=WIDTH, num_outs=3)
        if "rpn_head" in cfg:
            cfg.rpn_head.anchor_generator.strides = [4, 8, 16]
            cfg.roi_head.bbox_roi_extractor.featmap_strides = [4, 8]
            if "mask_roi_extractor" in cfg.roi_head:
                levels = 1 if family == "PointRend" else 2
                cfg.roi_head.mask_roi_extractor.featmap_strides = [4, 8][:levels]
            if family == "PointRend":
                cfg.roi_head.point_head.fc_channels = WIDTH
        elif family.startswith("SOLO"):
            cfg.neck.num_outs = 5
            cfg.mask_head.update(strides=[4, 8, 16, 32, 64], num_grids=[12, 10, 8, 6, 4])
            cfg.mask_head.norm_cfg = dict(type="GN", num_groups=4)
            if family == "SOLOv2":
                cfg.mask_head.mask_feature_head.norm_cfg = cfg.mask_head.norm_cfg
        elif family == "FCOS":
            cfg.bbox_head.strides = [8, 16, 32]
        elif family == "RepPoints":
            cfg.bbox_head.update(point_strides=[8, 16, 32], point_feat_channels=WIDTH)
        else:
            cfg.bbox_head.anchor_generator.strides = [8, 16, 32]
    if family in ("FCOS", "GFL", "PAA", "RepPoints"):
        cfg.bbox_head.norm_cfg = dict(type="GN", num_groups=4)
    return cfg


def size(family: str) -> tuple[int, int]:
    """An input size that leaves more than one pixel on every level."""
    return (340, 400) if family == "SSD" else (160, 192)


def mmdet_configs() -> str:
    import mmdet

    return f"{mmdet.__path__[0]}/.mim/configs"


def build(family: str, dcn: bool = False, **test_cfg) -> nn.Module:
    torch.manual_seed(0)
    cfg = config(family, dcn)
    settings = cfg.test_cfg.get("rcnn", cfg.test_cfg)
    settings.update(test_cfg)
    detector = MODELS.build(cfg).eval()
    if family in DEFORMABLE:
        nn.init.normal_(detector.level_embed)  # uninitialised memory otherwise
    images = torch.randn(2, 3, *size(family))
    calibrate(detector, images)
    if family == "CornerNet":
        balance(detector, images)
    return detector


def padded(family: str) -> tuple[torch.Tensor, list[tuple[int, int]]]:
    """A batch of two sizes, and these."""
    height, width = size(family)
    images, sizes = torch.randn(2, 3, height, width), [(height, width), (height - 48, width - 64)]
    images[1, :, sizes[1][0] :] = images[1, :, :, sizes[1][1] :] = 0
    return images, sizes


@torch.no_grad()
def predict_batch(
    network: nn.Module,
    images: torch.Tensor,
    sizes: Sequence[tuple[int, int]] | None = None,
    exchange: bool = False,
) -> list[Detections]:
    """Return MMDetection's own results for a batch, in pixels of the input.

    Args:
        sizes: heights and widths of the pictures, if the images are padded.
        exchange: see ``LowerIndexFirst``.
    """
    padded = tuple(images.shape[-2:])
    samples = [data_sample(size, padded) for size in sizes or [padded] * len(images)]
    with LowerIndexFirst(exchange):
        results = [sample.pred_instances for sample in network.predict(images, samples, rescale=False)]
    for result, sample in zip(results, samples, strict=True):
        if "masks" in result:
            result.masks = result.masks[:, : sample.img_shape[0], : sample.img_shape[1]]
    return [to_detections(result, -1) for result in results]


def decoded(outputs: dict[str, np.ndarray], sizes) -> list[Detections]:
    """The detections of an exported detector, in pixels of the input."""
    images = ({name: value[n] for name, value in outputs.items()} for n in range(len(outputs["dets"])))
    return [rescale_detections(image, pair, pair, {}) for image, pair in zip(images, sizes, strict=True)]


@torch.no_grad()
def agreement_of(detector: nn.Module, images: torch.Tensor, sizes=None, run=None) -> Agreement:
    """Compare a detector's ``Predictor``, or a session, with MMDetection's results."""
    if run is None:
        model = Predictor(detector)
        values = model(images, None if sizes is None else torch.tensor(sizes))
        outputs = dict(zip(model.output_names, (value.numpy() for value in values), strict=True))
    else:
        outputs = run(images.numpy(), None if sizes is None else np.array(sizes))
    results = decoded(outputs, sizes or [tuple(images.shape[2:])] * len(images))
    return compare_all(results, predict_batch(detector, images, sizes))


def assert_agreement(detector: nn.Module, images: torch.Tensor, sizes=None) -> None:
    agreement = agreement_of(detector, images, sizes)
    assert agreement.number >= 100 and agreement.holds


@torch.no_grad()
def balance(detector: nn.Module, images: torch.Tensor) -> None:
    """Make CornerNet's classes equally likely at both corners, so that some corners agree on a class."""
    head = detector.bbox_head
    outputs = head(detector.extract_feat(images))
    for layers, levels in zip((head.tl_heat, head.br_heat, head.tl_emb, head.br_emb), outputs, strict=False):
        layers[-1][-1].conv.bias -= levels[-1].mean((0, 2, 3))


@torch.no_grad()
def calibrate(model: nn.Module, images: torch.Tensor) -> None:
    """Scale each layer's output to unit variance: a detector with default initial weights detects nothing."""
    seen = set()

    def scale(module, args, output):
        if module in seen:
            return None
        seen.add(module)
        bias = 0 if module.bias is None else module.bias
        if module.bias is not None and not isinstance(module, nn.Linear):
            bias = bias.view(1, -1, *[1] * (output.dim() - 2))
        pure = output - bias
        module.weight.div_(pure.std() + 1e-9)
        return pure / (pure.std() + 1e-9) + bias

    handles = []
    for name, module in model.named_modules():
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Linear, nn.ConvTranspose2d)):
            if name.endswith("conv_offset"):
                nn.init.normal_(module.weight, std=0.05)  # the initial zeros would not move any sample
            else:
                nn.init.kaiming_normal_(module.weight)
            handles.append(module.register_forward_hook(scale))
    predict_batch(model, images)
    for handle in handles:
        handle.remove()
