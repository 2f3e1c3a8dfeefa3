"""Forward mode, ``torch.func``, vmap and subsets of the gradients of every operator; errors of torch."""

import contextlib
import itertools

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import grad, jvp, vmap

from dcnzoo.ops import _autograd, choose, deform_conv2d, deform_conv_transpose2d
from dcnzoo.ops.operator import Operator
from dcnzoo.ops.register import register
from tests import op_cases
from tests.op_cases import Sample

OPERATORS = op_cases.operators()
FORMS = [(op, sample) for op in OPERATORS for sample in op.forms()]
every_op = pytest.mark.parametrize("op", OPERATORS, ids=lambda op: op.name)
every_form = pytest.mark.parametrize(("op", "sample"), FORMS, ids=[f"{o.name}-{s.name}" for o, s in FORMS])


def functions(op, sample):
    """The operator and its reference as functions of the differentiable tensors."""
    return [lambda *tensors, f=f: f(sample.with_given(tensors)) for f in (op.call, op.reference)]


def tangents_of(tensors):
    return tuple(torch.cos(3 * t) for t in tensors)


def inner_product(some, others):
    return sum((a * b).sum() for a, b in zip(some, others, strict=True))


@every_op
def test_without_tangents_a_dual_level_changes_nothing(op):
    """The same kernels run, forward and backward."""
    sample, results = op.forms()[0], []
    for level in (contextlib.nullcontext, forward_ad.dual_level):
        leaves = sample.leaves()
        with level():
            output = op.call(leaves)
            gradients = torch.autograd.grad(output.square().sum(), leaves.given)
        results.append((type(output.grad_fn).__name__, output, *gradients))
    names, *tensors = zip(*results, strict=True)
    assert names[0] == names[1] and "dcnzoo" in names[0]
    assert all(torch.equal(a, b) for a, b in tensors)


@every_op
def test_only_wanted_gradients(op):
    sample = op.forms()[0]
    everything = sample.leaves()
    expected = torch.autograd.grad(op.call(everything).square().sum(), everything.given)
    for wanted, gradient in enumerate(expected):
        tensors = [t.requires_grad_(i == wanted) for i, t in enumerate(sample.map(torch.clone).given)]
        output = op.call(sample.with_given(tensors))
        (alone,) = torch.autograd.grad(output.square().sum(), tensors[wanted], create_graph=True)
        torch.testing.assert_close(alone, gradient, rtol=1e-12, atol=1e-12)
        assert torch.autograd.grad(alone.sum(), tensors[wanted])[0].isfinite().all()


@every_form
def test_forward_mode(op, sample):
    mine, true = functions(op, sample)
    tensors, tangents = tuple(sample.given), tangents_of(sample.given)
    expected = jvp(true, tensors, tangents)
    torch.testing.assert_close(jvp(mine, tensors, tangents), expected)
    with forward_ad.dual_level():
        dual = forward_ad.unpack_dual(mine(*map(forward_ad.make_dual, tensors, tangents)))
    torch.testing.assert_close((dual.primal, dual.tangent), expected)


@every_form
def test_second_derivatives(op, sample):
    """Second derivatives equal the reference's, in every combination of forward and reverse mode."""
    tensors, tangents = tuple(sample.given), tangents_of(sample.given)
    every = tuple(range(len(tensors)))
    results = []
    for function in functions(op, sample):
        value = lambda *t, f=function: f(*t).square().sum()  # noqa: E731
        slope = grad(value, argnums=every)
        along = lambda *t, v=value: jvp(v, t, tangents)[1]  # noqa: E731
        weighed = lambda *t, s=slope: inner_product(s(*t), tangents)  # noqa: E731
        results += [grad(f, every)(*tensors) for f in (along, weighed)]
        results.append(jvp(slope, tensors, tangents)[1])
    for result in results[1:]:
        torch.testing.assert_close(result, results[0])
    torch.testing.assert_close(jvp(along, tensors, tangents)[1], inner_product(results[0], tangents))


# vmap


def several(sample: Sample, count: int) -> list[torch.Tensor]:
    """Stack every tensor ``count`` times along a new first axis. Copies of differentiable tensors differ."""
    return [
        None
        if t is None
        else torch.stack([t * (1 + 0.1 * i * (place in sample.places)) for i in range(count)])
        for place, t in enumerate(sample.tensors)
    ]


def vmapped():
    """Yield cases that map over all tensors, over all except the first, and over each single one."""
    for op in OPERATORS:
        sample = op.forms()[0]
        places = [i for i, t in enumerate(sample.tensors) if t is not None]
        chosen = dict.fromkeys([tuple(places), tuple(places[1:]), *((place,) for place in places)])
        for mapped in filter(None, chosen):
            dims = tuple(0 if i in mapped else None for i in range(len(sample.tensors)))
            marks = pytest.mark.slow if 1 == len(mapped) < len(places) else ()
            yield pytest.param(op, sample, dims, id=f"{op.name}-{dims}", marks=marks)


