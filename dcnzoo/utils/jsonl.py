"""Result files with one JSON object per line, and the circumstances of a measurement."""

import json
import os
import platform
import re
import shlex
import sys
from datetime import datetime, timezone
from pathlib import Path

import torch

from dcnzoo.utils.files import write_text
from dcnzoo.utils.folders import installed
from dcnzoo.utils.lock import locked
from dcnzoo.utils.text import counted


def append_row(path: str | os.PathLike, row: dict) -> None:
    """Append a line of JSON to a file, atomically. Several processes may append at the same time."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(path.with_name(f".{path.name}.lock"), -1):
        before = path.read_text(encoding="utf-8").rstrip("\n") if path.exists() else ""
        write_text(path, f"{before}\n{json.dumps(row, ensure_ascii=False)}\n".lstrip("\n"))


def circumstances(device: torch.device) -> dict[str, object]:
    """Return entries of a row: the machine, versions of packages, date and command."""
    return {
        "machine": machine(device),
        "versions": versions(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(["python", *sys.argv]),
    }


def machine(device: torch.device) -> str:
    """Return the name of the GPU, or of the CPU with the number of threads used."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text(encoding="utf-8") if cpuinfo.exists() else ""
    match = re.search(r"^model name\s*: (.+)$", text, re.MULTILINE)
    name = match[1].strip() if match else platform.processor() or platform.machine()
    return f"{name}, {counted(torch.get_num_threads(), 'threads')}"


def versions() -> dict[str, str]:
    """Return the versions of the packages that affect results."""
    return installed("dcnzoo", "torch", "mmengine", "mmcv", "mmcv-lite", "mmdet", "numpy")
