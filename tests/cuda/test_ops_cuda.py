"""What tests/test_ops.py asks of every operator, on a GPU: autograd, opcheck, autocast, torch.compile."""

from __future__ import annotations

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from dcnzoo.ops import deform_conv2d, with_cuda

from .. import op_cases
from ..op_cases import deform_conv
from ..test_ops import INVALID, TOLERANCE, as_function, every_case, every_form, every_op

DEVICE = "cuda"
if not with_cuda():
    pytest.skip("no GPU, or no CUDA kernels: not run on a GPU", allow_module_level=True)


def moved(sample: op_cases.Sample) -> op_cases.Sample:
    return sample.map(lambda t: t.to(DEVICE))


def assert_near(actual: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    largest = expected.abs().max().item() if expected.numel() else 0.0
    torch.testing.assert_close(
        actual.cpu().double(), expected.double(), rtol=tolerance, atol=tolerance * max(1.0, largest)
    )


@every_case
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_matches_reference(op, sample, dtype):
    mine, oracle = moved(sample.to(dtype)).leaves(), sample.to(dtype).to(torch.float64).leaves()
    output, expected = op.call(mine), op.reference(oracle)
    assert output.dtype == dtype and output.device.type == DEVICE
    assert_near(output.detach(), expected.detach(), TOLERANCE[dtype])
    grad = torch.linspace(-1, 1, expected.numel(), dtype=torch.float64).view(expected.shape)
    gradients = torch.autograd.grad(output, mine.given, grad.to(output))
    for gradient, true in zip(gradients, torch.autograd.grad(expected, oracle.given, grad), strict=True):
        assert_near(gradient, true, TOLERANCE[dtype])


@every_case
def test_gradcheck(op, sample):
    function, tensors = as_function(op, moved(sample))
    # atomic additions come in any order
    assert torch.autograd.gradcheck(function, tensors, fast_mode=True, nondet_tol=1e-9)


@every_form
def test_opcheck(op, sample):
    for overload, arguments in op.overload_calls(moved(sample)):
        torch.library.opcheck(overload, arguments)


@every_case
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(op, sample, dtype):
    sample = sample.to(torch.float32)
    leaves = moved(sample).leaves()
    with torch.autocast(DEVICE, dtype=dtype):
        output = op.call(leaves)
    assert output.dtype == (dtype if op.autocasts else torch.float32)
    assert_near(output.detach(), op.reference(sample.to(torch.float64)), 8 * torch.finfo(dtype).eps)
    output.float().sum().backward()
    assert all(t.grad.dtype == torch.float32 for t in leaves.given)


def replayed(call) -> torch.Tensor:
    """What the CUDA graph of a call writes when it is replayed."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = call()
    output.zero_()
    graph.replay()
    return output


@every_op
def test_cuda_graph(op):
    sample = moved(next(iter(op.samples())).to(torch.float32))
    with torch.no_grad():
        expected = op.call(sample)  # what is compiled or looked up at the first call is so before
        output = replayed(lambda: op.call(sample))
    torch.testing.assert_close(output, expected)


@every_op
def test_recomputed_in_the_backward_pass(op):
    sample = moved(next(iter(op.samples())).to(torch.float64))
    function, tensors = as_function(op, sample)
    gradients = [
        torch.autograd.grad(output.sum(), [t for t in tensors if t.requires_grad])
        for output in (function(*tensors), checkpoint(function, *tensors, use_reentrant=False))
    ]
    for own, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(own, recomputed)


@every_op
def test_compile_with_inductor(op):
    torch._dynamo.reset()
    sample = next(iter(op.samples())).to(torch.float32)
    function, tensors = as_function(op, moved(sample))
    output = torch.compile(lambda *t: (function(*t) * 2).relu(), fullgraph=True)(*tensors)
    leaves = sample.leaves()
    expected = (op.reference(leaves) * 2).relu()
    assert_near(output.detach(), expected.detach(), 1e-4)
    gradients = torch.autograd.grad(output.sum(), tensors)
    for gradient, true in zip(gradients, torch.autograd.grad(expected.sum(), leaves.given), strict=True):
        assert_near(gradient, true, 1e-4)


# the kernels do not look at the numbers of images
MOVABLE = [case for case in INVALID if not case[1].name.endswith((" device", " of an image"))]


@pytest.mark.parametrize(
    ("op", "sample", "message"), MOVABLE, ids=[f"{o.name}-{s.name}" for o, s, _ in MOVABLE]
)
def test_invalid_input_says_what_is_wrong(op, sample, message):
    with pytest.raises(RuntimeError) as error:
        op.call(moved(sample))
    assert message in str(error.value) and len(str(error.value).splitlines()) == 1


@every_op
def test_mixed_devices_are_refused(op):
    sample = next(iter(op.samples()))
    first, *others = sample.tensors
    mixed = op_cases.Sample("mixed", (first.to(DEVICE), *others), sample.kwargs)
    with pytest.raises(RuntimeError, match="expected device cuda:0 like input, got cpu"):
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
        torch.cuda._sleep(10_000_000)  # anything on another stream would read the input before it is there
        moved = sample.map(lambda t: t * 1)
        actual = deform_conv2d(*moved.tensors, padding=1)
    stream.synchronize()
    torch.testing.assert_close(actual, expected)


@every_form
def test_same_bits_in_deterministic_mode(op, sample, monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it torch refuses matrix products
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
        assert_near(ordered, atomic.cpu(), 1e-4)
