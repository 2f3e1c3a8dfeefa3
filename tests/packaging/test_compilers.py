"""Compile the CPU library with every installed compiler, warnings being errors, and test it.

::

    nox -s compilers                         # every GCC from 11 and Clang from 14 on the PATH
    nox -s compilers -- g++-11 clang++-19
    nox -s compilers -- --build              # compile only
    nox -s arm                               # the cross-compiler for Arm, tests under QEMU

Each compiler has a copy of the sources and its logs in ``build/compilers``. ``tested.py`` stores the results.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from test_matrix import copy_to
from tested import ROOT, record

FOLDER = ROOT / "build" / "compilers"
COMPILERS = [*(f"g++-{version}" for version in range(11, 17)), *(f"clang++-{v}" for v in range(14, 23))]
COPIED = ("README.md", "LICENSE", "pyproject.toml", "setup.py", "dcnzoo", "ops", "tests")
SUITE = [f"tests/test_{name}.py" for name in ("ops", "deform_conv", "cpu_capability")]
ARM = ROOT / ".nox" / "arm"


@dataclass
class Trial:
    """How to compile and test with a compiler.

    Attributes:
        command: the session of noxfile.py.
        python: the command that compiles.
        tests: for each run of the tests, all at once, the command of Python and the options of pytest.
        variables: of the environment; a ``PYTHONPATH`` follows the folder of the sources.
    """

    command: str
    python: list[str]
    tests: list[tuple[list[str], list[str]]]
    variables: dict[str, str] = field(default_factory=dict)


def native() -> Trial:
    chosen = "hand_worked or registers or matches_reference or half_precision or every_capability"
    options = ["-n", "2", "--dist", "worksteal", "-k", chosen]
    return Trial("nox -s compilers", [sys.executable], [([sys.executable], options)])


def emulated() -> Trial:
    """Linux on Arm. Python runs emulated and starts the cross-compiler, which does not."""

    def python(cpu: str) -> list[str]:
        root = ARM / "root"
        return ["qemu-aarch64-static", "-L", str(root), "-cpu", cpu, str(root / "usr/bin/python3.11")]

    tests = [
        # without bfloat16 instructions, and with them
        (python("neoverse-n1"), ["-k", "hand_worked or registers or (matches_reference and not slow)"]),
        (python("max"), ["-k", "hand_worked or half_precision"]),
    ]
    # for ninja
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return Trial(
        "nox -s arm",
        python("max"),
        tests,
        {"PATH": path, "PYTHONPATH": str(ARM / "site"), "OMP_NUM_THREADS": "1"},
    )


def copy_sources(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    copy_to(folder, COPIED)
    for library in (folder / "dcnzoo" / "ops").glob("*.so"):
        library.unlink()


def run(log: Path, variables: dict[str, str], *command: str) -> str:
    """Run a command in the log's folder; return ``ok`` or ``FAILED`` and the output's last line."""
    with log.open("w") as output:
        done = subprocess.run(command, cwd=log.parent, env=variables, stdout=output, stderr=subprocess.STDOUT)
    last = [line.strip() for line in log.read_text().splitlines() if line.strip()][-1:]
    return ": ".join(["FAILED" if done.returncode else "ok", *last])


def build(folder: Path, compiler: str, trial: Trial, variables: dict[str, str]) -> str:
    copy_sources(folder)
    flags = f"{os.environ.get('CXXFLAGS', '')} -Werror"
    variables = variables | {"CXX": compiler, "CXXFLAGS": flags, "DCNZOO_CUDA": "0"}
    return run(folder / "build.log", variables, *trial.python, "setup.py", "-q", "build_ext", "--inplace")


def test(folder: Path, trial: Trial, variables: dict[str, str]) -> str:
    def run_tests(number: int) -> str:
        python, options = trial.tests[number]
        command = [*python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options, *SUITE]
        return run(folder / f"test{number}.log", variables, *command)

    with ThreadPoolExecutor() as threads:
        return "; ".join(threads.map(run_tests, range(len(trial.tests))))


def try_compiler(compiler: str, trial: Trial, build_only: bool) -> str:
    start, folder = time.time(), FOLDER / compiler
    variables = os.environ | trial.variables
    variables["PYTHONPATH"] = f"{folder}:{trial.variables.get('PYTHONPATH', '')}"
    result = build(folder, compiler, trial, variables)
    if not build_only and result.startswith("ok"):
        result = test(folder, trial, variables)
        record(trial.command, result, start, trial.python, folder, variables)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("compilers", nargs="*", default=[name for name in COMPILERS if shutil.which(name)])
    parser.add_argument("--build", action="store_true", help="only compile")
    parser.add_argument("--arm", action="store_true", help="for Linux on Arm, with a cross-compiler")
    args = parser.parse_args()
    if args.arm:
        args.compilers = ["aarch64-linux-gnu-g++"]
    if not args.compilers:
        sys.exit(f"test_compilers: expected a compiler on the PATH ({', '.join(COMPILERS)}), got none")
    failed = False
    for compiler in args.compilers:
        result = try_compiler(compiler, emulated() if args.arm else native(), args.build)
        print(f"{compiler}: {result}", flush=True)
        failed |= "FAILED" in result
    sys.exit(failed)


if __name__ == "__main__":
    main()
