"""Compile the CPU library with every installed compiler, warnings being errors, and test it.

::

    make test-compilers                          # every GCC from 11 and Clang from 14 on the PATH
    make test-compilers ARGS="g++-11 clang++-19"
    make test-compilers ARGS=--build             # compile only

Each compiler has a copy of the sources and its logs in ``build/compilers``.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "build" / "compilers"
COMPILERS = [*(f"g++-{version}" for version in range(11, 17)), *(f"clang++-{v}" for v in range(14, 23))]
COPIED = ("README.md", "LICENSE", "pyproject.toml", "setup.py", "dcnzoo", "ops", "tests")
SUITE = [f"tests/test_{name}.py" for name in ("ops", "deform_conv", "fuzz", "nms", "cpu_capability")]
# tests of Python code
EXCLUDED = "not compile and not opcheck and not checkpoint and not invalid"


def copy_sources(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name in COPIED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    for library in (folder / "dcnzoo" / "ops").glob("*.so"):
        library.unlink()


def run(log: Path, *arguments: str, **variables: str) -> str:
    """Run Python in the log's folder; return ``ok`` or ``FAILED`` and the output's last line."""
    with log.open("w") as output:
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=log.parent,
            env=os.environ | {"PYTHONPATH": str(log.parent)} | variables,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    last = [line.strip() for line in log.read_text().splitlines() if line.strip()][-1:]
    return ": ".join(["FAILED" if done.returncode else "ok", *last])


def trial(compiler: str, build_only: bool) -> str:
    folder = FOLDER / compiler
    copy_sources(folder)
    variables = {
        "CXX": compiler,
        "CXXFLAGS": f"{os.environ.get('CXXFLAGS', '')} -Werror",
        "DCNZOO_CUDA": "0",
    }
    built = run(folder / "build.log", "setup.py", "-q", "build_ext", "--inplace", **variables)
    if build_only or not built.startswith("ok"):
        return built
    return run(folder / "test.log", "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", EXCLUDED, *SUITE)


def version_of(compiler: str) -> str:
    first = subprocess.run([compiler, "--version"], capture_output=True, text=True).stdout.splitlines()[0]
    return first.rsplit(" ", 1)[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("compilers", nargs="*", default=[name for name in COMPILERS if shutil.which(name)])
    parser.add_argument("--build", action="store_true", help="only compile")
    args = parser.parse_args()
    if not args.compilers:
        sys.exit(f"test_compilers: expected a compiler on the PATH ({', '.join(COMPILERS)}), got none")
    console = Console()
    table = Table("compiler", "version", "result")
    failed = False
    for number, compiler in enumerate(args.compilers, 1):
        with console.status(f"{number} of {len(args.compilers)}: {compiler}"):
            result = trial(compiler, args.build)
        console.print(f"{compiler}: {result}", highlight=False)
        table.add_row(compiler, version_of(compiler), result)
        failed |= result.startswith("FAILED")
    console.print(table)
    sys.exit(failed)


if __name__ == "__main__":
    main()
