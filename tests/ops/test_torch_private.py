"""The private torch symbols that the operators use exist, and each degrades alone."""

from dcnzoo.ops import _torch_private as private

from ..processes import python_with_torch


def test_nothing_is_missing():
    assert not private.missing


FEATURES = {
    private.TRANSFORMS: [
        "torch._functorch.autograd_function.enable_single_level_autograd_function",
        "torch._C._any_requires_grad",
        "torch._C._after_autograd_keyset",
    ],
    private.FORWARD_MODE: ["torch.autograd.forward_ad._set_fwd_grad_enabled"],
    private.AUTOCAST: ["torch._C._ExcludeDispatchKeyGuard"],
}
WITHOUT = """
import os, sys, torch
from importlib import import_module

def run(feature, symbols):
    removed = []
    for path in symbols:
        module, _, name = path.rpartition(".")
        removed.append((import_module(module), name, getattr(import_module(module), name)))
        delattr(*removed[-1][:2])
    from dcnzoo.ops import deform_conv2d, has_ops, reference
    for symbol in removed:
        setattr(*symbol)  # torch itself uses it
    from dcnzoo.ops._torch_private import missing
    assert has_ops() and list(missing) == [feature], missing
    assert torch.__version__ in missing[feature]
    torch.manual_seed(0)
    x, weight = torch.randn(2, 4, 7, 9, requires_grad=True), torch.randn(6, 4, 3, 2, requires_grad=True)
    offset = torch.randn(2, 12, 5, 8, requires_grad=True)
    results = []
    geometry = (None, None, (1, 1), (0, 0), (1, 1), 1)
    for function, arguments in ((deform_conv2d, ()), (reference.deform_conv, geometry)):
        output = function(x, weight, offset, *arguments)
        results.append([output, *torch.autograd.grad(output.sin().sum(), (x, weight, offset))])
    # the first torch.testing.assert_close of a process imports sympy
    assert all(torch.allclose(a, b, atol=1e-4, rtol=1e-4) for a, b in zip(*results))

for feature, symbols in eval(sys.argv[1]).items():
    if not os.fork():  # a process each, without importing torch again
        run(feature, symbols)
        sys.exit()
    assert os.wait()[1] == 0, feature
"""


def test_only_the_feature_of_an_absent_symbol_is_missing():
    python_with_torch(WITHOUT, repr(FEATURES))
