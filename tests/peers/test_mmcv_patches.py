"""The choice of kernels with a compiled mmcv: each is available."""

import importlib

import pytest
import torch
from mmengine.registry import MODELS
from torch import nn

import dcnzoo.compat.mmcv as compat
import dcnzoo.models  # noqa: F401
from dcnzoo.compat import patches

compiled = importlib.import_module("mmcv._ext")


def test_mmcv_is_compiled_for_the_cpu():
    assert compat._mmcv_devices == ("cpu",)
    assert compat.runs_on_dcnzoo("deform_conv", torch.device("cpu"))


@pytest.mark.parametrize(("name", "operator"), [("DCN", "deform_conv"), ("DCNv2", "modulated_deform_conv")])
def test_mmcvs_kernels_on_request(name, operator, monkeypatch):
    torch.manual_seed(0)
    layer = MODELS.build(dict(type=name, in_channels=4, out_channels=6, kernel_size=(3, 2), padding=1))
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.3)
    x = torch.randn(3, 4, 7, 9)
    calls = []

    class Counting:
        def __getattr__(self, function):
            calls.append(function)
            return getattr(compiled, function)

    module, results = importlib.import_module(f"mmcv.ops.{operator}"), []
    for off in ("deform_roi_pool", operator):
        with patches.disabled(off), monkeypatch.context() as patched:
            if off == operator:
                assert module.ext_module is compiled
                patched.setattr(module, "ext_module", Counting())
            output = layer(x)
            results.append([output, *torch.autograd.grad(output.sin().sum(), list(layer.parameters()))])
        assert bool(calls) == (off == operator)
    torch.testing.assert_close(*results, atol=1e-4, rtol=1e-4)
