"""The operators on a GPU without the compiled CUDA library (``DCNZOO_CUDA=0``): Triton, or plain PyTorch."""

from random import Random

import pytest
import torch

from dcnzoo.ops import has_ops, with_cuda
from tests import op_cases
from tests.cuda.conftest import assert_captured, assert_current_stream, assert_same_bits
from tests.helpers.fused import ATTENTIONS, TOLERANCE, assert_right, on_gpu, samples_of, with_channels
from tests.helpers.fused import NAMES as FUSED
from tests.helpers.operators import moved
from tests.op_cases import deform_conv, ms_deform_attn
from tests.ops.test_ops import (  # noqa: F401  collected here, with this file's `device` fixture
    every_op,
    test_autocast,
    test_checkpoint,
    test_invalid_input_says_what_is_wrong,
    test_opcheck,
)

if not (torch.cuda.is_available() and has_ops()) or with_cuda():
    pytest.skip("no GPU, or with the compiled library", allow_module_level=True)
pytest.importorskip("triton")
from dcnzoo.ops import choose

OPERATORS = {op.name: op for op in op_cases.operators(differentiable=False)}


@pytest.fixture
def device() -> str:
    return "cuda"


@pytest.fixture(autouse=True)
def no_kernel_failed():
    yield
    assert not choose.failed


CASES = [
    pytest.param(name, sample, dtype, id=f"{name}-{sample.name}-{str(dtype).removeprefix('torch.')}")
    for dtype in TOLERANCE
    for name in FUSED
    for i, sample in enumerate(samples_of(name))
    if dtype == torch.float32 or i < 3
]


@pytest.mark.parametrize(("name", "sample", "dtype"), CASES)
def test_triton_matches_reference(name, sample, dtype):
    assert_right(on_gpu, name, sample, dtype)


@pytest.mark.parametrize("channels", [8, 24, 32, 36, 64, 256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ATTENTIONS)
def test_channels_per_group(name, dtype, channels):
    assert_right(on_gpu, name, with_channels(name, channels), dtype)


def test_nms():
    op = OPERATORS["nms"]
    for seed in range(40):
        sample = op.random_sample(Random(seed), "").to(torch.float32)
        assert torch.equal(op.call(moved(sample)).cpu(), op.call(sample))
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(5000, 2, generator=generator) * 300
    boxes = torch.cat([corner, corner + 5 + torch.rand(5000, 2, generator=generator) * 20], 1)
    scores = torch.rand(5000, generator=generator)
    call = torch.ops.dcnzoo.nms
    assert torch.equal(call(boxes.cuda(), scores.cuda(), 0.4).cpu(), call(boxes, scores, 0.4))


@pytest.mark.parametrize("name", FUSED)
def test_cuda_graph(name):
    assert_captured(OPERATORS[name])


@pytest.mark.parametrize("name", FUSED)
def test_same_bits_in_deterministic_mode(name):
    assert_same_bits(OPERATORS[name], next(iter(OPERATORS[name].samples())))


def test_current_stream():
    assert_current_stream(deform_conv.make("stream", channels=32, out_channels=32, padding=1))


def test_levels_beyond_the_value_read_zeros():
    sample = moved(ms_deform_attn.make("two levels").to(torch.float32))
    sample.kwargs["spatial_shapes"][1] = 2**20
    assert ms_deform_attn.call(sample).isfinite().all()


def test_all_operators_run():
    """Calls in float64 and operators without a Triton kernel run in plain PyTorch."""
    for op in OPERATORS.values():
        sample = op.random_sample(Random(1), "")
        torch.testing.assert_close(op.call(moved(sample)).cpu(), op.call(sample))
