"""The Triton kernels of every operator in the interpreter, compared with the reference in float64."""

from importlib.util import find_spec
from random import Random

import pytest
import torch

from .. import op_cases
from ..op_cases import Sample, dcnv3, dcnv4, ms_deform_attn, ramp, results
from ..ops import test_not_finite as not_finite
from ..ops.test_ops import largest
from . import interpreter
from .test_fused import TOLERANCE

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")

OPERATORS = {
    op.name: op
    for op in op_cases.operators()
    if op.name in ("dcnv3", "dcnv4", "ms_deform_attn", "roi_align", "deform_roi_pool", "deform_conv1d")
}
ATTENTIONS = ("dcnv3", "dcnv4", "ms_deform_attn")
# `make test` runs the first sample of each operator and these: the interpreter takes seconds per sample
QUICK = ("without center", "gaps between levels", "depthwise", "no channels")


def with_channels(name: str, channels: int) -> Sample:
    """A sample of dcnv3, dcnv4 or ms_deform_attn with this number of channels per group."""
    if name == "ms_deform_attn":
        return ms_deform_attn.make(f"{channels} channels", batch=1, channels=channels)
    sample = dcnv3.make(f"{channels} channels", batch=1, size=(3, 4), group_channels=channels)
    return dcnv4.packed(sample) if name == "dcnv4" else sample


def is_fused(op: op_cases.Operator, sample: Sample) -> bool:
    return sample.kwargs.get("pool_mode") != "max" and not op_cases.is_plain_convolution(sample)


CASES = [
    pytest.param(
        op.name,
        sample,
        id=f"{op.name}-{sample.name}",
        marks=() if i == 0 or sample.name in QUICK else pytest.mark.slow,
    )
    for op in OPERATORS.values()
    for i, sample in enumerate(sample for sample in op.samples() if is_fused(op, sample))
]


def assert_right(interpret, name: str, sample: Sample, dtype=torch.float32, long_indices=False) -> None:
    """The operator and its backward run in Triton, and their results are the reference's."""
    op, sample = OPERATORS[name], sample.to(dtype)
    exact = sample.to(torch.float64)
    grad = ramp(op.reference(exact)).to(dtype)
    expected = results(op.reference, exact, grad.double())
    ran, actual = interpret(interpreter.run_operator, name, sample, grad, long_indices)
    assert len(ran) == 2 and ran[1] == f"_{ran[0]}_backward"
    for result, reference in zip(actual, expected, strict=True):
        close = {"rtol": TOLERANCE[dtype], "atol": TOLERANCE[dtype] * largest(reference)}
        torch.testing.assert_close(result.double(), reference, **close)


@pytest.mark.parametrize(("name", "sample"), CASES)
def test_matches_reference(interpret, name, sample):
    assert_right(interpret, name, sample)


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.slow)], ids=str
)
@pytest.mark.parametrize("name", OPERATORS)
def test_half_types(interpret, name, dtype):
    assert_right(interpret, name, next(iter(OPERATORS[name].samples())), dtype)


@pytest.mark.slow
@pytest.mark.parametrize("name", OPERATORS)
def test_long_indices(interpret, name):
    assert_right(interpret, name, next(iter(OPERATORS[name].samples())), long_indices=True)


@pytest.mark.slow
@pytest.mark.parametrize("channels", [4, 8, 24, 32, 36, 64, 128, 256])
@pytest.mark.parametrize("name", ATTENTIONS)
def test_channels_per_group(interpret, name, channels):
    assert_right(interpret, name, with_channels(name, channels))


def test_levels_that_exceed_the_value_are_empty(interpret):
    sample = ms_deform_attn.make("two levels").to(torch.float32)
    shapes = sample.kwargs["spatial_shapes"].clone()
    shapes[1] = torch.tensor([2**20, 2**20])
    beyond = Sample("beyond", sample.tensors, {**sample.kwargs, "spatial_shapes": shapes})
    locations, weights = sample.tensors[1:]
    first = (locations[:, :, :, :1], weights[:, :, :, :1])
    one = {"spatial_shapes": shapes[:1], "level_start_index": sample.kwargs["level_start_index"][:1]}
    expected = ms_deform_attn.reference(Sample("one", (sample.tensors[0], *first), one))
    _, (output, *_) = interpret(interpreter.run_operator, "ms_deform_attn", beyond, ramp(expected))
    torch.testing.assert_close(output, expected)


@pytest.mark.slow
@pytest.mark.parametrize("layout", op_cases.LAYOUTS)
@pytest.mark.parametrize("name", ["dcnv3", "roi_align"])
def test_memory_layouts(interpret, name, layout):
    sample = next(iter(OPERATORS[name].samples())).to(torch.float32)
    grad = ramp(OPERATORS[name].reference(sample))
    _, expected = interpret(interpreter.run_operator, name, sample, grad)
    _, actual = interpret(interpreter.run_operator, name, sample.map(layout), grad)
    for result, reference in zip(actual, expected, strict=True):
        torch.testing.assert_close(result, reference)


@pytest.mark.parametrize("seed", range(12))
def test_nms(interpret, seed):
    (op,) = (op for op in op_cases.operators(differentiable=False) if op.name == "nms")
    sample = op.random_sample(Random(seed), "").to(torch.float32)
    ran, (result,) = interpret(interpreter.run_operator, "nms", sample, None)
    assert ran == ["nms"]
    assert torch.equal(result, op.reference(sample))


def test_nms_of_several_words(interpret):
    (op,) = (op for op in op_cases.operators(differentiable=False) if op.name == "nms")
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(400, 2, generator=generator) * 60
    boxes = torch.cat([corner, corner + 5 + torch.rand(400, 2, generator=generator) * 9], 1)
    boxes[7, 2], boxes[9] = torch.nan, torch.inf
    sample = Sample("words", (boxes, torch.rand(400, generator=generator)), {"iou_threshold": 0.3})
    _, (result,) = interpret(interpreter.run_operator, "nms", sample, None)
    assert torch.equal(result, op.call(sample)) and 70 < len(result) < 390


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", [i for i, (op, _) in enumerate(not_finite.CASES) if op.name in OPERATORS],
    ids=lambda i: f"{not_finite.CASES[i][0].name}-{not_finite.CASES[i][1].name}",
)  # fmt: skip
def test_not_finite(interpret, case):
    interpret(interpreter.run_not_finite, case)


def test_pooling_reads_no_more(interpret):
    interpret(not_finite.test_pooling_reads_no_more)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dcnv3", "ms_deform_attn", "deform_roi_pool"])
def test_opcheck(interpret, name):
    interpret(interpreter.opcheck_operator, name)
