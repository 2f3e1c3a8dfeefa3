"""The compiled library in a process without Python, which registers the derivatives."""

import subprocess

import pytest
import torch
from torch import nn

from dcnzoo.ops import _library

from .. import op_cases
from ..processes import ROOT, compile_cpp

OPERATORS = [op for op in op_cases.operators() if op.differentiable]


class Call(nn.Module):
    def __init__(self, op: op_cases.Operator) -> None:
        super().__init__()
        self.op, self.sample = op, op.forms()[0]
        self.tensors = nn.ParameterList(self.sample.given)

    def forward(self, factor):
        return self.op.call(self.sample.with_given([tensor * factor for tensor in self.tensors]))


@pytest.mark.slow  # compiles
def test_backward_raises(tmp_path):
    if "cpu" not in _library.loaded:
        pytest.skip("needs the compiled library")
    program = compile_cpp(ROOT / "tests/without_python.cpp", tmp_path / "program", "-std=c++20")
    paths = []
    for op in OPERATORS:
        paths.append(tmp_path / f"{op.name}.pt")
        torch.jit.trace(Call(op), torch.ones(())).save(paths[-1])
    done = subprocess.run([program, _library.loaded["cpu"], *paths], capture_output=True, text=True)
    assert (done.stdout, done.returncode) == (str(len(OPERATORS)), 0), done.stderr
