"""Every operator's cases (tests/op_cases) against its oracle, and what PyTorch expects of an operator."""

from __future__ import annotations

import pytest
import torch
import torch._dynamo.testing

from . import op_cases

CASES = [(module, sample) for module in op_cases.modules() for sample in module.samples()]
INVALID = [(module, *case) for module in op_cases.modules() for case in module.invalid()]

# absolute and relative; the only place for tolerances
TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-5}

every_case = pytest.mark.parametrize(("op", "sample"), CASES, ids=[f"{m.NAME}-{s.name}" for m, s in CASES])
dtypes = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)


def gradients(function, sample: op_cases.Sample, grad: torch.Tensor) -> list[torch.Tensor]:
    sample = sample.leaves()
    return torch.autograd.grad(function(sample), sample.given, grad)


def assert_same(op, sample: op_cases.Sample, oracle: op_cases.Sample, tolerance: float) -> None:
    """Output and all gradients of ``sample`` against the oracle's on ``oracle``, in float64."""
    expected = op.reference(oracle)
    actual = op.call(sample)
    assert actual.shape == expected.shape and actual.dtype == sample.tensors[0].dtype
    close = {"rtol": tolerance, "atol": tolerance * max(1.0, _largest(expected))}
    torch.testing.assert_close(actual.double(), expected.double(), **close)
    grad = torch.linspace(-1, 1, expected.numel(), dtype=torch.float64).view(expected.shape)
    for mine, true, tensor in zip(
        gradients(op.call, sample, grad.to(actual.dtype)),
        gradients(op.reference, oracle, grad),
        sample.given,
        strict=True,
    ):
        assert mine.shape == tensor.shape and mine.dtype == tensor.dtype
        close = {"rtol": tolerance, "atol": tolerance * max(1.0, _largest(true))}
        torch.testing.assert_close(mine.double(), true.double(), **close)


def _largest(tensor: torch.Tensor) -> float:
    return tensor.abs().max().item() if tensor.numel() else 0.0


@every_case
@dtypes
def test_matches_reference(op, sample, dtype):
    sample = sample.to(dtype)
    assert_same(op, sample, sample.to(torch.float64), TOLERANCE[dtype])


@every_case
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_rounds_no_more_than_plain_pytorch(op, sample, dtype):
    """Our error against float64 is at most twice that of the reference in the same dtype."""
    half = sample.to(dtype)
    exact = op.reference(half.to(torch.float64))
    ours = (op.call(half).double() - exact).abs()
    plain = (op.reference(half).double() - exact).abs()
    assert _largest(ours) <= 2 * _largest(plain) + 1e-6


@every_case
def test_memory_formats(op, sample):
    """Channels-last, strided and expanded inputs mean the same as contiguous ones."""

    def strided(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.repeat_interleave(2, dim=-1)[..., ::2]

    def channels_last(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor

    def transposed(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.transpose(0, -1).contiguous().transpose(0, -1)

    for change in (strided, channels_last, transposed):
        changed = sample.map(change)
        assert_same(op, changed, sample, TOLERANCE[torch.float64])


@pytest.mark.parametrize(
    ("op", "sample", "message"), INVALID, ids=[f"{m.NAME}-{s.name}" for m, s, _ in INVALID]
)
def test_invalid_input_says_what_is_wrong(op, sample, message):
    with pytest.raises(RuntimeError) as error:
        op.call(sample)
    assert message in str(error.value)
    assert len(str(error.value).splitlines()) == 1, "one line, without C++ frames"


def as_function(op, sample: op_cases.Sample):
    """The sample as the function of its tensors that gradcheck wants, and those tensors."""
    leaves = sample.leaves()

    def function(*tensors):
        remaining = iter(tensors)
        return op.call(leaves.map(lambda _: next(remaining)))

    return function, tuple(leaves.given)


@every_case
def test_gradcheck(op, sample):
    function, tensors = as_function(op, sample)
    assert torch.autograd.gradcheck(function, tensors, fast_mode=True)


@every_case
def test_gradgradcheck(op, sample):
    function, tensors = as_function(op, sample)
    assert torch.autograd.gradgradcheck(function, tensors, fast_mode=True)


@every_case
def test_opcheck(op, sample):
    for overload, arguments in op.overload_calls(sample):
        torch.library.opcheck(overload, arguments)


@pytest.mark.parametrize("op", op_cases.modules(), ids=lambda m: m.NAME)
def test_compile_without_graph_breaks_or_recompilation(op):
    """One compilation serves every batch and spatial size, forward and backward."""
    compilations = torch._dynamo.testing.CompileCounter()
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda *tensors: op.call(op_cases.Sample("", tensors, kwargs)).relu(),
        backend=compilations,
        fullgraph=True,
        dynamic=True,
    )
    samples = list(op.resized_samples())
    kwargs = samples[0].kwargs
    for sample in samples:
        leaves = sample.leaves()
        output = compiled(*leaves.tensors)
        torch.testing.assert_close(output, op.reference(sample).relu())
        output.sum().backward()
        assert all(t.grad is not None for t in leaves.given)
    assert compilations.frame_count == 1


@pytest.mark.parametrize("op", op_cases.modules(), ids=lambda m: m.NAME)
def test_compile_with_inductor(op):
    torch._dynamo.reset()
    sample = next(iter(op.samples())).to(torch.float32)
    function, tensors = as_function(op, sample)
    compiled = torch.compile(lambda *t: (function(*t) * 2).relu(), fullgraph=True)
    output = compiled(*tensors)
    expected = (op.reference(sample) * 2).relu()
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-4)
    mine = torch.autograd.grad(output.sum(), tensors)
    leaves = sample.leaves()
    true = torch.autograd.grad((op.reference(leaves) * 2).relu().sum(), leaves.given)
    torch.testing.assert_close(mine, true, rtol=1e-4, atol=1e-4)


@every_case
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast(op, sample, dtype):
    """Computes in autocast's dtype, with gradients in the dtype of the arguments."""
    sample = sample.to(torch.float32)
    leaves = sample.leaves()
    with torch.autocast("cpu", dtype=dtype):
        output = op.call(leaves)
    assert output.dtype == dtype
    exact = op.reference(sample.to(torch.float64))
    tolerance = 8 * torch.finfo(dtype).eps
    torch.testing.assert_close(
        output.double(), exact, rtol=tolerance, atol=tolerance * max(1.0, _largest(exact))
    )
    output.float().sum().backward()
    assert all(t.grad is not None and t.grad.dtype == torch.float32 for t in leaves.given)


@every_case
def test_same_bits_for_every_number_of_threads(op, sample):
    sample = sample.to(torch.float32)
    grad = torch.ones_like(op.call(sample))
    results = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append([op.call(sample), *gradients(op.call, sample, grad)])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
