"""When setup.py compiles the CUDA library, and for which architectures."""

from __future__ import annotations

import os
import runpy
from unittest import mock

import pytest
import torch

from .processes import ROOT

SETUP = ROOT / "setup.py"
CUDA_12_0 = ("50", "60", "70", "75", "80", "86", "87", "89", "90")
CUDA_13_0 = ("75", "80", "86", "87", "88", "89", "90", "100", "110", "103", "120", "121")

pytestmark = pytest.mark.skipif(not SETUP.exists(), reason="needs the sources")


@pytest.fixture(scope="module")
def setup_py():
    """The functions of setup.py."""
    with mock.patch("setuptools.setup"), mock.patch("fcntl.flock"):  # a build waits for another one's lock
        return runpy.run_path(str(SETUP))


@pytest.fixture
def prepare(tmp_path, monkeypatch):
    """Put an nvcc on the PATH that supports these architectures, and set variables."""

    def prepare(archs: tuple[str, ...], environment: dict[str, str]) -> None:
        nvcc = tmp_path / "nvcc"
        lines = "".join(f"compute_{arch}\\n" for arch in archs)
        nvcc.write_text(f'#!/bin/sh\n[ "$1" = --list-gpu-arch ] && printf "{lines}"\n')
        nvcc.chmod(0o755)
        for name in [name for name in os.environ if "CUDA" in name]:
            monkeypatch.delenv(name)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)

    return prepare


@pytest.mark.parametrize(
    ("environment", "torch_cuda", "built"),
    [
        ({}, None, False),
        ({}, "13.0", True),
        ({"DCNZOO_CUDA": "1"}, None, True),
        ({"DCNZOO_CUDA": "0"}, "13.0", False),
    ],
    ids=str,
)
def test_the_cuda_library_is_for_a_torch_that_can_load_it(
    setup_py, prepare, monkeypatch, environment, torch_cuda, built
):
    prepare(CUDA_13_0, environment)
    monkeypatch.setattr(torch.version, "cuda", torch_cuda)
    assert bool(setup_py["find_nvcc"]()) is built


def targets(setup_py) -> tuple[list[str], list[str]]:
    """The architectures with machine code, and those with PTX."""
    codes = [option.split(",code=")[1] for option in setup_py["cuda_targets"](setup_py["find_nvcc"]())]
    return (
        [c.removeprefix("sm_") for c in codes if c.startswith("sm_")],
        [c.removeprefix("compute_") for c in codes if c.startswith("compute_")],
    )


ARCHS, LIST = "DCNZOO_CUDA_ARCHS", "TORCH_CUDA_ARCH_LIST"
ALL = ["75", "80", "86", "89", "90", "100", "120"]
TARGETS = [  # (nvcc's architectures, environment, machine code, PTX)
    (CUDA_12_0, {}, ["75", "80", "86", "89", "90"], ["90"]),
    (CUDA_13_0, {}, ALL, ["120"]),
    (CUDA_13_0, {ARCHS: "80;90"}, ["80", "90"], ["90"]),
    (CUDA_13_0, {ARCHS: "80 100"}, ["80", "100"], ["100"]),
    (CUDA_13_0, {LIST: "8.0;9.0"}, ["80", "90"], []),
    (CUDA_13_0, {LIST: "8.0 9.0a 12.0+PTX"}, ["80", "90a", "120"], ["120"]),
    (CUDA_13_0, {LIST: ""}, ALL, ["120"]),
    (CUDA_13_0, {ARCHS: "75", LIST: "9.0"}, ["75"], ["75"]),
]


@pytest.mark.parametrize(("nvcc", "environment", "code", "ptx"), TARGETS, ids=str)
def test_targets(setup_py, prepare, nvcc, environment, code, ptx):
    prepare(nvcc, {"DCNZOO_CUDA": "1", **environment})
    assert targets(setup_py) == (code, ptx)


@pytest.mark.parametrize(
    ("environment", "problem"),
    [
        ({"DCNZOO_CUDA": "yes"}, "DCNZOO_CUDA: expected 0 or 1, got 'yes'."),
        ({"CUDA_HOME": "/nowhere"}, "DCNZOO_CUDA=1, but no nvcc found in /nowhere."),
        ({ARCHS: "100"}, f"{ARCHS}: .*got '100'"),
        ({LIST: "9.0;12.0"}, f"{LIST}: .*got '9.0;12.0'"),
        ({LIST: "newest"}, f"{LIST}: .*got 'newest'"),
        ({ARCHS: "8.0"}, f"{ARCHS}: .*got '8.0'"),
    ],
)
def test_what_cannot_be_built_is_refused(setup_py, prepare, environment, problem):
    prepare(CUDA_12_0, {"DCNZOO_CUDA": "1", **environment})
    with pytest.raises(SystemExit, match=problem):
        targets(setup_py)
