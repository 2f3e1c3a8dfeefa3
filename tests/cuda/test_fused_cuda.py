"""The fused kernels on a GPU. Without one: tests/fused runs them in Triton's interpreter."""

import pytest
import torch
import torch.nn.functional as F

from dcnzoo.ops import choose, deform_conv2d, run, with_cuda
from dcnzoo.ops._arguments import arguments_of
from tests.cuda.conftest import assert_current_stream, assert_same_bits
from tests.helpers.fused import TOLERANCE, assert_right, on_gpu, samples_of
from tests.helpers.operators import largest, moved
from tests.op_cases import deform_conv, ramp, results

if not with_cuda():
    pytest.skip("no GPU, or no CUDA kernels: not run on a GPU", allow_module_level=True)
pytest.importorskip("triton")


@pytest.fixture
def fused():
    before = choose.backend
    run.set_backend("fused")
    yield
    run.set_backend(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("sample", samples_of("deform_conv2d"), ids=lambda sample: sample.name)
def test_matches_reference(fused, sample, dtype):
    assert_right(on_gpu, "deform_conv2d", sample, dtype, "long" in sample.name)


@pytest.mark.parametrize("kernel", ["forward", "grad_weight", "grad_samples"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_configuration_of_the_table(kernel, dtype):
    from dcnzoo.ops.fused import deform_conv as fused

    sample = deform_conv.make("table", channels=256, out_channels=256, size=(9, 11), padding=1).to(dtype)
    input, weight, offset, mask, bias = moved(sample).tensors
    numbers = ([1, 1], [1, 1], [1, 1], 1, None)
    exact = sample.to(torch.float64)
    grad = ramp(deform_conv.reference(exact)).to(dtype)
    names = ("output", "input", "weight", "offset", "mask", "bias")
    expected = dict(zip(names, results(deform_conv.reference, exact, grad.double()), strict=True))
    grad = grad.cuda()
    entry = fused.entry_of(fused.architecture(torch.device("cuda", 0)))
    for sizes in entry[kernel]["float32" if dtype == torch.float32 else "half"]:
        config = fused.Config(*sizes)
        if kernel == "forward":
            call = arguments_of("deform_conv")(input, weight, offset, mask, bias, *numbers)
            actual = {"output": fused.deform_conv(call, config)(call)}
        else:
            needed = [kernel == name for name in ("grad_samples", "grad_weight")]
            needed = [*needed, needed[0], needed[0], False]
            call = arguments_of("_deform_conv_backward")(grad, input, weight, offset, mask, *numbers, needed)
            actual = dict(zip(names[1:], fused.deform_conv_backward(call, config)(call), strict=True))
        for name, result in actual.items():
            if not result.numel():
                continue  # not needed
            close = {"rtol": TOLERANCE[dtype], "atol": TOLERANCE[dtype] * largest(expected[name])}
            torch.testing.assert_close(result.cpu().double(), expected[name], **close)


def test_tf32_where_it_is_allowed(fused):
    sample = deform_conv.make("tf32", channels=64, out_channels=64, padding=1).to(torch.float32)
    expected = deform_conv.reference(sample.to(torch.float64))
    before = torch.backends.cuda.matmul.allow_tf32
    try:
        for allowed, tolerance in ((False, 1e-5), (True, 4e-3)):
            torch.backends.cuda.matmul.allow_tf32 = allowed
            output = deform_conv.call(moved(sample)).cpu().double()
            torch.testing.assert_close(output, expected, rtol=0, atol=tolerance * expected.abs().max().item())
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def test_same_bits_where_order_is_asked_for(fused):
    sample = deform_conv.make("order", channels=64, out_channels=48, size=(30, 31), padding=1)
    assert_same_bits(deform_conv, sample)


def test_current_stream_and_device(fused):
    assert_current_stream(deform_conv.make("stream", channels=32, out_channels=32, padding=1))


@pytest.mark.xdist_group("large")  # in the same process as the tests of test_large_cuda.py
def test_more_than_two_to_the_31_elements(fused):
    channels, size = 256, 2912
    assert channels * size * size > 2**31
    input = torch.randn(1, channels, size, size, device="cuda", dtype=torch.float16)
    input = input.contiguous(memory_format=torch.channels_last)
    weight = torch.randn(16, channels, 1, 1, device="cuda", dtype=torch.float16) / 16
    offset = torch.zeros(1, 2, size, size, device="cuda", dtype=torch.float16)
    output = deform_conv2d(input, weight, offset)
    torch.testing.assert_close(output, F.conv2d(input, weight), rtol=1e-2, atol=1e-2)
