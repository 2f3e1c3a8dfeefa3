"""Smoke test for any versions of Python, torch and OpenMMLab, with a real training."""

from pathlib import Path

import pytest
import torch

import dcnzoo
from dcnzoo.ops import _library
from tests.helpers.demo import average_precisions, small_options
from tests.helpers.launching import environment
from tests.helpers.processes import ROOT, python

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


def test_operators():
    assert _library.loaded["cpu"].parent == FOLDER
    python("tests/programs/operators.py", cwd=ROOT, **environment())


def test_cuda_library():
    """A wheel with CUDA kernels loads them beside torch of the same or a later CUDA, and nowhere else."""
    built_for = [int(path.stem.removeprefix("_C_cuda")) for path in FOLDER.glob("_C_cuda*.so")]
    fits = bool(torch.version.cuda) and any(n <= int(torch.version.cuda.partition(".")[0]) for n in built_for)
    assert ("cuda" in _library.loaded) == fits
    assert (
        torch._C._dispatch_has_kernel_for_dispatch_key("dcnzoo::deform_conv", "CUDA") == fits or not built_for
    )


def test_doctor():
    assert "no problems found" in python("-m", "dcnzoo", "doctor", cwd=ROOT).stdout


@pytest.mark.filterwarnings("ignore")
def test_the_demo_trains_and_its_checkpoint_is_tested(tmp_path):
    work = tmp_path / "work"
    run("train", CONFIG, "--work-dir", work, *small_options(tmp_path / "data", 4, 4))
    run("test", work / CONFIG.rpartition("/")[2], work / "epoch_1.pth", "--work-dir", tmp_path)
    assert average_precisions(tmp_path) == average_precisions(work)
