"""The private torch symbols that the operators use exist; without those of a feature, only it is lost."""

from dcnzoo.ops import _torch_private as private
from tests.helpers.processes import python_with_torch


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
    private.MODES: ["torch._C._ForceDispatchKeyGuard"],
    private.SUMS: ["torch._C._dispatch_key_for_device"],
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
    from tests.op_cases import deform_conv, results
    for symbol in removed:
        setattr(*symbol)  # torch itself uses it
    from dcnzoo.ops import has_ops
    from dcnzoo.ops._torch_private import missing
    assert has_ops() and list(missing) == [feature], missing
    assert torch.__version__ in missing[feature]
    sample = deform_conv.make("without", padding=1)
    both = (results(function, sample) for function in (deform_conv.call, deform_conv.reference))
    # the first torch.testing.assert_close of a process imports sympy
    assert all(torch.allclose(a, b) for a, b in zip(*both))

for feature, symbols in eval(sys.argv[1]).items():
    if not os.fork():  # a process each, without importing torch again
        run(feature, symbols)
        sys.exit()
    assert os.wait()[1] == 0, feature
"""


def test_only_the_feature_of_an_absent_symbol_is_missing():
    python_with_torch(WITHOUT, repr(FEATURES))
