"""The results of every operator are tensors of their own: any operation of a network may follow it.

Autograd forbids in-place operations on a view that a custom function returns: a ``ReLU(inplace=True)``
behind it would fail, and only in training. The cases are those of every schema, in each memory format.
"""

from random import Random

import pytest
import torch
from torch import Tensor

from dcnzoo.ops import _library
from tests import op_cases
from tests.helpers.products import in_turn
from tests.op_cases import ramp, results

ALL = op_cases.operators(differentiable=False)
LAYOUTS = {"contiguous": torch.clone, "channels last": op_cases.channels_last}
SCHEMAS = {schema.partition("(")[0] for schema in _library._SCHEMAS.read_text().splitlines()}


def forms(op):
    """Return the operator's forms, except for calls without offset and mask: torch's own convolution."""
    if op.differentiable:
        return [sample for sample in op.forms() if not op_cases.is_plain_convolution(sample)]
    return [op.random_sample(Random(seed), "") for seed in range(4)]


def cases(differentiable=True):
    return [
        pytest.param(op, sample.map(change), id=f"{op.name}-{number} {sample.name}-{layout}")
        for op in ALL
        for number, sample in enumerate(forms(op))
        for layout, change in LAYOUTS.items()
        if op.differentiable or not differentiable
    ]


every_call = pytest.mark.parametrize(("op", "sample"), cases())


def calls_of(op, sample) -> list[tuple[torch._ops.OpOverload, list]]:
    """The calls of dcnzoo's operators, with detached arguments."""
    with op_cases.Recorder() as recorder:
        op.results(sample)
    return [(f, [a.detach() if isinstance(a, Tensor) else a for a in args]) for f, args in recorder.calls]


def memory(tensors) -> set[int]:
    return {t.untyped_storage().data_ptr() for t in tensors if isinstance(t, Tensor) and t.numel()}


@pytest.mark.parametrize(("op", "sample"), cases(differentiable=False))
def test_contract_results_are_no_views(op, sample):
    """The results of the forward and the backward operator, called without autograd, are no views."""
    calls = calls_of(op, sample)
    assert calls
    for function, arguments in calls:
        returned = function(*arguments)
        tensors = returned if isinstance(returned, tuple) else (returned,)
        assert not any(t._is_view() for t in tensors)
        # no memory is shared, and none is held that the result does not use
        assert len(memory(tensors)) == sum(t.numel() > 0 for t in tensors)
        assert not memory(tensors) & memory(arguments)
        assert all(t.untyped_storage().nbytes() == t.numel() * t.itemsize for t in tensors)


def test_contract_covers_every_schema():
    called = {
        function._schema.name.removeprefix("dcnzoo::")
        for op in ALL
        for sample in forms(op)
        for function, _ in calls_of(op, sample)
    }
    rest = SCHEMAS - called
    assert all(name.startswith(("_amx_", "_cpu_")) for name in rest), rest


IN_PLACE = {
    "relu": (torch.relu_, torch.relu),
    "add": (lambda y: y.add_(ramp(y)), lambda y: y + ramp(y)),
    "part": (lambda y: _double_first(y), lambda y: torch.cat([2 * y[:1], y[1:]])),
}


def _double_first(y: Tensor) -> Tensor:
    y[:1] *= 2
    return y


@in_turn("op, sample, operation", cases(), list(IN_PLACE))
def test_contract_in_place_operations_train(op, sample, operation):
    in_place, out_of_place = IN_PLACE[operation]
    mine = results(lambda leaves: in_place(op.call(leaves)), sample)
    true = results(lambda leaves: out_of_place(op.reference(leaves)), sample)
    torch.testing.assert_close(mine, true)


@every_call
def test_contract_hooks_and_second_backward(op, sample):
    leaves = sample.leaves()
    output = op.call(leaves)
    output.retain_grad()
    output.register_hook(lambda grad: grad.mul_(2))
    output.backward(ramp(output), retain_graph=True)
    torch.testing.assert_close(output.grad, 2 * ramp(output))
    once = [t.grad.clone() for t in leaves.given]
    output.backward(ramp(output))
    torch.testing.assert_close([t.grad for t in leaves.given], [2 * grad for grad in once])
    _, *true = results(op.reference, sample)
    torch.testing.assert_close(once, [2 * grad for grad in true])


@pytest.mark.parametrize(("op", "sample"), [case for case in cases() if "-0 " in case.id])
def test_contract_gradients_are_changed_in_place(op, sample):
    """This holds also for gradients that are differentiated again, as in a gradient penalty."""
    leaves = sample.leaves()
    output = op.call(leaves)
    gradients = torch.autograd.grad(output, leaves.given, ramp(output), create_graph=True)
    for gradient in gradients:
        assert not gradient._is_view()
        gradient.mul_(2)
    _, *true = results(op.reference, sample)
    torch.testing.assert_close([g.detach() for g in gradients], [2 * grad for grad in true])
