"""The tests of tests/ops/test_ops.py on a GPU; also CUDA graphs, streams and deterministic sums."""

import pytest

from dcnzoo.ops import with_cuda
from tests import op_cases
from tests.cuda.conftest import assert_captured, assert_current_stream, assert_same_bits
from tests.op_cases import deform_conv
from tests.ops.test_ops import (  # noqa: F401  collected here, with this file's `device` fixture
    every_form,
    every_op,
    test_autocast,
    test_checkpoint,
    test_compile_with_inductor,
    test_gradcheck,
    test_invalid_input_says_what_is_wrong,
    test_matches_reference,
    test_opcheck,
)

if not with_cuda():
    pytest.skip("no GPU, or no CUDA kernels: not run on a GPU", allow_module_level=True)


@pytest.fixture
def device() -> str:
    return "cuda"


@every_op
def test_cuda_graph(op):
    assert_captured(op)


@every_op
def test_mixed_devices_are_refused(op):
    sample = next(iter(op.samples()))
    first, *others = sample.tensors
    mixed = op_cases.Sample("mixed", (first.cuda(), *others), sample.kwargs)
    with pytest.raises(RuntimeError, match=r"expected device cuda:0 like (input|value), got cpu"):
        op.call(mixed)


def test_runs_on_the_current_stream_and_device():
    assert_current_stream(deform_conv.make("stream", padding=1))


@every_form
def test_same_bits_in_deterministic_mode(op, sample):
    assert_same_bits(op, sample)
