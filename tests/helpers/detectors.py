"""Small detectors of each family, whose weights detect objects, and their predictions."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.config import Config, ConfigDict
from torch import nn
from torch.overrides import TorchFunctionMode

import dcnzoo.models  # noqa: F401  registers the layers
from dcnzoo.detect.detections import Detections
from dcnzoo.detect.outputs import rescale_detections
from dcnzoo.export.result import Agreement
from dcnzoo.openmmlab.detector import TorchDetector
from dcnzoo.openmmlab.export.predict import Predictor
from dcnzoo.openmmlab.export.symbolic_sizes import data_sample
from dcnzoo.openmmlab.export.verify import compare_all
from dcnzoo.openmmlab.results import to_detections

CLASSES = 5
WIDTH = 16
WIDTHS = [32, 64, 128]  # of the small ResNet's levels


class LowerIndexFirst(TorchFunctionMode):
    """Sort equal values by index, as ONNX does; without ``stable=True``, torch may return any order."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in (torch.sort, torch.Tensor.sort):
            return torch.sort(*args, **{**kwargs, "stable": True})
        if function in (torch.topk, torch.Tensor.topk):
            return _topk(*args, **kwargs)
        return function(*args, **kwargs)


def _topk(values, k, dim=-1, largest=True, sorted=True):
    values, index = torch.sort(values, dim=dim, descending=largest, stable=True)
    return torch.return_types.topk((values.narrow(dim, 0, k), index.narrow(dim, 0, k)))


class Family(NamedTuple):
    """A config of MMDetection, and the settings that make its detector small.

    Attributes:
        file: the config.
        shrink: settings, or a function that changes the config, whose channels are narrow and whose backbone
            is a small ResNet.
        dcn: whether the tests replace convolutions of the backbone.
        resnet: whether it has a ResNet.
    """

    file: str
    shrink: Callable[[ConfigDict], None] | dict[str, Any]
    dcn: bool = True
    resnet: bool = True


STRIDES = [4, 8, 16]
GROUPS = dict(type="GN", num_groups=4)
PYRAMID = {"neck.in_channels": WIDTHS, "neck.out_channels": WIDTH, "neck.num_outs": 3}
ANCHORS = {**PYRAMID, "bbox_head.anchor_generator.strides": [8, 16, 32]}
GROUPED = {**ANCHORS, "bbox_head.norm_cfg": GROUPS}
FCOS = {**PYRAMID, "bbox_head.strides": [8, 16, 32], "bbox_head.norm_cfg": GROUPS}
REPPOINTS = {**PYRAMID, "bbox_head.point_strides": [8, 16, 32], "bbox_head.point_feat_channels": WIDTH}
REPPOINTS["bbox_head.norm_cfg"] = GROUPS
SSD_CHANNELS = [*WIDTHS[1:], *[WIDTH] * 4]  # the extra levels of SSD300, above c3 and c4
SSD = {"backbone.out_indices": (1, 2), "neck.in_channels": WIDTHS[1:], "neck.out_channels": SSD_CHANNELS}
SSD |= {"neck.level_strides": (2, 2, 1, 1), "neck.level_paddings": (1, 1, 0, 0), "neck.l2_norm_scale": None}
SSD["bbox_head.in_channels"] = SSD_CHANNELS
YOLOV3 = {"neck.in_channels": WIDTHS[::-1], "neck.out_channels": [WIDTH] * 3}
YOLOV3 |= {f"bbox_head.{name}": [WIDTH] * 3 for name in ("in_channels", "out_channels")}
YOLOV3 |= {f"bbox_head.{name}": STRIDES[::-1] for name in ("featmap_strides", "anchor_generator.strides")}
YOLOX = {"backbone.widen_factor": 0.125, "neck.in_channels": [32, 64, 128], "neck.out_channels": WIDTH}
YOLOX["bbox_head.in_channels"] = WIDTH
YOLOX |= {"test_cfg.max_per_img": 9, "test_cfg.min_bbox_size": 30}  # which MMDetection's head does not read
TWO_STAGES = {**PYRAMID, "rpn_head.anchor_generator.strides": STRIDES}
TWO_STAGES["roi_head.bbox_roi_extractor.featmap_strides"] = [4, 8]
MASKS = {**TWO_STAGES, "roi_head.mask_roi_extractor.featmap_strides": [4, 8]}
CORNERNET = {"backbone.downsample_times": 1, "backbone.stage_channels": [WIDTH, 24]}
CORNERNET |= {"backbone.stage_blocks": [1, 1], "backbone.feat_channel": WIDTH, "bbox_head.in_channels": WIDTH}
POINTS = {
    **MASKS,
    "roi_head.mask_roi_extractor.featmap_strides": [4],
    "roi_head.point_head.fc_channels": WIDTH,
}
SOLO = {**PYRAMID, "neck.num_outs": 5, "mask_head.strides": [4, 8, 16, 32, 64], "mask_head.norm_cfg": GROUPS}
SOLO["mask_head.num_grids"] = [12, 10, 8, 6, 4]
SOLOV2 = {**SOLO, "mask_head.mask_feature_head.norm_cfg": GROUPS}
RTMDET = {
    "neck.in_channels": WIDTHS,
    "neck.out_channels": WIDTH,
    "bbox_head.anchor_generator.strides": STRIDES,
}
RTMDET |= {f"{part}.norm_cfg": dict(type="BN") for part in ("neck", "bbox_head")}
RTMDET |= {f"bbox_head.{name}": WIDTH for name in ("in_channels", "feat_channels")}

