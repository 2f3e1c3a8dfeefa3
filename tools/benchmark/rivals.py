"""Packages to compare with: whether they are installed, their versions, and how to install them."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec

import torch

from dcnzoo.export.runtime import FIRST_DEFORM_CONV, release

PEERS = "`make peers` creates an environment with it"


@dataclass(frozen=True)
class Rival:
    """A package.

    Attributes:
        probe: returns its version; raises ImportError with the reason if it cannot be used.
        how_to_get: how to install it.
    """

    probe: Callable[[], str]
    how_to_get: str


def _import(name: str) -> None:
    """Import a package; convert any error (such as a library for another torch) to an ImportError."""
    if find_spec(name) is None:
        raise ImportError("not installed")
    try:
        importlib.import_module(name)
    except Exception as error:
        first = str(error).strip().splitlines() or [type(error).__name__]
        raise ImportError(f"does not import: {first[0]}") from error


def _mmcv() -> str:
    from dcnzoo.compat.mmcv import EXTENSION, STAND_IN

    if find_spec("mmcv") is None:
        raise ImportError("not installed")
    if find_spec(EXTENSION).origin == str(STAND_IN):
        raise ImportError("mmcv-lite is installed, which uses dcnzoo's operators")
    _import("mmcv.ops")
    return version("mmcv")


def _onnxruntime() -> str:
    for package in ("onnxruntime", "onnx"):
        try:
            _import(package)
        except ImportError as error:
            raise ImportError(f"{package} {error}") from error
    found = version("onnxruntime")
    if release(found) < FIRST_DEFORM_CONV:
        raise ImportError(f"{found} has no DeformConv; expected 1.25 or later")
    return found


def _package(name: str) -> str:
    _import(name)
    return version(name)


def _with_operators(name: str) -> str:
    _import(name)
    if not hasattr(getattr(torch.ops, name), "deform_conv2d"):
        raise ImportError("its compiled operators do not load with this torch")
    return version(name)


RIVALS = {
    "mmcv": Rival(_mmcv, PEERS),
    "onnxruntime": Rival(_onnxruntime, PEERS),
    "torchvision": Rival(
        partial(_with_operators, "torchvision"),
        "its wheels need PyPI's torch of the same release: "
        "pip install torch==2.14.1 torchvision==0.29.2 rich matplotlib in a separate environment",
    ),
    "tvdcn": Rival(
        partial(_with_operators, "tvdcn"),
        "its wheels (1.1.0) are for torch 2.7, on which dcnzoo does not run; "
        "build it from https://github.com/inspiros/tvdcn against the torch in use",
    ),
    "torch-ms-deform-attn": Rival(partial(_package, "torch_ms_deform_attn"), PEERS),
    "reference": Rival(lambda: "plain PyTorch", ""),
}


def probe(names: list[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Return the versions of the usable rivals, and the reasons why the others cannot be used."""
    present, absent = {}, {}
    for name in names:
        try:
            present[name] = RIVALS[name].probe()
        except ImportError as error:
            absent[name] = str(error)
    return present, absent
