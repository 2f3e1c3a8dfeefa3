"""Measure the memory of contestants: writes one line of JSON to standard output per request.

Started by measure.MemoryProbe. This process imports everything and computes nothing, so a fork of it is as
clean as a new process, without its start-up of three seconds.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import sys
from pathlib import Path

import families
import torch
from measure import make_pass, size_of


def main() -> None:
    known = families.load()
    answers = os.dup(1)  # keeps output of contestants away from the results
    os.dup2(2, 1)
    for package in ("dcnzoo.ops", "dcnzoo.ops.reference", "mmcv.ops", "onnxruntime", "onnx", "torchvision"):
        with contextlib.suppress(Exception):  # missing packages are never requested
            importlib.import_module(package)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            try:
                answer = measure(known, **json.loads(line))
            except BaseException as error:
                answer = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}
            os.write(answers, (json.dumps(answer) + "\n").encode())
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if status != 0:
            reason = {"error": f"the process ended with status {status} (out of memory?)"}
            os.write(answers, (json.dumps(reason) + "\n").encode())


def measure(
    known: dict, family: str, case: str, contestant: str, threads: int, dtype: str, mode: str
) -> dict:
    module = known[family]
    case = next(c for c in module.CASES if c.name == case)
    prepare = module.CONTESTANTS[contestant]
    dtype = getattr(torch, dtype)
    torch.set_num_threads(threads)
    small = case.small()  # starts threads, loads kernels
    make_pass(prepare(small, small.tensors(dtype, "cpu"), threads), mode, small.out_shape)()

    tensors = case.tensors(dtype, "cpu")
    run = make_pass(prepare(case, tensors, threads), mode, case.out_shape)
    trim()
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    before = status("VmRSS")
    results = run()
    peak = status("VmHWM")
    returned = size_of(results)
    return {
        "extra": max(0, peak - before - returned),
        "needed": size_of(list(tensors.values())) + returned,
    }


def trim() -> None:
    """Return free memory to the system, so that the next allocation is visible."""
    with contextlib.suppress(AttributeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)


def status(name: str) -> int:
    """Return bytes from /proc/self/status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {name}")


if __name__ == "__main__":
    main()
