"""Compare every operator of an installed wheel with its reference, in a folder with ``tests/op_cases``."""

import torch

import dcnzoo
from tests.op_cases import operators

calls = 0
for operator in operators():
    for sample in operator.forms():
        leaves = sample.leaves()
        results = [function(leaves) for function in (operator.call, operator.reference)]
        torch.testing.assert_close(*results)
        torch.testing.assert_close(*(torch.autograd.grad(r.square().sum(), leaves.given) for r in results))
        calls += 1
assert calls > 40 and dcnzoo.ops.has_ops()
print(f"{calls} calls, {dcnzoo.ops.cpu_capability()}, torch {torch.__version__}")
