"""The operators that a training step of MMDetection's models calls on a GPU without the compiled library.

There is no GPU here: tensors are on the CPU, and MMDetection's branches for a GPU are forced.
"""

import pytest
import torch
from mmdet.testing import demo_mm_inputs
from mmengine.hub import get_config
from torch.utils._python_dispatch import TorchDispatchMode

from dcnzoo.compat.mmcv import plain
from dcnzoo.ops import _library, choose
from dcnzoo.ops._arguments import arguments_of
from dcnzoo.ops.fused import available
from dcnzoo.ops.operator import OPERATORS

from ..demo import build

MODELS = {
    "faster_rcnn/faster-rcnn_r50_fpn_1x_coco": {"nms", "roi_align", "_roi_align_backward"},
    "mask_rcnn/mask-rcnn_r50_fpn_1x_coco": {"nms", "roi_align", "_roi_align_backward"},
    "deformable_detr/deformable-detr_r50_16xb2-50e_coco": {"ms_deform_attn", "_ms_deform_attn_backward"},
}


class Choices(TorchDispatchMode):
    """The kernel that would run each operator of dcnzoo on a GPU."""

    def __init__(self):
        super().__init__()
        self.chosen = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "dcnzoo":
            name = function.name().removeprefix("dcnzoo::")
            self.chosen[name] = choose.kernel_for(OPERATORS[name], "CUDA", arguments_of(name)(*args)).kernel
        return function(*args, **(kwargs or {}))


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_step(monkeypatch, name):
    config = get_config(f"mmdet::{name}.py").model
    config.backbone.init_cfg = None
    model = build(config).train()
    if hasattr(model, "level_embed"):
        torch.nn.init.normal_(model.level_embed)  # uninitialised memory otherwise, which can be NaN
    plain_calls = []
    focal_loss = plain._focal_loss
    monkeypatch.setattr(plain, "_focal_loss", lambda *a, **k: plain_calls.append(1) or focal_loss(*a, **k))
    monkeypatch.setattr(available, "triton_works", lambda device: True)
    monkeypatch.setattr(_library, "loaded", {"cpu": None})
    data = demo_mm_inputs(1, [[3, 96, 128]], num_items=[3], num_classes=10, with_mask=True)
    data = model.data_preprocessor(data, training=True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda tensor: True), raising=False)
    with Choices() as mode:
        loss = model.parse_losses(model(**data, mode="loss"))[0]
        loss.backward()
    assert mode.chosen == dict.fromkeys(MODELS[name], choose.FUSED)
    assert bool(plain_calls) == ("detr" in name)  # docs/gpu.md lists it
