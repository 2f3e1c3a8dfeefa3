"""The cases of every operator (tests/op_cases) against its oracle, and PyTorch's rules for operators."""

import inspect
import itertools
from dataclasses import replace
from random import Random

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.utils.checkpoint import checkpoint

import dcnzoo.ops
from dcnzoo.ops.operator import OPERATORS as RECORDS
from tests import op_cases
from tests.helpers.operators import assert_same, largest, moved
from tests.helpers.products import in_turn
from tests.op_cases import Sample, ramp, results

OPERATORS = op_cases.operators()
CASES = [(op, sample) for op in OPERATORS for sample in op.samples()]
FORMS = [(op, sample) for op in OPERATORS for sample in op.forms()]

# absolute and relative; all tolerances are defined here
TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-5}

every_op = pytest.mark.parametrize("op", OPERATORS, ids=lambda op: op.name)


def named(cases, first=CASES):
    """The parameters of these cases. All except ``first`` are marked slow."""
    names = {f"{op.name}-{sample.name}" for op, sample in first}
    return [
        pytest.param(op, sample, id=name, marks=() if name in names else pytest.mark.slow)
        for op, sample in cases
        for name in [f"{op.name}-{sample.name}"]
    ]


# Each form of these operators takes another way through the fake kernel; of others, the first form is enough.
FAKE = ("deform_conv2d", "deform_conv_transpose2d", "dcnv3")
WAYS = [(op, s) for op, s in FORMS if s.name == op.forms()[0].name or op.name in FAKE]
# Operators of 2d call the same registered operators as these.
SAME_OPERATOR = [op.name for op in OPERATORS if op.name.endswith(("1d", "3d"))]
# Operators that Inductor compiles in `make test`; the others are alike.
COMPILED = ("deform_conv2d",)
OWN = [case for case in CASES if case[1].name != "neither"]  # without torch's own convolution
HALF = [torch.bfloat16, torch.float16]
every_form = pytest.mark.parametrize(("op", "sample"), named(FORMS))
forms_first, own_forms_first = named(CASES, FORMS), named(OWN, FORMS)


@pytest.fixture
def device() -> str:
    """tests/cuda/test_ops_cuda.py runs the tests that use this fixture on a GPU."""
    return "cpu"


@in_turn("op, sample, dtype", named(CASES), list(TOLERANCE))
def test_matches_reference(op, sample, dtype, device):
    sample = sample.to(dtype)
    assert_same(op, moved(sample, device), sample.to(torch.float64), TOLERANCE[dtype])


@every_op
@pytest.mark.parametrize("layout", [torch.clone, op_cases.channels_last])
def test_fake_results_have_the_strides_of_real_ones(op, layout):
    sample = op.forms()[0].map(layout)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = op.call(sample.map(mode.from_tensor))
    assert fake.stride() == op.call(sample).stride()


@in_turn("op, sample, dtype", own_forms_first, HALF)
def test_half_precision_rounds_no_more_than_plain_pytorch(op, sample, dtype):
    """Our error against float64 is at most twice that of the reference in the same dtype."""
    half = sample.to(dtype)
    exact = op.reference(half.to(torch.float64))
    ours = (op.call(half).double() - exact).abs()
    plain = (op.reference(half).double() - exact).abs()
    assert largest(ours) <= 2 * largest(plain) + 1e-6


@pytest.mark.parametrize("op", op_cases.operators(differentiable=False), ids=lambda op: op.name)
def test_invalid_input_says_what_is_wrong(op, device):
    """On a GPU, samples are moved to it, and the kernels do not check the numbers of images and levels."""
    unchecked = (" got meta", " got the tensor of offset", " in row ", " for level ")
    for sample, message in op.invalid():
        if device == "cuda" and any(got in sample.name for got in unchecked):
            continue
        with pytest.raises(RuntimeError, match=message) as error:
            op.call(sample if device == "cpu" else moved(sample))
        assert len(str(error.value).splitlines()) == 1, "one line, without C++ frames"


