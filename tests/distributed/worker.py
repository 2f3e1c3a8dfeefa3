"""Runs in every process of a group. Each case compares the group with one process and the joined batch.

``python -m tests.distributed.worker RESULTS CASE…`` with torchrun's environment. ``RESULTS`` is written as
JSON: the errors of each case, the largest among the processes.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import dcnzoo.models  # noqa: F401  first: mmdet needs mmcv._ext

# isort: split
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.dist import init_dist
from mmengine.model import MMDistributedDataParallel
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dcnzoo import layers

RANK, PROCESSES = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
IMAGES = 4  # in the joined batch


def own(batch):
    """This process's part of a joined batch."""
    each = IMAGES // PROCESSES
    return batch[RANK * each : (RANK + 1) * each]


def shaken(module: nn.Module) -> nn.Module:
    """Add noise to all parameters, so that offsets are not zero either."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return module


def difference(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest error, relative to a tensor's largest value if that is above 1."""
    assert found.keys() == expected.keys()
    return max(
        (found[name] - tensor).abs().max().item() / max(1.0, tensor.abs().max().item())
        for name, tensor in expected.items()
    )


def gradients(module: nn.Module) -> dict[str, Tensor]:
    found = {name: parameter.grad for name, parameter in module.named_parameters() if parameter.requires_grad}
    missing = [name for name, gradient in found.items() if gradient is None or not gradient.any()]
    assert not missing, f"nothing to compare: {missing}"
    return {name: gradient.clone() for name, gradient in found.items()}


# Layers


def packed_layers() -> dict[str, tuple[nn.Module, Tensor]]:
    """A layer of each kind that predicts its own offsets, each with a batch."""
    found = {}
    for rank, size in ((1, [9]), (2, [7, 6]), (3, [4, 5, 3])):
        for name in (f"PackedDeformConv{rank}d", f"PackedDeformConvTranspose{rank}d"):
            for modulated in (False, True):
                layer = getattr(layers, name)(4, 6, 3, stride=2, padding=1, modulated=modulated)
                found[f"{name}, modulated={modulated}"] = layer, torch.rand(IMAGES, 4, *size)
    for name in ("DCN", "DCNv2"):
        layer = MODELS.build(dict(type=name, in_channels=4, out_channels=6, kernel_size=3, padding=1))
        found[name] = layer, torch.rand(IMAGES, 4, 7, 6)
    for name in ("DCNv3", "DCNv4"):
        found[name] = getattr(layers, name)(32, group=2), torch.rand(IMAGES, 7, 6, 32)
    return found


class Attention(layers.MultiScaleDeformableAttention):
    def forward(self, value: Tensor) -> Tensor:  # [N, 7·6 + 4·3, 16]
        shapes = torch.tensor([[7, 6], [4, 3]])
        points = torch.linspace(0.1, 0.9, 5)[None, :, None, None].expand(len(value), 5, 2, 2)
        return super().forward(value[:, :5], value=value, reference_points=points, spatial_shapes=shapes,
                               level_start_index=torch.tensor([0, 42]))  # fmt: skip


class Pool(nn.Module):
    """A pooling layer applied to two regions of each image."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.layer = getattr(layers, name)((3, 2), 4, deform_fc_channels=8, gamma=0.5)

    def forward(self, x: Tensor) -> Tensor:
        boxes = torch.tensor([[0.5, 1.0, 6.0, 8.5], [2.0, 0.0, 7.0, 5.0]])
        rois = [torch.cat([torch.full((2, 1), float(i)), boxes], 1) for i in range(len(x))]
        return self.layer(x, torch.cat(rois))


def layer_gradients(reference: bool) -> dict[str, object]:
    torch.manual_seed(0)
    every = packed_layers()
    every["MultiScaleDeformableAttention"] = Attention(16, 2, 2, 3), torch.rand(IMAGES, 54, 16)
    for name in ("DeformRoIPoolPack", "ModulatedDeformRoIPoolPack"):
        every[name] = Pool(name), torch.rand(IMAGES, 4, 10, 9)
    found = {}
    for name, (layer, batch) in every.items():
        shaken(layer)
        module = layer if reference else DistributedDataParallel(layer)
        module(batch if reference else own(batch)).square().mean().backward()
        found[name] = gradients(layer)
    return found


# A detector


def detector() -> nn.Module:
    """FCOS with DCNv2 in backbone and head. Its loss is normalised by a count over all processes."""
    backbone = dict(
        type="ResNet", depth=14, num_stages=3, strides=(1, 2, 2), dilations=(1, 1, 1), out_indices=(1, 2),
        stem_channels=8, base_channels=8, dcn=True, norm_cfg=dict(type="GN", num_groups=4),
    )  # fmt: skip
    head = dict(
        type="FCOSHead", num_classes=3, in_channels=16, feat_channels=16, stacked_convs=1, strides=[8, 16],
        regress_ranges=((-1, 12), (12, 1e8)), dcn_on_last_conv=True, norm_cfg=dict(type="GN", num_groups=4),
    )  # fmt: skip
    neck = dict(type="FPN", in_channels=[64, 128], out_channels=16, num_outs=2)
    preprocessor = dict(type="DetDataPreprocessor", mean=[125.0] * 3, std=[60.0] * 3)
    parts = dict(data_preprocessor=preprocessor, backbone=backbone, neck=neck, bbox_head=head)
    model = MODELS.build(dict(type="FCOS", **parts))
    model.init_weights()
    return shaken(model).train()


def pictures() -> list[tuple[Tensor, DetDataSample]]:
    """Images with different numbers of boxes."""
    found = []
    for index in range(IMAGES):
        meta = dict(img_shape=(64, 48), ori_shape=(64, 48), pad_shape=(64, 48), scale_factor=(1.0, 1.0))
        sample = DetDataSample(metainfo=meta)
        corners = torch.rand(index + 1, 2) * 20
        boxes = torch.cat([corners, corners + 5 + 20 * torch.rand(index + 1, 2)], 1)
        sample.gt_instances = InstanceData(bboxes=boxes, labels=torch.arange(index + 1) % 3)
        found.append((torch.randint(0, 256, (3, 64, 48), dtype=torch.uint8), sample))
    return found


def detector_gradients(reference: bool) -> dict[str, object]:
    torch.manual_seed(0)
    joined = pictures()
    torch.manual_seed(0)
    model = detector()
    batch = joined if reference else own(joined)
    data = model.data_preprocessor(
        dict(inputs=[image for image, _ in batch], data_samples=[sample for _, sample in batch]), True
    )
    module = model if reference else MMDistributedDataParallel(model, broadcast_buffers=False)
    loss, _ = model.parse_losses(module(**data, mode="loss"))
    loss.backward()
    return {"gradients": gradients(model)}


CASES = {case.__name__: case for case in (layer_gradients, detector_gradients)}


def main(results: str, *names: str) -> None:
    torch.set_num_threads(1)
    init_default_scope("mmdet")
    alone = {name: CASES[name](reference=True) for name in names}
    init_dist("pytorch")
    errors = {}
    for name in names:
        together = CASES[name](reference=False)
        assert together.keys() == alone[name].keys()
        for key, values in together.items():
            error = torch.tensor(difference(values, alone[name][key]), dtype=torch.float64)
            torch.distributed.all_reduce(error, torch.distributed.ReduceOp.MAX)
            errors.setdefault(name, {})[key] = error.item()
    if RANK == 0:
        Path(results).write_text(json.dumps(errors))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
