"""The Triton kernels of every operator in the interpreter, compared with the reference in float64."""

from dataclasses import replace
from importlib.util import find_spec
from random import Random

import pytest
import torch

from tests import op_cases
from tests.helpers import interpreter
from tests.helpers.fused import (
    ATTENTIONS,
    CONVOLUTIONS,
    NAMES,
    OPERATORS,
    assert_right,
    samples_of,
    with_channels,
)
from tests.helpers.operators import largest
from tests.op_cases import Sample, deform_conv, ms_deform_attn, ramp, results
from tests.ops import test_not_finite as not_finite

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")

every_operator = pytest.mark.parametrize("name", NAMES)

SMALL = deform_conv.make("small", size=(3, 4), padding=1)
# `make test` runs these: the interpreter takes seconds for others
QUICK = {
    "deform_conv1d": ("depthwise",),
    "deform_conv2d": ("one output pixel",),
    "dcnv3": ("no channels",),
    "dcnv4": ("without center",),
    "ms_deform_attn": ("gaps between levels",),
}


CASES = [
    pytest.param(
        name,
        sample,
        id=f"{name}-{sample.name}",
        marks=() if sample.name in QUICK.get(name, (samples_of(name)[0].name,)) else pytest.mark.slow,
    )
    for name in NAMES
    for sample in samples_of(name)
]
POINT = next(sample for sample in samples_of("deform_conv2d") if sample.name == "one output pixel")


@pytest.mark.parametrize(("name", "sample"), CASES)
def test_matches_reference(interpret, name, sample):
    assert_right(interpret, name, sample, torch.float32, long_indices="long" in sample.name)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n == "roi_align" else pytest.mark.slow) for n in NAMES]
)
def test_a_plan_computes_the_bits_of_a_new_one(interpret, name):
    sample = (POINT if name == "deform_conv2d" else samples_of(name)[-1]).to(torch.float32)
    grad = ramp(OPERATORS[name].reference(sample))
    other = sample.map(lambda tensor: tensor.flip(0))
    for by_plan, anew in zip(
        *interpret(interpreter.by_plan_and_anew, name, sample, other, grad), strict=True
    ):
        assert torch.equal(by_plan, anew)


HALF = [(name, samples_of(name)[0]) for name in NAMES if name != "deform_conv2d"]
HALF += [("deform_conv2d", POINT), ("deform_conv2d", CONVOLUTIONS[2])]


@pytest.mark.parametrize(
    ("name", "sample", "dtype"),
    [
        pytest.param(
            name, sample, dtype, id=f"{name}-{sample.name}-{dtype}", marks=() if quick else pytest.mark.slow
        )
        for name, sample in HALF
        for dtype in (torch.bfloat16, torch.float16)
        for quick in [dtype == torch.bfloat16 and (sample is POINT or name == "dcnv3")]
    ],
)
def test_half_types(interpret, name, sample, dtype):
    assert_right(interpret, name, sample, dtype)


def test_float32_fields_with_half_maps(interpret):
    half = SMALL.to(torch.bfloat16).tensors
    fields = SMALL.to(torch.float32).tensors[2:4]
    assert_right(interpret, "deform_conv2d", replace(SMALL, tensors=(*half[:2], *fields, half[4])))


@pytest.mark.slow
@every_operator
def test_long_indices(interpret, name):
    assert_right(interpret, name, samples_of(name)[0], torch.float32, long_indices=True)


@pytest.mark.slow
@pytest.mark.parametrize("channels", [4, 8, 24, 32, 36, 64, 128, 256])
@pytest.mark.parametrize("name", ATTENTIONS)
def test_channels_per_group(interpret, name, channels):
    assert_right(interpret, name, with_channels(name, channels), torch.float32)


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
    assert_right(interpret, name, samples_of(name)[0].map(layout), torch.float32)


@pytest.mark.slow
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_memory_formats(interpret, layout):
    """Input and output have either memory format; offset and mask are parts of one map in that format."""
    input, weight, offset, mask, bias = SMALL.to(torch.float32).tensors
    offset, mask = torch.cat([offset, mask], 1).contiguous(memory_format=layout).split([12, 6], 1)
    tensors = (input.contiguous(memory_format=layout), weight, offset, mask, bias)
    output, grad_input, *_ = assert_right(interpret, "deform_conv2d", replace(SMALL, tensors=tensors))
    assert output.is_contiguous(memory_format=layout) and grad_input.is_contiguous(memory_format=layout)


def test_border(interpret):
    """At -1 and at ``size``, a sample and its gradient are zero; across the border, samples fade out."""
    ones = torch.ones(1, 1, 1, 4)
    offset = torch.zeros(1, 2, 1, 4)
    offset[0, 1, 0] = torch.tensor([-1.0, -1.5, 1.5, 1.0])  # x at -1, -0.5, 3.5, 4
    sample = Sample("", (ones, ones[..., :1], offset, None, None))
    _, (output, _, _, of_offset) = interpret(interpreter.run_operator, "deform_conv2d", sample, ones)
    assert output.flatten().tolist() == [0, 0.5, 0.5, 0]
    assert of_offset[0, 1, 0].tolist() == [0, 1, -1, 0]


