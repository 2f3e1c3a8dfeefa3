"""Installed versions, the problems of the installation, and the commands that fix them."""

import importlib
import os
import platform
import re
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, distribution, distributions, version
from importlib.util import find_spec
from pathlib import Path

from packaging.version import Version

from dcnzoo.compat.mmcv import EXTENSION, STAND_IN
from dcnzoo.utils.errors import one_line
from dcnzoo.utils.findings import Finding
from dcnzoo.utils.folders import cache_folder
from dcnzoo.version import __version__

# distribution → module; the forks are listed only if they are installed
ORIGINALS = {"mmengine": "mmengine", "mmcv": "mmcv", "mmcv-lite": "mmcv", "mmdet": "mmdet"}
FORKS = {"onedl-mmengine": "mmengine", "onedl-mmcv": "mmcv", "onedl-mmdetection": "mmdet"}
MODULES = {**ORIGINALS, **FORKS}
TESTED = "pip install mmengine==0.10.7 mmcv-lite==2.1.0 mmdet==3.3.0"
BUILD = "pip install -e . --no-build-isolation --no-deps  # in dcnzoo's repository"
REINSTALL = "pip uninstall -y dcnzoo && pip install --no-deps .  # in dcnzoo's repository"
# modules that together import everything for training, its report and its downloads
TRAINING = ("dcnzoo.models", "dcnzoo.report.report", "dcnzoo.zoo.config_writer", "dcnzoo.zoo", "mmdet.apis")
DISTRIBUTIONS = {  # module → distribution
    "cv2": "opencv-python-headless",
    "PIL": "pillow",
    "pkg_resources": '"setuptools<81"',
    "skimage": "scikit-image",
    "yaml": "pyyaml",
}


# OpenMMLab's other packages: module → the tested version, and the modules that its import requires
PACKAGES = {
    "mmseg": ("mmsegmentation==1.2.2", ("ftfy", "prettytable", "regex")),
    "mmpose": ("mmpose==1.3.2", ("json_tricks", "munkres", "torchvision", "xtcocotools")),
    "mmpretrain": ("mmpretrain==1.2.0", ("einops", "mat4py", "modelindex", "rich", "torchvision")),
    "mmocr": ("mmocr==1.0.1", ("imgaug", "lmdb", "pyclipper", "rapidfuzz", "skimage")),
    "mmyolo": ("mmyolo==0.6.0", ("prettytable",)),
    "mmrotate": ("mmrotate==1.0.0rc1", ("e2cnn",)),
    "mmagic": (
        "mmagic==1.2.0",
        ("albumentations", "diffusers", "einops", "lmdb", "lpips", "resize_right", "transformers"),
    ),
}


def environment() -> Iterator[tuple[str, str]]:
    """Yield name and value of everything that affects how dcnzoo runs."""
    import torch

    from dcnzoo import ops
    from dcnzoo.ops import _library

    yield "dcnzoo", __version__
    yield "python", f"{platform.python_version()} on {platform.machine()}"
    yield "torch", torch.__version__
    present = dict(installed(("numpy", "triton", *MODULES)))
    expected = ["numpy", "triton"]
    if present.keys().isdisjoint(FORKS):
        expected += ORIGINALS
    for package in expected:
        present.setdefault(package, "not installed")
    yield from present.items()
    for device in ("cpu", "cuda"):
        reason = _library.problems.get(device, "they need the CPU operators")
        yield f"{device} operators", str(_library.loaded.get(device) or f"not loaded: {reason}")
    if ops.has_ops():
        from dcnzoo.ops import choose

        chosen = ops.cpu_capability()
        if refusal := torch.ops.dcnzoo._amx_refusal():
            chosen += f" (the system refuses AMX: {refusal})"
        yield "cpu capability", chosen
        yield "DCNZOO_BACKEND", choose.backend
    yield from _kernel_lines()
    if ops.with_cuda():
        name, capability = torch.cuda.get_device_name(), torch.cuda.get_device_capability()
        yield "cuda", f"{torch.version.cuda}, {name} (sm_{capability[0]}{capability[1]})"
    else:
        yield "cuda", f"no ({'a GPU' if torch.cuda.is_available() else 'no GPU'} found by torch)"
    extension = find_spec(EXTENSION) if find_spec("mmcv") else None
    if extension is None:
        yield EXTENSION, "none: mmcv is not installed"
    else:
        whose = "dcnzoo's" if extension.origin == str(STAND_IN) else "mmcv's"
        yield EXTENSION, f"{whose}, {extension.origin}"


