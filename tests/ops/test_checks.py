"""Every kernel refuses the same calls with the same words: the checks in Python beside the compiled ones."""

from random import Random

import pytest
import torch
from torch import Tensor

from dcnzoo.ops.operator import OPERATORS

from .. import op_cases

FUNCTIONS = op_cases.operators(differentiable=False)


def compiled_error(call) -> str:
    try:
        call()
    except (RuntimeError, TypeError, IndexError) as error:
        return str(error)
    return ""


def python_error(overload, arguments) -> str:
    name = overload._schema.name.removeprefix("dcnzoo::")
    try:
        call = OPERATORS[name].call(*arguments)
        OPERATORS[name].check(call)
        OPERATORS[name].check_numbers(call)
    except RuntimeError as error:
        return str(error)
    return ""


def recorded(op, sample):
    """The call of the operator that the function makes, if it makes one, and the error."""
    with torch.no_grad(), op_cases.Recorder() as recorder:
        error = compiled_error(lambda: op.call(sample))
    return recorder.calls[:1], error


def mutated(rng: Random, arguments: list) -> list:
    """The arguments with one of them changed a little: sizes, type, numbers."""
    arguments = list(arguments)
    index = rng.randrange(len(arguments))
    value = arguments[index]
    if isinstance(value, Tensor):
        if value.dim() and rng.random() < 0.7:
            axis = rng.randrange(value.dim())
            size = rng.choice(
                [0, 1, max(value.shape[axis] - 1, 0), value.shape[axis] + 1, 2 * value.shape[axis]]
            )
            value = value.new_ones([size if a == axis else n for a, n in enumerate(value.shape)])
        elif rng.random() < 0.5:
            value = value.to(rng.choice([torch.float32, torch.float64, torch.bfloat16, torch.int64]))
        else:
            value = rng.choice(
                [lambda: value[None], lambda: value.flatten(), lambda: value.transpose(0, -1)]
            )()
    elif isinstance(value, list):
        value = [*value]
        value[rng.randrange(len(value))] = rng.choice([-1, 0, 1, 2, 9])
        value = value if rng.random() < 0.8 else value[1:]
    elif isinstance(value, bool):
        value = not value
    elif isinstance(value, int):
        value = rng.choice([-1, 0, 1, 2, 3, 5, 2**33])
    elif isinstance(value, float):
        value = rng.choice([-0.5, 0.0, 0.5, 1.5, float("nan"), float("inf")])
    arguments[index] = value
    return arguments


@pytest.mark.parametrize("op", FUNCTIONS, ids=lambda op: op.name)
def test_random_calls_are_refused_alike(op):
    rng, refused, accepted = Random(0), 0, 0
    for _ in range(120):
        zero = rng.choice(["", "", "", *op.can_be_zero])
        calls, _ = recorded(op, op.random_sample(rng, zero).to(torch.float32))
        for overload, arguments in calls:
            arguments = mutated(rng, arguments) if rng.random() < 0.9 else list(arguments)
            with torch.no_grad():
                error = compiled_error(lambda overload=overload, arguments=arguments: overload(*arguments))
            assert python_error(overload, arguments) == error
            refused, accepted = refused + bool(error), accepted + (not error)
    assert refused > 10 and accepted > 10
