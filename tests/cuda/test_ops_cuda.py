"""The tests of tests/ops/test_ops.py on a GPU; also CUDA graphs, streams and deterministic sums."""

import pytest
import torch

from dcnzoo.ops import deform_conv2d, with_cuda

from .. import op_cases
from ..op_cases import deform_conv
from ..ops.test_ops import (  # noqa: F401  collected here, with this file's `device` fixture
    as_function,
    every_form,
    every_op,
    largest,
    moved,
    test_autocast,
    test_checkpoint,
    test_compile_with_inductor,
    test_gradcheck,
    test_invalid_input_says_what_is_wrong,
    test_matches_reference,
    test_opcheck,
)
from .conftest import replayed

if not with_cuda():
    pytest.skip("no GPU, or no CUDA kernels: not run on a GPU", allow_module_level=True)


@pytest.fixture
def device() -> str:
    return "cuda"


@every_op
def test_cuda_graph(op):
    sample = moved(next(iter(op.samples())).to(torch.float32))
    with torch.no_grad():
        expected = op.call(sample)  # compile and look up kernels before the capture
        output = replayed(lambda: op.call(sample))
    torch.testing.assert_close(output, expected)


@every_op
def test_mixed_devices_are_refused(op):
    sample = next(iter(op.samples()))
    first, *others = sample.tensors
    mixed = op_cases.Sample("mixed", (first.cuda(), *others), sample.kwargs)
    with pytest.raises(RuntimeError, match=r"expected device cuda:0 like (input|value), got cpu"):
        op.call(mixed)


def test_runs_on_the_current_stream_and_device():
    sample = (
        deform_conv.make("stream", padding=1)
        .to(torch.float32)
        .map(lambda t: t.cuda(torch.cuda.device_count() - 1))
    )
    expected = deform_conv2d(*sample.tensors, padding=1)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream(expected.device)
    with torch.cuda.stream(stream):
        torch.cuda._sleep(10_000_000)  # work on another stream would read the input too early
        moved = sample.map(lambda t: t * 1)
        actual = deform_conv2d(*moved.tensors, padding=1)
    stream.synchronize()
    torch.testing.assert_close(actual, expected)


@every_form
def test_same_bits_in_deterministic_mode(op, sample):
    function, tensors = as_function(op, moved(sample.to(torch.float32)))
    expected = torch.autograd.grad(function(*tensors).square().sum(), tensors)
    torch.use_deterministic_algorithms(True)
    try:
        results = [torch.autograd.grad(function(*tensors).square().sum(), tensors) for _ in range(5)]
    finally:
        torch.use_deterministic_algorithms(False)
    for gradients in results:
        assert all(torch.equal(a, b) for a, b in zip(gradients, results[0], strict=True))
    for ordered, atomic in zip(results[0], expected, strict=True):
        torch.testing.assert_close(ordered, atomic, rtol=1e-4, atol=1e-4 * largest(atomic))
