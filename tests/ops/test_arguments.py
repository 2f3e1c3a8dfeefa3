"""An argument that is added to an operator reaches every place that takes arguments, or is refused there."""

import torch

from dcnzoo.ops import _library
from dcnzoo.ops._arguments import arguments_of
from dcnzoo.ops.operator import OPERATORS

NAMES = [name for name in _library.names() if not name.startswith(("_cpu", "_amx"))]
TYPES = {name: getattr(torch.ops.dcnzoo, name).default._schema.arguments for name in NAMES}


def test_every_operator_has_a_record():
    assert OPERATORS.keys() == {*NAMES}


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
