"""detrex's Deformable DETR on ``detrex._C``: losses. On a CPU its layer does not call the compiled module."""

import sys
from unittest import mock

import torch

import dcnzoo

UNUSED = "wandb", "fairscale", "fairscale.nn", "fairscale.nn.checkpoint"  # by this model
sys.modules.update((name, mock.MagicMock(__spec__=None)) for name in UNUSED)
dcnzoo.provide("torchvision", "detrex._C")
from detectron2.config import instantiate
from detectron2.structures import Boxes, Instances
from detrex.layers import multi_scale_deform_attn as layers
from projects.deformable_detr.configs.models.deformable_detr_r50 import model as config
from trial import compare


def compiled(value, shapes, locations, weights):
    starts = shapes.prod(1).cumsum(0) - shapes.prod(1)
    return layers.MultiScaleDeformableAttnFunction.apply(value, shapes, starts, locations, weights, 64)


config.num_queries, config.device = 10, "cpu"
config.transformer.encoder.num_layers, config.transformer.decoder.num_layers = 1, 2
model = instantiate(config).train()
boxes = Boxes(torch.tensor([[10.0, 12, 60, 70], [30, 20, 90, 80]]))
objects = Instances((96, 128), gt_boxes=boxes, gt_classes=torch.tensor([0, 1]))
picture = dict(image=torch.rand(3, 96, 128) * 255, instances=objects, height=96, width=128)
plain = layers.multi_scale_deformable_attn_pytorch
compare(
    model,
    lambda: model([picture]),
    plain=mock.patch.object(layers, plain.__name__, plain),
    compiled=mock.patch.object(layers, plain.__name__, compiled),
)