@pytest.mark.parametrize("op", op_cases.operators(differentiable=False), ids=lambda op: op.name)
def test_what_is_no_tensor_is_named(op):
    sample = op.forms()[0] if op.differentiable else op.random_sample(Random(0), "")
    parameters = inspect.signature(getattr(dcnzoo.ops, op.name)).parameters.values()
    tensors = [p for p in parameters if p.name not in sample.kwargs][: len(sample.tensors)]
    for (place, parameter), wrong in itertools.product(enumerate(tensors), ([1.0], None)):
        if wrong is None and "None" in str(parameter.annotation):
            continue
        call = replace(sample, tensors=(*sample.tensors[:place], wrong, *sample.tensors[place + 1 :]))
        with pytest.raises(TypeError, match=f"^{op.name}: {parameter.name}: .*got {type(wrong).__name__}"):
            op.call(call)


@pytest.mark.parametrize("op", op_cases.operators(differentiable=False), ids=lambda op: op.name)
def test_calls_without_values_are_checked(op):
    """Sizes, types and numbers are checked, on the meta device and with fake tensors."""
    unchecked = (" got meta", " got the tensor of offset", " in row ", " for level ")
    samples = [case for case in op.invalid() if not any(got in case[0].name for got in unchecked)]
    for sample, message in samples:
        if op.name != "ms_deform_attn":  # has integers, which stay on the CPU
            with pytest.raises(RuntimeError, match=message):
                op.call(sample.map(lambda tensor: tensor.to("meta")))
        with FakeTensorMode(allow_non_fake_inputs=True) as mode, pytest.raises(RuntimeError, match=message):
            op.call(sample.map(mode.from_tensor))


@pytest.mark.parametrize("device", ["CPU", "CUDA", "XPU", "MPS"])
def test_autocast_is_registered(device):
    for name in ("deform_conv", "deform_conv_transpose", "dcnv3", "dcnv4", "ms_deform_attn"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"dcnzoo::{name}", f"Autocast{device}")


@every_op
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_maps_with_float32_coordinates(op, dtype):
    """Offsets, masks and locations keep float32's precision, and gradients their arguments' types."""
    sample, half = op.forms()[0].to(torch.float32), (0, 1, 4) if "conv" in op.name else (0,)
    tensors = (t.to(dtype) if place in half else t for place, t in enumerate(sample.tensors))
    mixed = replace(sample, tensors=tuple(tensors))
    grad = ramp(op.call(mixed))
    actual = results(op.call, mixed, grad)
    expected = results(op.reference, mixed.to(torch.float64), grad.double())
    for mine, true, like in zip(actual, expected, [mixed.tensors[0], *mixed.given], strict=True):
        assert mine.dtype == like.dtype
        assert largest(mine.double() - true) <= torch.finfo(dtype).eps * largest(true)


def as_function(op, sample: Sample):
    """The sample as a function for gradcheck, and its tensors."""
    leaves = sample.leaves()
    return lambda *tensors: op.call(leaves.with_given(tensors)), tuple(leaves.given)


@every_op
def test_gradcheck(op, device):
    """Check one form; test_matches_reference and test_autograd.py compare derivatives with the oracle's."""
    function, tensors = as_function(op, moved(op.forms()[0], device))
    in_any_order = 1e-9 if device == "cuda" else 0.0  # because of atomic additions
    for check in (torch.autograd.gradcheck, torch.autograd.gradgradcheck):
        assert check(function, tensors, fast_mode=True, nondet_tol=in_any_order)


@pytest.mark.parametrize(("op", "sample"), named(FORMS, WAYS))
def test_opcheck(op, sample, device):
    """Run all checks on the first form; on other forms and gradients, run those of schema and fake kernel."""
    for number, (overload, arguments) in enumerate(op.overload_calls(moved(sample, device))):
        checks = ["test_schema", "test_faketensor"]
        if number < 2 and sample.name == op.forms()[0].name and op.name not in SAME_OPERATOR:
            checks += ["test_autograd_registration", "test_aot_dispatch_dynamic"]
        torch.library.opcheck(overload, arguments, test_utils=checks)


@pytest.mark.parametrize(
    "op",
    [
        pytest.param(op, id=op.name, marks=pytest.mark.slow if op.name in SAME_OPERATOR else ())
        for op in OPERATORS
    ],
)
def test_compile_without_graph_breaks_or_recompilation(op):
    """One compilation works for every batch and spatial size, forward and backward."""
    from torch._dynamo.testing import CompileCounter  # takes seconds to import, which collecting should not

    compilations = CompileCounter()
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda *tensors: op.call(Sample("", tensors, kwargs)).relu(),
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


