"""The base class of the wrappers of detectors, and the functions that they share."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import Any

import torch
from mmcv.ops import MultiScaleDeformableAttention, RoIAlign
from mmdet.structures import DetDataSample
from mmengine.config import ConfigDict
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dcnzoo.compat.patches import Changes
from dcnzoo.export.fixed_size import ABSENT, best, keep_boxes, roi_align_pyramid, soft_keep_boxes
from dcnzoo.ops import ms_deform_attn


class ExportWrapper(nn.Module):
    """Base class of the wrappers. ``forward`` maps images [N, 3, H, W] to the outputs in ``output_names``.

    ``dets`` is [N, K, 5]: (x1, y1, x2, y2, score) in pixels of the input, best first. ``labels`` is [N, K];
    -1 marks unused rows. ``masks``, if the detector predicts them, is [N, K, H, W], uint8: the probability
    times 255, so 128 and above is inside at the usual threshold of 0.5.
    """

    input_names: tuple[str, ...] = ("input",)
    output_names: tuple[str, ...] | None = ("dets", "labels")
    one_size = False  # the graph supports only the number and size of the example's images
    clips = True  # boxes are clipped to the image, so they must not extend into the padding

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.detector = detector


class SymbolicSizes(TorchFunctionMode):
    """Keep sizes symbolic in functions that would turn them into constants."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in (torch.tensor, Tensor.new_tensor) and has_symbols(args[-1]):
            like = {} if function is torch.tensor else dict(dtype=args[0].dtype, device=args[0].device)
            return tensor_of(args[-1], **{**like, **kwargs})
        if function is torch.linspace and has_symbols(args):
            start, end, steps = args
            return start + torch.arange(steps, **kwargs) * (end - start) / tensor_of(steps - 1, **kwargs)
        if function in (Tensor.add_, Tensor.__iadd__):  # x += y: y may differ between images, but x not
            return torch.add(*args, **kwargs)
        if function is Tensor.clamp_:  # torch.vmap would call it for each image
            return args[0].copy_(args[0].clamp(*args[1:], **kwargs))
        return function(*args, **kwargs)


def has_symbols(values: Any) -> bool:
    if isinstance(values, list | tuple):
        return any(map(has_symbols, values))
    return isinstance(values, torch.SymInt)


def tensor_of(values: Any, **options: Any) -> Tensor:
    """Return ``torch.tensor(values, **options)`` for nested lists of numbers, which may be symbolic."""
    if isinstance(values, list | tuple):
        return torch.stack([tensor_of(value, **options) for value in values])
    return torch.full((), values, **options)


def image_size(images: Tensor) -> Tensor:  # (height, width)
    return tensor_of(images.shape[-2:], dtype=images.dtype)


def data_sample(size: tuple[int, int], padded: tuple[int, int]) -> DetDataSample:
    """Describe an image of a batch, which is neither resized nor in a border, to ``detector.predict``."""
    size, padded = tuple(size), tuple(padded)
    values = dict(img_shape=size, ori_shape=size, pad_shape=padded, batch_input_shape=padded)
    values |= dict(scale_factor=(1.0, 1.0), border=(0.0,) * 4)  # CenterNet reads border
    sample = DetDataSample()
    for name, value in values.items():  # set_metainfo copies values, which symbolic sizes do not support
        sample.set_field(value, name, field_type="metainfo")
    return sample


def replace_everywhere(changes: Changes, original: Callable, replacement: Callable) -> None:
    """Replace a function in all of MMDetection's modules that import it, also where a patch wraps it."""
    function = inspect.unwrap(original)
    for name, module in list(sys.modules.items()):
        found = vars(module).get(original.__name__)
        if name.startswith("mmdet.") and callable(found) and inspect.unwrap(found) is function:
            changes.set(module, original.__name__, replacement)


SOFT_NMS = dict(iou_threshold=0.3, sigma=0.5, min_score=1e-3, method="linear")  # mmcv's defaults


