"""FLOP counters of other packages agree with torch's after :func:`dcnzoo.ops.flops.register`."""

from importlib import import_module

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import dcnzoo
from dcnzoo.ops.flops import register

CASES = [
    *(("Conv", 1, 8, "dense"), ("Conv", 2, 1, "dense"), ("Conv", 3, 2, "dense")),
    *(
        ("Conv", 2, 2, "separable"),
        ("Conv", 3, 2, "separable"),
    ),  # not in 1-D, where norms and activations count as much as the layers
    *(("ConvTranspose", 1, 2, "dense"), ("ConvTranspose", 2, 1, "dense"), ("ConvTranspose", 3, 8, "dense")),
]


def thop(network, x):
    return import_module("thop").profile(network, (x,), verbose=False)[0]


def fvcore(network, x):
    return import_module("fvcore.nn").FlopCountAnalysis(network, x).unsupported_ops_warnings(False).total()


TOOLS = {"thop": thop, "fvcore": fvcore}


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize(("kind", "rank", "groups", "prediction"), CASES)
def test_counts_are_torchs(tool, kind, rank, groups, prediction):
    layer = getattr(nn, f"{kind}{rank}d")(8, 8, 3, 2, 1, groups=groups, bias=False)
    network = nn.Sequential(nn.Identity(), layer)
    dcnzoo.to_deformable(network.eval(), "1", kind="v1", prediction=prediction)
    pytest.importorskip(tool)
    register()
    x = torch.randn(1, 8, *[19, 18, 17][:rank])
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(x)
    # other tools count a multiply-add as one operation, and some add biases, norms and activations
    assert TOOLS[tool](network, x) == pytest.approx(counter.get_total_flops() / 2, rel=0.12)
