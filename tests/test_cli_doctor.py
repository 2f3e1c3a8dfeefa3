"""``dcnzoo doctor``: each broken set-up is recognised, and told with the command that mends it."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from dcnzoo.cli import doctor
from dcnzoo.cli.doctor import Found, problems
from dcnzoo.compat import patches

from . import commands
from .test_import import OPENMMLAB, run

ORIGINALS = {"mmengine": "0.10.7", "mmcv-lite": "2.1.0", "mmdet": "3.3.0"}
FORKS = {"onedl-mmengine": "0.10.12", "onedl-mmcv": "2.3.6", "onedl-mmdetection": "3.5.1"}
CPU = Found(
    torch="2.13.0+cpu",
    torch_cuda=None,
    torch_sees_gpu=False,
    nvidia_driver=False,
    libraries={"cuda": "this torch is a CPU build"},
    packages=ORIGINALS,
)
GPU = replace(
    CPU, torch="2.10.0+cu130", torch_cuda="13.0", torch_sees_gpu=True, nvidia_driver=True, libraries={}
)


@pytest.mark.parametrize(
    "found",
    [
        CPU,
        GPU,
        replace(GPU, torch_sees_gpu=False, nvidia_driver=False, libraries={"cuda": "not there"}),
        replace(CPU, packages={}),  # torch alone
        replace(CPU, packages=FORKS, pkg_resources=False),
        replace(CPU, packages={"mmengine": "0.10.7", "mmcv": "2.1.0"}),  # without mmdet
        replace(CPU, torch="2.14.0a0+git1234"),
        replace(CPU, torch="2.10.0a0+cpu"),
        replace(CPU, packages={}, numpy="1.26.4", cache_problem="/x is not writable"),
    ],
    ids=[
        "cpu",
        "gpu",
        "cuda build without a gpu",
        "torch alone",
        "forks",
        "compiled",
        "nightly",
        "alpha",
        "numpy 1",
    ],
)
def test_nothing_is_wrong(found):
    assert list(problems(found)) == []


def without(packages, *names):
    return {name: version for name, version in packages.items() if name not in names}


BROKEN = {
    "old torch": (
        replace(CPU, torch="2.9.1", libraries={"cpu": "undefined symbol"}),
        "torch 2.9.1 is too old: dcnzoo needs 2.10",
        'pip install --upgrade "torch>=2.10"',
    ),
    "no library": (
        replace(CPU, libraries={"cpu": "_C_cpu.so is not in /x"}),
        "no compiled operators: _C_cpu.so is not in /x",
        "pip install -e . --no-build-isolation --no-deps  # in dcnzoo's repository",
    ),
    "no CUDA library": (
        replace(GPU, libraries={"cuda": "_C_cuda.so is not in /x"}),
        "torch sees a GPU, but the CUDA operators are not loaded: _C_cuda.so is not in /x",
        "with nvcc of CUDA 13.0 on the PATH",
    ),
    "CPU torch on a GPU": (
        replace(CPU, nvidia_driver=True),
        "has an NVIDIA GPU, and torch 2.13.0+cpu is a CPU build",
        "pip uninstall -y torch && pip install torch  # a build for CUDA: ",
    ),
    "no mmcv": (
        replace(CPU, packages=without(ORIGINALS, "mmcv-lite")),
        "mmengine, mmdet installed, but no mmcv",
        "pip install mmcv-lite==2.1.0",
    ),
    "no mmcv of the forks": (
        replace(CPU, packages=without(FORKS, "onedl-mmcv")),
        "onedl-mmengine, onedl-mmdetection installed, but no mmcv",
        "pip install --no-deps onedl-mmcv",
    ),
    "mmcv twice": (
        replace(CPU, packages={**ORIGINALS, "mmcv": "2.2.0"}),
        "mmcv 2.2.0 and mmcv-lite 2.1.0 are both installed",
        "pip uninstall -y mmcv mmcv-lite && pip install mmcv-lite==2.1.0",
    ),
    "forks and originals": (
        replace(CPU, packages={**ORIGINALS, "onedl-mmcv": "2.3.6"}),
        "mmengine, mmcv-lite, mmdet and onedl-mmcv are installed: they overwrite each other's files",
        "pip uninstall -y mmengine mmcv-lite mmdet onedl-mmcv && pip install mmengine==0.10.7",
    ),
    "a fork among originals": (
        replace(CPU, packages={**without(ORIGINALS, "mmengine"), "onedl-mmengine": "0.10.12"}),
        "mmcv-lite, mmdet and onedl-mmengine are installed: onedl-… go with each other only",
        "pip uninstall -y mmcv-lite mmdet onedl-mmengine && pip install mmengine==0.10.7",
    ),
    "old fork": (
        replace(CPU, packages={**FORKS, "onedl-mmengine": "0.10.8rc1"}),
        "onedl-mmengine 0.10.8rc1 is too old: dcnzoo needs 0.10.12 or later",
        'pip install --no-deps --upgrade "onedl-mmengine>=0.10.12"',
    ),
    "mmcv too new": (
        replace(CPU, packages={**ORIGINALS, "mmcv-lite": "2.2.0"}),
        "mmcv-lite 2.2.0: mmdet 3.3.0 takes 2.0 and 2.1",
        "pip uninstall -y mmcv-lite && pip install mmcv-lite==2.1.0",
    ),
    "mmcv for another torch": (
        replace(
            CPU,
            packages={**without(ORIGINALS, "mmcv-lite"), "mmcv": "2.1.0"},
            extension_error="undefined symbol",
        ),
        "mmcv's compiled operators do not load, they are for another torch: undefined symbol",
        "pip uninstall -y mmcv && pip install mmcv-lite==2.1.0",
    ),
    "no pkg_resources": (
        replace(CPU, pkg_resources=False),
        "no pkg_resources",
        'pip install "setuptools<81"',
    ),
    "old numpy": (
        replace(CPU, numpy="1.26.4"),
        "numpy 1.26.4 is too old",
        'pip install --upgrade "numpy>=2"',
    ),
    "a package is missing": (
        replace(CPU, import_error=ModuleNotFoundError("No module named 'pycocotools'", name="pycocotools")),
        "No module named 'pycocotools'",
        "pip install pycocotools",
    ),
    "a module of another name": (
        replace(CPU, import_error=ModuleNotFoundError("No module named 'yaml'", name="yaml")),
        "No module named 'yaml'",
        "pip install pyyaml",
    ),
    "OpenCV without libGL": (
        replace(CPU, import_error=ImportError("libGL.so.1: cannot open shared object file", name="cv2")),
        "libGL.so.1",
        "pip install --force-reinstall opencv-python-headless",
    ),
    "no cache": (
        replace(CPU, cache_problem="/x is not writable"),
        "downloaded weights cannot be kept: /x is not writable",
        "export TORCH_HOME=",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken(name):
    found, what, mend = BROKEN[name]
    ((told, command),) = problems(found)  # one cause, told once
    assert what in told and mend in command
    assert "\n" not in told + command
    subprocess.run(["bash", "-n", "-c", command], check=True)  # can be pasted as it is


def test_distributions_of_one_folder_are_a_mixture(tmp_path, monkeypatch):
    """Another folder's are not, if they are not imported."""
    for folder, names in (("first", ("mmcv", "onedl_mmcv")), ("second", ("mmcv_lite",))):
        (tmp_path / folder / "mmcv").mkdir(parents=True)
        (tmp_path / folder / "mmcv" / "__init__.py").touch()
        for name in names:
            info = tmp_path / folder / f"{name}-9.9.dist-info"
            info.mkdir()
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 9.9\n")
    paths = f"sys.path[:0] = [{str(tmp_path / 'first')!r}, {str(tmp_path / 'second')!r}]"
    output = run(
        f"import sys\n{paths}\nfrom dcnzoo.cli.env import installed\n"
        "print(dict(installed(('mmcv', 'mmcv-lite', 'onedl-mmcv'))))"
    )
    assert output.strip() == str({"mmcv": "9.9", "onedl-mmcv": "9.9"})


