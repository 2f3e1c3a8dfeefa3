"""Every launch of the fused kernels, compiled for GPUs that are not there: its shared memory fits.

The launches are those of dcnzoo.ops.fused, recorded on CPU tensors and not executed.
"""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import pytest
import torch

pytest.importorskip("triton")
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from dcnzoo.ops.fused import deform_conv as fused
from dcnzoo.ops.fused.deform_conv import Config, table

# Bytes of shared memory of a block: CUDA C++ Programming Guide, compute capabilities.
MOST_SHARED = {80: 166912, 86: 101376, 89: 101376, 90: 232448, 100: 232448}
TYPES = {
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float32: "fp32",
    torch.int32: "i32",
    torch.int64: "i64",
}
KERNELS = ("forward", "grad_weight", "grad_samples")
CHANNELS = 256


@dataclasses.dataclass(frozen=True)
class Variant:
    """What a launch depends on besides the kernel and the block sizes."""

    dtype: torch.dtype
    fields: torch.dtype  # of offset and mask
    tf32: bool = True

    @property
    def kind(self) -> str:
        return "float32" if self.dtype == torch.float32 else "half"

    def __str__(self) -> str:
        name = str(self.dtype).removeprefix("torch.")
        if self.dtype == torch.float32:
            return f"{name}, {'tf32' if self.tf32 else 'ieee'}"
        return name if self.fields == self.dtype else f"{name}, float32 offsets"


VARIANTS = (
    Variant(torch.bfloat16, torch.bfloat16),
    Variant(torch.bfloat16, torch.float32),
    Variant(torch.float16, torch.float16),
    Variant(torch.float32, torch.float32),
    Variant(torch.float32, torch.float32, tf32=False),
)


@dataclasses.dataclass(frozen=True)
class Launch:
    kernel: JITFunction
    arguments: dict[str, object]
    options: dict[str, object]


@contextmanager
def recorded() -> Iterator[list[Launch]]:
    """Record the launches of Triton kernels instead of executing them."""
    launches: list[Launch] = []

    def run(self, *arguments, grid, warmup, **named):
        options = {name: value for name, value in named.items() if name not in self.arg_names}
        given = dict(zip(self.arg_names, arguments, strict=False))
        given |= {name: value for name, value in named.items() if name in self.arg_names}
        launches.append(Launch(self, given, options))

    with mock.patch.object(JITFunction, "run", run):
        yield launches


def launches_of(kernel: str, config: Config, variant: Variant, channels: int = CHANNELS) -> list[Launch]:
    """The launches of a kernel for DCNv2 with a bias, channels last."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int, dtype: torch.dtype = variant.dtype) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    input, grad = (normal(1, channels, 4, 5).contiguous(memory_format=torch.channels_last) for _ in "ig")
    offset, mask = normal(1, 18, 4, 5, dtype=variant.fields), normal(1, 9, 4, 5, dtype=variant.fields)
    weight = normal(channels, channels, 3, 3)
    problem = fused.Problem(input, weight, offset, mask, [1, 1], [1, 1], [1, 1], 1, allow_tf32=variant.tf32)
    # as on a GPU: the interpreter converts operands of products, and needs other options
    with recorded() as launches, mock.patch.object(fused, "INTERPRETED", False):
        if kernel == "forward":
            fused.forward(problem, normal(channels), config)
        elif kernel == "grad_weight":
            fused.grad_weight(problem, grad, config)
        else:
            fused.grad_samples(problem, grad, True, True, True, config)
    return launches


def shared_memory(architecture: int, launch: Launch) -> int:
    """Compile a launch for ``sm_{architecture}``, specialised as at run time. Returns bytes of a block."""
    function, signature, constants, attributes = launch.kernel, {}, {}, {}
    for place, parameter in enumerate(function.params):
        value = launch.arguments.get(parameter.name, parameter.default)
        special = not parameter.do_not_specialize
        if isinstance(value, torch.Tensor):
            signature[parameter.name] = f"*{TYPES[value.dtype]}"
            attributes[(place,)] = [["tt.divisibility", 16]]
        elif parameter.is_constexpr or value is None or (special and type(value) is int and value == 1):
            signature[parameter.name] = "constexpr"
            constants[parameter.name] = value
        elif type(value) is int:
            signature[parameter.name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            if special and value % 16 == 0:
                attributes[(place,)] = [["tt.divisibility", 16]]
        else:
            signature[parameter.name] = "fp32"
    known = ("num_warps", "num_stages", "enable_fp_fusion", "num_ctas", "maxnreg")
    compiled = triton.compile(
        ASTSource(fn=function, signature=signature, constexprs=constants, attrs=attributes),
        target=GPUTarget("cuda", architecture, 32),
        options={name: value for name, value in launch.options.items() if name in known},
    )
    return compiled.metadata.shared


def configurations(architecture: int, kernel: str, variant: Variant) -> list[Config]:
    entry = table()[f"sm_{architecture}"]
    return [Config(*sizes) for sizes in entry[kernel][variant.kind]]


def check(architecture: int, kernel: str, variant: Variant, config: Config) -> None:
    for launch in launches_of(kernel, config, variant):
        what = f"sm_{architecture}, {kernel}, {variant}, {tuple(config)}"
        shared = shared_memory(architecture, launch)
        assert shared <= MOST_SHARED[architecture], what
        # the first launch of a call computes the sampling points, without a product
        assert shared > 0 or "BLOCK_N" not in launch.kernel.arg_names


@pytest.mark.parametrize("architecture", [86, 90])  # the smallest memory; Hopper
@pytest.mark.parametrize("kernel", KERNELS)
def test_first_choice(architecture, kernel):
    check(architecture, kernel, VARIANTS[0], configurations(architecture, kernel, VARIANTS[0])[0])


@pytest.mark.slow
@pytest.mark.parametrize("architecture", MOST_SHARED)
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("kernel", KERNELS)
def test_the_table(architecture, kernel, variant):
    for config in configurations(architecture, kernel, variant):
        check(architecture, kernel, variant, config)
