"""``dcnzoo doctor`` recognises each broken installation and prints the command that fixes it."""

import re
import subprocess
from dataclasses import replace

import pytest
import torch

from dcnzoo import diagnosis
from dcnzoo.diagnosis import Installation, problems
from dcnzoo.ops import _library
from tests.helpers import commands
from tests.helpers.processes import OPENMMLAB, python_with_torch

ORIGINALS = dict(package.split("==") for package in diagnosis.TESTED.split()[2:])
FORKS = {"onedl-mmengine": "0.10.12", "onedl-mmcv": "2.3.6", "onedl-mmdetection": "3.5.1"}
CPU = Installation(
    **dict(torch="2.13.0+cpu", torch_cuda=None, torch_sees_gpu=False, nvidia_driver=False),
    **dict(libraries={"cuda": "this torch is a CPU build"}, packages=ORIGINALS),
)
GPU = replace(CPU, torch="2.10.0+cu130", torch_cuda="13.0", torch_sees_gpu=True, libraries={})
HEALTHY = {
    "cpu": CPU,
    "gpu": GPU,
    "CUDA build without a GPU": replace(CPU, torch_cuda="13.0"),
    "forks": replace(CPU, packages=FORKS),
    "compiled mmcv without mmdet": replace(CPU, packages={"mmengine": "0.10.7", "mmcv": "2.1.0"}),
    "nightly": replace(CPU, torch="2.14.0a0+git1234"),
    "alpha": replace(CPU, torch="2.10.0a0+cpu"),
}


@pytest.mark.parametrize("name", HEALTHY)
def test_nothing_is_wrong(name):
    assert list(problems(HEALTHY[name])) == []


def packages(installed, *without, **more):
    kept = {name: version for name, version in installed.items() if name not in without}
    added = {name.replace("_", "-"): version for name, version in more.items()}
    return replace(CPU, packages=kept | added)


BOTH = packages(ORIGINALS, mmcv="2.2.0")
MIXED = packages(ORIGINALS, onedl_mmcv="2.3.6")
LACKS = ModuleNotFoundError("No module named 'pycocotools'", name="pycocotools")
SYMBOL = ImportError("undefined symbol: _Z")
REMOVE_BOTH = "pip uninstall -y mmcv mmcv-lite && pip install mmcv-lite==2.1.0"
REMOVE_ALL = f"pip uninstall -y mmengine mmcv-lite mmdet onedl-mmcv && {diagnosis.TESTED}"
REPLACE_TORCH = "pip uninstall -y torch && pip install torch  # "
BROKEN = [  # (state of the machine, word in the problem, start of the command)
    (replace(CPU, torch="2.9.1", libraries={"cpu": "x"}), "2.9.1", 'pip install --upgrade "torch>=2.10"'),
    (replace(CPU, libraries={"cpu": "not in /x"}), "not in /x", diagnosis.BUILD),
    (
        replace(GPU, libraries={"cuda": "not in /y"}),
        "not in /y",
        f"DCNZOO_CUDA=1 {diagnosis.BUILD}, with nvcc",
    ),
    (replace(CPU, nvidia_driver=True), "CPU build", REPLACE_TORCH),
    (
        replace(GPU, torchvision="0.25.0+cpu"),
        "torchvision 0.25.0+cpu",
        'pip install --force-reinstall --no-deps "torchvision==0.25.*"',
    ),
    (packages(ORIGINALS, "mmcv-lite"), "no mmcv", "pip install mmcv-lite==2.1.0"),
    (packages(FORKS, "onedl-mmcv"), "no mmcv", "pip install --no-deps onedl-mmcv"),
    (BOTH, "mmcv 2.2.0 and mmcv-lite 2.1.0", REMOVE_BOTH),
    (MIXED, "onedl-mmcv", REMOVE_ALL),
    (replace(CPU, import_error=LACKS), "pycocotools", 'pip install "dcnzoo[mmdet]"'),
    (replace(CPU, import_error=SYMBOL), "symbol", diagnosis.TESTED),
    (replace(CPU, features={"autocast": "torch has no X"}), "autocast: torch has no X", 'pip install "torch'),
]


@pytest.mark.parametrize(("machine", "word", "remedy"), BROKEN, ids=[row[1] for row in BROKEN])
def test_broken(machine, word, remedy):
    (problem,) = problems(machine)  # one cause is reported once
    assert word in problem.text and problem.remedy.startswith(remedy)
    assert "\n" not in problem.text + problem.remedy
    subprocess.run(["bash", "-n", "-c", problem.remedy], check=True)  # valid when pasted into a shell


def test_libraries_that_are_not_loaded_have_a_reason():
    assert Installation.here().libraries.keys() == {"cpu", "cuda"} - _library.loaded.keys()


def test_healthy():
    """The environment of these tests is healthy."""
    output = commands.run("doctor")
    assert "no problems found" in output
    values = dict(re.split(r"  +", line, maxsplit=1) for line in output.splitlines() if "  " in line)
    assert values["torch"] == torch.__version__
    assert values["cpu operators"] == str(_library.loaded["cpu"])
    assert "dcnzoo's" in values["mmcv._ext"]


def test_torch_alone():
    absent = "\n".join(f"sys.modules[{name!r}] = None" for name in (*OPENMMLAB, "torchvision"))
    output = python_with_torch(
        f"import sys\n{absent}\nfrom dcnzoo import diagnosis\nfrom dcnzoo.cli import main\n"
        "diagnosis.installed = lambda *packages: {}\nmain('doctor')"
    ).stdout
    assert "no problems found" in output
    assert re.search("mmdet +not installed", output)
    assert "cpu operators" in output and "none: mmcv is not installed" in output