HTC = {**MASKS, "roi_head.semantic_head.num_ins": 3}
SPARSE = {**PYRAMID, "roi_head.bbox_roi_extractor.featmap_strides": STRIDES}
SPARSE["rpn_head.proposal_feature_channel"] = WIDTH
CONDINST = {**FCOS, "neck.num_outs": 5, "bbox_head.strides": [8, 16, 32, 64, 128]}
CONDINST |= {"mask_head.mask_feature_head.norm_cfg": GROUPS, "mask_head.feat_channels": 8}
SABL = dict.fromkeys(("cls_in_channels", "reg_in_channels", "cls_out_channels"), WIDTH)
SABL |= dict.fromkeys(("reg_offset_out_channels", "reg_cls_out_channels"), WIDTH)
SABL = {**TWO_STAGES, **{f"roi_head.bbox_head.{name}": value for name, value in SABL.items()}}
SABL_RETINANET = {f"bbox_head.{name}_anchor_generator.strides": [8, 16, 32] for name in ("approx", "square")}
SABL_RETINANET |= PYRAMID
GRID = {**TWO_STAGES, "roi_head.grid_roi_extractor.featmap_strides": [4, 8]}
GRID |= {"roi_head.grid_head.point_feat_channels": 4, "roi_head.grid_head.norm_cfg": GROUPS}
CENTERNET = {"neck.in_channels": WIDTHS[2], "neck.num_deconv_filters": [WIDTH] * 2}
CENTERNET |= {"neck.num_deconv_kernels": [4, 4], "bbox_head.in_channels": WIDTH}


def shrink_detr(cfg, width=WIDTH, layers=1):
    cfg.backbone.out_indices = (2,)
    cfg.num_queries = 100
    cfg.neck.update(in_channels=WIDTHS[2:], out_channels=width)
    for part, attentions in ((cfg.encoder, ["self_attn"]), (cfg.decoder, ["self_attn", "cross_attn"])):
        part.num_layers = layers
        for attention in attentions:
            part.layer_cfg[f"{attention}_cfg"].update(embed_dims=width, num_heads=4)
        part.layer_cfg.ffn_cfg.update(embed_dims=width, feedforward_channels=WIDTH)
    cfg.positional_encoding.num_feats = width // 2
    cfg.bbox_head.embed_dims = width


def shrink_deformable_detr(cfg, width=WIDTH):
    shrink_detr(cfg, width, layers=2)
    cfg.backbone.out_indices = (0, 1, 2)
    cfg.neck.in_channels = WIDTHS
    cfg.neck.norm_cfg.num_groups = 4


def shrink_mask2former(cfg):
    head, attentions = cfg.panoptic_head, ("self_attn_cfg", "cross_attn_cfg")
    decoder, fusion = head.pixel_decoder, cfg.panoptic_fusion_head
    head.update(in_channels=WIDTHS, strides=[4, 8, 16], num_transformer_feat_level=2, num_queries=50)
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


def shrink_queryinst(cfg, stages=2):  # six make large boxes of small differences
    head = cfg.roi_head
    head.update(num_stages=stages, stage_loss_weights=[1] * stages)
    head.update(bbox_head=head.bbox_head[:stages], mask_head=head.mask_head[:stages])
    head.bbox_roi_extractor.featmap_strides = head.mask_roi_extractor.featmap_strides = STRIDES
    cfg.neck.update(in_channels=WIDTHS, num_outs=3)
    cfg.rpn_head.proposal_feature_channel = WIDTH


# A transformer with positional encodings of a fixed width
_wide_detr = partial(shrink_detr, width=256)
_wide_deformable_detr = partial(shrink_deformable_detr, width=256)

