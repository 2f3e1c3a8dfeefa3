"""DCNv3 without its projections.

Shapes: InternImage's classification at 224 px and detection at 800×1280, and those of the operator benchmark
in the DCNv4 paper (Xiong et al. 2024; at 224 px with one image instead of 64).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from convolutions import OFFSET_STD, REFERENCE_SAMPLES
from torch import Tensor

from . import OURS, Call, Unsupported, leaves

KERNEL, PADDING = 3, 1
TAPS = KERNEL**2
GROUP_CHANNELS = 16  # in every InternImage
# A plain convolution with as many taps; on a GPU also one pass over the memory of inputs and output.
FLOORS = ("F.conv2d depthwise", "copy")


@dataclass(frozen=True)
class Case:
    name: str
    group: str
    batch: int
    channels: int
    size: tuple[int, int]
    op: str = "v3"
    main: bool = False
    optional: bool = False

    @property
    def groups(self) -> int:
        return self.channels // GROUP_CHANNELS

    @property
    def out_shape(self) -> tuple[int, ...]:
        return (self.batch, *self.size, self.channels)

    @property
    def shape(self) -> str:
        return f"{self.batch}×{self.size[0]}×{self.size[1]}×{self.channels}, {self.groups} groups"

    def small(self) -> Case:
        return replace(self, batch=1, size=(9, 11))

    def work(self, item: int) -> None:
        return None

    def tensors(self, dtype: torch.dtype, device: str) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(self.batch, *self.size, *shape, generator=generator)

        tensors = {
            "input": normal(self.channels),
            "offset": normal(self.groups * TAPS * 2) * OFFSET_STD,
            "mask": normal(self.groups, TAPS).softmax(-1).flatten(3),
        }
        return {name: tensor.to(device, dtype) for name, tensor in tensors.items()}


def _cases() -> list[Case]:
    cases = []
    for stage in range(4):
        channels, scale = 64 << stage, 4 << stage
        cases.append(Case(f"224px-{stage + 1}", "InternImage-T, 224 px", 1, channels, (224 // scale,) * 2))
        cases.append(
            Case(f"800px-{stage + 1}", "InternImage-T, 800×1280", 1, channels, (800 // scale, 1280 // scale))
        )
    for batch in (8, 64):
        name, group = f"224px-1-n{batch}", "InternImage-T, 224 px"
        cases.append(Case(name, group, batch, 64, (56, 56), optional=batch > 8))
    for width, channels in ((56, 128), (28, 256), (14, 512), (7, 1024), (14, 768)):
        name = f"paper-{width}-{channels}"
        cases.append(Case(name, "DCNv4 paper, 224 px", 1, channels, (width, width)))
    for height, width, channels in ((200, 320, 128), (100, 160, 256), (50, 80, 512), (64, 64, 768)):
        name = f"paper-{height}-{channels}"
        cases.append(Case(name, "DCNv4 paper, high resolution", 1, channels, (height, width)))
    return sorted(cases, key=lambda case: (case.group, case.batch))


CASES = _cases()


def geometry(case: Case) -> tuple:
    return (KERNEL, 1, PADDING, 1, case.groups, GROUP_CHANNELS, 1.0)


def _dcnzoo(case: Case, t: dict, threads: int) -> Call:
    from dcnzoo.ops import dcnv3

    given = leaves(t["input"], t["offset"], t["mask"])
    return Call(lambda: dcnv3(*given, *geometry(case)), given)


def plain(operator: Callable, case: Case, given: tuple[Tensor, ...]) -> Call:
    """Run the reference of an operator, in plain PyTorch."""
    if case.batch * case.size[0] * case.size[1] * TAPS * case.channels > REFERENCE_SAMPLES:
        limit = f"{REFERENCE_SAMPLES / 1e6:.0f} M samples"
        raise Unsupported(f"not run above {limit}: the reference is slow and needs much memory")
    pairs = ([KERNEL] * 2, [1, 1], [PADDING] * 2, [1, 1])
    return Call(lambda: operator(*given, *pairs, case.groups, GROUP_CHANNELS, 1.0, False), given)


def _reference(case: Case, t: dict, threads: int) -> Call:
    from dcnzoo.ops import reference

    return plain(reference.dcnv3, case, leaves(t["input"], t["offset"], t["mask"]))


def grid_sample(case: Case, input: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
    """DCNv3 as in the official releases without their CUDA kernels."""
    if input.device.type == "cpu" and input.dtype in (torch.bfloat16, torch.float16):
        raise Unsupported("coordinates in half precision are off by pixels")
    batch, (height, width), groups = case.batch, case.size, case.groups
    padded = F.pad(input, [0, 0, *[PADDING] * 4])
    extent = input.new_tensor([width + 2 * PADDING, height + 2 * PADDING])
    y = torch.arange(height).to(input) + PADDING + 0.5
    x = torch.arange(width).to(input) + PADDING + 0.5
    centre = torch.stack([x.expand(height, -1), y[:, None].expand(-1, width)], -1)[:, :, None, None]
    tap = torch.arange(-PADDING, PADDING + 1).to(input)
    taps = torch.cartesian_prod(tap, tap)  # x-major
    at = (centre + taps + offset.view(batch, height, width, groups, TAPS, 2)) / extent * 2 - 1
    at = at.permute(0, 3, 1, 2, 4, 5).reshape(batch * groups, height * width, TAPS, 2)
    maps = padded.unflatten(3, (groups, GROUP_CHANNELS)).permute(0, 3, 4, 1, 2).flatten(0, 1)
    samples = F.grid_sample(maps, at, align_corners=False)
    weights = (
        mask.view(batch, height * width, groups, TAPS).transpose(1, 2).reshape(batch * groups, 1, -1, TAPS)
    )
    out = (samples * weights).sum(-1).view(batch, case.channels, height, width)
    return out.permute(0, 2, 3, 1).contiguous()


def _grid_sample(case: Case, t: dict, threads: int) -> Call:
    given = leaves(t["input"], t["offset"], t["mask"])
    return Call(lambda: grid_sample(case, *given), given)


def depthwise(case: Case, t: dict, threads: int) -> Call:
    weight = t["input"].new_ones(case.channels, 1, KERNEL, KERNEL)
    input, weight = leaves(t["input"], weight)
    maps = input.permute(0, 3, 1, 2)  # channels last in memory
    return Call(
        lambda: F.conv2d(maps, weight, None, 1, PADDING, 1, case.channels).permute(0, 2, 3, 1),
        (input, weight),
    )


def copy(case: Case, t: dict, threads: int) -> Call:
    if t["input"].device.type == "cpu":
        raise Unsupported("a limit only for GPUs: memory does not limit a CPU here")
    moved = sum(tensor.numel() for tensor in t.values()) + t["input"].numel()
    memory = t["input"].new_zeros(moved // 2)
    return Call(lambda: memory.clone())


CONTESTANTS = {
    OURS: _dcnzoo,
    "F.conv2d depthwise": depthwise,
    "copy": copy,
    "reference grid_sample": _grid_sample,
    "reference": _reference,
}
