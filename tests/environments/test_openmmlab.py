"""MMSegmentation and MMPretrain on dcnzoo's operators, without a compiled mmcv: ``nox -s others``."""

from importlib.util import find_spec

import pytest
import torch

if find_spec("mmseg") is None:
    pytest.skip("mmsegmentation is not installed here", allow_module_level=True)

from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import PixelData
from mmpretrain.structures import DataSample
from mmseg.structures import SegDataSample

import dcnzoo.models

SIZE = 64


def segmentation_sample():
    return SegDataSample(
        gt_sem_seg=PixelData(data=torch.randint(0, 19, (1, SIZE, SIZE))),
        metainfo=dict(img_shape=(SIZE, SIZE), ori_shape=(SIZE, SIZE)),
    )


@pytest.mark.parametrize(
    ("package", "config", "sample"),
    [
        ("mmseg", "pspnet/pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py", segmentation_sample),
        ("mmpretrain", "resnet/resnet18_8xb32_in1k.py", lambda: DataSample().set_gt_label(3)),
    ],
)
def test_a_resnet_learns_deformably(package, config, sample):
    """One training step moves the offsets away from zero, where they start."""
    cfg = Config.fromfile(Config._get_cfg_path(f"{package}::{config}", "")[0])
    # zero-initialised residual branches would block the gradients
    cfg.model.backbone.update(
        dcn=True, zero_init_residual=False, type="ResNetV1d" if package == "mmseg" else "ResNet"
    )
    cfg.model.pretrained, cfg.model.backbone.norm_cfg = None, dict(type="BN")
    with DefaultScope.overwrite_default_scope(package):
        model = MODELS.build(cfg.model).train()
        model.init_weights()
        layers = {name for name, m in model.backbone.named_modules() if isinstance(m, dcnzoo.models.DCNv2)}
        assert {name.split(".")[0] for name in layers} == {"layer2", "layer3", "layer4"}
        offsets = [p for name, p in model.named_parameters() if "conv_offset" in name]
        assert offsets and not any(p.any() for p in offsets)
        losses = model(torch.rand(2, 3, SIZE, SIZE), [sample() for _ in range(2)], mode="loss")
        sum(value for name, value in losses.items() if "loss" in name).backward()
        torch.optim.SGD(model.parameters(), 0.1).step()
    assert any(p.any() for p in offsets)