CONFIGS = {
    "FCOS": Family("fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py", FCOS),
    "FSAF": Family("fsaf/fsaf_r50_fpn_1x_coco.py", ANCHORS),
    "RetinaNet": Family("retinanet/retinanet_r50_fpn_1x_coco.py", ANCHORS),
    "SSD": Family("ssd/ssd300_coco.py", SSD),
    "YOLOv3": Family("yolo/yolov3_d53_8xb8-ms-608-273e_coco.py", YOLOV3),
    "YOLOX": Family("yolox/yolox_tiny_8xb8-300e_coco.py", YOLOX, dcn=False, resnet=False),
    "Faster R-CNN": Family("faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py", TWO_STAGES),
    "Cascade R-CNN": Family("cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py", TWO_STAGES),
    "CornerNet": Family(
        "cornernet/cornernet_hourglass104_8xb6-210e-mstest_coco.py", CORNERNET, dcn=False, resnet=False
    ),
    "PointRend": Family("point_rend/point-rend_r50-caffe_fpn_ms-1x_coco.py", POINTS),
    "Mask R-CNN": Family("mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py", MASKS),
    "Cascade Mask R-CNN": Family("cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco.py", MASKS),
    "DETR": Family("detr/detr_r50_8xb2-150e_coco.py", shrink_detr),
    "Deformable DETR": Family(
        "deformable_detr/deformable-detr-refine_r50_16xb2-50e_coco.py", shrink_deformable_detr
    ),
    "Conditional DETR": Family("conditional_detr/conditional-detr_r50_8xb2-50e_coco.py", _wide_detr),
    "DAB-DETR": Family("dab_detr/dab-detr_r50_8xb2-50e_coco.py", shrink_detr),
    "DINO": Family("dino/dino-4scale_r50_8xb2-12e_coco.py", _wide_deformable_detr),
    "GFL": Family("gfl/gfl_r50_fpn_1x_coco.py", GROUPED, dcn=False),
    "RepPoints": Family("reppoints/reppoints-moment_r50_fpn_1x_coco.py", REPPOINTS, dcn=False),
    "Double-Head": Family("double_heads/dh-faster-rcnn_r50_fpn_1x_coco.py", TWO_STAGES, dcn=False),
    "Mask Scoring R-CNN": Family("ms_rcnn/ms-rcnn_r50_fpn_1x_coco.py", MASKS, dcn=False),
    "Mask2Former": Family("mask2former/mask2former_r50_8xb2-lsj-50e_coco.py", shrink_mask2former, dcn=False),
    "RTMDet-Ins": Family("rtmdet/rtmdet-ins_tiny_8xb32-300e_coco.py", RTMDET, dcn=False),
    "HTC": Family("htc/htc_r50_fpn_1x_coco.py", HTC, dcn=False),
    "Sparse R-CNN": Family("sparse_rcnn/sparse-rcnn_r50_fpn_1x_coco.py", SPARSE, dcn=False),
    "CenterNet": Family("centernet/centernet_r18_8xb16-crop512-140e_coco.py", CENTERNET, dcn=False),
    "TOOD": Family("tood/tood_r50_fpn_1x_coco.py", GROUPED, dcn=False),
    "SOLO": Family("solo/solo_r50_fpn_1x_coco.py", SOLO, dcn=False),
    "SOLOv2": Family("solov2/solov2_r50_fpn_1x_coco.py", SOLOV2, dcn=False),
    "QueryInst": Family("queryinst/queryinst_r50_fpn_1x_coco.py", shrink_queryinst, dcn=False),
    "CondInst": Family("condinst/condinst_r50_fpn_ms-poly-90k_coco_instance.py", CONDINST, dcn=False),
    "SABL": Family("sabl/sabl-faster-rcnn_r50_fpn_1x_coco.py", SABL, dcn=False),
    "SABL-RetinaNet": Family("sabl/sabl-retinanet_r50_fpn_1x_coco.py", SABL_RETINANET, dcn=False),
    "Grid R-CNN": Family("grid_rcnn/grid-rcnn_r50_fpn_gn-head_2x_coco.py", GRID, dcn=False),
    "CARAFE": Family("carafe/faster-rcnn_r50_fpn-carafe_1x_coco.py", TWO_STAGES, dcn=False),
}


def has_dcn(family: str) -> bool:
    return CONFIGS[family].dcn


def dicts(node) -> Iterator[dict]:
    """Yield all dictionaries in a part of a config, itself included."""
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


