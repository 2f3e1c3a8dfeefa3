"""Whether the fused kernels run here, and where they were measured. Importing this does not import Triton."""

import json
import math
import warnings
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

DTYPES = (torch.float16, torch.bfloat16, torch.float32)  # those of all kernels
TABLE = Path(__file__).with_name("configs.json")


@cache
def table() -> dict:
    """Return the kernels' block sizes by architecture, so that no call waits for autotuning."""
    return json.loads(TABLE.read_text(encoding="utf-8"))


def entry_of(architecture: str) -> dict:
    """Return the entry with the longest prefix of an architecture (``gfx9``), or the default."""
    return table()[max(filter(architecture.startswith, table()), key=len, default="default")]


@cache
def architecture(device: torch.device) -> str:
    """Return the device's key in the table: ``sm_90``, ``gfx942``, ``interpreter``."""
    if device.type != "cuda":
        return "interpreter"
    if torch.version.hip is not None:
        return torch.cuda.get_device_properties(device).gcnArchName.partition(":")[0]
    return "sm_{}{}".format(*torch.cuda.get_device_capability(device))


def is_faster(name: str, call: Any) -> bool:
    """Return whether a call of ``deform_conv`` or its backward has enough output pixels, by the table.

    From these numbers on, the fused kernels are faster than the compiled ones.
    """
    input, fields = call.input, call.mask if call.offset is None else call.offset
    listed = entry_of(architecture(input.device))["auto"]
    least = listed.get(str(input.dtype).removeprefix("torch."), {})
    pixels = least.get("backward" if name.endswith("_backward") else "forward", math.inf)
    return fields is not None and len(fields) * math.prod(fields.shape[2:]) >= pixels


@cache
def triton_works(device: torch.device) -> bool:
    """Return whether Triton compiles and runs a small kernel here.

    Its import is not enough: Triton needs a C compiler, Python's headers and a folder for its cache, and an
    old Triton cannot compile for a new GPU.
    """
    if find_spec("triton") is None:
        return False
    try:
        from . import launch

        if device.type == "cpu" and not launch.INTERPRETED:
            return False
        launch.run_trial(device)
    except Exception as error:  # errors can have any type: Triton compiles and loads code
        warn("a trial kernel", error)
        return False
    return True


def warn(kernel: str, error: Exception) -> None:
    text = " ".join(str(error).split())[:400] or type(error).__name__
    warnings.warn(
        f"dcnzoo: Triton does not run {kernel}, so other kernels run: {text}. Triton needs a C compiler "
        "(gcc), Python's headers (python3-dev), a folder for its cache that can be written and is not "
        "damaged (TRITON_CACHE_DIR), and a version for this GPU",
        stacklevel=2,
    )


def tf32() -> bool:
    # The compiled kernels multiply with torch's matmul, so the fused ones follow the same setting.
    return torch.version.hip is None and torch.backends.cuda.matmul.fp32_precision == "tf32"