def test_healthy():
    """Where these tests run; what is patched, and whose operators mmcv uses."""
    if list(problems(Found.here())):
        pytest.skip("something is wrong here: python -m dcnzoo doctor")
    output = commands.run("doctor")
    assert "nothing is wrong" in output
    patched = {line.split()[1] for line in output.splitlines() if line.startswith("patch ")}
    assert {"load_own_checkpoints:", "deform_conv:", "DCN:", "legacy_offset_names:"} <= patched
    assert any(line.startswith("mmcv._ext") and "dcnzoo's" in line for line in output.splitlines())


def test_torch_alone():
    absent = "\n".join(f"sys.modules[{name!r}] = None" for name in OPENMMLAB)
    output = run(
        f"import sys\n{absent}\nfrom dcnzoo.cli import doctor, main\n"
        "doctor.installed = lambda packages: []\nmain('doctor')"
    )
    assert "nothing is wrong" in output and "patch " not in output


# Real set-ups that are broken, and the command as it is called

BUILD = "pip install -e . --no-build-isolation --no-deps  # in dcnzoo's repository"


def doctor_of(tree, preparation="", site=True):
    """What ``python -m dcnzoo doctor`` says is wrong, with the command, where this folder is dcnzoo's."""
    code = f"import runpy, sys\n{preparation}\nsys.argv = ['dcnzoo', 'doctor']\nrunpy.run_module('dcnzoo')"
    command = [sys.executable, *([] if site else ["-S"]), "-c", code]
    paths = {"PYTHONPATH": os.pathsep.join(map(str, [tree] if site else [tree, tree / "packages"]))}
    result = subprocess.run(command, cwd=tree, env={**os.environ, **paths}, capture_output=True, text=True)
    assert "Traceback" not in result.stderr, result.stderr
    _, *problems = result.stdout.split("\nwrong: ")
    assert result.returncode == bool(problems), result.stdout + result.stderr
    return [tuple(problem.splitlines()[:2]) for problem in problems]


