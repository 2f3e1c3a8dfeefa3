"""Installed versions, the problems of the installation, and the commands that fix them."""

import platform
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from packaging.version import Version

from dcnzoo.compat.mmcv import EXTENSION, OWN_FILE
from dcnzoo.utils.errors import describe, install_command
from dcnzoo.utils.findings import Finding
from dcnzoo.utils.packages import installed
from dcnzoo.version import __version__

# distribution → module; the forks are listed only if they are installed
ORIGINALS = {"mmengine": "mmengine", "mmcv": "mmcv", "mmcv-lite": "mmcv", "mmdet": "mmdet"}
FORKS = {"onedl-mmengine": "mmengine", "onedl-mmcv": "mmcv", "onedl-mmdetection": "mmdet"}
MODULES = {**ORIGINALS, **FORKS}
TESTED = "pip install mmengine==0.10.7 mmcv-lite==2.1.0 mmdet==3.3.0"
BUILD = "pip install --no-build-isolation --no-deps ."


def environment() -> Iterator[tuple[str, str]]:
    """Yield name and value of everything that affects how dcnzoo runs."""
    import torch

    from dcnzoo import ops
    from dcnzoo.ops import _library
    from dcnzoo.utils.torchvision_schemas import load_error

    yield "dcnzoo", __version__
    system = platform.system()
    untested = "" if system == "Linux" else ": dcnzoo was not run on this system"
    yield "python", f"{platform.python_version()} on {system} {platform.machine()}{untested}"
    yield "torch", torch.__version__
    present = installed("numpy", "triton", "torchvision", *MODULES)
    expected = ["numpy", "triton"]
    if present.keys().isdisjoint(FORKS):
        expected += ORIGINALS
    for package in expected:
        present.setdefault(package, "not installed")
    if problem := load_error():
        remedy = f"only programs that use its operators need: {install_torchvision(torch.__version__)}"
        name = present.get("torchvision", "of sources")
        present["torchvision"] = f"{name} does not fit this torch ({problem}); {remedy}"
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
        whose = "dcnzoo's" if extension.origin == str(OWN_FILE) else "mmcv's"
        yield EXTENSION, f"{whose}, {extension.origin}"


def _kernel_lines() -> Iterator[tuple[str, str]]:
    """Yield, for each device of this machine, the kernels in order of preference and their operators."""
    import torch

    from dcnzoo.ops import choose

    for device in ("cpu", "cuda")[: 1 + torch.cuda.is_available()]:
        rows = choose.kernels_by_operator(device)
        for kernels in dict.fromkeys(rows.values()):
            names = [name for name in rows if rows[name] == kernels]
            text = "all operators" if len(names) == len(rows) else ", ".join(names)
            preferred, reason = kernels
            because = f" ({reason})" if reason else ""
            yield f"{device} kernels", f"{', else '.join(preferred)}: {text}{because}"


@dataclass
class Installation:
    """The facts about this machine on which the problems depend."""

    torch: str  # version, "2.13.0+cpu"
    torch_cuda: str | None  # the CUDA that torch was built with
    torch_sees_gpu: bool
    nvidia_driver: bool  # installed on the machine, even if torch finds no GPU
    libraries: dict[str, str] = field(default_factory=dict)  # "cpu", "cuda" -> why it is not loaded
    torchvision: str = ""  # version; empty if it is not installed
    features: dict[str, str] = field(default_factory=dict)  # feature whose symbols torch lacks -> reason
    packages: dict[str, str] = field(default_factory=dict)  # distribution -> version
    triton_runs: bool = False  # on the GPU, in place of compiled CUDA operators
    import_error: Exception | None = None  # why the plugin for MMDetection cannot be imported

    @classmethod
    def here(cls) -> "Installation":
        import torch

        from dcnzoo.ops import _library, _torch_private
        from dcnzoo.ops.fused import available

        installation = cls(
            torch=torch.__version__,
            torch_cuda=torch.version.cuda,
            torch_sees_gpu=torch.cuda.is_available(),
            nvidia_driver=Path("/proc/driver/nvidia/version").exists(),
            libraries=dict(_library.problems),
            torchvision=installed("torchvision").get("torchvision", ""),
            features=_torch_private.missing,
            packages=installed(*MODULES),
            triton_runs=torch.cuda.is_available() and available.triton_works(torch.device("cuda")),
        )
        if {"mmdet", "onedl-mmdetection"} & installation.packages.keys():
            try:
                import dcnzoo.models  # noqa: F401
            except Exception as error:
                installation.import_error = error
        return installation


