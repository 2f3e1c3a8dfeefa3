"""Plans: a call whose shape has one returns the same bits, or the same error, as without plans."""

import warnings
import weakref
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from dcnzoo.ops import choose, plans, run
from dcnzoo.ops.fused import available
from dcnzoo.ops.operator import OPERATORS
from tests.helpers.plans import calls_of, tensors_of


@pytest.fixture(autouse=True)
def stored(monkeypatch):
    monkeypatch.setattr(choose, "backend", "plain")
    monkeypatch.setattr(plans, "_plans", {})
    return plans._plans


def changed(value: object) -> list:
    """Return values that differ from an argument in one part each."""
    if isinstance(value, Tensor):
        others = [value.to(dtype) for dtype in (torch.float64, torch.float16, torch.int64)]
        others += [torch.cat([value, value.narrow(axis, 0, 1)], axis) for axis in range(value.dim())]
        others += [
            value.unsqueeze(0),
            value.to("meta"),
            value.mT.contiguous().mT if value.dim() > 1 else value,
        ]
        return others
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int | float):
        return [value + 1, value - 1]
    if isinstance(value, list):
        if value and isinstance(value[0], bool):
            return [[*value[:i], not value[i], *value[i + 1 :]] for i in range(len(value))]
        others = [[*value[:i], value[i] + 1, *value[i + 1 :]] for i in range(len(value))]
        return [*others, [n - 2 for n in value], value[:-1]]
    return []


def outcome(name: str, call: object) -> object:
    """Return the result of a call on the plain path, or its error."""
    try:
        result = run.run(OPERATORS[name], "cpu", None, call)
    except (RuntimeError, NotImplementedError, ValueError, IndexError) as error:
        return f"{type(error).__name__}: {error}"
    return (result,) if isinstance(result, Tensor) else result


def assert_same(first: object, second: object) -> None:
    if isinstance(first, str) or isinstance(second, str):
        assert first == second
        return
    for one, two in zip(first, second, strict=True):
        assert one.dtype == two.dtype and one.shape == two.shape and one.stride() == two.stride()
        assert one.is_meta or torch.equal(one.nan_to_num(1e9), two.nan_to_num(1e9))


@pytest.mark.parametrize("name", OPERATORS)
def test_a_call_that_differs_in_one_part_has_the_outcome_of_a_first_call(stored, name):
    operator = OPERATORS[name]
    calls = calls_of(name)
    assert calls
    for call in calls:
        for field in call._fields:
            for value in changed(getattr(call, field)):
                other = call._replace(**{field: value})
                stored.clear()
                expected = outcome(name, other)
                stored.clear()
                assert_same(outcome(name, call), outcome(name, call))
                assert len(stored) == 1
                assert_same(outcome(name, other), expected)
                same = plans.key_of(operator, "cpu", call) == plans.key_of(operator, "cpu", other)
                assert len(stored) == 2 - (same or isinstance(expected, str))


@pytest.mark.parametrize("name", [name for name, op in OPERATORS.items() if op.rows and not op.is_backward])
def test_the_number_of_regions_makes_no_plan(stored, name):
    (call, *_) = calls_of(name)
    for number in (1, 2, 3):
        rows = {field: getattr(call, field)[:number] for field in OPERATORS[name].rows}
        assert not isinstance(outcome(name, call._replace(**rows)), str)
    assert len(stored) == 1


def test_preference_precision_and_strides_are_parts_of_the_key(monkeypatch):
    (call, *_) = calls_of("deform_conv")
    call = call._replace(input=call.input.float())
    keys = {plans.key_of(OPERATORS["deform_conv"], device, call) for device in ("cpu", "cuda")}
    monkeypatch.setattr(choose, "backend", "fused")
    keys.add(plans.key_of(OPERATORS["deform_conv"], "cpu", call))
    monkeypatch.setattr(available, "tf32", lambda: "another")
    keys.add(plans.key_of(OPERATORS["deform_conv"], "cpu", call))
    call = call._replace(input=call.input.contiguous(memory_format=torch.channels_last))
    keys.add(plans.key_of(OPERATORS["deform_conv"], "cpu", call))
    assert len(keys) == 5


@pytest.mark.parametrize("has_sums", [True, False])
def test_the_faster_form_runs_where_torch_has_its_kernels(stored, monkeypatch, has_sums):
    (call, *_) = calls_of("nms")
    forms = {"plain": lambda *_: torch.tensor(1), "reference": lambda *_: torch.tensor(0)}
    monkeypatch.setattr(choose, "has_weighted_sums", lambda device: has_sums)
    assert run.run(replace(OPERATORS["nms"], **forms), "cpu", None, call) == has_sums


def test_the_oldest_plan_goes(stored, monkeypatch):
    monkeypatch.setattr(plans, "MOST_PLANS", 2)
    (call, *_) = calls_of("nms")
    calls = [call._replace(iou_threshold=number / 10) for number in (1, 2, 3)]
    keys = [plans.key_of(OPERATORS["nms"], "cpu", call) for call in calls]
    for call in calls:
        outcome("nms", call)
    assert list(stored) == keys[1:]


def test_dynamic_sizes_make_no_plan(stored):
    """``torch.compile`` and ``torch.export`` record operators; none of their sizes is stored."""
    from torch.fx.experimental.proxy_tensor import make_fx

    (call, *_) = calls_of("deform_conv")
    operator = OPERATORS["deform_conv"]
    with torch.library._scoped_library("dcnzoo", "IMPL") as library, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the kernel is replaced
        library.impl(operator.name, run.kernel_of(operator, "CPU"), "CPU", with_keyset=True)
        function = lambda *tensors: operator.overload(*tensors, *call[5:])  # noqa: E731
        trace = make_fx(function, tracing_mode="symbolic")(*call[:5])
        assert any("dcnzoo" in str(node.target) for node in trace.graph.nodes) and not stored
        operator.overload(*call)
        assert len(stored) == 1


@pytest.mark.parametrize("name", [name for name, operator in OPERATORS.items() if operator.fused])
def test_a_plan_of_triton_keeps_no_tensor(name):
    pytest.importorskip("triton")
    from dcnzoo.ops.fused import operators

    (call, *_) = calls_of(name)
    call = call._replace(**{field: getattr(call, field).clone() for field in tensors_of(call)})
    references = [weakref.ref(getattr(call, field)) for field in tensors_of(call)]
    launches = operators.plan(name, call)
    del call
    assert launches and not any(reference() is not None for reference in references)
