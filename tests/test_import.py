"""What importing dcnzoo brings in: torch, and nothing of OpenMMLab before ``dcnzoo.models``."""

import subprocess
import sys

import pytest

OPENMMLAB = ("mmengine", "mmcv", "mmdet")

# as in an environment where they are not installed
BLOCK = f"""
import sys
class Absent:
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in {OPENMMLAB}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent)
"""


def run(code: str) -> str:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize(
    "statement",
    [
        "import dcnzoo",
        "from dcnzoo.ops import deform_conv2d",
        "from dcnzoo.layers import DeformConv2d",
        "from dcnzoo.compat import ndconv, torchvision, tvdcn",
        "from dcnzoo.compat.mmcv import DeformConv2dPack",
        "from dcnzoo import from_deformable, to_deformable",
    ],
)
def test_needs_torch_only(statement):
    run(f"{BLOCK}\n{statement}")
    imported = f"[name for name in {OPENMMLAB} if name in sys.modules]"
    assert run(f"import sys\n{statement}\nprint({imported})").strip() == "[]"


def test_import_dcnzoo_is_light():
    assert run("import sys, dcnzoo; print('torch' in sys.modules)").strip() == "False"


def test_what_dcnzoo_has():
    code = "import dcnzoo; dcnzoo.to_deformable, dcnzoo.from_deformable; dcnzoo.nothing"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stderr.splitlines()[-1] == "AttributeError: module 'dcnzoo' has no attribute 'nothing'"


def test_models_without_mmdet():
    code = """
import importlib.util, sys
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *package: None if name == "mmdet" else find(name, *package)
sys.modules["mmdet"] = None  # `import mmdet` raises ModuleNotFoundError
import dcnzoo.models
from mmengine.registry import MODELS
print(MODELS.get("DCNv2").__module__, sorted(dcnzoo.models.__all__))
"""
    where, names = run(code).split("\n")[0].split(" ", 1)
    assert where == "dcnzoo.openmmlab.models.dcn"
    assert "'DCNv2'" in names and "'InternImage'" in names and "'ResNet'" not in names


def test_env():
    result = subprocess.run(
        [sys.executable, "-m", "dcnzoo", "env"], capture_output=True, text=True, check=True
    )
    lines = dict(line.split("  ", 1) for line in result.stdout.splitlines())
    import torch

    from dcnzoo.ops import _library

    assert lines["torch"].strip() == torch.__version__
    assert lines["cpu operators"].strip() == str(_library.loaded["cpu"])
    assert lines["mmcv._ext"].split()[0] in ("dcnzoo's,", "mmcv's,")