def config(name: str, dcn: bool = False) -> dict:
    register_all_modules()
    family = CONFIGS[name]
    cfg = Config.fromfile(f"{mmdet_configs()}/{family.file}").model
    narrow(cfg)
    assert family.resnet or not dcn
    if family.resnet:
        cfg.backbone = dict(
            type="ResNet", depth=14, base_channels=8, stem_channels=8, norm_cfg=dict(type="BN"),
            num_stages=3, strides=(1, 2, 2), dilations=(1, 1, 1), out_indices=(0, 1, 2),
        )  # fmt: skip
    if dcn:
        cfg.backbone.update(dcn=True)
    if callable(family.shrink):
        family.shrink(cfg)
        return cfg
    settings = Config(dict(model=cfg))
    settings.merge_from_dict({f"model.{key}": value for key, value in family.shrink.items()})
    return settings.model


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
    if hasattr(detector, "level_embed"):
        nn.init.normal_(detector.level_embed)  # uninitialised memory otherwise
    images = torch.randn(2, 3, *size(family))
    calibrate(detector, images)
    if family == "CornerNet":
        balance(detector, images)
    return detector


def loaded(network: nn.Module, *steps: dict[str, Any]) -> TorchDetector:
    """Return a detector with a test pipeline of these steps after the loading of the picture."""
    pipeline = [dict(type="LoadImageFromFile"), *steps]
    network.cfg = Config(dict(test_dataloader=dict(dataset=dict(pipeline=pipeline))))
    return TorchDetector(network)


def padded(family: str) -> tuple[torch.Tensor, list[tuple[int, int]]]:
    """Return a batch of two pictures of different sizes, and these sizes."""
    height, width = size(family)
    images, sizes = torch.randn(2, 3, height, width), [(height, width), (height - 48, width - 64)]
    images[1, :, sizes[1][0] :] = images[1, :, :, sizes[1][1] :] = 0
    return images, sizes


def size_of_picture(size: Sequence[int]) -> tuple[int, int]:
    """The height and width of the picture that was resized to ``size``."""
    return size[0] * 3 // 2, size[1] * 3 // 2


@torch.no_grad()
def predict_batch(
    network: nn.Module,
    images: torch.Tensor,
    sizes: Sequence[tuple[int, int]] | None = None,
    of_picture=size_of_picture,
) -> list[Detections]:
    """Return MMDetection's own results for a batch, in pixels of pictures that are larger than the input.

    Args:
        sizes: heights and widths of the pictures in the input, if the images are padded.
        of_picture: the size of a picture for its size in the input.
    """
    padded = tuple(images.shape[-2:])
    samples = [data_sample(size, padded) for size in sizes or [padded] * len(images)]
    for sample in samples:
        size = of_picture(sample.img_shape)
        factors = [n / m for n, m in zip(sample.img_shape[::-1], size[::-1], strict=True)]
        sample.set_metainfo(dict(ori_shape=size, scale_factor=tuple(factors)))
    with LowerIndexFirst():
        results = [sample.pred_instances for sample in network.predict(images, samples, rescale=True)]
    return [to_detections(result, -1) for result in results]


def decoded(outputs: dict[str, np.ndarray], sizes, of_picture=size_of_picture) -> list[Detections]:
    """The detections of an exported detector, in pixels of the pictures."""
    images = ({name: value[n] for name, value in outputs.items()} for n in range(len(outputs["dets"])))
    return [
        rescale_detections(image, pair, of_picture(pair), {})
        for image, pair in zip(images, sizes, strict=True)
    ]


@torch.no_grad()
def agreement_of(detector: nn.Module, images: torch.Tensor, sizes=None, run=None) -> Agreement:
    """Compare a detector's ``Predictor``, or a session, with MMDetection's results."""
    if run is None:
        model = Predictor(detector)
        with LowerIndexFirst():
            values = model(images, None if sizes is None else torch.tensor(sizes))
        outputs = dict(zip(model.output_names, (value.numpy() for value in values), strict=True))
        outputs["input_size"] = np.tile(images.shape[2:], (len(images), 1))
    else:
        outputs = run(images.numpy(), None if sizes is None else np.array(sizes))
    of_picture = tuple if "masks" in outputs else size_of_picture  # these are masks of the input
    results = decoded(outputs, sizes or [tuple(images.shape[2:])] * len(images), of_picture)
    return compare_all(results, predict_batch(detector, images, sizes, of_picture))


def assert_agreement(detector: nn.Module, images: torch.Tensor, sizes=None) -> None:
    agreement = agreement_of(detector, images, sizes)
    assert agreement.number >= 100 and agreement.holds


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


@torch.no_grad()
def balance(detector: nn.Module, images: torch.Tensor) -> None:
    """Make CornerNet's classes equally likely at both corners, so that some corners agree on a class."""
    head = detector.bbox_head
    outputs = head(detector.extract_feat(images))
    for layers, levels in zip((head.tl_heat, head.br_heat, head.tl_emb, head.br_emb), outputs, strict=False):
        layers[-1][-1].conv.bias -= levels[-1].mean((0, 2, 3))
