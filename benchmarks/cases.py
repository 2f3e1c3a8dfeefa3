"""Calls of the operators on the shapes of real networks, and how dcnzoo and other packages compute them.

The tensors come from ``tests/op_cases``, which also describes how dcnzoo and the reference are called.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tests import op_cases
from tests.op_cases import Sample, dcnv3, dcnv4, deform_conv, deform_conv_transpose, ms_deform_attn

OURS = "dcnzoo"
PASSES = ("forward", "forward+backward")
# The reference stores every sample several times: larger calls take minutes and gigabytes.
REFERENCE_SIZE = 600_000  # elements of the first tensor
STRIDE = 4  # of the map that the RoIs read, in image pixels
HALF = (torch.bfloat16, torch.float16)
Forward = Callable[[], Tensor]
Contestant = Callable[[Sample], Forward]  # other runtimes use as many threads as torch


@dataclass(frozen=True)
class Case:
    """A call of an operator. An ``optional`` one runs only with --all."""

    operator: str
    name: str
    group: str
    make: Callable[[], Sample]
    optional: bool = False
    batch: int = 1  # images
    stride: int = 1  # of a convolution

    @property
    def main(self) -> bool:
        """Return whether the case counts in the summary of its operator."""
        return self.operator != "deform_conv2d" or self.group in ("ResNet-50", "FPN")

    def sample(self, dtype: torch.dtype, device: str = "cpu") -> Sample:
        sample = self.make().to(dtype).map(lambda tensor: tensor.to(device))
        kwargs = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in sample.kwargs.items()}
        return replace(sample, kwargs=kwargs)


@cache
def operators() -> dict[str, op_cases.Operator]:
    return {operator.name: operator for operator in op_cases.operators(differentiable=False)}


# Cases


def convolution(
    name: str, batch: int, channels: int, size: tuple[int, ...], kernel: int = 3, transposed: bool = False,
    mask_groups: int | None = 1, **geometry: int,
) -> Sample:  # fmt: skip
    module = deform_conv_transpose if transposed else deform_conv
    geometry = {"padding": 1, **geometry}
    sizes = dict(batch=batch, channels=channels, out_channels=channels, size=size)
    options = dict(kernel=(kernel,) * len(size), mask_groups=mask_groups, bias=False, **geometry)
    sample = module.make(name, **sizes, **options)
    input, weight, *others = sample.tensors
    return replace(sample, tensors=(input, weight * weight[0].numel() ** -0.5, *others))


def _convolutions() -> Iterator[Case]:
    def case(operator: str, name: str, group: str, *sizes, optional: bool = False, **options) -> Case:
        make = partial(convolution, name, *sizes, **options)
        return Case(operator, name, group, make, optional, batch=sizes[0], stride=options.get("stride", 1))

    levels = {"c3": (128, (100, 168)), "c4": (256, (50, 84)), "c5": (512, (25, 42))}  # of images of 800×1344
    two = partial(case, "deform_conv2d")
    for batch in (1, 2):
        n = "" if batch == 1 else f"-n{batch}"
        for name, (channels, (h, w)) in levels.items():
            yield two(f"{name}{n}", "ResNet-50", batch, channels, (h, w))
            yield two(f"{name}-s2{n}", "ResNet-50", batch, channels, (2 * h, 2 * w), stride=2)
        for name, size in (("p2", (200, 336)), ("p3", (100, 168)), ("p5", (25, 42))):  # p4 equals c4
            yield two(f"{name}{n}", "FPN", batch, 256, size, optional=name == "p2")
    for name, (channels, size) in levels.items():
        yield two(f"{name}-v1", "v1", 1, channels, size, mask_groups=None)
        yield two(f"{name}-og4", "offset groups", 1, channels, size, offset_groups=4, mask_groups=4)
        yield two(f"{name}-x101", "ResNeXt-101 32×8d", 1, 4 * channels, size, groups=32)
        finer = tuple(2 * extent for extent in size)  # c2 to c4
        yield two(f"c{int(name[1]) - 1}-x50", "ResNeXt-50 32×4d", 1, channels, finer, groups=32)
    yield two("demo-c3-s2", "demo", 4, 32, (32, 32), stride=2)
    yield two("demo-c4-s2", "demo", 4, 64, (16, 16), stride=2)
    yield two("many-step8", "many small images", 64, 32, (16, 16), im2col_step=8)
    for channels, size in ((8, 64), (16, 64), (32, 64), (64, 32)):  # of the demo and of key-point networks
        yield two(f"few-{channels}", "few channels", 16 if channels == 64 else 8, channels, (size, size))
    yield two("wide-64", "wide maps", 1, 64, (200, 336))
    for channels in (64, 512):  # measure the overhead of a call and the packing of the weight
        yield two(f"tiny-{channels}", "tiny maps", 1, channels, (8, 8))
    yield case("deform_conv1d", "frames", "sequences", 2, 256, (2000,))
    yield case("deform_conv1d", "sound-s2", "sound", 4, 64, (8000,), 5, stride=2, padding=2)
    yield case("deform_conv3d", "clip-res3", "video", 1, 128, (8, 28, 28))
    yield case("deform_conv3d", "volume-s2", "volumes", 1, 32, (32, 48, 48), stride=2)
    up = partial(case, transposed=True, stride=2)
    yield up("deform_conv_transpose1d", "sound-s2", "sound", 4, 64, (4000,), 4)
    yield up("deform_conv_transpose2d", "up32", "decoder", 1, 128, (32, 32), 4)
    yield up("deform_conv_transpose2d", "up64", "decoder", 1, 64, (64, 64), 4)
    yield up("deform_conv_transpose3d", "up16", "decoder", 1, 64, (16, 16, 16), 2, padding=0)


def _intern_image(packed: bool, name: str, batch: int, channels: int, size: tuple[int, int]) -> Sample:
    sizes = dict(batch=batch, size=size, kernel_size=3, group=channels // 16, group_channels=16)
    sample = dcnv3.make(name, **sizes)
    return dcnv4.packed(sample) if packed else sample


def _intern_images() -> Iterator[Case]:
    """Yield InternImage-T's stages, and shapes of the benchmark of the DCNv4 paper (Xiong et al. 2024)."""
    shapes = []
    for stage in range(4):
        for batch, height, width in ((1, 224, 224), (1, 800, 1280), (2, 800, 1280)):
            name = f"{height}px-{stage + 1}{'-n2' * (batch == 2)}"
            size = (height // (4 << stage), width // (4 << stage))
            shapes.append((f"InternImage-T, {height} px", name, batch, 64 << stage, size))
    for height, width, channels in ((56, 56, 128), (14, 14, 768), (200, 320, 128), (64, 64, 768)):
        shapes.append(("DCNv4 paper", f"paper-{height}-{channels}", 1, channels, (height, width)))
    for operator in ("dcnv3", "dcnv4"):
        for group, name, batch, *sizes in shapes:
            make = partial(_intern_image, operator == "dcnv4", name, batch, *sizes)
            yield Case(operator, name, group, make, optional=batch == 2, batch=batch)


def _attention(batch: int, queries: int, levels: tuple, heads: int, channels: int, points: int) -> Sample:
    sample = ms_deform_attn.make("attention", batch, queries, heads, channels, points, levels)
    value, _, weights = sample.tensors
    # neighbouring queries sample neighbouring positions, row by row
    steps = round(queries**0.5) + 1
    place = torch.cartesian_prod(*[torch.linspace(0, 1, steps)] * 2)[:queries].flip(1)
    extent = torch.tensor(levels).flip(1).view(-1, 1, 2)
    pixels = 2 * torch.randn(*weights.shape, 2, generator=torch.Generator().manual_seed(0))
    place = place.view(-1, 1, 1, 1, 2) + pixels / extent
    return replace(sample, tensors=(value, place.double(), weights))


def _attentions() -> Iterator[Case]:
    detr = ((100, 168), (50, 84), (25, 42), (13, 21))
    pixels = sum(h * w for h, w in detr)
    for name, batch, queries in (("encoder", 1, pixels), ("decoder", 1, 300), ("encoder-n2", 2, pixels)):
        make = partial(_attention, batch, queries, detr, 8, 32, 4)
        yield Case("ms_deform_attn", name, "Deformable DETR", make, optional=batch == 2, batch=batch)
    for queries in (300, 1300, 22100):  # for detection and key points: RF-DETR's pull request 1385
        make = partial(_attention, 1, queries, ((48, 48),), 16, 16, 2)
        yield Case("ms_deform_attn", f"rf-detr-{queries}", "RF-DETR", make)


def _regions(count: int, bins: int, offset: bool = False) -> Sample:
    """Return RoIs of 16 to 112 pixels in an image of 800×1344: an FPN assigns them to its finest level."""
    generator = torch.Generator().manual_seed(0)
    rand = partial(torch.rand, generator=generator, dtype=torch.float64)
    sides = 16 * 7 ** rand(count, 2)
    corner = rand(count, 2) * (torch.tensor([1344, 800]) - sides)
    rois = [torch.zeros(count, 1), corner, corner + sides]
    tensors = [torch.randn(1, 256, 200, 336, generator=generator), torch.cat(rois, 1)]
    if offset:
        tensors.append(torch.randn(count, 2, bins, bins, generator=generator))
    arguments = {"output_size": (bins, bins), "spatial_scale": 1 / STRIDE}
    return Sample("", tuple(tensors), arguments, constant=(1,))


def _suppression(count: int) -> Sample:
    """Return ten boxes around each object, as a dense head predicts them."""
    generator = torch.Generator().manual_seed(0)
    objects = torch.rand(count // 10, 4, generator=generator) * torch.tensor([1200, 1200, 80, 80])
    boxes = objects.repeat(10, 1) + torch.randn(count, 4, generator=generator) * 6
    boxes[:, 2:] = boxes[:, :2] + 16 + boxes[:, 2:].abs()
    scores = torch.rand(count, generator=generator)
    return Sample("", (boxes, scores), {"iou_threshold": 0.5}, constant=(0, 1))


CASES = [
    *_convolutions(),
    *_intern_images(),
    *_attentions(),
    Case("deform_roi_pool", "box-head", "RoIs", partial(_regions, 1000, 7, offset=True)),
    Case("roi_align", "box-head", "Mask R-CNN", partial(_regions, 1000, 7)),
    Case("roi_align", "mask-head", "Mask R-CNN", partial(_regions, 100, 14)),
    *(Case("nms", str(n), "proposals", partial(_suppression, n)) for n in (1000, 10000)),
]


# Contestants


def in_format(sample: Sample, memory_format: torch.memory_format) -> Sample:
    input, *others = sample.tensors
    return replace(sample, tensors=(input.contiguous(memory_format=memory_format), *others))


def last(sample: Sample) -> torch.memory_format:
    return {4: torch.channels_last, 5: torch.channels_last_3d}[sample.tensors[0].dim()]


def ours(operator: str, sample: Sample, backend: str = "auto") -> Forward:
    """Return dcnzoo's call. It sets the backend of this process, which stays until the next call sets it."""
    from dcnzoo.ops import run

    def forward() -> Tensor:
        run.set_backend(backend)  # the backward uses it, too: it runs before the next contestant
        return operators()[operator].call(sample)

    return forward


def reference(operator: str, sample: Sample) -> Forward:
    if sample.tensors[0].numel() > REFERENCE_SIZE:
        raise NotImplementedError(f"not run above {REFERENCE_SIZE / 1e3:.0f} k elements, because it is slow")
    return lambda: operators()[operator].reference(sample)


def plain(operator: str, sample: Sample) -> Forward:
    """Return torch's convolution of the same shape, with which a deformable one is compared."""
    input, weight = sample.tensors[:2]
    geometry = {k: v for k, v in sample.kwargs.items() if k != "im2col_step"}
    return lambda: getattr(F, operator.removeprefix("deform_"))(input, weight, None, **geometry)


def depthwise(sample: Sample) -> Forward:
    """Return a plain convolution with as many taps as DCNv3, for comparison."""
    input = sample.tensors[0].permute(0, 3, 1, 2)  # channels last in memory
    weight = input.new_ones(input.shape[1], 1, 3, 3)
    return lambda: F.conv2d(input, weight, None, 1, 1, 1, len(weight)).permute(0, 2, 3, 1)


def grid_sample_dcnv3(sample: Sample) -> Forward:
    """Return DCNv3 as the official releases compute it without their CUDA kernels."""
    input, offset, mask = sample.tensors
    if input.device.type == "cpu" and input.dtype in HALF:
        raise NotImplementedError("coordinates in half precision are off by pixels")
    (batch, height, width, _), groups = input.shape, sample.kwargs["group"]
    y, x = (torch.arange(n).to(input) + 1.5 for n in (height, width))
    centre = torch.stack([x.expand(height, -1), y[:, None].expand(-1, width)], -1)[:, :, None, None]
    tap = torch.arange(-1, 2).to(input)
    place = centre + torch.cartesian_prod(tap, tap)  # taps in x-major order, positions in the padded map
    extent = input.new_tensor([width + 2, height + 2])

    def forward() -> Tensor:
        maps = F.pad(input, [0, 0, 1, 1, 1, 1]).unflatten(3, (groups, -1))
        at = (place + offset.view(batch, height, width, groups, 9, 2)) / extent * 2 - 1
        at = at.permute(0, 3, 1, 2, 4, 5).reshape(batch * groups, height * width, 9, 2)
        samples = F.grid_sample(maps.permute(0, 3, 4, 1, 2).flatten(0, 1), at, align_corners=False)
        weights = mask.view(batch, -1, groups, 9).transpose(1, 2).reshape(batch * groups, 1, -1, 9)
        out = (samples * weights).sum(-1).view(batch, -1, height, width)
        return out.permute(0, 2, 3, 1).contiguous()

    return forward


def compiled_mmcv():
    """Import mmcv.ops.

    Raises:
        ImportError: mmcv has no compiled operators of its own.
    """
    import mmcv.ops

    from dcnzoo.compat.mmcv import compiled_extension

    if compiled_extension() is None:
        raise ImportError("mmcv-lite is installed, which uses dcnzoo's operators: nox -s peers")
    return mmcv.ops


def _mmcv_convolution(sample: Sample) -> Forward:
    mmcv = compiled_mmcv()
    input, weight, offset, mask, _ = sample.tensors
    k = {"stride": 1, "groups": 1, **sample.kwargs}
    groups = offset.shape[1] // (2 * weight[0, 0].numel())
    geometry = (k["stride"], k["padding"], 1, k["groups"], groups)
    if mask is None:
        return lambda: mmcv.deform_conv2d(input, offset, weight, *geometry, False, min(len(input), 32))
    return lambda: mmcv.modulated_deform_conv2d(input, offset, mask, weight, None, *geometry)


def _torchvision_convolution(sample: Sample) -> Forward:
    from torchvision.ops import deform_conv2d

    input, weight, offset, mask, _ = sample.tensors
    stride, padding = sample.kwargs.get("stride", 1), sample.kwargs["padding"]
    return lambda: deform_conv2d(input, offset, weight, None, stride, padding, 1, mask)


def _onnx_convolution(sample: Sample) -> tuple[bytes, dict[str, np.ndarray]]:
    """Return a model of one node, with a constant weight as in a deployed model, and its inputs."""
    from onnx import numpy_helper, parser

    if sample.tensors[0].dtype == torch.bfloat16:
        raise NotImplementedError("its DeformConv does not support bfloat16")
    tensors = zip(("input", "weight", "offset", "mask"), sample.tensors, strict=False)
    arrays = {name: tensor.detach().numpy() for name, tensor in tensors if tensor is not None}
    weight, k = arrays.pop("weight"), {"stride": 1, "groups": 1, **sample.kwargs}
    kernel, pad, stride = weight.shape[2:], k["padding"], k["stride"]
    groups = arrays["offset"].shape[1] // (2 * math.prod(kernel))
    kind = {torch.float64: "double", torch.float32: "float", torch.float16: "float16"}[
        sample.tensors[0].dtype
    ]
    inputs = ", ".join(f"{kind}{list(array.shape)} {name}" for name, array in arrays.items())
    model = parser.parse_model(f"""<ir_version: 9, opset_import: ["": 19]>
        deform_conv ({inputs}) => ({kind}[N, C, H, W] output) {{
            output = DeformConv <kernel_shape = {list(kernel)}, pads = {[pad] * 4}, strides = {[stride] * 2},
                group = {k["groups"]}, offset_group = {groups}>
                (input, weight, offset{", , mask" if "mask" in arrays else ""})
        }}""")
    model.graph.initializer.append(numpy_helper.from_array(weight, "weight"))
    return model.SerializeToString(), arrays


def _onnxruntime_convolution(sample: Sample) -> Forward:
    import onnxruntime

    model, arrays = _onnx_convolution(sample)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 3
    session = onnxruntime.InferenceSession(model, options, ["CPUExecutionProvider"])
    return lambda: torch.from_numpy(session.run(None, arrays)[0])


def _openvino_convolution(sample: Sample) -> Forward:
    """Run OpenVINO's own operator, to which ``dcnzoo.export`` converts the node."""
    from dcnzoo.export import make_core

    model, arrays = _onnx_convolution(sample)
    core = make_core()
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled = core.compile_model(core.read_model(model), "CPU", settings)
    return lambda: torch.from_numpy(compiled(arrays, share_inputs=True, share_outputs=True)[0])


def _mmcv_roi_align(sample: Sample) -> Forward:
    function, size = compiled_mmcv().roi_align, sample.kwargs["output_size"]
    return lambda: function(*sample.tensors, size, 1 / STRIDE, 0, "avg", True)


def _torchvision_roi_align(sample: Sample) -> Forward:
    from torchvision.ops import roi_align

    return lambda: roi_align(*sample.tensors, sample.kwargs["output_size"], 1 / STRIDE, -1, True)


def _mmcv_nms(sample: Sample) -> Forward:
    function = compiled_mmcv().nms
    return lambda: function(*sample.tensors, sample.kwargs["iou_threshold"])[1]


def _torchvision_nms(sample: Sample) -> Forward:
    from torchvision.ops import nms

    return lambda: nms(*sample.tensors, sample.kwargs["iou_threshold"])


def _package_attention(sample: Sample) -> Forward:
    from torch_ms_deform_attn import ms_deform_attn as function

    return lambda: function(*ms_deform_attn.arguments(sample))


def grid_sample_attention(sample: Sample) -> Forward:
    """Return the attention as Deformable DETR and mmcv compute it on a CPU, in plain PyTorch."""
    value, sizes, _, locations, weights = ms_deform_attn.arguments(sample)
    if value.device.type == "cpu" and value.dtype in HALF:
        raise NotImplementedError("coordinates in half precision are off by pixels")
    batch, _, heads, channels = value.shape
    shapes = sizes.tolist()

    def forward() -> Tensor:
        samples = []
        for level, pixels in enumerate(value.split([h * w for h, w in shapes], dim=1)):
            maps = pixels.flatten(2).transpose(1, 2).reshape(-1, channels, *shapes[level])
            at = (2 * locations[:, :, :, level] - 1).transpose(1, 2).flatten(0, 1)
            samples.append(F.grid_sample(maps, at, align_corners=False))
        factors = weights.transpose(1, 2).reshape(batch * heads, 1, weights.shape[1], -1)
        out = (torch.stack(samples, dim=-2).flatten(-2) * factors).sum(-1)
        return out.view(batch, heads * channels, -1).transpose(1, 2).contiguous()

    return forward


RIVALS: dict[str, dict[str, Contestant]] = {  # by operator
    "deform_conv2d": {
        "mmcv": _mmcv_convolution,
        "torchvision": _torchvision_convolution,
        "onnxruntime": _onnxruntime_convolution,
        "openvino": _openvino_convolution,
    },
    "dcnv3": {"F.conv2d depthwise": depthwise, "grid_sample": grid_sample_dcnv3},
    "dcnv4": {"F.conv2d depthwise": depthwise},
    "ms_deform_attn": {
        "torch-ms-deform-attn": _package_attention,
        "grid_sample": grid_sample_attention,
    },
    "roi_align": {"mmcv": _mmcv_roi_align, "torchvision": _torchvision_roi_align},
    "nms": {"mmcv": _mmcv_nms, "torchvision": _torchvision_nms},
}


def contestants(operator: str) -> dict[str, Contestant]:
    """Return, by name, functions that prepare the call to time. A name starts with the package.

    They raise an exception with the reason if they do not support a case.
    """
    own: dict[str, Contestant] = {OURS: partial(ours, operator)}
    if operator.startswith("deform_conv"):
        floor = f"F.{operator.removeprefix('deform_')}"
        own[floor] = partial(plain, operator)
        if operator[-2] != "1":
            for name in (OURS, floor):
                own[f"{name} channels_last"] = lambda s, call=own[name]: call(in_format(s, last(s)))
    return {**own, **RIVALS.get(operator, {}), "reference": partial(reference, operator)}


def passes(forward: Forward, given: list[Tensor], mode: str) -> Callable[[], object]:
    """Return the function to time; ``given``: the tensors that get gradients.

    Raises:
        NotImplementedError: the contestant has no backward.
    """
    if mode == "forward":
        return torch.no_grad()(forward)
    with torch.enable_grad():
        output = forward()
    used = [t for t in given if t.requires_grad]
    if not output.requires_grad or not used:
        raise NotImplementedError("no gradients")
    grad = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(output)
    if output.dim() == 4:
        last_format = output.is_contiguous(memory_format=torch.channels_last)
        grad = grad.contiguous(memory_format=torch.channels_last if last_format else torch.contiguous_format)

    def forward_backward() -> tuple[Tensor, ...]:
        output = forward()
        return output.detach(), *torch.autograd.grad(output, used, grad, allow_unused=True)

    return forward_backward
