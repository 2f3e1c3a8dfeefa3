#!/usr/bin/env python3
"""Print the registers and memory of the compiled CUDA kernels for each architecture, as a table.

    DCNZOO_CUDA=1 DCNZOO_CUDA_ARCHS="80;90;100" python setup.py build_ext --inplace
    python tools/benchmark/cuda_resources.py [--all] [FILE ...]

A cell is "registers / bytes of registers in memory (spills, arrays) / bytes of shared memory": the most that
an instance of the kernel uses, or with --all those of each instance. FILE: libraries or object files;
default: the package's library. Needs cuobjdump, which the CUDA toolkit and Triton have, and c++filt.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

LIBRARY = Path(__file__).resolve().parents[2] / "dcnzoo" / "ops" / "_C_cuda.so"
USAGE = re.compile(r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")
NOISE = re.compile(r"^void |\(anonymous namespace\)::|dcnzoo::|c10::|\(.*")


def output(*command: str | Path, given: str | None = None) -> str:
    return subprocess.run(command, input=given, capture_output=True, text=True, check=True).stdout


def cuobjdump() -> str | None:
    """Return the cuobjdump of the CUDA toolkit, or else of Triton."""
    triton = find_spec("triton")
    beside = Path(triton.origin).parent if triton and triton.origin else Path()
    return shutil.which("cuobjdump") or shutil.which(str(beside / "backends/nvidia/bin/cuobjdump"))


def resources(file: Path) -> dict[str, dict[str, tuple[int, int, int]]]:
    """Registers, bytes of registers in memory, bytes of shared memory, by architecture and mangled name."""
    found: dict[str, dict[str, tuple[int, int, int]]] = {}
    dump = output(cuobjdump(), "--dump-resource-usage", file)
    for architecture, part in re.findall(r"arch = (sm_\w+)\n(.*?)(?=\nFatbin|\Z)", dump, re.DOTALL):
        # the CUDA runtime contains code without kernels, for other architectures
        for name, *numbers in USAGE.findall(part):
            registers, stack, shared, local = map(int, numbers)
            found.setdefault(architecture, {})[name] = (registers, stack + local, shared)
    return found


def readable(names: list[str]) -> list[str]:
    return [NOISE.sub("", name) for name in output("c++filt", given="\n".join(names)).splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="*", type=Path, default=[LIBRARY], metavar="FILE")
    parser.add_argument("--all", action="store_true", help="a row for each instance of a kernel")
    options = parser.parse_args()
    if cuobjdump() is None:
        parser.error("cuobjdump: expected the CUDA toolkit's or Triton's, found none: pip install triton")
    rows: dict[str, dict[str, tuple[int, ...]]] = {}
    for file in options.files:
        for architecture, kernels in resources(file).items():
            for name, used in zip(readable(list(kernels)), kernels.values(), strict=True):
                cells = rows.setdefault(name if options.all else name.split("<")[0], {})
                pairs = zip(used, cells.get(architecture, (0, 0, 0)), strict=True)
                cells[architecture] = tuple(map(max, pairs))
    columns = sorted({name for cells in rows.values() for name in cells}, key=lambda name: (len(name), name))
    print("|".join(["", " kernel ", *(f" {a} " for a in columns), ""]))
    print("|" + "---|" * (len(columns) + 1))
    for name, cells in sorted(rows.items()):
        numbers = [" / ".join(map(str, cells.get(a, ()))) for a in columns]
        print(f"| `{name}` | " + " | ".join(numbers) + " |")


if __name__ == "__main__":
    main()
