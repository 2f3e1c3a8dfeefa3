"""``dcnzoo doctor`` recognises each broken installation and prints the command that fixes it."""

import re
import subprocess
from dataclasses import replace

import pytest
import torch

from dcnzoo import diagnosis
from dcnzoo.diagnosis import Installation, problems
from dcnzoo.ops import _library

from . import commands
from .processes import python_with_torch
from .test_import import OPENMMLAB, run

ORIGINALS = dict(package.split("==") for package in diagnosis.TESTED.split()[2:])
FORKS = {"onedl-mmengine": "0.10.12", "onedl-mmcv": "2.3.6", "onedl-mmdetection": "3.5.1"}
CPU = Installation(
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
HEALTHY = {
    "cpu": CPU,
    "gpu": GPU,
    "CUDA build without a GPU": replace(CPU, torch_cuda="13.0"),
    "torch alone, numpy 1, no cache": replace(CPU, packages={}, numpy="1.26.4", cache_problem="/x"),
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


def fails(error):
    return replace(CPU, import_error=error)


def lacks(module):
    return fails(ModuleNotFoundError(f"No module named {module!r}", name=module))


@pytest.mark.parametrize(
    ("code", "word", "remedy"),
    [
        ("import no_such_module", "no_such_module", "pip install no_such_module"),
        ("import os; os.abort()", "SIGABRT", diagnosis.TESTED),
    ],
)
def test_an_import_that_fails_or_ends_the_process(code, word, remedy, tmp_path, monkeypatch):
    (tmp_path / "broken_part.py").write_text(code)
    monkeypatch.setattr(diagnosis, "TRAINING", ("broken_part",))
    monkeypatch.syspath_prepend(tmp_path)
    (problem,) = problems(replace(CPU, import_error=diagnosis._import_error()))
    assert word in problem.text and problem.remedy == remedy


BROKEN = [  # (state of the machine, word in the problem, start of the command)
    (replace(CPU, torch="2.9.1", libraries={"cpu": "x"}), "2.9.1", 'pip install --upgrade "torch>=2.10"'),
    (replace(CPU, libraries={"cpu": "not in /x"}), "not in /x", diagnosis.BUILD),
    (
        replace(GPU, libraries={"cuda": "not in /y"}),
        "not in /y",
        f"DCNZOO_CUDA=1 {diagnosis.BUILD}, with nvcc",
    ),
    (replace(CPU, nvidia_driver=True), "CPU build", "pip uninstall -y torch && pip install torch  # "),
    (packages(ORIGINALS, "mmcv-lite"), "no mmcv", "pip install mmcv-lite==2.1.0"),
    (packages(FORKS, "onedl-mmcv"), "no mmcv", "pip install --no-deps onedl-mmcv"),
    (
        packages(ORIGINALS, mmcv="2.2.0"),
        "mmcv 2.2.0 and mmcv-lite 2.1.0",
        "pip uninstall -y mmcv mmcv-lite && pip install mmcv-lite==2.1.0",
    ),
    (
        packages(ORIGINALS, onedl_mmcv="2.3.6"),
        "onedl-mmcv",
        f"pip uninstall -y mmengine mmcv-lite mmdet onedl-mmcv && {diagnosis.TESTED}",
    ),
    (replace(CPU, numpy="1.26.4"), "numpy 1.26.4", 'pip install --upgrade "numpy>=2"'),
    (
        replace(CPU, opencv=("opencv-python", "opencv-python-headless")),
        "opencv-python and opencv-python-headless",
        "pip uninstall -y opencv-python opencv-python-headless && pip install opencv-python-headless",
    ),
    (fails(ImportError("Hook is already registered at dcnzoo.engine.x")), "Hook", diagnosis.REINSTALL),
    (lacks("dcnzoo.x"), "dcnzoo.x", diagnosis.REINSTALL),
    (lacks("pycocotools"), "pycocotools", "pip install pycocotools"),
    (lacks("pkg_resources.x"), "pkg_resources", 'pip install "setuptools<81"'),
    (fails(ImportError("undefined symbol: _Z")), "symbol", f"pip uninstall -y mmcv && {diagnosis.TESTED}"),
    (fails(ImportError("libGL.so.1: cannot open")), "libGL", "pip uninstall -y opencv-python && "),
    (replace(CPU, features={"autocast": "torch has no X"}), "autocast: torch has no X", 'pip install "torch'),
    (replace(CPU, cache_problem="/x is not writable"), "/x is not writable", "export TORCH_HOME="),
]


@pytest.mark.parametrize(("found", "word", "remedy"), BROKEN, ids=[row[1] for row in BROKEN])
def test_broken(found, word, remedy):
    (problem,) = problems(found)  # one cause is reported once
    assert word in problem.text and problem.remedy.startswith(remedy)
    assert "\n" not in problem.text + problem.remedy
    subprocess.run(["bash", "-n", "-c", problem.remedy], check=True)  # valid when pasted into a shell


def install(folder, module, **records):
    """Write a package, and the metadata of distributions that contain it."""
    (folder / module).mkdir(parents=True)
    (folder / module / "__init__.py").touch()
    for name, record in records.items():
        info = folder / f"{name}-9.9.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 9.9\n")
        (info / "RECORD").write_text(record)
    return f"import sys\nsys.path.insert(0, {str(folder)!r})\n"


def test_distributions_of_one_folder_are_a_mixture(tmp_path):
    """Distributions in another folder that is not imported are not listed."""
    code = install(tmp_path / "second", "mmcv", mmcv_lite="")
    code += install(tmp_path / "first", "mmcv", mmcv="", onedl_mmcv="")
    code += "from dcnzoo.diagnosis import installed\n"
    output = run(f"{code}print(dict(installed(('mmcv', 'mmcv-lite', 'onedl-mmcv'))))")
    assert output.strip() == str({"mmcv": "9.9", "onedl-mmcv": "9.9"})


def test_distributions_that_contain_opencv(tmp_path):
    """Two that overwrite each other's files, and one without files, as in ``.ci/opencv-python``."""
    file = "cv2/__init__.py,,"
    code = install(tmp_path, "cv2", opencv_first=file, opencv_second=file, opencv_empty="")
    output = run(f"{code}from dcnzoo import diagnosis\nprint(*sorted(diagnosis._opencv()))")
    assert output.split() == ["opencv_first", "opencv_second"]


def test_libraries_that_are_not_loaded_have_a_reason():
    assert Installation.here().libraries.keys() == {"cpu", "cuda"} - _library.loaded.keys()


@pytest.mark.slow  # imports every package
def test_healthy(monkeypatch):
    """The environment of these tests is healthy. Lists versions, patches and the operators that mmcv uses."""
    # of the group vit, for timm; its own operators need not load
    monkeypatch.setattr(diagnosis, "_torchvision_problem", lambda: None)
    if list(problems(Installation.here())):
        pytest.skip("something is wrong here: python -m dcnzoo doctor")
    output = commands.run("doctor", "--patches")
    assert "no problems found" in output and "patch " not in commands.run("doctor")
    patched = {line.split()[1] for line in output.splitlines() if line.startswith("patch ")}
    assert {"load_own_checkpoints:", "deform_conv:", "DCN:", "deformable_configs:"} <= patched
    values = dict(re.split(r"  +", line, maxsplit=1) for line in output.splitlines() if "  " in line)
    assert values["torch"] == torch.__version__
    assert values["cpu operators"] == str(_library.loaded["cpu"])
    assert "dcnzoo's" in values["mmcv._ext"]


def test_torch_alone():
    absent = "\n".join(f"sys.modules[{name!r}] = None" for name in (*OPENMMLAB, "torchvision"))
    output = python_with_torch(
        f"import sys\n{absent}\nfrom dcnzoo import diagnosis\nfrom dcnzoo.cli import main\n"
        "diagnosis.installed = lambda packages: []\nmain('doctor')"
    ).stdout
    assert "no problems found" in output and "patch " not in output
    assert re.search("mmdet +not installed", output)
    assert "cpu operators" in output and "none: mmcv is not installed" in output


def test_a_cache_that_is_a_file(monkeypatch):
    monkeypatch.setenv("TORCH_HOME", __file__)
    assert Installation.here().cache_problem == f"{__file__} is not a folder"


def test_another_package_that_is_not_installed(monkeypatch):
    monkeypatch.setattr(diagnosis, "find_spec", lambda name: None)
    absent, needs = diagnosis.package_problems("mmpose")
    assert str(absent) == "mmpose is not installed" and absent.remedy == "pip install --no-deps mmpose==1.3.2"
    assert "xtcocotools" in needs.text and "xtcocotools" in needs.remedy


def test_another_package_that_cannot_be_imported(monkeypatch):
    def fail(name):
        if name == "mmocr.models":
            raise ModuleNotFoundError("No module named 'skimage.draw'", name="skimage.draw")

    monkeypatch.setattr(diagnosis, "find_spec", lambda name: True)
    monkeypatch.setattr(diagnosis.importlib, "import_module", fail)
    (problem,) = diagnosis.package_problems("mmocr")
    assert "mmocr cannot be imported" in problem.text and problem.remedy == "pip install scikit-image"
    assert list(diagnosis.package_problems("mmseg")) == []
