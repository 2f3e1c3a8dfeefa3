"""The flops and bench commands, compared with values computed by hand."""

import copy
import re

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from dcnzoo.detect.detections import Detections
from dcnzoo.detect.timing import agreement
from dcnzoo.layers import DCNv3, DCNv4
from dcnzoo.openmmlab.flops import count_operations, random_batch
from dcnzoo.openmmlab.runs.build import build_model
from dcnzoo.ops.flops import register
from dcnzoo.zoo.source import resolve
from tests.helpers.commands import run
from tests.helpers.demo import DEFORMABLE as DEMO
from tests.helpers.demo import PLAIN
from tests.helpers.processes import ROOT

# Operations


@pytest.mark.parametrize(("layer", "predicted"), [(DCNv3, 27 * 2), (DCNv4, 56)])
def test_flops_of_deform_attn(layer, predicted):
    """By hand: 4 pixels and the mask per channel and tap; the rest are linear and depthwise layers."""
    register()
    layer = layer(32, group=2)
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        layer(torch.rand(2, 7, 5, 32))
    depthwise = 9 * 32 if isinstance(layer, DCNv3) else 0
    products = 32 * 32 + 32 * predicted + 32 * 9 * (4 + 1) + 32 * 32 + depthwise
    assert counter.get_total_flops() == 2 * (2 * 7 * 5) * products


def flops(text):
    return {
        name: float(value) for name, value in re.findall(r"^ *([\w.]+): ([\d.]+) [GM]$", text, re.MULTILINE)
    }


def test_flops():
    """The figures by operator add up to the total; only the deformable model has deform_conv."""
    shape = ("--shape", 128, 128, "--by-operator")
    plain = flops(run("flops", PLAIN, *shape))
    deformable = flops(run("flops", DEMO, *shape))
    assert "dcnzoo.deform_conv" in deformable and "dcnzoo.deform_conv" not in plain
    assert deformable["Params"] == pytest.approx(585_806 / 1e6, abs=0.005)
    assert plain["Params"] == pytest.approx(558_509 / 1e6, abs=0.005)
    parts = sum(value for name, value in plain.items() if name.startswith("aten"))
    assert plain["Flops"] == pytest.approx(parts, abs=0.01)


def test_operations_of_queries_without_a_graph():
    """With a graph, torch's counter can follow the queries, which are parts of a parameter."""
    settings = {"backbone.depth": 18, "backbone.init_cfg": None, "neck.in_channels": [128, 256, 512]}
    settings |= {"encoder.num_layers": 1, "decoder.num_layers": 2}
    recipe = resolve("deformable-detr_r50_16xb2-50e_coco").recipe(
        {f"model.{key}": value for key, value in settings.items()}
    )
    batch = random_batch(64, 96)
    model = build_model(recipe)
    data = model.data_preprocessor(copy.deepcopy(batch))
    with FlopCounterMode(display=False) as counter:
        model(data["inputs"], data["data_samples"], mode="tensor")
    counts, _ = count_operations(model, batch)
    assert sum(counts.values()) == counter.get_total_flops() // 2 > 0


# Times


def times_in(text):
    """The names and the relative times."""
    rows = [re.split(r"  +", line.strip()) for line in text.splitlines()]
    return {row[0]: float(row[2]) for row in rows if len(row) > 3 and row[1][0].isdigit()}


def test_bench():
    options = [ROOT / "tests/data/color.jpg", "--max-iter", 2, "--num-warmup", 0]
    times = times_in(run("bench", "mask-rcnn_r14-mdconv_fpn_8e_shapes", *options))
    assert times["PyTorch float32"] == 1 and "PyTorch bf16" in times


def test_agreement():
    boxes = np.array([[0, 0, 10, 10], [20, 20, 40, 40.0]])
    others = [
        (boxes, [0, 1]),
        (boxes + 5, [0, 1]),
        (np.concatenate([boxes, boxes[:1] + 50]), [0, 1, 0]),
        (boxes, [0, 0]),
        (boxes + 0.1, [0, 1]),
    ]
    first, *_ = results = [Detections(each, np.ones(len(each)), np.array(labels)) for each, labels in others]
    assert [agreement([first], [each]) for each in results] == pytest.approx([1, 0, 0.8, 0.5, 1])
