"""Every launch of the fused kernels, compiled for GPUs that are not there: no spills, shared memory fits.

The launches are those of dcnzoo.ops.fused, recorded on CPU tensors and not executed.
"""

import dataclasses
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import pytest
import torch

pytest.importorskip("triton")
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from dcnzoo.ops._arguments import arguments_of
from dcnzoo.ops.fused import deform_conv as fused
from dcnzoo.ops.fused import dispatch
from dcnzoo.ops.fused.available import entry_of
from dcnzoo.ops.fused.deform_conv import Config

# Bytes of shared memory of a block: CUDA C++ Programming Guide, compute capabilities; AMD's data sheets, LDS.
MOST_SHARED = {
    **{"sm_75": 65536, "sm_80": 166912, "sm_86": 101376, "sm_89": 101376, "sm_90": 232448, "sm_100": 232448},
    **{"sm_120": 101376, "gfx90a": 65536, "gfx942": 65536, "gfx1100": 65536, "gfx1201": 65536},
}
TYPES = {
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float32: "fp32",
    torch.int32: "i32",
    torch.int64: "i64",
    torch.bool: "i1",
}
FEW = 8  # bytes that any launch may spill: two registers, which depend on the version of Triton
# Exceptions. Triton 3.7 spills bfloat16 on sm_75, which cannot multiply it, and float32 on sm_100. Triton 3.6
# spills float32 on sm_120: eight of 168 registers; more warps then fit on a multiprocessor.
SPILLS = {
    ("8 groups, 2 axes", "sm_100", "float32, tf32"): 24,
    ("boxes", "sm_120", "float32, tf32"): 32,
    ("boxes", "sm_120", "float32, ieee"): 32,
    ("16 groups, 2 axes", "sm_75", "bfloat16"): 24,
    ("16 groups, 2 axes", "sm_75", "bfloat16, float32 offsets"): 24,
}
KERNELS = ("forward", "grad_weight", "grad_samples")
CHANNELS = 256


@dataclasses.dataclass(frozen=True)
class Variant:
    """Properties of a launch besides the kernel and the block sizes."""

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
PAIRS = [  # AMD's GPUs have no TF32
    (architecture, variant if architecture.startswith("sm_") else dataclasses.replace(variant, tf32=False))
    for architecture in MOST_SHARED
    for variant in (VARIANTS if architecture.startswith("sm_") else (*VARIANTS[:3], VARIANTS[4]))
]


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
    numbers = ([1, 1], [1, 1], [1, 1], 1, None)
    # as on a GPU: the interpreter converts operands of products, and needs other options
    with (
        recorded() as launches,
        mock.patch.object(fused, "INTERPRETED", False),
        mock.patch.object(fused, "tf32", lambda: variant.tf32),
    ):
        if kernel == "forward":
            call = arguments_of("deform_conv")(input, weight, offset, mask, normal(channels), *numbers)
            fused.deform_conv(call, config)(call)
        else:
            needed = [kernel == name for name in ("grad_samples", "grad_weight")]
            needed = [*needed, needed[0], needed[0], False]
            call = arguments_of("_deform_conv_backward")(grad, input, weight, offset, mask, *numbers, needed)
            fused.deform_conv_backward(call, config)(call)
    return launches


def target_of(architecture: str) -> GPUTarget:
    if architecture.startswith("sm_"):
        return GPUTarget("cuda", int(architecture.removeprefix("sm_")), 32)
    return GPUTarget("hip", architecture, 64 if architecture.startswith("gfx9") else 32)