def _kernel_lines() -> Iterator[tuple[str, str]]:
    """Yield, for each device here, the kernels in order of preference and their operators."""
    import torch

    from dcnzoo.ops import choose

    for device in ("cpu", "cuda")[: 1 + torch.cuda.is_available()]:
        rows = choose.table(device.upper())
        for kernels in dict.fromkeys(rows.values()):
            names = [name for name in rows if rows[name] == kernels]
            text = "all operators" if len(names) == len(rows) else ", ".join(names)
            preferred, reason = kernels
            because = f" ({reason})" if reason else ""
            yield f"{device} kernels", f"{', else '.join(preferred)}: {text}{because}"


def installed(packages: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield name and version of the packages that Python imports; others may be further back on its path."""
    folders = {}
    for package in packages:
        with suppress(PackageNotFoundError):
            folders[package] = Path(str(distribution(package).locate_file(""))).resolve()
    for package, folder in folders.items():
        module = MODULES.get(package, package)
        spec = find_spec(module)
        rivals = {folders[other] for other in folders if MODULES.get(other, other) == module}
        imported = Path(spec.origin).resolve().parents[1] if spec and spec.origin else None
        if len(rivals) == 1 or imported not in rivals or folder == imported:
            yield package, version(package)


@dataclass
class Installation:
    """The facts about this machine on which the problems depend."""

    torch: str  # version, "2.13.0+cpu"
    torch_cuda: str | None  # the CUDA that torch was built with
    torch_sees_gpu: bool
    nvidia_driver: bool  # installed on the machine, even if torch finds no GPU
    libraries: dict[str, str] = field(default_factory=dict)  # "cpu", "cuda" -> why it is not loaded
    features: dict[str, str] = field(default_factory=dict)  # feature without its symbols in torch -> reason
    packages: dict[str, str] = field(default_factory=dict)  # distribution -> version
    triton_runs: bool = False  # on the GPU, in place of compiled CUDA operators
    opencv: tuple[str, ...] = ()  # distributions that contain cv2
    numpy: str = "2.0"
    import_error: ImportError | None = None  # why the modules for training cannot be imported
    cache_problem: str | None = None  # why downloaded weights cannot be stored
    torchvision_problem: str | None = None  # why its operators cannot be used

    @property
    def lacks_gpu_kernels(self) -> bool:
        """Whether torch finds a GPU, on which plain PyTorch runs all operators."""
        without = bool(self.torch_cuda) and "cuda" in self.libraries and self.torch_sees_gpu
        return without and not self.triton_runs

    @classmethod
    def here(cls) -> "Installation":
        import torch

        from dcnzoo.ops import _library, _torch_private
        from dcnzoo.ops.fused import available

        packages = dict(installed(MODULES))
        installation = cls(
            torch=torch.__version__,
            torch_cuda=torch.version.cuda,
            torch_sees_gpu=torch.cuda.is_available(),
            nvidia_driver=Path("/proc/driver/nvidia/version").exists(),
            libraries=dict(_library.problems),
            features=_torch_private.missing,
            packages=packages,
            triton_runs=torch.cuda.is_available() and available.triton_works(torch.device("cuda")),
            opencv=_opencv(),
            numpy=version("numpy") if find_spec("numpy") else "0",
            cache_problem=_cache_problem(),
            torchvision_problem=_torchvision_problem(),
        )
        if {"mmdet", "onedl-mmdetection"} & packages.keys() and not list(_set_up_problems(installation)):
            installation.import_error = _import_error()
        return installation


def repair_torchvision(torch: str) -> str:
    """The command that installs the torchvision of a torch, such as ``"2.13.0+cpu"``."""
    release, _, build = torch.partition("+")
    minor = int(release.split(".")[1]) + 15  # 0.25 for torch 2.10
    command = f'pip install --no-deps --force-reinstall "torchvision==0.{minor}.*"'
    return f"{command} --index-url https://download.pytorch.org/whl/{build}" if build else command


def _torchvision_problem() -> str | None:
    """Why the installed torchvision cannot be imported with the installed torch, or None."""
    try:
        importlib.import_module("torchvision")
    except ModuleNotFoundError:
        return None
    except Exception as error:  # RuntimeError: operator torchvision::nms does not exist
        versions = f"torchvision {version('torchvision')} does not fit torch {version('torch')}"
        return f"{versions}: {one_line(error)}"
    return None


def _opencv() -> tuple[str, ...]:
    """Return the distributions that own the imported cv2; that of ``.ci/opencv-python`` is empty."""
    path = getattr(find_spec("cv2"), "origin", None)
    packages = [d for d in distributions() if (d.name or "").startswith("opencv")]
    return tuple(p.name for p in packages if path in {str(p.locate_file(file)) for file in p.files or ()})


def _import_error() -> ImportError | None:
    """Import MMDetection in another process: a library that was built for another torch may end it."""
    imports = "\n".join(f"import {module}" for module in TRAINING)
    code = f"import sys\nsys.path[:] = {sys.path!r}\n{imports}"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    if done.returncode == 0:
        return None
    text = (done.stderr.strip().splitlines() or [""])[-1]
    if done.returncode < 0:
        text = f"the import of MMDetection was ended by {signal.Signals(-done.returncode).name}"
    name = re.search(r"No module named '([\w.]+)'", text)
    return ImportError(text, name=name and name[1])


def _cache_problem() -> str | None:
    folder = cache_folder()
    parent = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not parent.is_dir():
        return f"{parent} is not a folder"
    return None if os.access(parent, os.W_OK | os.X_OK) else f"{parent} is not writable"


def _problem(text: str, remedy: str) -> Finding:
    return Finding("", text, remedy=remedy)


def problems(installation: Installation) -> Iterator[Finding]:
    """Yield each problem with the command that fixes it; causes come before their consequences."""
    yield from _set_up_problems(installation)
    if installation.packages:
        yield from _training_problems(installation)


def _set_up_problems(installation: Installation) -> Iterator[Finding]:
    for feature, reason in installation.features.items():
        yield _problem(f"dcnzoo has no {feature}: {reason}", 'pip install "torch==2.13.0"')
    if Version(installation.torch).release < (2, 10):
        text = f"torch {installation.torch}: dcnzoo needs 2.10 or later"
        yield _problem(text, 'pip install --upgrade "torch>=2.10"')
    elif "cpu" in installation.libraries:
        yield _problem(f"no compiled operators: {installation.libraries['cpu']}", BUILD)
    elif installation.lacks_gpu_kernels:
        reason = installation.libraries["cuda"]
        text = f"torch finds a GPU, but the CUDA operators are not loaded: {reason}"
        nvcc = f"nvcc of CUDA {installation.torch_cuda} on the PATH"
        yield _problem(text, f"DCNZOO_CUDA=1 {BUILD}, with {nvcc}")
    if installation.nvidia_driver and not installation.torch_cuda:
        text = f"this machine has an NVIDIA GPU, but torch {installation.torch} is a CPU build"
        install = "pip uninstall -y torch && pip install torch"
        yield _problem(text, f"{install}  # for CUDA: https://pytorch.org/get-started")
    if installation.torchvision_problem:
        yield _problem(installation.torchvision_problem, repair_torchvision(installation.torch))
    if len(installation.opencv) > 1:
        text = f"{' and '.join(installation.opencv)} are installed: they overwrite each other's files"
        uninstall = f"pip uninstall -y {' '.join(installation.opencv)}"
        yield _problem(text, f"{uninstall} && pip install opencv-python-headless")
    originals = [name for name in ORIGINALS if name in installation.packages]
    forks = [name for name in FORKS if name in installation.packages]
    names = ", ".join(originals + forks)
    if originals and forks:
        remedy = f"pip uninstall -y {' '.join(originals + forks)} && {TESTED}"
        yield _problem(f"{names} are installed: onedl-… packages work only with each other", remedy)
    elif {"mmcv", "mmcv-lite"} <= installation.packages.keys():
        versions = " and ".join(f"{name} {installation.packages[name]}" for name in ("mmcv", "mmcv-lite"))
        remedy = "pip uninstall -y mmcv mmcv-lite && pip install mmcv-lite==2.1.0"
        yield _problem(f"{versions} are installed: they overwrite each other's files", remedy)
    elif names and not {"mmcv", "mmcv-lite", "onedl-mmcv"} & installation.packages.keys():
        remedy = "pip install --no-deps onedl-mmcv" if forks else "pip install mmcv-lite==2.1.0"
        yield _problem(f"{names} installed, but no mmcv, which they import", remedy)


def _training_problems(installation: Installation) -> Iterator[Finding]:
    if Version(installation.numpy).release < (2,):
        text = f"numpy {installation.numpy}: with OpenMMLab's packages, dcnzoo needs 2 or later"
        yield _problem(text, 'pip install --upgrade "numpy>=2"')
    elif installation.import_error:
        error = installation.import_error
        yield _problem(f"training cannot start: {one_line(error)}", _import_fix(error) or TESTED)
    if installation.cache_problem:
        text = f"downloaded weights cannot be stored: {installation.cache_problem}"
        yield _problem(text, 'export TORCH_HOME="$HOME/torch"  # or another writable folder')


def package_problems(module: str) -> Iterator[Finding]:
    """Yield the problems of one of :data:`PACKAGES` with the commands that fix them."""
    requirement, needs = PACKAGES[module]
    absent = find_spec(module) is None
    if absent:  # --no-deps: with its requirements, pip would replace mmcv-lite or compile
        yield _problem(f"{module} is not installed", f"pip install --no-deps {requirement}")
    missing = [name for name in needs if find_spec(name) is None]
    if missing:
        distributions = [DISTRIBUTIONS.get(name, name) for name in missing if name != "torchvision"]
        remedies = [f"pip install {' '.join(distributions)}"] if distributions else []
        if "torchvision" in missing:  # a plain `pip install torchvision` may replace torch
            remedies.append(repair_torchvision(version("torch")))
        yield _problem(f"{module} needs {', '.join(missing)}: not installed", " && ".join(remedies))
    if absent or missing:
        return
    try:
        for name in ("dcnzoo.models", f"{module}.models", f"{module}.datasets"):
            importlib.import_module(name)
    except Exception as error:  # a name that numpy has removed raises AttributeError
        remedy = _import_fix(error) or f"pip install --no-deps {requirement}"
        yield _problem(f"{module} cannot be imported: {one_line(error)}", remedy)


def _import_fix(error: Exception) -> str | None:
    """Return a command that may fix a failed import, if the error identifies one."""
    if "torchvision" in str(error):  # it is absent or was built for another torch
        return repair_torchvision(version("torch"))
    if re.search(r"\bdcnzoo\.\w", str(error)):  # files of two versions
        return REINSTALL
    if "undefined symbol" in str(error):  # mmcv, compiled for another torch
        return f"pip uninstall -y mmcv && {TESTED}"
    if "libGL" in str(error):
        return "pip uninstall -y opencv-python && pip install --force-reinstall opencv-python-headless"
    if isinstance(error, ImportError) and error.name:
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