@pytest.fixture
def tree(tmp_path):
    """This package, whose compiled libraries a test may break."""
    package = Path(doctor.__file__).parents[1]
    shutil.copytree(
        package, tmp_path / "dcnzoo", ignore=shutil.ignore_patterns(".mim", "__pycache__", "*.so")
    )
    for library in package.glob("ops/*.so"):
        (tmp_path / "dcnzoo" / "ops" / library.name).symlink_to(library)
    return tmp_path


def test_missing_library(tree):
    ops = tree / "dcnzoo" / "ops"
    (ops / "_C_cpu.so").unlink()
    ((what, mend),) = doctor_of(tree)
    assert what.startswith(f"no compiled operators: _C_cpu.so is not in {ops}. Build them with")
    assert mend == f" mend: {BUILD}"


@pytest.mark.slow
def test_library_that_does_not_load(tree):
    """Of another system, or broken: the loader's word on it."""
    library = tree / "dcnzoo" / "ops" / "_C_cpu.so"
    library.unlink()
    library.write_bytes(b"MZ: a library for Windows" * 100)
    ((what, mend),) = doctor_of(tree)
    assert what.startswith("no compiled operators: _C_cpu.so does not load: ") and str(library) in what
    assert mend == f" mend: {BUILD}"


@pytest.mark.slow
def test_wrong_torch(tree):
    ((what, mend),) = doctor_of(tree, "import torch; torch.__version__ = '2.9.1+cu128'")
    assert what == "torch 2.9.1+cu128 is too old: dcnzoo needs 2.10 or later"
    assert mend == ' mend: pip install --upgrade "torch>=2.10"'


@pytest.mark.slow
def test_no_cuda_library_on_a_cuda_machine(tree):
    (tree / "dcnzoo" / "ops" / "_C_cuda.so").unlink(missing_ok=True)
    gpu = "import torch; torch.version.cuda = '13.0'; torch.cuda.is_available = lambda: True"
    ((what, mend),) = doctor_of(tree, gpu)
    missing = f"_C_cuda.so is not in {tree / 'dcnzoo' / 'ops'}"
    assert what.startswith(f"torch sees a GPU, but the CUDA operators are not loaded: {missing}")
    assert mend == f" mend: {BUILD}, with nvcc of CUDA 13.0 on the PATH"


@pytest.mark.slow
def test_mmcv_absent(tree):
    """All other packages of this environment, and no site-packages that has mmcv."""
    if dict(doctor.installed(("mmcv-lite", "mmdet", "mmengine"))).keys() != {
        "mmcv-lite",
        "mmdet",
        "mmengine",
    }:
        pytest.skip("needs mmcv-lite and what imports it")
    without_module(tree, "mmcv")
    ((what, mend),) = doctor_of(tree, site=False)
    assert what == "mmengine, mmdet installed, but no mmcv, which they import"
    assert mend == " mend: pip install mmcv-lite==2.1.0"


def without_module(tree, name):
    """All packages of this environment but one, and no other site-packages."""
    (tree / "packages").mkdir()
    for entry in Path(pytest.__file__).parents[1].iterdir():
        if not entry.name.startswith(name) and entry.name != "__pycache__":
            (tree / "packages" / entry.name).symlink_to(entry)


@pytest.mark.slow
def test_what_a_training_imports_is_absent(tree):
    if not dict(doctor.installed(("mmdet",))):
        pytest.skip("needs mmdet")
    without_module(tree, "pycocotools")
    ((what, mend),) = doctor_of(tree, site=False)
    assert "No module named 'pycocotools'" in what and mend == " mend: pip install pycocotools"


@pytest.mark.slow
def test_cache_that_is_a_file(tree, monkeypatch):
    if not dict(doctor.installed(("mmdet",))):
        pytest.skip("needs mmdet")
    (tree / "torch").touch()
    monkeypatch.setenv("TORCH_HOME", str(tree / "torch"))
    ((what, mend),) = doctor_of(tree)
    assert str(tree / "torch") in what and "TORCH_HOME" in mend


def test_patches_that_are_switched_off_are_not_listed():
    if list(problems(Found.here())):
        pytest.skip("something is wrong here: python -m dcnzoo doctor")
    with patches.disabled("load_own_checkpoints"):
        listed = dict(doctor.patch_lines())
    assert "load_own_checkpoints" not in listed and all(listed.values())
    assert "load_own_checkpoints" in dict(doctor.patch_lines())
