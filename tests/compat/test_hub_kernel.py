"""tools/hub_kernel.py: its folder, loaded as the package ``kernels`` does, in a process without dcnzoo."""

import runpy
import shutil

import pytest

from tests.helpers.processes import ROOT, python, python_with_torch

if not (ROOT / "tools/hub_kernel.py").exists():
    pytest.skip("needs the repository", allow_module_level=True)

LOAD = """
import json, sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
import torch

folder = Path(sys.argv[1]) / "build/torch-cpu"
name = json.loads((folder / "metadata.json").read_text())["id"]
spec = spec_from_file_location(name, folder / "__init__.py")
sys.modules[name] = module = module_from_spec(spec)
spec.loader.exec_module(module)
assert "dcnzoo" not in sys.modules, "the folder needs no package but torch"
layer = module.layers.MultiScaleDeformableAttention()
shapes, starts = torch.tensor([[6, 9], [3, 5]]), torch.tensor([0, 54])
leaves = [torch.randn(2, 69, 4, 8), torch.rand(2, 7, 4, 2, 3, 2), torch.rand(2, 7, 4, 2, 3)]
leaves = [tensor.double().requires_grad_() for tensor in leaves]
output = layer(leaves[0], shapes, [(6, 9), (3, 5)], starts, *leaves[1:], 64)

sys.path.insert(0, sys.argv[2])
from dcnzoo.ops import reference  # beside the folder's own copy
expected = reference.ms_deform_attn(leaves[0], shapes, starts, *leaves[1:])
torch.testing.assert_close(output, expected)
gradients = [torch.autograd.grad(each.sum(), leaves) for each in (output, expected)]
torch.testing.assert_close(*gradients)
"""


def test_layer_of_the_hub(tmp_path):
    folder = tmp_path / "kernel"
    write = runpy.run_path(str(ROOT / "tools/hub_kernel.py"))["write"]
    write(folder)
    with pytest.raises(FileExistsError, match="kernel: expected no folder"):
        write(folder)
    result = python(ROOT / "tools/hub_kernel.py", folder, status=1)
    assert result.stderr == f"error: {folder}: expected no folder or file\n"
    moved = shutil.move(folder, tmp_path / "elsewhere")
    python_with_torch(LOAD, moved, ROOT)
