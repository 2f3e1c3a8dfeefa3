"""An operator from tools/new_op.py builds, and every suite finds it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NAME = "channel_scale"
FLOPS = f"""
import torch
from torch.utils.flop_counter import FlopCounterMode
import dcnzoo.ops.flops

with FlopCounterMode(display=False) as counter:
    dcnzoo.ops.{NAME}(torch.ones(2, 3, 4, 5), torch.ones(3))
assert counter.get_total_flops() == 2 * 3 * 4 * 5
"""
ONNX = f"""
import onnxruntime
import torch
import dcnzoo.ops
from dcnzoo.export import export_onnx

class Model(torch.nn.Module):
    def forward(self, input, weight):
        return dcnzoo.ops.{NAME}(input, weight)

given = {{"input": torch.rand(2, 3, 4, 5), "weight": torch.rand(3)}}
export_onnx(Model(), tuple(given.values()), "model.onnx", input_names=list(given))
session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
(output,) = session.run(None, {{name: tensor.numpy() for name, tensor in given.items()}})
torch.testing.assert_close(torch.from_numpy(output), Model()(*given.values()))
"""
SUITES = ("ops.py", "fuzz.py", "deterministic.py", "derivatives.py", "docs.py")

if not (ROOT / "tools" / "new_op").exists():
    pytest.skip("needs the repository", allow_module_level=True)


def run(tree: Path, *command: str, **variables: str) -> str:
    done = subprocess.run(
        [sys.executable, *command],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree), **variables},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{done.stdout[-6000:]}\n{done.stderr[-6000:]}"
    return done.stdout


@pytest.fixture
def tree(tmp_path) -> Path:
    """A copy of the repository without build results."""
    tree = tmp_path / "clone"
    built = shutil.ignore_patterns(
        ".*", "*.so", "__pycache__", "build", "dist", "data", "work_dirs", "*.egg-info"
    )
    shutil.copytree(ROOT, tree, ignore=built)
    return tree


@pytest.mark.slow
def test_new_operator_is_found_by_every_suite(tree):
    run(tree, "tools/new_op.py", NAME)
    run(tree, "setup.py", "-q", "build_ext", "--inplace", CXXFLAGS="-O1", DCNZOO_CUDA="0")
    output = run(tree, "-m", "pytest", "-q", *(f"tests/test_{suite}" for suite in SUITES), "-k", NAME)
    assert f"({NAME} " in output, "the generic suite counts its cases"
    run(tree, "-c", FLOPS)
    run(tree, "-c", ONNX)
    run(tree, "tools/benchmark/ops.py", "--quick", "--family", NAME, "--no-memory")
    assert list((tree / "work_dirs/benchmarks").glob("*.json"))
    for other in (tree / "ops").rglob("*_cuda.cu"):  # compiling each for the emulation takes time
        if NAME not in other.name:
            other.unlink()
    run(tree, "-m", "pytest", "-q", "tests/cuda/test_kernels_cuda.py", "-k", NAME)
