"""Compares a detector's gradients of several processes with those of one process and the joined batch."""

import os
from types import SimpleNamespace

import dcnzoo.models  # noqa: F401  first: mmdet needs mmcv._ext

# isort: split
import torch
from mmdet.registry import MODELS
from mmdet.testing import demo_mm_inputs
from mmengine.dist import init_dist
from mmengine.model import MMDistributedDataParallel
from mmengine.registry import init_default_scope
from torch import Tensor, nn
from torch.multiprocessing import start_processes

from dcnzoo.openmmlab.hooks import BroadcastBuffersHook

IMAGES = 4  # in the joined batch


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
    for parameter in model.parameters():  # so that offsets are not zero either
        parameter.data.add_(0.1 * torch.randn(parameter.shape))
    return model.train()


def gradients(images: slice, distributed: bool) -> dict[str, Tensor]:
    """The gradients after a step with some images of the joined batch, which have 1 to 4 boxes."""
    torch.manual_seed(0)
    model = detector()
    data = demo_mm_inputs(IMAGES, [[3, 64, 48]] * IMAGES, num_items=[1, 2, 3, 4], num_classes=3)
    data = model.data_preprocessor({key: values[images] for key, values in data.items()}, True)
    module = MMDistributedDataParallel(model, broadcast_buffers=False) if distributed else model
    loss, _ = model.parse_losses(module(**data, mode="loss"))
    loss.backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}
    missing = [name for name, gradient in found.items() if gradient is None or not gradient.any()]
    assert not missing, f"nothing to compare: {missing}"
    return found


def compare(rank: int, processes: int, port: int) -> None:
    expected = gradients(slice(None), distributed=False)
    variables = dict(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=processes, MASTER_PORT=port)
    os.environ.update({name: str(value) for name, value in variables.items()}, MASTER_ADDR="127.0.0.1")
    init_dist("pytorch")
    each = IMAGES // processes
    found = gradients(slice(rank * each, (rank + 1) * each), distributed=True)
    for name, tensor in expected.items():
        error = (found[name] - tensor).abs().max() / tensor.abs().max()
        assert error <= 1e-4, f"{name}: {error}"
    layer = nn.BatchNorm2d(2)
    layer.running_mean.fill_(rank)
    BroadcastBuffersHook().before_val_epoch(SimpleNamespace(model=layer))
    assert not layer.running_mean.any(), "a validation uses the statistics of the first process"
    torch.distributed.destroy_process_group()


def compare_gradients(processes: int, port: int) -> None:
    init_default_scope("mmdet")
    start_processes(compare, (processes, port), processes, start_method="fork")
