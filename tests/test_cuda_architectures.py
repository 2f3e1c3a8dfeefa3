"""When setup.py compiles the CUDA library, and for which architectures."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SETUP = Path(__file__).resolve().parent.parent / "setup.py"
CUDA_12_0 = ("50", "60", "70", "75", "80", "86", "87", "89", "90")
TARGETS_OF_NVCC = "cuda_targets(find_nvcc())"
CUDA_13_0 = ("75", "80", "86", "87", "88", "89", "90", "100", "110", "103", "120", "121")

pytestmark = pytest.mark.skipif(not SETUP.exists(), reason="needs the sources")


@pytest.fixture
def setup_py(tmp_path):
    """Evaluate an expression in setup.py, with an nvcc on the PATH that supports these architectures."""

    def run(expression: str, archs: tuple[str, ...], **environment: str) -> subprocess.CompletedProcess:
        nvcc = tmp_path / "nvcc"
        lines = "".join(f"compute_{arch}\\n" for arch in archs)
        nvcc.write_text(f'#!/bin/sh\n[ "$1" = --list-gpu-arch ] && printf "{lines}"\n')
        nvcc.chmod(0o755)
        code = (
            f"import json, runpy, sys; sys.argv = ['setup.py', '--name', '--quiet']\n"
            f"module = runpy.run_path({str(SETUP)!r})\n"
            f"print(json.dumps(eval({expression!r}, module)))"
        )
        kept = {k: v for k, v in os.environ.items() if "CUDA" not in k}
        path = os.pathsep.join([str(tmp_path), kept["PATH"]])
        return subprocess.run(
            [sys.executable, "-c", code],
            env={**kept, "PATH": path, **environment},
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )

    return run


@pytest.mark.parametrize(
    ("wanted", "torch_cuda", "built"),
    [
        ({}, None, False),
        ({}, "13.0", True),
        ({"DCNZOO_CUDA": "1"}, None, True),
        ({"DCNZOO_CUDA": "0"}, "13.0", False),
    ],
    ids=str,
)
def test_the_cuda_library_is_for_a_torch_that_can_load_it(setup_py, tmp_path, wanted, torch_cuda, built):
    version = tmp_path / "modules" / "torch"
    version.mkdir(parents=True)
    (version / "__init__.py").write_text("from . import version\n")
    (version / "version.py").write_text(f"cuda = {torch_cuda!r}\n")
    run = setup_py("bool(find_nvcc())", CUDA_13_0, PYTHONPATH=str(tmp_path / "modules"), **wanted)
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout.splitlines()[-1]) is built


def code_for(run: subprocess.CompletedProcess) -> tuple[list[str], list[str]]:
    """The architectures with machine code, and those with PTX."""
    assert run.returncode == 0, run.stderr
    options = json.loads(run.stdout.splitlines()[-1])
    codes = [option.split(",code=")[1] for option in options]
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
def test_targets(setup_py, nvcc, environment, code, ptx):
    assert code_for(setup_py(TARGETS_OF_NVCC, nvcc, DCNZOO_CUDA="1", **environment)) == (code, ptx)


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
def test_what_cannot_be_built_is_refused(setup_py, environment, problem):
    run = setup_py(TARGETS_OF_NVCC, CUDA_12_0, **{"DCNZOO_CUDA": "1", **environment})
    assert run.returncode == 1 and "Traceback" not in run.stderr
    assert re.search(problem, run.stderr), run.stderr
