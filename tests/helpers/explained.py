"""Explanations of made-up layers, and the data in their pages."""

import base64
import json
import re

import numpy as np
import torch
from torch import nn

from dcnzoo.layers import PackedDeformConv2d
from dcnzoo.layers.statistics import OffsetStatistics
from dcnzoo.report import record_sampling
from dcnzoo.report.explain import Explanation
from dcnzoo.report.sampling import Box, Frame

STRIDE = (2, 3)


def make_model(shift=(0.0, 0.0)):
    torch.manual_seed(0)
    first = nn.Conv2d(3, 4, 3, padding=1, bias=False)
    pack = PackedDeformConv2d(4, 5, (3, 5), STRIDE, (1, 2), bias=False, modulated=False)
    with torch.no_grad():
        pack.conv_offset.bias.copy_(torch.tensor(shift).repeat(15))
    return nn.Sequential(first, pack, nn.Tanh())


def explained(outputs=(12, 12), box=None, names=("1",), scale=(1.0, 1.0)):
    """An explanation with random offsets, and with a layer that has only statistics.

    ``scale``: pixels of the picture, (y, x), for each pixel of the model's input.
    """
    model = make_model()
    nn.init.normal_(model[1].conv_offset.weight, std=0.2)
    size = (outputs[0] * STRIDE[0], outputs[1] * STRIDE[1])
    with record_sampling(model) as fields, torch.no_grad():
        model(torch.randn(1, 3, *size))
    fields = [type(fields[0])(**{**vars(fields[0]), "name": name}) for name in names]
    statistics = {names[0]: OffsetStatistics(0.25, 2.5, 0.125), "other": OffsetStatistics(1, 2, 0)}
    unpadded = size[0] - 3, size[1] - 5
    shape = [round(n * factor) for n, factor in zip(unpadded, scale, strict=True)]
    image = np.random.default_rng(0).integers(0, 255, (*shape, 3), dtype=np.uint8)
    heat = torch.rand(unpadded)
    box = box or Box(21, 10, 21, 10)
    return Explanation(
        image, Frame(size, scale), box, fields, names[-1], heat, statistics, {(3.0, 4.0): heat.flip(1)}
    )


def page_data(page):
    return json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])


def decoded(layer):
    """Offsets [rows, columns, taps, 2], (y, x) in pixels of the layer's input, and weights in 0…1."""
    offsets = np.frombuffer(base64.b64decode(layer["offsets"]), "<i2").reshape(*layer["stored"], -1, 2)
    weights = np.frombuffer(base64.b64decode(layer["weights"]), np.uint8).reshape(offsets.shape[:3])
    return offsets * layer["quantum"], weights / 255