def suppress(
    cfg: ConfigDict,  # the head's test_cfg
    owner: str,
    boxes: Tensor,  # [K, 4]
    scores: Tensor,  # [K], ABSENT for unused boxes
    labels: Tensor,  # [K]
    classes: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Apply the NMS of the config to one image.

    Returns:
        ``dets`` [K, 5] and ``labels`` [K] of :class:`ExportWrapper`, and the indices of the boxes.

    Raises:
        ValueError: this NMS cannot be exported.
    """
    nms, count, order = dict(cfg.nms), cfg.max_per_img, None
    kind, agnostic = nms.get("type", "nms"), nms.get("class_agnostic", False)
    per_class = cfg.get("max_output_boxes_per_class", 0)
    if "iou_thr" in nms:  # its earlier name
        nms["iou_threshold"] = nms["iou_thr"]
    if kind not in ("nms", "soft_nms"):
        raise ValueError(f"{owner}: nms: expected type='nms' or 'soft_nms', got {kind!r}")
    if per_class and (kind == "soft_nms" or agnostic):
        kind = f"class_agnostic {kind}" if agnostic else kind
        raise ValueError(f"{owner}: max_output_boxes_per_class: expected 0 with {kind}, got {per_class}")
    if cfg.get("min_bbox_size", -1) >= 0:
        width, height = (boxes[:, 2:] - boxes[:, :2]).unbind(-1)
        scores = torch.where((width > cfg.min_bbox_size) & (height > cfg.min_bbox_size), scores, ABSENT)
    groups = torch.zeros_like(labels) if agnostic else labels
    if cfg.get("deploy_nms_pre", 0) > 0:
        scores, order = best(scores[None], cfg.deploy_nms_pre)
        scores, order = scores[0], order[0]
        boxes, groups = boxes[order], groups[order]
    batch = boxes[None], scores[None], groups[None]
    if kind == "nms":
        results = keep_boxes(*batch, nms["iou_threshold"], count, classes, per_class)
    else:
        settings = {name: nms.get(name, default) for name, default in SOFT_NMS.items()}
        results = soft_keep_boxes(*batch, max_boxes=count, **settings)
    dets, groups, index = (part[0] for part in results)
    index = index if order is None else order[index]
    return dets, torch.where(groups >= 0, labels[index], -1), index


def best_pairs(scores: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:  # [K, classes] -> [k] each
    """Select the ``count`` best pairs of prior and class, all if ``count`` ≤ 0: scores, priors, classes."""
    classes, scores = scores.shape[-1], scores.flatten()
    if count > 0:
        scores, pair = (part[0] for part in best(scores[None], count))
    else:
        pair = torch.arange(len(scores), device=scores.device)
    return scores, pair // classes, pair % classes


def of_class(values: Tensor, labels: Tensor) -> Tensor:  # [N·K, classes, …], [N, K] -> [N·K, 1, …]
    """Select the values of each box's label, or the only ones if the head is class-agnostic."""
    if values.shape[1] == 1:
        return values
    index = labels.flatten().clamp(min=0).view(-1, 1, *[1] * (values.dim() - 2))
    return values.gather(1, index.expand(-1, 1, *values.shape[2:]))


def pool(
    extractor: nn.Module,  # SingleRoIExtractor
    features: tuple[Tensor, ...],
    rois: Tensor,  # [K, 5], (image, x1, y1, x2, y2)
    roi_scale_factor: float | None = None,
) -> Tensor:
    """Replace ``SingleRoIExtractor.forward``. ``roi_scale_factor`` does not change an RoI's level."""
    layer, finest = extractor.roi_layers[0], float(extractor.finest_scale)
    if layer.pool_mode != "avg":  # ONNX's max takes the maximum of weighted neighbours, not of samples
        raise ValueError(f"RoIAlign: pool_mode: expected 'avg', got {layer.pool_mode!r}")
    if roi_scale_factor is not None and len(features) > 1:
        rois, finest = extractor.roi_rescale(rois, roi_scale_factor), finest * roi_scale_factor
    scales, size = [each.spatial_scale for each in extractor.roi_layers], list(layer.output_size)
    sampling = (layer.sampling_ratio, layer.pool_mode, layer.aligned)
    return roi_align_pyramid(list(features), rois, scales[: len(features)], size, finest, *sampling)


def align(self: RoIAlign, input: Tensor, rois: Tensor) -> Tensor:
    """Replace ``RoIAlign.forward``."""
    sampling = (self.sampling_ratio, self.pool_mode, self.aligned)
    return roi_align_pyramid([input], rois, [self.spatial_scale], list(self.output_size), 1.0, *sampling)


def attend(
    self: MultiScaleDeformableAttention,
    query: Tensor,  # [N, Q, C]
    value: Tensor,  # [N, S, C]
    query_pos: Tensor,
    key_padding_mask: Tensor,  # [N, S]
    reference_points: Tensor,  # [N, Q, L, 2 or 4], (x, y) or boxes
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    **_: Any,
) -> Tensor:
    """Replace the forward of mmcv's layer by one that calls ``dcnzoo.ops.ms_deform_attn``.

    mmcv's own compares sizes and slices the levels, which turns the sizes into constants.
    """
    batch, count = query.shape[:2]
    places = query + query_pos
    shape = (batch, count, self.num_heads, self.num_levels, self.num_points)
    values = self.value_proj(value).masked_fill(key_padding_mask[..., None], 0)
    offset = self.sampling_offsets(places).view(*shape, 2)
    weights = self.attention_weights(places).view(*shape[:3], -1).softmax(-1).view(shape)
    if reference_points.shape[-1] == 2:
        offset = offset / spatial_shapes.flip(1)[:, None]
    else:
        offset = offset / self.num_points * reference_points[:, :, None, :, None, 2:] * 0.5
    locations = reference_points[:, :, None, :, None, :2] + offset
    values = values.view(batch, -1, self.num_heads, values.shape[-1] // self.num_heads)
    read = ms_deform_attn(values, spatial_shapes, level_start_index, locations, weights)
    return self.output_proj(read) + query
