"""The registered operators' calls, and the tensors in them."""

import itertools

import torch
from torch import Tensor

from dcnzoo.ops.operator import OPERATORS
from tests import op_cases

SAMPLES = 3  # of each operator


def calls_of(name: str) -> list:
    """Return calls of an operator, named tuples, with offsets at random points."""
    overload, calls = OPERATORS[name].overload, []
    for operator in op_cases.operators():
        if operator.name.removesuffix("2d") == OPERATORS[name].forward_name:
            for sample in itertools.islice(operator.samples(), SAMPLES):
                calls += [args for op, args in operator.overload_calls(sample)[:2] if op is overload]
    if name == "nms":
        boxes = torch.rand(9, 4)
        calls = [(torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1), torch.rand(9), 0.3, 0)]
    return [OPERATORS[name].Call(*call) for call in calls]


def tensors_of(call) -> list[str]:
    return [field for field in call._fields if isinstance(getattr(call, field), Tensor)]