def resources(architecture: str, launch: Launch, folder: Path) -> tuple[int, int]:
    """Compile a launch for an architecture, specialised as at run time.

    Returns:
        bytes of a thread's stack, which are spilled registers, and of a block's shared memory.
    """
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
        target=target_of(architecture),
        options={name: value for name, value in launch.options.items() if name in known},
    )
    if "amdgcn" in compiled.asm:
        stack = re.search(r"\.private_segment_fixed_size:\s+(\d+)", compiled.asm["amdgcn"])
        return int(stack[1]), compiled.metadata.shared
    file = folder / "kernel.cubin"
    file.write_bytes(compiled.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    usage = subprocess.run([tool, "-res-usage", file], capture_output=True, text=True, check=True).stdout
    return int(re.search(r"STACK:(\d+)", usage)[1]), compiled.metadata.shared


def configurations(architecture: str, kernel: str, variant: Variant) -> list[Config]:
    return [Config(*sizes) for sizes in entry_of(architecture)[kernel][variant.kind]]


def check(architecture: str, launches: list[Launch], what: str, folder: Path, may_spill: float = 0) -> None:
    """Check that launches fit into shared memory and spill at most ``may_spill`` bytes, or a few."""
    for launch in launches:
        spilled, shared = resources(architecture, launch, folder)
        text = f"{launch.kernel.fn.__name__}: {what}: {spilled} bytes spilled, {shared} shared"
        assert shared <= MOST_SHARED[architecture], text
        assert spilled <= max(may_spill, FEW), text


def may_spill(architecture: str, kernel: str) -> float:
    """Return how many bytes may spill: any number for block sizes that were measured as fastest on a GPU."""
    source = entry_of(architecture)["source"]
    return float("inf") if kernel in source and "measured on" in source else 0


@pytest.mark.parametrize(
    ("kernel", "architecture"),
    [
        pytest.param(kernel, architecture, marks=[] if kernel in quick else [pytest.mark.slow])
        # the smallest memory; Hopper; AMD's two widths of a warp
        for architecture, quick in (
            ("sm_86", ("forward",)),
            ("sm_90", ("forward", "grad_samples")),
            ("gfx942", KERNELS),
            ("gfx1100", KERNELS),
        )
        for kernel in KERNELS
    ],
)
def test_first_choice(architecture, kernel, tmp_path):
    variant = next(variant for name, variant in PAIRS if name == architecture)
    config = configurations(architecture, kernel, variant)[0]
    launches = launches_of(kernel, config, variant)
    check(architecture, launches, f"{architecture}, {config}", tmp_path, may_spill(architecture, kernel))


@pytest.mark.slow
@pytest.mark.parametrize(("architecture", "variant"), PAIRS, ids=str)
@pytest.mark.parametrize("kernel", KERNELS)
def test_the_table(architecture, kernel, variant, tmp_path):
    for config in configurations(architecture, kernel, variant):
        launches, what = launches_of(kernel, config, variant), f"{architecture}, {config}"
        check(architecture, launches, what, tmp_path, may_spill(architecture, kernel))


def operator_calls(variant: Variant) -> dict[str, list[tuple[str, tuple]]]:
    """Calls of the operators with fused kernels, and of their backwards."""

    def normal(*shape: int, dtype: torch.dtype = variant.dtype) -> torch.Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)

    def fields(*shape: int) -> torch.Tensor:
        return normal(*shape, dtype=variant.fields)

    calls = {}
    taps = ([3, 3], [1, 1], [1, 1], [1, 1], 2)
    for channels in (8, 24, 32, 64, 256):
        rest = (*taps, channels, 1.0, False)
        first = normal(1, 4, 5, 2 * channels)
        dcnv3, dcnv4 = (first, fields(1, 4, 5, 36), fields(1, 4, 5, 18)), (first, fields(1, 4, 5, 56))
        sizes, starts = torch.tensor([[4, 5], [2, 3]]), torch.tensor([0, 20])
        value = normal(1, 26, 8, channels)
        attention = (value, sizes, starts, fields(1, 7, 8, 2, 4, 2), fields(1, 7, 8, 2, 4))
        calls[f"attention, {channels} channels"] = [
            ("dcnv3", (*dcnv3, *rest)), ("_dcnv3_backward", (first, *dcnv3, *rest, [True] * 3)),
            ("dcnv4", (*dcnv4, *rest)), ("_dcnv4_backward", (first, *dcnv4, *rest, [True] * 2)),
            ("ms_deform_attn", attention),
            ("_ms_deform_attn_backward", (normal(1, 7, 8 * channels), *attention, [True] * 3)),
        ]  # fmt: skip
    for groups, axes in ((128, 2), (16, 2), (8, 2), (1, 1)):
        size, one = (4, 5)[-axes:], [1] * axes
        input, offset, mask = (
            normal(1, 128, *size),
            fields(1, axes * 3**axes, *size),
            fields(1, 3**axes, *size),
        )
        weight = normal(128, 128 // groups, *[3] * axes)
        numbers = (one, one, one, groups, None)
        calls[f"{groups} groups, {axes} axes"] = [
            ("deform_conv", (input, weight, offset, mask, normal(128), *numbers)),
            ("_deform_conv_backward", (input, input, weight, offset, mask, *numbers, [True] * 5)),
        ]
    maps, rois, grad = normal(1, 256, 4, 5), torch.tensor([[0, 1.0, 1, 3, 3]]), normal(1, 256, 7, 7)
    moved = (maps, rois, fields(1, 2, 7, 7))
    calls["boxes"] = [
        ("roi_align", (maps, rois, 7, 7, 1.0, 2, True)),
        ("_roi_align_backward", (grad, rois, [1, 256, 4, 5], 1.0, 2, True)),
        ("deform_roi_pool", (*moved, 7, 7, 1.0, 2, 0.1)),
        ("_deform_roi_pool_backward", (grad, *moved, 1.0, 2, 0.1, [True, True])),
        ("nms", (normal(70, 4), normal(70), 0.5, 0)),
    ]
    return calls


OPERATORS = list(operator_calls(VARIANTS[0]))


@pytest.mark.slow
@pytest.mark.parametrize(("architecture", "variant"), PAIRS, ids=str)
@pytest.mark.parametrize("call", OPERATORS)
def test_operators(architecture, call, variant, tmp_path, monkeypatch):
    monkeypatch.setattr(fused, "INTERPRETED", False)
    monkeypatch.setattr(fused, "architecture", lambda device: architecture)
    monkeypatch.setattr(fused, "tf32", lambda: variant.tf32)
    for name, arguments in operator_calls(variant)[call]:
        arguments = arguments_of(name)(*arguments)
        with recorded() as launches:
            dispatch.make_run(name, arguments)(arguments)
        assert launches
        what, limit = (
            f"{architecture}, {name}, {call}, {variant}",
            SPILLS.get((call, architecture, str(variant)), 0),
        )
        check(architecture, launches, what, tmp_path, limit)