@pytest.mark.parametrize(("op", "sample", "dims"), vmapped())
def test_vmap(op, sample, dims, recwarn):
    """Output and gradients, per sample and summed, equal a loop's. torch warns if vmap runs as a loop."""
    count = 3
    tensors = tuple(
        m if d == 0 else t for m, t, d in zip(several(sample, count), sample.tensors, dims, strict=True)
    )
    call = lambda *tensors: op.call(Sample("", tensors, sample.kwargs))  # noqa: E731
    per_sample = grad(lambda *tensors: call(*tensors).square().sum(), argnums=tuple(sample.places))

    def parts(tensors):
        return ([t[i] if d == 0 else t for t, d in zip(tensors, dims, strict=True)] for i in range(count))

    for function in (call, per_sample):
        results = [function(*picked) for picked in parts(tensors)]
        expected = torch.utils._pytree.tree_map(lambda *each: torch.stack(each), *results)
        torch.testing.assert_close(vmap(function, dims)(*tensors), expected)
    leaves = Sample("", tensors, constant=sample.constant).leaves()
    totals = (
        vmap(call, dims)(*leaves.tensors).square().sum(),
        sum(call(*picked).square().sum() for picked in parts(leaves.tensors)),
    )
    torch.testing.assert_close(*(torch.autograd.grad(total, leaves.given) for total in totals))
    loops = [warning for warning in recwarn if "batching rule" in str(warning.message)]
    assert not (loops and op.batched)


@every_op
def test_vmap_nested_and_over_another_axis(op):
    sample = op.forms()[0]
    call = lambda *tensors: op.call(Sample("", tensors, sample.kwargs))  # noqa: E731
    many = several(Sample("", tuple(several(sample, 2)), constant=sample.constant), 3)
    output = vmap(vmap(call), in_dims=1, out_dims=1)(*many)
    for i, j in itertools.product(range(3), range(2)):
        torch.testing.assert_close(output[i, j], call(*(None if t is None else t[i, j] for t in many)))
    if op.batched:
        first, *others = sample.tensors
        assert len(vmap(lambda t: call(t, *others))(first.new_empty(0, *first.shape))) == 0


def test_operator_with_one_gradient(monkeypatch):
    """torch returns the single result of its backward without a tuple."""
    library = torch.library.Library("dcnzoo", "FRAGMENT")
    library.define("square_for_the_test(Tensor x) -> Tensor")
    arguments = "Tensor grad_output, Tensor x, bool[1] output_mask"
    library.define(f"_square_for_the_test_backward({arguments}) -> Tensor")
    library.impl("square_for_the_test", torch.square, "CPU")
    library.impl("_square_for_the_test_backward", lambda grad, x, output_mask: 2 * x * grad, "CPU")
    square = torch.ops.dcnzoo.square_for_the_test
    monkeypatch.setattr("dcnzoo.ops.register.OPERATORS", operators := {})
    monkeypatch.setattr(choose, "OPERATORS", operators)
    record = Operator("square_for_the_test", torch.square, torch.square, torch.empty_like, lambda call: None)
    register(*_autograd.with_backward(record, ("x",)))
    x = torch.randn(3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(square, x) and torch.autograd.gradgradcheck(square, x)
    torch.testing.assert_close(grad(lambda x: square(x).sum())(x), 2 * x)
    meta = torch.empty(3, device="meta")
    assert torch.ops.dcnzoo._square_for_the_test_backward(meta, meta, [True]).shape == meta.shape
    library._destroy()


# Errors of torch inside the operators keep their text and type


OUT_OF_MEMORY = "CUDA out of memory. Tried to allocate 20.00 GiB."


def test_failed_allocation_keeps_torchs_message():
    """The arguments are small, but 2³¹ output pixels with 2²⁰ channels exceed any machine's memory."""
    input, weight = torch.zeros(1, 1, 1), torch.zeros(1, 1, 1).expand(2**20, 1, 1)
    with pytest.raises(RuntimeError, match="memory"):
        torch.empty(2**20, 2**31)
    with pytest.raises(RuntimeError) as error:
        torch.ops.dcnzoo.deform_conv(input, weight, None, None, None, [1], [2**30], [1], 1, None)
    if tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 13):  # older versions only print it
        assert "tried to allocate" in str(error.value)
    assert "memory" in str(error.value)


@pytest.fixture
def operator():
    """An operator whose kernel fails like a compiled one."""
    library = torch.library.Library("dcnzoo", "FRAGMENT")
    library.define("_fails_for_the_test(Tensor x, str text) -> Tensor")

    def fails(x, text):
        raise RuntimeError(text)

    library.impl("_fails_for_the_test", fails, "CPU")
    yield torch.ops.dcnzoo._fails_for_the_test
    library._destroy()


def test_out_of_memory_has_torchs_type(operator):
    """MMDetection's AvoidOOM and torch's own tools check for this type."""
    nothing = lambda *a: None  # noqa: E731
    _autograd.register_autograd(
        Operator("_fails_for_the_test", *[nothing] * 4, setup_context=nothing, backward=nothing)
    )
    for requires_grad in (False, True):
        x = torch.zeros(1, requires_grad=requires_grad)
        with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
            operator(x, OUT_OF_MEMORY)
        with pytest.raises(RuntimeError, match="something else") as error:
            operator(x, "something else")
        assert type(error.value) is RuntimeError


@pytest.mark.parametrize(("operator", "size"), [(deform_conv2d, (4, 5)), (deform_conv_transpose2d, (6, 7))])
def test_a_backward_under_autocast_computes_as_one_outside(operator, size):
    """As torch's derivatives do."""
    input, weight, offset = torch.randn(1, 4, 6, 7), torch.randn(4, 4, 3, 3), torch.randn(1, 18, *size)
    gradients = []
    for enabled in (False, True):
        leaves = [tensor.clone().requires_grad_() for tensor in (input, weight, offset)]
        output = operator(*leaves)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            output.square().sum().backward()
        gradients.append([leaf.grad for leaf in leaves])
    for ours, plain in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, plain, rtol=0, atol=0)
