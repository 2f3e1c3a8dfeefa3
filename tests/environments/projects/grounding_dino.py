"""Grounding DINO's attention on ``groundingdino._C``, which its layer calls only for CUDA tensors."""

from unittest import mock

import torch

import dcnzoo

dcnzoo.provide("torchvision", "groundingdino._C")
from groundingdino.models.GroundingDINO import ms_deform_attn as layers
from trial import compare

SHAPES, STARTS = torch.tensor([[8, 12], [4, 6]]), torch.tensor([0, 96])


def compiled(value, shapes, locations, weights):
    return layers.MultiScaleDeformableAttnFunction.apply(value, shapes, STARTS, locations, weights, 64)


model = layers.MultiScaleDeformableAttention(64, 4, 2, 3, batch_first=True)
query, value, points = torch.rand(2, 7, 64), torch.rand(2, 120, 64), torch.rand(2, 7, 2, 2)
arguments = dict(reference_points=points, spatial_shapes=SHAPES, level_start_index=STARTS)
plain = layers.multi_scale_deformable_attn_pytorch
compare(
    model,
    lambda: model(query, value=value, **arguments),
    plain=mock.patch.object(layers, plain.__name__, plain),
    compiled=mock.patch.object(layers, plain.__name__, compiled),
)
