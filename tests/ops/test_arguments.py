"""An argument that is added to an operator reaches every place that takes arguments, or is refused there."""

from collections import namedtuple

import pytest
import torch

from dcnzoo.ops import _library
from dcnzoo.ops._arguments import arguments_of
from dcnzoo.ops.operator import OPERATORS

from .test_choice import CALLS

NAMES = [name for name in _library.names() if not name.startswith(("_cpu", "_amx"))]
TYPES = {name: getattr(torch.ops.dcnzoo, name).default._schema.arguments for name in NAMES}
IN_TRITON = {"deform_conv2d", "deform_conv1d", "depthwise", "dcnv3", "dcnv4", "ms_deform_attn"}
IN_TRITON |= {"deform_roi_pool", "roi_align", "nms"}


def test_every_operator_has_a_record():
    assert OPERATORS.keys() == {*NAMES}


def with_another(call: str, value: float) -> tuple[str, tuple]:
    """A call of an operator with one argument more than today, whose default is 1."""
    name, arguments = CALLS[call]
    fields = [*arguments_of(name)._fields, "added"]
    defaults = [*arguments_of(name)._field_defaults.values(), 1.0]
    arguments = [
        a.float() if isinstance(a, torch.Tensor) and a.dtype == torch.float64 else a for a in arguments
    ]
    return name, namedtuple("arguments", fields, defaults=defaults)(*arguments, value)


@pytest.mark.parametrize("call", sorted(IN_TRITON))
def test_triton_runs_no_call_with_an_argument_that_it_does_not_take(call):
    operators = pytest.importorskip("dcnzoo.ops.fused.operators")
    assert not operators.unsupported(*with_another(call, 1.0))
    assert operators.unsupported(*with_another(call, 2.0)) == "added=2.0"


def test_defaults_that_torch_leaves_out(monkeypatch):
    """A kernel in Python gets fewer arguments than the schema has."""
    library = torch.library.Library("dcnzoo", "FRAGMENT")
    library.define("default_for_the_test(Tensor x, float gain=1.0) -> Tensor")
    numbers = []
    library.impl(
        "default_for_the_test", lambda *arguments: numbers.append(len(arguments)) or arguments[0], "CPU"
    )
    try:
        torch.ops.dcnzoo.default_for_the_test(torch.ones(1), 1.0)
        assert numbers == [1]
        assert arguments_of("default_for_the_test")(torch.ones(1)).gain == 1.0
    finally:
        library._destroy()
