"""TESTR on ``adet._C``: a detector of text with one encoder and two decoder layers."""

from types import SimpleNamespace
from unittest import mock

import torch

import dcnzoo

dcnzoo.provide("torchvision", "adet._C")
from adet.config import get_cfg
from adet.layers import ms_deform_attn as layers
from detectron2.modeling import build_model
from detectron2.structures import ImageList
from trial import compare


def apply(value, shapes, starts, locations, weights, step):
    return layers.ms_deform_attn_core_pytorch(value, shapes, locations, weights)


config = get_cfg()
config.merge_from_file("configs/TESTR/Base-TESTR.yaml")
config.merge_from_list(["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.TRANSFORMER.NUM_QUERIES", 10])
config.merge_from_list(["MODEL.TRANSFORMER.ENC_LAYERS", 1, "MODEL.TRANSFORMER.DEC_LAYERS", 2])
model = build_model(config).eval()
pictures = ImageList.from_tensors([torch.rand(3, 96, 128), torch.rand(3, 128, 96)])
plain = mock.patch.object(layers, "_MSDeformAttnFunction", SimpleNamespace(apply=apply))
compare(model, lambda: model.testr(pictures), plain)
