"""Deformable convolution in two dimensions, v1 and v2, on the shapes of detectors."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from . import OURS, Call, Unsupported, Work, leaves

KERNEL, PADDING = 3, 1
# Pixels. Learnt offsets are of this size but smoother; independent ones are the harder case for caches.
OFFSET_STD = 2.0
# The reference materialises every sample several times: bigger cases take minutes and gigabytes.
REFERENCE_SAMPLES = 5_000_000  # of one channel at one tap and pixel
FLOORS = ("F.conv2d", "F.conv2d channels_last")


@dataclass(frozen=True)
class Case:
    name: str
    group: str
    batch: int
    channels: int  # in and out
    size: tuple[int, int]  # of the input
    stride: int = 1
    groups: int = 1
    offset_groups: int = 1
    op: str = "v2"
    im2col_step: int | None = None
    optional: bool = False

    @property
    def main(self) -> bool:
        return self.group in ("ResNet-50", "FPN")

    @property
    def out_size(self) -> tuple[int, int]:
        height, width = ((s + 2 * PADDING - KERNEL) // self.stride + 1 for s in self.size)
        return height, width

    @property
    def out_shape(self) -> tuple[int, ...]:
        return (self.batch, self.channels, *self.out_size)

    @property
    def shape(self) -> str:
        text = f"{self.batch}×{self.channels}×{self.size[0]}×{self.size[1]}"
        extras = {
            f"stride {self.stride}": self.stride > 1,
            f"groups {self.groups}": self.groups > 1,
            f"offset groups {self.offset_groups}": self.offset_groups > 1,
            f"step {self.im2col_step}": self.im2col_step is not None,
            self.op: self.op != "v2",
        }
        return ", ".join([text, *(word for word, holds in extras.items() if holds)])

    def small(self) -> Case:
        return replace(self, batch=1, size=(9, 11))

    def work(self, item: int) -> Work:
        samples = self.batch * self.out_size[0] * self.out_size[1] * KERNEL**2
        flops = 2 * samples * self.channels * self.channels / self.groups
        return Work(flops, samples * self.channels * 4 * item)  # four corners of each sample

    def tensors(self, dtype: torch.dtype, device: str) -> dict[str, Tensor | None]:
        generator = torch.Generator().manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        taps, fan_in = KERNEL**2, self.channels // self.groups * KERNEL**2
        tensors = {
            "input": normal(self.batch, self.channels, *self.size),
            "weight": normal(self.channels, self.channels // self.groups, KERNEL, KERNEL) * fan_in**-0.5,
            "offset": normal(self.batch, self.offset_groups * taps * 2, *self.out_size) * OFFSET_STD,
            "mask": normal(self.batch, self.offset_groups * taps, *self.out_size).sigmoid(),
        }
        if self.op == "v1":
            del tensors["mask"]
        return {"mask": None, **{name: t.to(device, dtype) for name, t in tensors.items()}}


def _cases() -> list[Case]:
    # Inputs of 800×1344, the size that MMDetection's configs train and test at.
    c3, c4, c5 = (128, (100, 168)), (256, (50, 84)), (512, (25, 42))
    resnet, fpn = [], []
    for batch in (1, 2):
        n = "" if batch == 1 else f"-n{batch}"
        for name, (channels, size) in {"c3": c3, "c4": c4, "c5": c5}.items():
            resnet.append(Case(f"{name}{n}", "ResNet-50", batch, channels, size))
            before = (2 * size[0], 2 * size[1])
            resnet.append(Case(f"{name}-s2{n}", "ResNet-50", batch, channels, before, stride=2))
        # p4 is c4: 256 channels, 50×84
        fpn.append(Case(f"p2{n}", "FPN", batch, 256, (200, 336), optional=True))
        fpn.append(Case(f"p3{n}", "FPN", batch, 256, c3[1]))
        fpn.append(Case(f"p5{n}", "FPN", batch, 256, c5[1]))
    cases = resnet + fpn
    for name, (channels, size) in {"c3": c3, "c4": c4, "c5": c5}.items():
        cases.append(Case(f"{name}-v1", "v1", 1, channels, size, op="v1"))
    for name, (channels, size) in {"c3": c3, "c4": c4, "c5": c5}.items():
        cases.append(Case(f"{name}-og4", "offset groups", 1, channels, size, offset_groups=4))
    for name, (channels, size) in {"c3": c3, "c4": c4, "c5": c5}.items():
        # 32×8d: four times ResNet-50's width, in 32 groups
        cases.append(Case(f"{name}-x101", "ResNeXt-101 32×8d", 1, 4 * channels, size, groups=32))
    # configs/demo: ResNet-14 with 16 base channels at 128 px, batch 4
    cases += [
        Case("demo-c3-s2", "demo", 4, 32, (32, 32), stride=2),
        Case("demo-c4-s2", "demo", 4, 64, (16, 16), stride=2),
    ]
    for step in (1, 8, 64):
        cases.append(Case(f"many-step{step}", "many small images", 64, 32, (16, 16), im2col_step=step))
    # with v1, where mmcv's operator takes an im2col_step too
    cases.append(Case("many-v1-step64", "many small images", 64, 32, (16, 16), op="v1", im2col_step=64))
    return cases


CASES = _cases()


def _dcnzoo(memory_format: torch.memory_format, backend: str = "auto"):
    def prepare(case: Case, t: dict, threads: int) -> Call:
        from dcnzoo.ops import _backend, deform_conv2d

        given = leaves(
            t["input"].contiguous(memory_format=memory_format), t["weight"], t["offset"], t["mask"]
        )

        def forward() -> Tensor:
            _backend.use(backend)  # for the backward too, which follows before another contestant's turn
            return deform_conv2d(*given, None, case.stride, PADDING, 1, case.groups, case.im2col_step)

        return Call(forward, tuple(g for g in given if g is not None))

    return prepare


def _conv2d(memory_format: torch.memory_format):
    def prepare(case: Case, t: dict, threads: int) -> Call:
        given = leaves(*(t[name].contiguous(memory_format=memory_format) for name in ("input", "weight")))
        return Call(lambda: F.conv2d(*given, None, case.stride, PADDING, 1, case.groups), given)

    return prepare


def _mmcv(case: Case, t: dict, threads: int) -> Call:
    from mmcv.ops import deform_conv2d, modulated_deform_conv2d

    input, weight, offset, mask = leaves(t["input"], t["weight"], t["offset"], t["mask"])
    geometry = (case.stride, PADDING, 1, case.groups, case.offset_groups)
    if mask is None:
        step = case.im2col_step or min(case.batch, 32)
        return Call(
            lambda: deform_conv2d(input, offset, weight, *geometry, False, step), (input, weight, offset)
        )
    if case.im2col_step is not None:
        raise Unsupported("its v2 operator has no im2col_step")
    return Call(
        lambda: modulated_deform_conv2d(input, offset, mask, weight, None, *geometry),
        (input, weight, offset, mask),
    )


def _torchvision(case: Case, t: dict, threads: int) -> Call:
    from torchvision.ops import deform_conv2d

    input, weight, offset, mask = given = leaves(t["input"], t["weight"], t["offset"], t["mask"])
    return Call(
        lambda: deform_conv2d(input, offset, weight, None, case.stride, PADDING, 1, mask),
        tuple(g for g in given if g is not None),
    )


def _tvdcn(case: Case, t: dict, threads: int) -> Call:
    from tvdcn.ops import deform_conv2d

    given = leaves(t["input"], t["weight"], t["offset"], t["mask"])
    stride, padding, dilation = ((v, v) for v in (case.stride, PADDING, 1))
    return Call(
        lambda: deform_conv2d(*given, None, stride, padding, dilation, case.groups),
        tuple(g for g in given if g is not None),
    )


def _onnxruntime(case: Case, t: dict, threads: int) -> Call:
    """A model of one node, its weight a constant as in a deployed model; no gradients."""
    import numpy as np
    import onnx
    import onnxruntime
    from onnx import helper

    if t["input"].device.type != "cpu":
        raise Unsupported("its DeformConv is for the CPU")
    if t["input"].dtype == torch.bfloat16:
        raise Unsupported("its DeformConv has no bfloat16")
    arrays = {name: tensor.numpy() for name, tensor in t.items() if tensor is not None}
    element = helper.np_dtype_to_tensor_dtype(arrays["input"].dtype)
    fed = [name for name in ("input", "offset", "mask") if name in arrays]
    names = ["input", "weight", "offset"] + (["", "mask"] if "mask" in arrays else [])
    node = helper.make_node(
        "DeformConv", names, ["output"],
        kernel_shape=[KERNEL] * 2, pads=[PADDING] * 4, strides=[case.stride] * 2, dilations=[1, 1],
        group=case.groups, offset_group=case.offset_groups,
    )  # fmt: skip
    graph = helper.make_graph(
        [node],
        "deform_conv",
        [helper.make_tensor_value_info(name, element, arrays[name].shape) for name in fed],
        [helper.make_tensor_value_info("output", element, case.out_shape)],
        [onnx.numpy_helper.from_array(np.ascontiguousarray(arrays["weight"]), "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    binding = session.io_binding()  # no copies in or out
    for name in fed:
        binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(arrays[name]))
    binding.bind_output("output", "cpu")

    def forward() -> Tensor:
        session.run_with_iobinding(binding)
        return torch.from_numpy(binding.get_outputs()[0].numpy())

    return Call(forward)


def _reference(case: Case, t: dict, threads: int) -> Call:
    from dcnzoo.ops import reference

    if case.work(1).gathered / 4 > REFERENCE_SAMPLES:
        limit = f"{REFERENCE_SAMPLES / 1e6:.0f} M samples"
        raise Unsupported(f"not run above {limit}: slow and hungry on purpose")
    given = leaves(t["input"], t["weight"], t["offset"], t["mask"])
    stride, padding, dilation = ((v, v) for v in (case.stride, PADDING, 1))
    return Call(
        lambda: reference.deform_conv(*given, None, stride, padding, dilation, case.groups),
        tuple(g for g in given if g is not None),
    )


CONTESTANTS = {
    OURS: _dcnzoo(torch.contiguous_format),
    f"{OURS} channels_last": _dcnzoo(torch.channels_last),
    f"{OURS} fused channels_last": _dcnzoo(torch.channels_last, "fused"),
    "F.conv2d": _conv2d(torch.contiguous_format),
    "F.conv2d channels_last": _conv2d(torch.channels_last),
    "mmcv": _mmcv,
    "onnxruntime": _onnxruntime,
    "torchvision": _torchvision,
    "tvdcn": _tvdcn,
    "reference": _reference,
}
GPU_ONLY = (f"{OURS} fused channels_last",)
