"""Smoke test for any versions of Python, torch and OpenMMLab, with a real training."""

from pathlib import Path

import pytest
import torch

import dcnzoo
from dcnzoo.ops import _library, deform_conv2d
from dcnzoo.ops.reference import deform_conv as in_pytorch

from ..cli.test_train import average_precisions, tiny
from ..distributed.launching import environment
from ..processes import ROOT, python

FOLDER = Path(dcnzoo.__file__).parent / "ops"
CONFIG = "configs/demo/mask-rcnn_r14-mdconv_fpn_8e_shapes.py"

# run a tool; deprecation warnings from our code are errors
STRICT = """
import runpy, sys, warnings
for category in (DeprecationWarning, PendingDeprecationWarning, FutureWarning):
    warnings.filterwarnings("error", category=category, module=r"(dcnzoo|__main__)\\b")
del sys.argv[0]
sys.path.insert(0, sys.argv[0].rpartition("/")[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run(tool, *arguments):
    """Run a tool in a new process."""
    done = python("-c", STRICT, f"tools/{tool}.py", *arguments, cwd=ROOT, **environment())
    assert "\x1b[" not in done.stdout + done.stderr, "no colours where there is no terminal"
    assert "be deprecated" not in done.stdout + done.stderr


def test_operator():
    assert _library.loaded["cpu"].parent == FOLDER
    torch.manual_seed(0)
    shapes = ((2, 4, 7, 9), (6, 4, 3, 2), (2, 12, 7, 10), (2, 6, 7, 10))
    tensors = [torch.rand(shape, dtype=torch.double, requires_grad=True) for shape in shapes]
    geometry = ((1, 1), (1, 1), (1, 1), 1)  # stride, padding, dilation, groups
    results = [f(*tensors, None, *geometry) for f in (deform_conv2d, in_pytorch)]
    torch.testing.assert_close(*results)
    gradients = [torch.autograd.grad(result.square().sum(), tensors) for result in results]
    torch.testing.assert_close(*gradients)


def test_cuda_library():
    """A wheel with CUDA kernels loads them beside torch of the same or a later CUDA, and nowhere else."""
    built_for = [int(path.stem.removeprefix("_C_cuda")) for path in FOLDER.glob("_C_cuda*.so")]
    fits = bool(torch.version.cuda) and any(n <= int(torch.version.cuda.partition(".")[0]) for n in built_for)
    assert ("cuda" in _library.loaded) == fits
    assert (
        torch._C._dispatch_has_kernel_for_dispatch_key("dcnzoo::deform_conv", "CUDA") == fits or not built_for
    )


def test_registry():
    import dcnzoo.models

    # isort: split
    import mmcv.ops
    from mmdet.registry import MODELS
    from mmengine.registry import DefaultScope

    with DefaultScope.overwrite_default_scope("mmdet"):
        layer = MODELS.build(dict(type="DCNv2", in_channels=4, out_channels=6, kernel_size=3, padding=1))
        backbone = MODELS.build(dict(type="ResNet", depth=18, dcn=True))
    assert type(layer) is dcnzoo.models.DCNv2 and isinstance(layer, mmcv.ops.ModulatedDeformConv2d)
    assert any(type(module) is dcnzoo.models.DCNv2 for module in backbone.modules())


def test_doctor():
    assert "no problems found" in python("-m", "dcnzoo", "doctor", cwd=ROOT).stdout


@pytest.mark.filterwarnings("ignore")
def test_the_demo_trains_and_its_checkpoint_is_tested(tmp_path):
    work = tmp_path / "work"
    run("train", CONFIG, "--work-dir", work, *tiny(tmp_path / "data", epochs=1))
    run("test", work / CONFIG.rpartition("/")[2], work / "epoch_1.pth", "--work-dir", tmp_path)
    assert average_precisions(tmp_path) == average_precisions(work)
