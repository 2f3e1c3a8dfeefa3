"""Installed versions and the compiled operators in use, for ``dcnzoo doctor``."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, distribution, version
from importlib.util import find_spec
from pathlib import Path

from dcnzoo.compat.mmcv import EXTENSION, STAND_IN
from dcnzoo.version import __version__

ORIGINALS = ("mmengine", "mmcv", "mmcv-lite", "mmdet")
FORKS = ("onedl-mmengine", "onedl-mmcv", "onedl-mmdetection")  # listed only if installed
MODULES = {
    **{name: name for name in ORIGINALS},
    "mmcv-lite": "mmcv",
    "onedl-mmengine": "mmengine",
    "onedl-mmcv": "mmcv",
    "onedl-mmdetection": "mmdet",
}


def environment() -> Iterator[tuple[str, str]]:
    """Yield name and value of everything that affects how dcnzoo runs."""
    import torch

    from dcnzoo import ops
    from dcnzoo.ops import _library

    yield "dcnzoo", __version__
    yield "python", f"{platform.python_version()} on {platform.machine()}"
    yield "torch", torch.__version__
    for package in ("numpy", "triton"):
        yield package, version(package) if find_spec(package) else "not installed"
    present = dict(installed(ORIGINALS + FORKS))
    missed = ORIGINALS if present.keys().isdisjoint(FORKS) else ()
    for package in ORIGINALS + FORKS:
        if package in present or package in missed:
            yield package, present.get(package, "not installed")
    for device in ("cpu", "cuda"):
        reason = _library.problems.get(device, "they need the CPU operators")
        found = _library.loaded.get(device) or f"not loaded: {reason}"
        yield f"{device} operators", str(found)
    if ops.has_ops():
        from dcnzoo.ops import _backend

        yield "cpu capability", ops.cpu_capability()
        yield "DCNZOO_BACKEND", _backend.backend
    if ops.with_cuda():
        name, capability = torch.cuda.get_device_name(), torch.cuda.get_device_capability()
        yield "cuda", f"{torch.version.cuda}, {name} (sm_{capability[0]}{capability[1]})"
    else:
        yield "cuda", f"no ({'a GPU' if torch.cuda.is_available() else 'no GPU'} found by torch)"
    yield EXTENSION, _active_extension()


def installed(packages: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Yield the packages that Python imports; others may be further back on its path."""
    found = {}
    for package in packages:
        with suppress(PackageNotFoundError):
            found[package] = distribution(package)
    folders = {package: Path(each.locate_file("")).resolve() for package, each in found.items()}
    for package, each in found.items():
        module = MODULES[package]
        spec = find_spec(module)
        rivals = {folders[other] for other in found if MODULES[other] == module}
        imported = Path(spec.origin).resolve().parents[1] if spec and spec.origin else None
        if len(rivals) == 1 or imported not in rivals or folders[package] == imported:
            yield package, each.version


def _active_extension() -> str:
    """Return which compiled module ``mmcv.ops`` uses, without importing it."""
    if find_spec("mmcv") is None:
        return "none: mmcv is not installed"
    return f"mmcv's, {mmcv_extension()}" if mmcv_extension() else f"dcnzoo's, {STAND_IN}"


def mmcv_extension() -> str | None:
    """Return the file of mmcv's own compiled module, if it has one."""
    found = find_spec(EXTENSION) if find_spec("mmcv") else None
    return None if found is None or found.origin == str(STAND_IN) else found.origin
