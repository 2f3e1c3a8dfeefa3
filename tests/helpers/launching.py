"""Helpers for tests that start tools in one or several processes."""

import os
import signal
import subprocess
import sys

from tests.helpers.processes import ROOT

CONFIG = "configs/demo/mask-rcnn_r14_fpn_8e_shapes.py"


def environment(**extra: object) -> dict[str, str]:
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    extra = {name: str(value) for name, value in extra.items()}
    return {**os.environ, **threads, "PYTHON": sys.executable,
            "PYTHONPATH": os.pathsep.join(filter(None, paths)), **extra}  # fmt: skip


def ip(*words: object) -> str:
    return subprocess.run(["ip", *map(str, words)], capture_output=True, text=True, check=True).stdout


def on_machine(number: int, name: str, *lines: str) -> list[str]:
    """The command that runs lines of a shell on a machine of the fixture ``machines``."""
    script = "; ".join([f"echo machine-{number} > /proc/sys/kernel/hostname", *lines])
    return ["ip", "netns", "exec", name, "unshare", "-mu", "sh", "-c", script]


def start(*command: object, **extra: object) -> subprocess.Popen:
    return subprocess.Popen(
        [str(word) for word in command],
        cwd=ROOT,
        env=environment(**extra),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen, seconds: float = 900) -> str:
    """Output of the process. After ``seconds``, kills its process group and fails."""
    try:
        return process.communicate(timeout=seconds)[0]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output = process.communicate()[0]
        raise AssertionError(f"still running after {seconds} s:\n{output[-4000:]}") from None


def run(*command: object, status: int = 0, seconds: float = 900, **extra: object) -> str:
    process = start(*command, **extra)
    output = finish(process, seconds)
    assert process.returncode == status, output[-6000:]
    return output
