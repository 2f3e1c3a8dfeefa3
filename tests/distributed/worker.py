"""Compares a detector's gradients of several processes with those of one process and the joined batch.

``python -m tests.distributed.worker RESULTS PROCESSES`` forks them from one process that has the packages.
``RESULTS`` is written as JSON: the largest error among the processes.
"""

from __future__ import annotations

import json
import os
import socket
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

IMAGES = 4  # in the joined batch


def own(batch):
    """This process's part of a joined batch."""
    rank, each = int(os.environ["RANK"]), IMAGES // int(os.environ["WORLD_SIZE"])
    return batch[rank * each : (rank + 1) * each]


def shaken(module: nn.Module) -> nn.Module:
    """Add noise to all parameters, so that offsets are not zero either."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return module


def difference(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest error, relative to its tensor's largest value."""
    assert found.keys() == expected.keys()
    return max(
        (found[name] - tensor).abs().max().item() / tensor.abs().max().item()
        for name, tensor in expected.items()
    )


def gradients(module: nn.Module) -> dict[str, Tensor]:
    found = {name: parameter.grad for name, parameter in module.named_parameters() if parameter.requires_grad}
    missing = [name for name, gradient in found.items() if gradient is None or not gradient.any()]
    assert not missing, f"nothing to compare: {missing}"
    return {name: gradient.clone() for name, gradient in found.items()}


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


def detector_gradients(reference: bool) -> dict[str, Tensor]:
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
    return gradients(model)


def compare(results: str) -> None:
    alone = detector_gradients(reference=True)
    init_dist("pytorch")
    error = torch.tensor(difference(detector_gradients(reference=False), alone), dtype=torch.float64)
    torch.distributed.all_reduce(error, torch.distributed.ReduceOp.MAX)
    if os.environ["RANK"] == "0":
        Path(results).write_text(json.dumps(error.item()))
    torch.distributed.destroy_process_group()


def main(results: str, processes: str) -> None:
    torch.set_num_threads(1)
    init_default_scope("mmdet")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ.update(WORLD_SIZE=processes, MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    for rank in range(int(processes)):
        if not os.fork():
            os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
            compare(results)
            return
    statuses = [os.wait()[1] for _ in range(int(processes))]
    sys.exit(f"exit statuses: {statuses}" if any(statuses) else 0)


if __name__ == "__main__":
    main(*sys.argv[1:])
