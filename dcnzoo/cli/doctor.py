"""``dcnzoo doctor``: list installed versions, the problems, and the commands that fix them."""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import distributions, version
from importlib.util import find_spec
from pathlib import Path

import click
from packaging.version import Version

from dcnzoo.cli._environment import FORKS, MODULES, ORIGINALS, environment, installed, mmcv_extension
from dcnzoo.compat import extensions
from dcnzoo.utils.errors import one_line

TESTED = "pip install mmengine==0.10.7 mmcv-lite==2.1.0 mmdet==3.3.0"
BUILD = "pip install -e . --no-build-isolation --no-deps  # in dcnzoo's repository"
REINSTALL = "pip uninstall -y dcnzoo && pip install --no-deps .  # in dcnzoo's repository"
OLDEST_TORCH = (2, 10)
OLDEST_NUMPY = (2,)  # with OpenMMLab's packages
OLDEST_FORKS = {"onedl-mmengine": "0.10.12", "onedl-mmcv": "2.3.6", "onedl-mmdetection": "3.5.1"}
# modules that together import everything for training, its report and its downloads
TRAINING = ("dcnzoo.models", "dcnzoo.report.report", "dcnzoo.zoo.config_writer", "dcnzoo.zoo", "mmdet.apis")
DISTRIBUTIONS = {  # module → distribution
    "cv2": "opencv-python-headless",
    "PIL": "pillow",
    "skimage": "scikit-image",
    "yaml": "pyyaml",
}


@dataclass(frozen=True)
class Package:
    """One of OpenMMLab's other packages: the tested version, and the modules that its import requires."""

    requirement: str
    needs: tuple[str, ...] = ()


PACKAGES = {
    "mmseg": Package("mmsegmentation==1.2.2", ("ftfy", "prettytable", "regex")),
    "mmpose": Package("mmpose==1.3.2", ("json_tricks", "munkres", "torchvision", "xtcocotools")),
    "mmpretrain": Package("mmpretrain==1.2.0", ("einops", "mat4py", "modelindex", "rich", "torchvision")),
    "mmocr": Package("mmocr==1.0.1", ("imgaug", "lmdb", "pyclipper", "rapidfuzz", "skimage")),
    "mmyolo": Package("mmyolo==0.6.0", ("prettytable",)),
    "mmrotate": Package("mmrotate==1.0.0rc1", ("e2cnn",)),
    "mmagic": Package(
        "mmagic==1.2.0",
        ("albumentations", "diffusers", "einops", "lmdb", "lpips", "resize_right", "transformers"),
    ),
}


@dataclass
class Found:
    """The facts about this machine on which the problems depend."""

    torch: str  # version, "2.13.0+cpu"
    torch_cuda: str | None  # the CUDA that torch was built with
    torch_sees_gpu: bool
    nvidia_driver: bool  # installed on the machine, even if torch finds no GPU
    libraries: dict[str, str] = field(default_factory=dict)  # "cpu", "cuda" -> why it is not loaded
    features: dict[str, str] = field(default_factory=dict)  # feature without its symbols in torch -> reason
    packages: dict[str, str] = field(default_factory=dict)  # distribution -> version
    opencv: tuple[str, ...] = ()  # distributions that contain cv2
    extension_error: str | None = None  # why a compiled mmcv._ext does not load
    pkg_resources: bool = True
    numpy: str = "2.0"
    import_error: Exception | None = None  # why the modules for training cannot be imported
    cache_problem: str | None = None  # why downloaded weights cannot be stored

    @classmethod
    def here(cls) -> Found:
        import torch

        from dcnzoo.ops import _library, _torch_private

        packages = dict(installed(ORIGINALS + FORKS))
        reasons = {device: why for device, why in _library.problems.items() if device not in _library.loaded}
        found = cls(
            torch=torch.__version__,
            torch_cuda=torch.version.cuda,
            torch_sees_gpu=torch.cuda.is_available(),
            nvidia_driver=Path("/proc/driver/nvidia/version").exists(),
            libraries=reasons,
            features=_torch_private.missing,
            packages=packages,
            opencv=_opencv(),
            extension_error=_extension_error(),
            pkg_resources=find_spec("pkg_resources") is not None,
            numpy=version("numpy") if find_spec("numpy") else "0",
            cache_problem=_cache_problem(),
        )
        if {"mmdet", "onedl-mmdetection"} & packages.keys() and not list(_set_up_problems(found)):
            found.import_error = _import_error()
        return found


def _extension_error() -> str | None:
    """Try to import a compiled ``mmcv._ext``; this fails with a torch other than the one it was built for."""
    if mmcv_extension() is None:
        return None
    try:
        importlib.import_module("mmcv._ext")
    except (ImportError, OSError) as error:
        return str(error).splitlines()[0]
    return None


