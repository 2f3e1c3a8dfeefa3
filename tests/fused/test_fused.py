"""The fused kernels in Triton's interpreter, compared with the reference in float64."""

from importlib.util import find_spec

import pytest
import torch

from ..op_cases import Sample, deform_conv, ramp, results
from ..ops import test_not_finite as not_finite
from ..ops.test_ops import largest
from . import interpreter

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")

TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}

WIDE = {"channels": 64, "out_channels": 64, "size": (2, 3), "padding": 1}
SAMPLES = [
    *(sample for sample in deform_conv.samples() if sample.name != "neither"),  # torch's own convolution
    deform_conv.make("whole blocks", **WIDE),
    deform_conv.make("whole blocks, long indices", **WIDE, mask_groups=None),
    # several convolution groups per offset group; several mask groups per convolution group
    deform_conv.make("groups of groups", **WIDE, groups=4, offset_groups=2),
    deform_conv.make("more mask than offset groups", **WIDE, groups=2, mask_groups=4, offset_groups=1),
    deform_conv.make("first layer", channels=3, out_channels=20, stride=2, padding=(1, 0)),
    deform_conv.make("more blocks than splits are needed for", size=(30, 31), channels=5, batch=1),
    # the first of these rows of 3 output pixels form a band of 8, the others one of 4, in each image
    deform_conv.make("bands of rows", size=(14, 4), channels=5),
]
SAMPLES = {sample.name: sample for sample in SAMPLES}
# The interpreter takes seconds per sample: `make test` runs these, `make test-all` runs all.
QUICK = ("v1", "v2", "bands of rows", "mask alone", "one output pixel", "groups of groups", "depthwise")
SMALL = deform_conv.make("small", size=(3, 4), padding=1)
every_sample = pytest.mark.parametrize(
    "sample",
    [pytest.param(s, id=n, marks=() if n in QUICK else pytest.mark.slow) for n, s in SAMPLES.items()],
)


def exact(sample: Sample, grad: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
    """Output and gradients of the reference for the values of ``sample``, in float64."""
    grad = None if grad is None else grad.double()
    return interpreter.named(sample, results(deform_conv.reference, sample.to(torch.float64), grad))


def assert_near(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], dtype) -> None:
    assert actual
    for name, result in actual.items():
        close = {"rtol": TOLERANCE[dtype], "atol": TOLERANCE[dtype] * largest(expected[name])}
        torch.testing.assert_close(result.double(), expected[name], **close, msg=lambda m: f"{name}: {m}")  # noqa: B023


@pytest.mark.parametrize(("field", "planes"), [("offset", 18), ("mask", 9)])
def test_long_indices_from_the_first_factor_on(interpret, field, planes):
    """Channel · plane stride exceeds 32 bits, although both factors fit."""
    size = dict(channels=16, out_channels=16, size=(3, 4), kernel=(3, 3), batch=1)
    sample = deform_conv.make("long", padding=1, **size).to(torch.float32)
    assert interpret(interpreter.planes_read, sample, field, 2**28) == list(range(planes))


