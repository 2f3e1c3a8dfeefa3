"""The compiled library in a process without Python, which registers the derivatives."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch import nn

from dcnzoo.ops import _library
from tests import op_cases

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
    compiler = os.environ.get("CXX") or shutil.which("g++")
    if compiler is None or "cpu" not in _library.loaded:
        pytest.skip("needs a C++ compiler and the compiled library")
    paths = []
    for op in OPERATORS:
        paths.append(tmp_path / f"{op.name}.pt")
        torch.jit.trace(Call(op), torch.ones(())).save(paths[-1])
    torchs, program = Path(torch.__file__).parent, tmp_path / "program"
    include = [torchs / "include", torchs / "include/torch/csrc/api/include"]
    options = ["-std=c++20", f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"]
    options += [*(f"-I{folder}" for folder in include), f"-L{torchs / 'lib'}", f"-Wl,-rpath,{torchs / 'lib'}"]
    source = Path(__file__).parents[1] / "without_python.cpp"
    command = [compiler, source, *options, "-ltorch_cpu", "-ltorch", "-lc10", "-o", program]
    subprocess.run(command, check=True)
    done = subprocess.run([program, _library.loaded["cpu"], *paths], capture_output=True, text=True)
    assert (done.stdout, done.returncode) == (str(len(OPERATORS)), 0), done.stderr
