"""Deformable DETR on ``MultiScaleDeformableAttention``, with two stages and refined boxes."""

from types import SimpleNamespace
from unittest import mock

import torch

import dcnzoo

dcnzoo.provide("torchvision", "MultiScaleDeformableAttention")
import torchvision

torchvision.__version__ = "1.0"  # the project reads its first three characters: 0.2 of 0.28

from main import get_args_parser
from models import build_model
from models.ops.functions.ms_deform_attn_func import ms_deform_attn_core_pytorch
from trial import compare, without_weights


def apply(value, shapes, starts, locations, weights, step):
    return ms_deform_attn_core_pytorch(value, shapes, locations, weights)


options = get_args_parser().parse_args(["--device", "cpu", "--with_box_refine", "--two_stage"])
vars(options).update(enc_layers=2, dec_layers=2, dim_feedforward=64, num_queries=10)
with without_weights():
    model = build_model(options)[0].eval()
pictures = [torch.rand(3, 96, 128), torch.rand(3, 128, 96)]
function = "models.ops.modules.ms_deform_attn.MSDeformAttnFunction"
compare(model, lambda: model(pictures), mock.patch(function, SimpleNamespace(apply=apply)))