def _opencv() -> tuple[str, ...]:
    """Return the distributions that own the imported cv2; that of ``.ci/opencv-python`` is empty."""
    path = getattr(find_spec("cv2"), "origin", None)
    packages = [each for each in distributions() if (each.name or "").startswith("opencv")]
    return tuple(p.name for p in packages if path in {str(p.locate_file(file)) for file in p.files or ()})


def _import_error() -> Exception | None:
    try:
        for module in TRAINING:
            importlib.import_module(module)
    except Exception as error:  # an old numpy raises AttributeError
        return error
    return None


def _cache_folder() -> Path:
    import torch

    return Path(torch.hub.get_dir()) / "checkpoints"


def _cache_problem() -> str | None:
    folder = _cache_folder()
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        return f"{there} is not a folder"
    return None if os.access(there, os.W_OK | os.X_OK) else f"{there} is not writable"


def _release(text: str) -> tuple[int, ...]:
    """Return the release of a version: (0, 10, 12) for ``0.10.12.post1``, (2, 10, 0) for ``2.10.0a0+cpu``."""
    return Version(text).release


def problems(found: Found) -> Iterator[tuple[str, str]]:
    """Yield each problem and the command that fixes it; causes come before their consequences."""
    yield from _set_up_problems(found)
    if found.packages:
        yield from _training_problems(found)


def _set_up_problems(found: Found) -> Iterator[tuple[str, str]]:
    for feature, reason in found.features.items():
        yield f"dcnzoo has no {feature}: {reason}", 'pip install "torch==2.13.0"'
    if _release(found.torch) < OLDEST_TORCH:
        yield (
            f"torch {found.torch} is too old: dcnzoo needs 2.10 or later",
            'pip install --upgrade "torch>=2.10"',
        )
    elif "cpu" in found.libraries:
        yield f"no compiled operators: {found.libraries['cpu']}", BUILD
    elif found.torch_cuda and found.torch_sees_gpu and "cuda" in found.libraries:
        yield (
            f"torch finds a GPU, but the CUDA operators are not loaded: {found.libraries['cuda']}",
            f"DCNZOO_CUDA=1 {BUILD}, with nvcc of CUDA {found.torch_cuda} on the PATH",
        )
    if found.nvidia_driver and not found.torch_cuda:
        yield (
            f"this machine has an NVIDIA GPU, but torch {found.torch} is a CPU build",
            "pip uninstall -y torch && pip install torch  # a build for CUDA: https://pytorch.org/get-started/locally",
        )
    if len(found.opencv) > 1:
        yield (
            f"{' and '.join(found.opencv)} are installed: they overwrite each other's files",
            f"pip uninstall -y {' '.join(found.opencv)} && pip install opencv-python-headless",
        )
    yield from _openmmlab_problems(found)


def _openmmlab_problems(found: Found) -> Iterator[tuple[str, str]]:
    originals = [name for name in ORIGINALS if name in found.packages]
    forks = [name for name in FORKS if name in found.packages]
    if originals and forks:
        twice = {MODULES[name] for name in originals} & {MODULES[name] for name in forks}
        yield (
            f"{', '.join(originals)} and {', '.join(forks)} are installed: "
            + (
                "they overwrite each other's files" if twice else "onedl-… packages work only with each other"
            ),
            f"pip uninstall -y {' '.join(originals + forks)} && {TESTED}",
        )
        return
    for name in forks:
        if _release(found.packages[name]) < _release(OLDEST_FORKS[name]):
            yield (
                f"{name} {found.packages[name]} is too old: dcnzoo needs {OLDEST_FORKS[name]} or later",
                f'pip install --no-deps --upgrade "{name}>={OLDEST_FORKS[name]}"',
            )
    if not originals and not forks:
        return  # operators and layers need only torch
    if {"mmcv", "mmcv-lite"} <= found.packages.keys():
        yield (
            f"mmcv {found.packages['mmcv']} and mmcv-lite {found.packages['mmcv-lite']} are both installed: "
            "they overwrite each other's files",
            "pip uninstall -y mmcv mmcv-lite && pip install mmcv-lite==2.1.0",
        )
    elif not {"mmcv", "mmcv-lite", "onedl-mmcv"} & found.packages.keys():
        others = originals + forks
        fork = "pip install --no-deps onedl-mmcv"
        yield (
            f"{', '.join(others)} installed, but no mmcv, which they import",
            fork if forks else "pip install mmcv-lite==2.1.0",
        )
    mmcv = found.packages.get("mmcv-lite") or found.packages.get("mmcv")
    if mmcv and "mmdet" in found.packages and not (2, 0) <= _release(mmcv) < (2, 2):
        name = "mmcv-lite" if "mmcv-lite" in found.packages else "mmcv"
        yield (
            f"{name} {mmcv}: mmdet {found.packages['mmdet']} supports only 2.0 and 2.1",
            f"pip uninstall -y {name} && pip install mmcv-lite==2.1.0",
        )
    if found.extension_error:
        name = "onedl-mmcv" if forks else "mmcv"
        yield (
            f"{name}'s compiled operators are for another torch and do not load: {found.extension_error}",
            "pip uninstall -y onedl-mmcv && pip install --no-deps --no-binary onedl-mmcv onedl-mmcv"
            if forks
            else "pip uninstall -y mmcv && pip install mmcv-lite==2.1.0",
        )
    if originals and not found.pkg_resources:
        yield "no pkg_resources, which mmengine and mmcv import", 'pip install "setuptools<81"'


