"""OffsetStatisticsHook: figures worked out by hand, warnings, and the file after an interruption."""

import itertools
import logging
import math
import re

import pytest
import torch
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from torch import nn

import dcnzoo.models  # noqa: F401  registers the layers
from dcnzoo.layers import DCNv3, DCNv4
from dcnzoo.openmmlab.history import History
from dcnzoo.openmmlab.hooks.offset_statistics import MODULATION, OFFSETS
from tests.helpers.training import WITHOUT_VALIDATION, make_runner

HEIGHT, WIDTH = 4, 6


class Model(BaseModel):
    """Layers whose first tap's first offset is the input value.

    Args:
        masks: logits of DCNv2's modulation, for each iteration.
    """

    def __init__(self, *kinds, masks=((),)):
        super().__init__()
        options = dict(in_channels=4, out_channels=4, kernel_size=3, padding=1)
        self.layers = nn.ModuleDict()
        for kind in kinds:
            layer = MODELS.build(dict(type=kind, **options)) if isinstance(kind, str) else kind(4, group=1)
            self.layers[type(layer).__name__] = layer
        self.masks, self.other = itertools.cycle(masks), nn.Parameter(torch.zeros(1))

    def forward(self, inputs, mode):
        (shift,), masks = inputs[0].tolist(), next(self.masks)
        for layer in self.layers.values():
            if isinstance(layer, DCNv3 | DCNv4):
                predictor = layer.offset if isinstance(layer, DCNv3) else layer.offset_mask
                predictor.bias.data[1] = shift  # x, y
                layer(torch.ones(1, HEIGHT, WIDTH, 4))
            else:
                layer.conv_offset.bias.data[0] = shift  # y, x
                layer.conv_offset.bias.data[18 : 18 + len(masks)] = torch.tensor(masks)
                layer(torch.ones(1, 4, HEIGHT, WIDTH))
        return {"loss": self.other.sum() * 0} if mode == "loss" else []


def train(work_dir, model, shifts, **arguments):
    hooks = [dict(type="OffsetStatisticsHook", **arguments)]
    options = dict(train_cfg=dict(by_epoch=True, max_epochs=1), custom_hooks=hooks, **WITHOUT_VALIDATION)
    make_runner(work_dir, "offsets", model, values=shifts, **options).train()


def rows(work_dir):
    """Iteration → layer → figures, from the log."""
    found = {}
    for step, entry in History.read(work_dir).offsets.items():
        for name, value in entry.items():
            figure, layer = name.split("/")
            found.setdefault(step, {}).setdefault(layer, {})[figure] = value
    return found


@pytest.fixture
def warned(monkeypatch):
    messages = []
    warning = logging.Logger.warning

    def keep(self, message, *args, **kwargs):
        if message.startswith(("iteration", "OffsetStatisticsHook")):
            messages.append(message)
        warning(self, message, *args, **kwargs)

    monkeypatch.setattr(logging.Logger, "warning", keep)
    return messages


def test_known_offsets_every_second_iteration(tmp_path, warned):
    masks = (-10.0, 10.0, *[0.0] * 7)
    train(tmp_path, Model("DCNv2", masks=[masks]), [0, 3, 100, -1, 100], interval=2)
    found = rows(tmp_path)
    assert list(found) == [2, 4] and list(found[2]) == list(found[4]) == ["layers.DCNv2"]
    second, fourth = (found[i]["layers.DCNv2"] for i in (2, 4))
    figures = [second[name] for name in (*OFFSETS, *MODULATION)]
    # tap 0 is at (i - 1, j - 1). Moved down by 3, it leaves the map of 4 rows in output rows 2 and 3, except
    # in column 0, where it was already in the padding: 2 · 5 of 9 · 24 samples.
    expected = [3 / 18, 3, 10 / 216, 0.5, 1 / 9, 1 / 9]
    assert figures == pytest.approx(expected, rel=1e-5)
    # moved up by 1, it leaves the map in row 1: 5 samples
    assert [fourth[name] for name in OFFSETS] == pytest.approx([1 / 18, 1, 5 / 216], rel=1e-5)
    assert warned == []


def test_every_kind_of_layer(tmp_path):
    model = Model("DCN", "DCNv2", DCNv3, DCNv4)
    train(tmp_path, model, [3], interval=1)
    assert not any(getattr(layer, "track_offsets", False) for layer in model.modules())
    found = rows(tmp_path)[1]
    assert list(found) == [f"layers.{name}" for name in ("DCN", "DCNv2", "DCNv3", "DCNv4")]
    for figures in found.values():
        assert [figures[name] for name in OFFSETS] == pytest.approx([3 / 18, 3, 10 / 216], rel=1e-5)
    modulation = [[figures[name] for name in MODULATION if name in figures] for figures in found.values()]
    # none; the sigmoid of 0; a softmax over 9 taps; DCNv4's start at zero
    assert modulation == [[], [0.5, 0, 0], [pytest.approx(1 / 9), 0, 0], [0, 1, 0]]


@pytest.mark.parametrize(
    ("model", "shifts", "options", "iterations"),
    [
        # one warning; the next only after the mean, here 4 pixels, has been below the limit again
        (lambda: Model("DCN"), [18, 72, 72, 0, 72], dict(max_mean=2), [2, 5]),
        # one of 9 taps leaves the map in 3 of 4 rows and 5 of 6 columns: 15 / 216
        (lambda: Model(DCNv3), [3, 4], dict(max_outside=0.05), [2]),
        (lambda: Model("DCN"), [math.nan], {}, [1]),
        (Model, [0, 0], {}, [None]),  # a model without such a layer
    ],
)
def test_warnings(tmp_path, warned, model, shifts, options, iterations):
    train(tmp_path, model(), shifts, interval=1, **options)
    numbers = [re.match(r"iteration (\d+)", message) for message in warned]
    assert [number and int(number[1]) for number in numbers] == iterations
    assert bool(rows(tmp_path)) == (model is not Model)
    if math.isnan(shifts[0]):
        assert math.isnan(rows(tmp_path)[1]["layers.DCN"]["mean_abs"])
