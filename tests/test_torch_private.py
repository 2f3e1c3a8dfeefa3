"""The private symbols of torch that the operators use: there, as they are meant, and nowhere else."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.autograd import forward_ad

import dcnzoo.ops
from dcnzoo.ops import _torch_private as private

SOURCES = [
    source
    for folder in ("ops", "layers")
    for source in (Path(dcnzoo.ops.__file__).parents[1] / folder).rglob("*.py")
    if source.name != "_torch_private.py"
]
OPERATOR = torch.ops.dcnzoo.deform_conv.default


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: "-".join(path.parts[-2:]))
def test_no_other_module_uses_private_symbols(source):
    used = re.findall(r"\btorch(?:\.\w+)*\._\w+", code := source.read_text())
    assert [name for name in used if not name.startswith("torch.ops.dcnzoo.")] == []
    assert re.findall(r"^from torch\S* import .*\b_\w+", code, re.MULTILINE) == []


def test_nothing_is_missing():
    assert private.missing is None


def test_in_dual_level():
    assert not private.in_dual_level()
    with forward_ad.dual_level():
        assert private.in_dual_level()
    assert torch.func.jvp(lambda x: x * private.in_dual_level(), (torch.ones(1),), (torch.ones(1),))[1] == 1


def test_transforms_active():
    assert not private.transforms_active()
    assert torch.vmap(lambda x: x * private.transforms_active())(torch.ones(1)) == 1


def test_any_requires_grad():
    plain, leaf = torch.ones(1), torch.ones(1, requires_grad=True)
    assert not private.any_requires_grad(plain, None, [1, 2], 3)
    assert private.any_requires_grad(plain, None, [1, 2], 3, leaf)


def test_set_forward_grad_enabled():
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(torch.ones(1), torch.ones(1))
        with private.set_forward_grad_enabled(False):
            assert forward_ad.unpack_dual(dual * 2).tangent is None
        assert forward_ad.unpack_dual(dual * 2).tangent == 2


def test_single_level_function():
    class Double(private.SingleLevelFunction):
        @staticmethod
        def forward(x):
            return x * 2

        @staticmethod
        def setup_context(ctx, inputs, output):
            pass

        @staticmethod
        def backward(ctx, grad):
            return grad * 5

    leaf = torch.ones(1, requires_grad=True)
    with private.enable_single_level_autograd_function():
        output = Double.apply(leaf)
    output.backward()
    assert output == 2 and leaf.grad == 5


def test_below_autograd():
    leaf = torch.ones(1, requires_grad=True)
    with private.AutoDispatchBelowAutograd():
        assert not (leaf * 2).requires_grad
    below = private.after_autograd_keyset
    assert below.has(private.DispatchKey.CPU) and not below.has(private.DispatchKey.AutogradCPU)


def test_exclude_dispatch_key():
    keys = private.DispatchKeySet(private.DispatchKey.AutocastCPU)
    a = torch.ones(2, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (a @ a).dtype == torch.bfloat16
        with private.ExcludeDispatchKeyGuard(keys):
            assert (a @ a).dtype == torch.float32


def test_operators_and_kernels():
    assert OPERATOR.name() in private.all_operator_names()
    assert private.has_kernel(OPERATOR.name(), "CPU") and not private.has_kernel(OPERATOR.name(), "HPU")


def test_bases_of_layers():
    assert issubclass(torch.nn.Conv2d, private.ConvNd)
    assert issubclass(torch.nn.ConvTranspose2d, private.ConvTransposeNd)


def test_absent_symbol_is_named():
    """The package still imports and can be asked; an operator names what is absent."""
    code = """
import torch
del torch._C._any_requires_grad
import dcnzoo.ops
assert not dcnzoo.ops.has_ops()
from dcnzoo.ops import deform_conv2d
"""
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    last = child.stderr.splitlines()[-1]
    assert last.startswith("ImportError") and "torch._C._any_requires_grad" in last
    assert torch.__version__ in last