def _training_problems(found: Found) -> Iterator[tuple[str, str]]:
    if _release(found.numpy) < OLDEST_NUMPY:
        yield (
            f"numpy {found.numpy} is too old: with OpenMMLab's packages, dcnzoo needs 2 or later",
            'pip install --upgrade "numpy>=2"',
        )
    elif found.import_error:
        error = found.import_error
        yield f"training cannot start: {one_line(error)}", _import_fix(error) or TESTED
    if found.cache_problem:
        yield (
            f"downloaded weights cannot be stored: {found.cache_problem}",
            'export TORCH_HOME="$HOME/torch"  # or another writable folder',
        )


def package_problems(module: str) -> Iterator[tuple[str, str]]:
    """Yield the problems of one of :data:`PACKAGES` and the commands that fix them."""
    package = PACKAGES[module]
    absent = find_spec(module) is None
    if absent:  # --no-deps: with its requirements, pip would replace mmcv-lite or compile
        yield f"{module} is not installed", f"pip install --no-deps {package.requirement}"
    missing = [name for name in package.needs if find_spec(name) is None]
    if missing:
        distributions = [DISTRIBUTIONS.get(name, name) for name in missing]
        yield f"{module} needs {', '.join(missing)}: not installed", f"pip install {' '.join(distributions)}"
    if absent or missing:
        return
    try:
        for name in ("dcnzoo.models", f"{module}.models", f"{module}.datasets"):
            importlib.import_module(name)
    except Exception as error:  # a name that numpy has removed raises AttributeError
        remedy = _import_fix(error) or f"pip install --no-deps {package.requirement}"
        yield f"{module} cannot be imported: {one_line(error)}", remedy


def _import_fix(error: Exception) -> str | None:
    """Return a command that may fix a failed import, if the error identifies one."""
    if re.search(r"\bdcnzoo\.\w", str(error)):  # files of two versions
        return REINSTALL
    if "libGL" in str(error):
        return "pip uninstall -y opencv-python && pip install --force-reinstall opencv-python-headless"
    if isinstance(error, ModuleNotFoundError) and error.name:
        module = error.name.partition(".")[0]
        return f"pip install {DISTRIBUTIONS.get(module, module)}"
    return None


def patch_lines() -> Iterator[tuple[str, str]]:
    """Yield name, target and reason of each patch that dcnzoo applies here."""
    from dcnzoo.compat import patches

    importlib.import_module("dcnzoo.models")
    if find_spec("mmdet"):
        importlib.import_module("dcnzoo.openmmlab.datasets")
    for patch in patches.table():
        if patch.applied:
            yield patch.name, f"{patch.target} ({patch.versions}): {patch.reason}"


@click.command
@click.option(
    "--for", "package", type=click.Choice(PACKAGES), help="Also check one of OpenMMLab's other packages."
)
def command(package: str | None) -> None:
    """Print installed versions, and each problem of the installation and how to fix it.

    Exit with status 1 if there is a problem.

    \b
    examples:
      dcnzoo doctor
      dcnzoo doctor --for mmseg
    """
    lines = [*environment(), ("weights", f"downloaded to {_cache_folder()}")]
    lines += [("provided", f"{name}: {whose}") for name, whose in extensions.status().items()]
    found = Found.here()
    wrong = list(problems(found))
    if package and not wrong:
        wrong += package_problems(package)
    if find_spec("mmengine") and not wrong:
        lines += [("patch", f"{name}: {text}") for name, text in patch_lines()]
    width = max(len(name) for name, _ in lines)
    for name, value in lines:
        print(f"{name:{width}}  {value}")
    if found.torch_cuda and "cuda" in found.libraries and not found.torch_sees_gpu:
        print(f"\nnote: torch is a CUDA build, dcnzoo is not. To use a GPU: DCNZOO_CUDA=1 {BUILD}")
    for what, remedy in wrong:
        print(f"\nproblem: {what}\n    fix: {remedy}")
    print(f"\n{len(wrong)} problem{'s' * (len(wrong) != 1)} found" if wrong else "\nno problems found")
    sys.exit(1 if wrong else 0)