@pytest.mark.parametrize(
    "op",
    [pytest.param(op, id=op.name, marks=() if op.name in COMPILED else pytest.mark.slow) for op in OPERATORS],
)
def test_compile_with_inductor(op, device):
    torch._dynamo.reset()
    sample = op.forms()[0].to(torch.float32)
    function, _ = as_function(op, moved(sample, device))
    # without vectors, inductor compiles no programs that test which instructions this machine has
    scalar = {"cpp.vec_isa_ok": False} if device == "cpu" else {}
    compiled = torch.compile(lambda *tensors: (function(*tensors) * 2).relu(), fullgraph=True, options=scalar)
    mine = results(lambda leaves: compiled(*leaves.given), moved(sample, device))
    true = results(lambda leaves: (op.reference(leaves) * 2).relu(), sample)
    torch.testing.assert_close([t.cpu() for t in mine], true, rtol=1e-4, atol=1e-4)


@in_turn("op, sample, dtype", forms_first, HALF)
def test_autocast(op, sample, dtype, device):
    """Gradients have the dtype of the arguments, whatever the compute dtype."""
    sample = sample.to(torch.float32)
    leaves = moved(sample, device).leaves()
    with torch.autocast(device, dtype=dtype):
        output = op.call(leaves)
    assert output.dtype == (dtype if op.autocasts else torch.float32)
    exact = op.reference(sample.to(torch.float64))
    tolerance = 8 * torch.finfo(dtype).eps
    close = {"rtol": tolerance, "atol": tolerance * largest(exact)}
    torch.testing.assert_close(output.cpu().double(), exact, **close)
    output.float().sum().backward()
    assert all(t.grad is not None and t.grad.dtype == torch.float32 for t in leaves.given)


@pytest.mark.parametrize("op", [op for op in OPERATORS if op.autocasts], ids=lambda op: op.name)
def test_autocast_keeps_offsets_and_masks_in_float32(op):
    """bfloat16 would round an offset of 100.3 to 100.5: the result is that of a call with float32 fields."""
    sample = op.forms()[0].to(torch.float32)
    record = RECORDS.get(op.name, RECORDS["deform_conv"])
    names = [n for n in record.Call._fields if n not in ("spatial_shapes", "level_start_index")]
    cast = [
        tensor if tensor is None or name in record.float32 else tensor.bfloat16()
        for name, tensor in zip(names, sample.tensors, strict=False)
    ]
    with torch.autocast("cpu", torch.bfloat16):
        output = op.call(sample)
    assert torch.equal(output, op.call(replace(sample, tensors=tuple(cast))))


@pytest.mark.parametrize(("op", "sample"), own_forms_first)
def test_same_bits_for_every_number_of_threads(op, sample, set_threads):
    by_count = []
    for count in (1, 2, 3, 7, 16, 64):
        set_threads(count)
        by_count.append(op.results(sample.to(torch.float32)))
    for other in by_count[1:]:
        assert all(torch.equal(a, b) for a, b in zip(by_count[0], other, strict=True))


@every_op
@pytest.mark.parametrize("reentrant", [False, True], ids=["not reentrant", "reentrant"])
def test_checkpoint(op, reentrant, device):
    sample = moved(op.forms()[0], device)
    function, tensors = as_function(op, sample)
    grads = [
        torch.autograd.grad(output.square().sum(), tensors)
        if not reentrant
        else (output.square().sum().backward(), [t.grad for t in tensors])[1]
        for output in (function(*tensors), checkpoint(function, *tensors, use_reentrant=reentrant))
    ]
    torch.testing.assert_close(*grads)


@every_op
def test_deterministic_mode_on_the_cpu(op):
    """Sums have a fixed order on the CPU, so that no operator is rejected."""
    function, tensors = as_function(op, op.forms()[0])
    torch.use_deterministic_algorithms(True)
    try:
        results = [torch.autograd.grad(function(*tensors).square().sum(), tensors) for _ in range(2)]
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