@pytest.mark.parametrize("seed", range(6))
def test_nms(interpret, seed):
    op = interpreter.OPERATORS["nms"]
    sample = op.random_sample(Random(seed), "").to(torch.float32)
    ran, (result,) = interpret(interpreter.run_operator, "nms", sample, None)
    assert ran == [("nms", None)]
    assert torch.equal(result, op.reference(sample))


@pytest.mark.slow
def test_nms_of_several_words(interpret):
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(400, 2, generator=generator) * 60
    boxes = torch.cat([corner, corner + 5 + torch.rand(400, 2, generator=generator) * 9], 1)
    boxes[7, 2], boxes[9] = torch.nan, torch.inf
    sample = Sample("words", (boxes, torch.rand(400, generator=generator)), {"iou_threshold": 0.3})
    _, (result,) = interpret(interpreter.run_operator, "nms", sample, None)
    assert torch.equal(result, interpreter.OPERATORS["nms"].call(sample)) and 70 < len(result) < 390


# Inf and NaN: every argument and the output's gradient

# Most samples of deform_conv2d with groups are left out: each takes minutes in the interpreter. They differ
# in how the CPU packs groups; Triton runs the same kernels for "groups of 8".
NOT_FINITE = [
    (i, f"{op.name}-{sample.name}")
    for i, (op, sample) in enumerate(not_finite.CASES)
    if op.name in OPERATORS
    and not (op.name == "deform_conv2d" and "groups" in sample.name and sample.name != "groups of 8")
]


@pytest.mark.slow
@pytest.mark.parametrize("case", [pytest.param(i, id=name) for i, name in NOT_FINITE])
def test_not_finite(interpret, case):
    """Each case gets one value, because the interpreter needs seconds for a forward and a backward."""
    values = (not_finite.INF, not_finite.NAN, -not_finite.INF)
    interpret(interpreter.run_not_finite, case, values[case % len(values)])


@pytest.mark.parametrize("value", [not_finite.INF, -not_finite.INF])
def test_infinite_mask(interpret, value):
    interpret(not_finite.test_infinite_mask, value)


def test_pooling_reads_no_more(interpret):
    interpret(not_finite.test_pooling_reads_no_more)


def test_gradients_of_a_group_read_no_other(interpret):
    interpret(not_finite.test_gradients_of_a_group_read_no_other)


# Which calls run in Triton, and torch's rules


def test_deterministic_gradients(interpret):
    """Triton computes all gradients but that of the input."""
    sample = SMALL.to(torch.float32)
    grad = ramp(deform_conv.reference(sample))
    ran, actual = interpret(interpreter.run_operator, "deform_conv2d", sample, grad, False, True)
    assert ran[1] == ("_deform_conv_backward", [False, True, True, True, True])
    expected = results(deform_conv.reference, sample.to(torch.float64), grad.double())
    for result, reference in zip(actual, expected, strict=True):
        torch.testing.assert_close(result.double(), reference, rtol=1e-5, atol=1e-5 * largest(reference))


def test_three_dimensions_run_compiled_kernels(interpret):
    sample = deform_conv.make("3d", size=(2, 3, 4), kernel=(1, 2, 3)).to(torch.float32)
    grad = ramp(deform_conv.reference(sample))
    assert interpret(interpreter.run_operator, "deform_conv3d", sample, grad)[0] == []


BOTH = ["deform_conv", "_deform_conv_backward"]


@pytest.mark.parametrize(
    ("dtype", "listed", "ran"),
    [
        (torch.bfloat16, {"bfloat16": {"forward": 0, "backward": 0}}, BOTH),
        (torch.bfloat16, {"bfloat16": {"forward": 100, "backward": 0}}, BOTH[1:]),
        (torch.bfloat16, {"bfloat16": {"forward": 0, "backward": 100}}, BOTH[:1]),
        (torch.bfloat16, {"bfloat16": {"forward": 0}}, BOTH[:1]),
        (torch.bfloat16, {"float16": {"forward": 0, "backward": 0}}, []),
        (torch.float32, {"float32": {"forward": 0, "backward": 0}}, []),
    ],
    ids=["listed", "small forward", "small backward", "forward", "not listed", "float32 without TF32"],
)
def test_auto_takes_what_the_table_lists_as_faster(interpret, dtype, listed, ran):
    sample = POINT.to(dtype)
    grad = ramp(deform_conv.reference(sample))
    assert interpret(interpreter.chosen_by_auto, sample, grad, listed) == ran


def test_auto_without_a_c_compiler_runs_the_compiled_kernels(interpret):
    sample = POINT.to(torch.bfloat16)
    grad = ramp(deform_conv.reference(sample))
    ran, messages = interpret(interpreter.chosen_without_compiler, sample, grad)
    assert ran == []
    assert len(messages) == 1 and "no C compiler" in messages[0]
