"""InternImage on ``DCNv3``, whose version its ``ops_dcnv3`` reads from ``pkg_resources``."""

from types import SimpleNamespace
from unittest import mock

import torch

import dcnzoo

dcnzoo.provide("torchvision", "DCNv3")
from models.intern_image import InternImage
from ops_dcnv3.functions.dcnv3_func import dcnv3_core_pytorch
from trial import compare


def apply(*arguments):
    *others, _step, remove_center = arguments
    return dcnv3_core_pytorch(*others, remove_center)


model = InternImage(
    core_op="DCNv3", channels=32, depths=[1, 1, 1, 1], groups=[2, 4, 8, 16], num_classes=5, drop_path_rate=0.0
)
pictures = torch.rand(2, 3, 64, 96)
function = "ops_dcnv3.modules.dcnv3.DCNv3Function"
compare(model, lambda: model(pictures), mock.patch(function, SimpleNamespace(apply=apply)))
