"""The CUDA kernels of every operator against those of the CPU, on the samples of tests/op_cases."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dcnzoo.ops._torch_private import has_kernel

from .. import op_cases

CALLS = [
    pytest.param(overload, arguments, id=f"{overload.name()}-{sample.name}-{i}")
    for op in op_cases.operators()
    for sample in op.forms()
    for i, (overload, arguments) in enumerate(op.overload_calls(sample))
    if not has_kernel(overload.name(), "CompositeExplicitAutograd")  # else it has none of its own
]


@pytest.mark.parametrize("overload, arguments", CALLS)
def test_agrees_with_the_cpus(overload, arguments, kernels):
    def results(call, device: str) -> tuple[Tensor, ...]:
        given = (a.detach().to(device) if isinstance(a, Tensor) else a for a in arguments)
        found = call(*given)
        return tuple(t.cpu() for t in ((found,) if isinstance(found, Tensor) else found))

    expected = results(overload, "cpu")
    actual = results(lambda *given: kernels(overload, *given), kernels.device)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)