@pytest.mark.parametrize("place", ["input", "weight", "offset", "mask", "grad"])
@pytest.mark.parametrize("value", [float("inf"), pytest.param(float("nan"), marks=pytest.mark.slow)])
def test_values_that_are_not_finite(interpret, place, value):
    """Inf and NaN spread to the same results as in the reference, even if channels do not fill a block."""
    size = dict(channels=20, out_channels=24, size=(3, 4), batch=1)
    sample = deform_conv.make(f"{place} {value}", padding=1, spread=3.0, **size).to(torch.float32)
    grad = ramp(deform_conv.reference(sample)).float()
    changed = dict(zip((*interpreter.GRADIENTS, "grad"), (*sample.tensors, grad), strict=True))[place]
    changed.view(-1)[:: max(changed.numel() // 3, 1)] = value
    expected = exact(sample, grad)
    for name, result in interpret(interpreter.run_kernels, sample, grad).items():
        finite = expected[name].isfinite()
        assert torch.equal(result.isfinite(), finite), name
        torch.testing.assert_close(result[finite].double(), expected[name][finite], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("value", [not_finite.INF, -not_finite.INF])
def test_infinite_mask(interpret, value):
    interpret(not_finite.test_infinite_mask, value)


FUSED_CASES = [i for i, (op, s) in enumerate(not_finite.CASES) if op.name == "deform_conv2d"]


@pytest.mark.slow
@pytest.mark.parametrize("case", FUSED_CASES, ids=lambda case: not_finite.CASES[case][1].name)
def test_not_finite(interpret, case):
    interpret(interpreter.run_not_finite, case)


@every_sample
def test_matches_reference(interpret, sample):
    sample = sample.to(torch.float32)
    expected = exact(sample)
    grad = ramp(expected["output"]).float()
    results = interpret(interpreter.run_kernels, sample, grad, "long" in sample.name)
    given = [n for n, t in zip(interpreter.GRADIENTS, sample.tensors, strict=True) if t is not None]
    assert {*results, "bias"} == {*given, "output", "bias"}
    assert_near(results, expected, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "name", ["one output pixel", pytest.param("groups of groups", marks=pytest.mark.slow)]
)
def test_half_types(interpret, name, dtype):
    sample = SAMPLES[name].to(dtype)
    expected = exact(sample)
    results = interpret(interpreter.run_kernels, sample, ramp(expected["output"]).to(dtype))
    assert all(result.dtype == dtype for result in results.values())
    assert_near(results, expected, dtype)


def test_float32_fields_with_half_maps(interpret):
    input, weight, offset, mask, bias = SMALL.to(torch.float32).tensors
    half = [t.to(torch.bfloat16) for t in (input, weight, bias)]
    sample = Sample("", (half[0], half[1], offset, mask, half[2]), SMALL.kwargs)
    expected = exact(sample)
    grad = ramp(expected["output"]).bfloat16()
    results = interpret(interpreter.run_kernels, sample, grad)
    assert results["offset"].dtype == results["mask"].dtype == torch.float32
    assert_near(results, expected, torch.bfloat16)


def test_border(interpret):
    """At -1 and at ``size``, a sample and its gradient are zero; at the border it fades out."""
    ones = torch.ones(1, 1, 1, 4)
    offset = torch.zeros(1, 2, 1, 4)
    offset[0, 1, 0] = torch.tensor([-1.0, -1.5, 1.5, 1.0])  # x at -1, -0.5, 3.5, 4
    sample = Sample("", (ones, ones[..., :1], offset, None, None))
    results = interpret(interpreter.run_kernels, sample, ones)
    assert results["output"].flatten().tolist() == [0, 0.5, 0.5, 0]
    assert results["offset"][0, 1, 0].tolist() == [0, 1, -1, 0]


def test_memory_formats(interpret):
    """Channels-last input and output; offset and mask as parts of one map, in either format."""
    sample = SMALL.to(torch.float32)
    expected = exact(sample)
    grad = ramp(expected["output"]).float()
    both = torch.cat(sample.tensors[2:4], 1)
    for layout in (torch.channels_last, torch.contiguous_format):
        offset, mask = both.contiguous(memory_format=layout).split([12, 6], 1)
        input = sample.tensors[0].contiguous(memory_format=layout)
        changed = Sample("", (input, sample.tensors[1], offset, mask, sample.tensors[4]), sample.kwargs)
        results = interpret(interpreter.run_kernels, changed, grad.contiguous(memory_format=layout))
        for name in ("input", "output"):
            assert results[name].is_contiguous(memory_format=layout)
        assert_near(results, expected, torch.float32)


def test_no_copy_of_a_field_whose_rows_follow_one_another():
    from dcnzoo.ops.fused import deform_conv as fused

    both = torch.zeros(2, 18, 4, 5)
    for layout in (torch.channels_last, torch.contiguous_format):
        offset, mask = both.contiguous(memory_format=layout).split([12, 6], 1)
        assert fused._strided(offset) is offset and fused._strided(mask) is mask
    gap = both[..., :4]
    assert fused._strided(gap).is_contiguous() and not gap.is_contiguous()


ALL = ["forward", "grad_weight", "grad_samples(True, True, True)"]


@pytest.mark.parametrize(
    ("sample", "ordered", "kernels"),
    [
        pytest.param(SMALL, False, ALL, id="v2"),
        pytest.param(
            SMALL, True, ["forward", "grad_weight", "grad_samples(False, True, True)"], id="in order"
        ),
        pytest.param(SAMPLES["groups"], False, ALL, id="groups"),
        pytest.param(SAMPLES["empty batch"], False, ALL, id="empty batch"),
        pytest.param(next(deform_conv.samples(1)), False, ALL, id="one dimension"),
        pytest.param(deform_conv.make("3d", size=(2, 3, 4), kernel=(1, 2, 3)), False, [], id="3 dimensions"),
    ],
)
def test_operator_runs_fused_kernels_where_they_fit(interpret, sample, ordered, kernels):
    sample = sample.to(torch.float32)
    expected = exact(sample)
    grad = ramp(expected["output"]).float()
    ran, results = interpret(interpreter.call_operator, sample, grad, ordered)
    assert ran == kernels
    assert_near(results, expected, torch.float32)


@pytest.mark.parametrize(
    ("dtype", "listed", "kernels"),
    [
        (torch.bfloat16, {"bfloat16": {"forward": 0, "backward": 0}}, ALL),
        (torch.bfloat16, {"bfloat16": {"forward": 100, "backward": 0}}, ALL[1:]),
        (torch.bfloat16, {"bfloat16": {"forward": 0, "backward": 100}}, ALL[:1]),
        (torch.bfloat16, {"bfloat16": {"forward": 0}}, ALL[:1]),
        (torch.bfloat16, {"float16": {"forward": 0, "backward": 0}}, []),
        (torch.float32, {"float32": {"forward": 0, "backward": 0}}, []),
    ],
    ids=["listed", "small forward", "small backward", "forward", "not listed", "float32 without TF32"],
)
def test_auto_takes_what_the_table_lists_as_faster(interpret, dtype, listed, kernels):
    sample = SAMPLES["one output pixel"].to(dtype)
    grad = ramp(exact(sample)["output"]).to(dtype)
    assert interpret(interpreter.chosen_by_auto, sample, grad, listed) == kernels


def test_auto_without_a_c_compiler_runs_the_compiled_kernels(interpret):
    sample = SAMPLES["one output pixel"].to(torch.bfloat16)
    grad = ramp(exact(sample)["output"]).bfloat16()
    ran, messages = interpret(interpreter.chosen_without_compiler, sample, grad)
    assert ran == []
    assert len(messages) == 1 and "no C compiler" in messages[0]


def test_opcheck(interpret):
    interpret(interpreter.opcheck, SMALL.to(torch.float32))


def test_torch_compile_sees_one_node(interpret):
    nodes = interpret(interpreter.nodes_when_compiled, SAMPLES["one output pixel"].to(torch.float32))
    assert nodes == ["dcnzoo.deform_conv"]
