"""Samples for the Triton kernels, and their comparison with the reference."""

import torch

from tests import op_cases
from tests.helpers import interpreter
from tests.helpers.operators import largest, moved
from tests.op_cases import Sample, dcnv3, dcnv4, deform_conv, ms_deform_attn, ramp, results

TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
ATTENTIONS = ("dcnv3", "dcnv4", "ms_deform_attn")
NAMES = ("deform_conv1d", "deform_conv2d", *ATTENTIONS, "roi_align", "deform_roi_pool")
OPERATORS = {name: interpreter.OPERATORS[name] for name in NAMES}
WIDE = {"channels": 64, "out_channels": 64, "size": (2, 3), "padding": 1}
CONVOLUTIONS = [
    deform_conv.make("whole blocks", **WIDE),
    deform_conv.make("whole blocks, long indices", **WIDE, mask_groups=None),
    # several convolution groups per offset group; several mask groups per convolution group
    deform_conv.make("groups of groups", **WIDE, groups=4, offset_groups=2),
    deform_conv.make("more mask than offset groups", **WIDE, groups=2, mask_groups=4, offset_groups=1),
    deform_conv.make("first layer", channels=3, out_channels=20, stride=2, padding=(1, 0)),
    deform_conv.make("more blocks than splits are needed for", size=(30, 31), channels=5, batch=1),
    # the first of these rows of 3 output pixels form a band of 8, the others one of 4, in each image
    deform_conv.make("bands of rows", size=(14, 4), channels=5),
    # an even number of blocks of channels and an odd number of taps: a wrong order of steps would miss pairs
    deform_conv.make("blocks of channels", channels=248, batch=1, size=(2, 4), kernel=(1, 3)),
]


def is_fused(sample: Sample) -> bool:
    return not op_cases.is_plain_convolution(sample)


def samples_of(name: str) -> list[Sample]:
    samples = [sample for sample in OPERATORS[name].samples() if is_fused(sample)]
    return samples + CONVOLUTIONS if name == "deform_conv2d" else samples


def with_channels(name: str, channels: int) -> Sample:
    """A sample of dcnv3, dcnv4 or ms_deform_attn with this number of channels per group."""
    if name == "ms_deform_attn":
        return ms_deform_attn.make(f"{channels} channels", batch=1, channels=channels)
    sample = dcnv3.make(f"{channels} channels", batch=1, size=(3, 4), group_channels=channels)
    return dcnv4.packed(sample) if name == "dcnv4" else sample


def on_gpu(
    function, name: str, sample: Sample, grad: torch.Tensor, *options
) -> tuple[list, list[torch.Tensor]]:
    """In place of the fixture ``interpret``, for tests/cuda."""
    ran, values = function(name, moved(sample), grad.cuda(), *options)
    return ran, [value.cpu() for value in values]


def assert_right(
    interpret, name: str, sample: Sample, dtype=None, long_indices: bool = False
) -> list[torch.Tensor]:
    """The operator and its backward run in Triton, and their results are the reference's."""
    op, sample = OPERATORS[name], sample if dtype is None else sample.to(dtype)
    exact = sample.to(torch.float64)
    output = op.reference(exact)
    grad = ramp(output).to(sample.tensors[0].dtype)
    expected = results(op.reference, exact, grad.double())
    ran, actual = interpret(interpreter.run_operator, name, sample, grad, long_indices)
    operator = ran[0][0]
    assert [name for name, _ in ran] == [operator, f"_{operator}_backward"]
    tolerance = TOLERANCE[sample.tensors[0].dtype]
    for result, reference, like in zip(actual, expected, [sample.tensors[0], *sample.given], strict=True):
        assert result.dtype == like.dtype
        close = {"rtol": tolerance, "atol": tolerance * largest(reference)}
        torch.testing.assert_close(result.double(), reference, **close)
    return actual
