"""Published projects, unmodified, on dcnzoo's compiled modules: ``nox -s projects [-- --from FOLDER]``.

A program for each row of the table in :mod:`dcnzoo.compat.compiled` builds a model or layer of the project,
and compares its outputs and gradients with those of plain PyTorch: the project's own, where it has some. It
runs on the CPU with random weights.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.processes import ROOT

pytest.importorskip("fvcore", exc_type=ImportError)

DETECTRON2 = "facebookresearch/detectron2@02b5c4e295e990042a714712c21dc79b731e8833"
ND = "Pytorch-Implmentation-of-Deformable-Convolution-Nd"
# program -> repository and commit, the folder in it, and a repository that it needs
PROJECTS = {
    "deformable_detr": (
        "fundamentalvision/Deformable-DETR@11169a60c33333af00a4849f1808023eba96a931",
        ".",
    ),
    "grounding_dino": ("IDEA-Research/GroundingDINO@856dde20aee659246248e20734ef9ba5214f5e44", "."),
    "detrex_detector": ("IDEA-Research/detrex@e244e6c3da3e84566728c52c21fb061d23ce0e2f", ".", DETECTRON2),
    "testr": ("mlpc-ucsd/TESTR@f369f138e041d1d27348a1f6600e456452001d23", ".", DETECTRON2),
    "intern_image": ("OpenGVLab/InternImage@31c962dc6c1ceb23e580772f7daaa6944694fbe6", "classification"),
    "flash_intern_image": ("OpenGVLab/DCNv4@4b848f7dd7da74ff03f7d278f902c6fd05b391b5", "classification"),
    "dcn_v2_layer": ("CharlesShang/DCNv2@c7f778f28b84c66d3af2bf16f19148a07051dac1", "."),
    "edvr": ("xinntao/EDVR@b02e63a0fc5854cad7b11a87f74601612e356eff", "."),
    "deform_conv_nd": (f"seungjun-Park/{ND}@bb3c8943c02efd4eeffcd00045ea86d3951cccc2", "."),
}


def clone_of(source: str, folder: Path | None, cache: Path) -> Path:
    """The folder of a repository at its commit: that of ``--from``, or a new clone."""
    repository, commit = source.split("@")
    clone = (folder or cache) / repository.partition("/")[2]
    git = ("git", "-C", str(clone))
    if not folder and not clone.exists():
        subprocess.run(["git", "init", "-q", clone], check=True)
        fetch = ("fetch", "-q", "--depth", "1", f"https://github.com/{repository}", commit)
        subprocess.run([*git, *fetch], check=True)
        subprocess.run([*git, "checkout", "-q", commit], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    assert head == commit, f"{clone}: expected commit {commit}, got {head or 'no repository'}"
    return clone


@pytest.mark.parametrize("program", PROJECTS)
def test_project(program, request, tmp_path_factory):
    source, place, *others = PROJECTS[program]
    given, cache = request.config.getoption("--from"), tmp_path_factory.getbasetemp()
    clone, *needed = (clone_of(each, given and Path(given), cache) for each in (source, *others))
    path = os.pathsep.join(map(str, (clone / place, *needed, ROOT)))
    variables = {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    file = Path(__file__).parent / "projects" / f"{program}.py"
    done = subprocess.run(
        [sys.executable, file], cwd=clone / place, env=variables, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-6000:]}"
    print(f"{program}: {done.stdout.splitlines()[-1]}")