def problems(installation: Installation) -> Iterator[Finding]:
    """Yield each problem with the command that fixes it; causes come before their consequences."""
    found = [*_of_torch(installation), *_of_openmmlab(installation)]
    yield from found
    if not found and installation.packages and (error := installation.import_error):
        text = f"training cannot start: {describe(error)}"
        yield Finding("", text, remedy=install_command(error) or TESTED)


def _of_torch(installation: Installation) -> Iterator[Finding]:
    for feature, reason in installation.features.items():
        yield Finding("", f"dcnzoo has no {feature}: {reason}", remedy='pip install "torch==2.13.0"')
    has_gpu = bool(installation.torch_cuda) and installation.torch_sees_gpu
    if Version(installation.torch).release < (2, 10):
        text = f"torch {installation.torch}: dcnzoo needs 2.10 or later"
        yield Finding("", text, remedy='pip install --upgrade "torch>=2.10"')
    elif "cpu" in installation.libraries:
        where = "in a clone on Linux or macOS, with a C++ compiler; or install a wheel for this system"
        remedy = f"{BUILD}  # {where}"
        yield Finding("", f"no compiled operators: {installation.libraries['cpu']}", remedy=remedy)
    elif "cuda" in installation.libraries and has_gpu and not installation.triton_runs:
        text = f"torch finds a GPU, but the CUDA operators are not loaded: {installation.libraries['cuda']}"
        remedy = f"DCNZOO_CUDA=1 {BUILD}, with nvcc of CUDA {installation.torch_cuda} on the PATH"
        yield Finding("", text, remedy=remedy)
    if installation.torch_cuda and installation.torchvision.endswith("+cpu"):
        text = f"torchvision {installation.torchvision} is a CPU build beside a torch for CUDA"
        yield Finding("", text, remedy=install_torchvision(installation.torch))
    if installation.nvidia_driver and not installation.torch_cuda:
        text = f"this machine has an NVIDIA GPU, but torch {installation.torch} is a CPU build"
        install = "pip uninstall -y torch && pip install torch"
        yield Finding("", text, remedy=f"{install}  # for CUDA: https://pytorch.org/get-started")


def install_torchvision(torch: str) -> str:
    """Return the command that installs the torchvision of a version of torch: 0.28 for 2.13."""
    fitting = f"torchvision==0.{Version(torch).minor + 15}.*"
    return f'pip install --force-reinstall --no-deps "{fitting}"  # from the index of torch'


def _of_openmmlab(installation: Installation) -> Iterator[Finding]:
    originals = [name for name in ORIGINALS if name in installation.packages]
    forks = [name for name in FORKS if name in installation.packages]
    names = ", ".join(originals + forks)
    if originals and forks:
        remedy = f"pip uninstall -y {' '.join(originals + forks)} && {TESTED}"
        yield Finding("", f"{names} are installed: onedl-… packages work only with each other", remedy=remedy)
    elif {"mmcv", "mmcv-lite"} <= installation.packages.keys():
        versions = " and ".join(f"{name} {installation.packages[name]}" for name in ("mmcv", "mmcv-lite"))
        remedy = "pip uninstall -y mmcv mmcv-lite && pip install mmcv-lite==2.1.0"
        yield Finding("", f"{versions} are installed: they overwrite each other's files", remedy=remedy)
    elif names and not {"mmcv", "mmcv-lite", "onedl-mmcv"} & installation.packages.keys():
        remedy = "pip install --no-deps onedl-mmcv" if forks else "pip install mmcv-lite==2.1.0"
        yield Finding("", f"{names} installed, but no mmcv, which they import", remedy=remedy)
