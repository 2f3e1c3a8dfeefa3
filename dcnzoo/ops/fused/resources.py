"""Registers and memory that a kernel needs on a GPU, from a binary compiled without that GPU."""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from . import kernels
from .configs import Config

KERNELS = {
    "points": kernels.points_kernel,
    "forward": kernels.forward_kernel,
    "grad_weight": kernels.grad_weight_kernel,
    "grad_samples": kernels.grad_samples_kernel,
}
CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
# limits from the CUDA C++ Programming Guide, compute capabilities
MOST_REGISTERS, REGISTER_FILE = 255, 65536  # registers of a thread, and of all threads of a block
MOST_SHARED = {80: 166912, 86: 101376, 89: 101376, 90: 232448, 100: 232448}  # bytes of a block
_TYPES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}
# strides of one: channels last, and offsets as a convolution returns them
_ONE = ("output_channel", "offset_pixel", "mask_pixel")
_MULTIPLES_OF_16 = (
    *("channels", "group_channels", "outputs", "group_outputs", "block_channels"),
    *("output_pixel", "output_image"),
)


class Resources(NamedTuple):
    registers: int  # per thread
    stack: int  # bytes per thread, for values that did not fit into registers
    shared: int  # bytes per block
    ptx: str


def compile_for(
    architecture: int,
    kernel: str,
    dtype: torch.dtype,
    config: Config,
    *,
    offset_dtype: torch.dtype = torch.float32,
    precision: str = "tf32",
    long_indices: bool = False,
    read_once: bool = True,
) -> Resources:
    """Compile a kernel for ``sm_{architecture}``: DCNv2 with channels that the blocks divide.

    Raises:
        RuntimeError: the output of cuobjdump has no register or memory usage.
    """
    function = KERNELS[kernel]
    element = f"*{_TYPES[dtype]}"
    pointers = dict.fromkeys(("input", "weight", "bias", "output", "grad_output"), element)
    pointers |= dict.fromkeys(("offset", "mask", "grad_offset", "grad_mask"), f"*{_TYPES[offset_dtype]}")
    pointers |= dict.fromkeys(("factors", "partial", "grad_input"), "*fp32") | {"corners": "*i32"}
    flags = {name: True for name in function.arg_names if name.startswith(("HAS_", "WANT_"))}
    constants = {
        **flags, "READ_ONCE": read_once, "USE_INT64": long_indices, "EVEN": True,
        "UPCAST": False, "PRECISION": precision,
        **dict(zip(("BLOCK_M", "BLOCK_N", "BLOCK_K"), config, strict=False)), **dict.fromkeys(_ONE, 1),
    }  # fmt: skip
    constants = {name: value for name, value in constants.items() if name in function.arg_names}
    signature = {
        name: "constexpr" if name in constants else pointers.get(name, "i32") for name in function.arg_names
    }
    divisible = {
        (place,): [["tt.divisibility", 16]]
        for place, name in enumerate(function.arg_names)
        if name in pointers or name in _MULTIPLES_OF_16
    }
    compiled = triton.compile(
        ASTSource(fn=function, signature=signature, constexprs=constants, attrs=divisible),
        target=GPUTarget("cuda", architecture, 32),
        options={"num_warps": config.warps, "num_stages": config.stages, "enable_fp_fusion": True},
    )
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = subprocess.run(
            [CUOBJDUMP, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", usage)
    if found is None:
        raise RuntimeError(f"{CUOBJDUMP}: expected the usage of registers and memory, got {usage!r}")
    registers, stack, local = map(int, found.groups())
    return Resources(registers, stack + local, compiled.metadata.shared, compiled.asm["ptx"])
