"""Deformable convolution in two dimensions, v1 and v2, on shapes of detectors."""

from __future__ import annotations

from dataclasses import replace

import torch
from convolutions import Case, contestants
from torch import Tensor

from . import Call, Unsupported, leaves


def _cases() -> list[Case]:
    # Inputs of 800×1344, the usual size in MMDetection's configs.
    c3, c4, c5 = (128, (100, 168)), (256, (50, 84)), (512, (25, 42))
    resnet, fpn = [], []
    for batch in (1, 2):
        n = "" if batch == 1 else f"-n{batch}"
        for name, (channels, size) in {"c3": c3, "c4": c4, "c5": c5}.items():
            resnet.append(Case(f"{name}{n}", "ResNet-50", batch, channels, size))
            before = (2 * size[0], 2 * size[1])
            resnet.append(Case(f"{name}-s2{n}", "ResNet-50", batch, channels, before, stride=2))
        # p4 is the same as c4: 256 channels, 50×84
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
    # maps so small that the overhead of a call and the packing of the weight count
    for channels in (64, 512):
        cases.append(Case(f"tiny-{channels}", "tiny maps", 1, channels, (8, 8)))
    # with v1, for which mmcv's operator has an im2col_step, too
    cases.append(Case("many-v1-step64", "many small images", 64, 32, (16, 16), op="v1", im2col_step=64))
    return [replace(case, main=case.group in ("ResNet-50", "FPN")) for case in cases]


CASES = _cases()


def _mmcv(case: Case, t: dict, threads: int) -> Call:
    from mmcv.ops import deform_conv2d, modulated_deform_conv2d

    input, weight, offset, mask = leaves(t["input"], t["weight"], t["offset"], t["mask"])
    geometry = (case.stride, case.padding, 1, case.groups, case.offset_groups)
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
        lambda: deform_conv2d(input, offset, weight, None, case.stride, case.padding, 1, mask),
        tuple(g for g in given if g is not None),
    )


def _onnxruntime(case: Case, t: dict, threads: int) -> Call:
    """Run a model of one node, with a constant weight as in a deployed model; no gradients."""
    import numpy as np
    import onnx
    import onnxruntime
    from onnx import helper

    if t["input"].device.type != "cpu":
        raise Unsupported("its DeformConv runs only on the CPU")
    if t["input"].dtype == torch.bfloat16:
        raise Unsupported("its DeformConv does not support bfloat16")
    arrays = {name: tensor.numpy() for name, tensor in t.items() if tensor is not None}
    element = helper.np_dtype_to_tensor_dtype(arrays["input"].dtype)
    fed = [name for name in ("input", "offset", "mask") if name in arrays]
    names = ["input", "weight", "offset"] + (["", "mask"] if "mask" in arrays else [])
    node = helper.make_node(
        "DeformConv", names, ["output"],
        kernel_shape=[case.kernel] * 2, pads=[case.padding] * 4, strides=case.strides, dilations=[1, 1],
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


FLOORS, CONTESTANTS = contestants(
    2, rivals={"mmcv": _mmcv, "onnxruntime": _onnxruntime, "torchvision": _torchvision}
)
