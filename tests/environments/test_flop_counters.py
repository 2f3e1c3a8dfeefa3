"""FLOP counters of other packages agree with torch's."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import dcnzoo

CASES = [
    (kind, rank, groups, prediction)
    for kind in ("Conv", "ConvTranspose")
    for rank in (1, 2, 3)
    for groups in (1, 2, 8)
    for prediction in ("dense", "separable")
    if prediction == "dense" or (kind == "Conv" and rank > 1)  # in 1-D, norms and activations count as much
]


def thop(network, x):
    return pytest.importorskip("thop").profile(network, (x,), verbose=False)[0]


def ptflops(backend):
    def count(network, x):
        tool = pytest.importorskip("ptflops")
        size = tuple(x.shape[1:])
        options = dict(as_strings=False, print_per_layer_stat=False, verbose=False, backend=backend)
        return tool.get_model_complexity_info(network, size, **options)[0] * len(x)

    return count


def torchinfo(network, x):
    return pytest.importorskip("torchinfo").summary(network, input_data=x, verbose=0).total_mult_adds


def fvcore(network, x):
    return (
        pytest.importorskip("fvcore.nn").FlopCountAnalysis(network, x).unsupported_ops_warnings(False).total()
    )


TOOLS = {
    "thop": thop, "ptflops pytorch": ptflops("pytorch"), "ptflops aten": ptflops("aten"),
    "torchinfo": torchinfo, "fvcore": fvcore,
}  # fmt: skip


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize(("kind", "rank", "groups", "prediction"), CASES)
def test_counts_are_torchs(tool, kind, rank, groups, prediction):
    network = nn.Sequential(
        nn.Identity(), getattr(nn, f"{kind}{rank}d")(8, 8, 3, 2, 1, groups=groups, bias=False)
    )
    dcnzoo.to_deformable(network.eval(), "1", kind="v1", prediction=prediction)
    x = torch.randn(1, 8, *[19, 18, 17][:rank])
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(x)
    # other tools count a multiply-add, some of them also biases, norms and activations
    assert TOOLS[tool](network, x) == pytest.approx(counter.get_total_flops() / 2, rel=0.12)
