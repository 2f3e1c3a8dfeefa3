"""``dcnzoo.compat.provide``: replacements for other projects' compiled modules, called as in those projects.

The oracle is dcnzoo.ops.reference.
"""

import importlib
import itertools
import os
import runpy
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import dcnzoo.compat
from dcnzoo.compat import after_import, detectron2, extensions, patches
from dcnzoo.compat.cpu import on_cpu
from dcnzoo.compat.deformable_detr import MSDeformAttn
from dcnzoo.layers import DCNv3, DCNv4
from dcnzoo.ops import reference

from .processes import python


@pytest.fixture
def provide(monkeypatch):
    """:func:`dcnzoo.compat.provide`. Its changes and later imports are undone after the test."""
    before = dict(sys.modules)
    known = len(patches._patches)
    monkeypatch.setattr(extensions._finder, "files", dict(extensions._finder.files))
    monkeypatch.setattr(after_import, "_watched", [])
    monkeypatch.setattr(extensions, "_provided", [])
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    yield dcnzoo.compat.provide
    for patch in patches._patches[known:]:
        patch.undo()
    del patches._patches[known:]
    for name in sys.modules.keys() - before:
        spec = sys.modules[name].__spec__
        if spec is not None and extensions.is_ours(spec) and not name.startswith("dcnzoo"):
            del sys.modules[name]


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64)


def compare(
    function, expected, *leaves: torch.Tensor, dtype: torch.dtype = torch.float64, backward=None
) -> None:
    """Compare outputs and gradients of ``function`` in ``dtype`` with those of ``expected`` in float64.

    ``backward(grad_output, *leaves)`` returns the gradients; by default autograd computes them.
    """
    given = [leaf.detach().to(dtype).requires_grad_(backward is None) for leaf in leaves]
    exact = [leaf.detach().double().requires_grad_() for leaf in given]
    output, wanted = function(*given), expected(*exact)
    assert output.dtype == dtype
    cotangent = torch.randn_like(output)
    gradients = backward(cotangent, *given) if backward else torch.autograd.grad(output, given, cotangent)
    actual = (output, *gradients)
    wanted = (wanted, *torch.autograd.grad(wanted, exact, cotangent.double()))
    for a, w in zip(actual, wanted, strict=True):
        if dtype == torch.float64:
            torch.testing.assert_close(a, w)
        else:
            assert a.dtype == dtype
            error = (a.double() - w).norm() / w.norm()
            assert error < {torch.float32: 1e-5, torch.float16: 3e-3, torch.bfloat16: 2e-2}[dtype]


# Multi-scale deformable attention


SHAPES = torch.tensor([[5, 8], [3, 2]])
STARTS = torch.tensor([0, 40])


def attention(value: torch.Tensor, locations: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    return reference.ms_deform_attn(value, SHAPES, STARTS, locations, weights)


def attention_leaves() -> tuple[torch.Tensor, ...]:
    value = random(3, 46, 2, 6)
    return value, torch.rand(3, 7, 2, 2, 3, 2).double() * 1.4 - 0.2, torch.rand(3, 7, 2, 2, 3).double()


@pytest.mark.parametrize(
    ("name", "dtype"), [("MultiScaleDeformableAttention", torch.float64), ("adet._C", torch.float16)]
)
def test_ms_deform_attn(provide, package, name, dtype):
    if "." in name:
        package(f"{name.partition('.')[0]}.config")
    provide(name)
    compiled = importlib.import_module(name)
    compare(  # 2, the im2col_step, does not divide the batch of 3
        lambda v, at, w: compiled.ms_deform_attn_forward(v, SHAPES, STARTS, at, w, 2),
        attention,
        *attention_leaves(),
        dtype=dtype,
        backward=lambda g, v, at, w: compiled.ms_deform_attn_backward(v, SHAPES, STARTS, at, w, g, 2),
    )


def test_grounding_dino_on_the_cpu(provide, package):
    """GroundingDINO's layer calls the compiled module only for CUDA tensors, on the CPU its own function."""
    module = "groundingdino.models.GroundingDINO.ms_deform_attn"
    package(
        module,
        "from groundingdino import _C\n"
        "def multi_scale_deformable_attn_pytorch(value, value_spatial_shapes, sampling_locations, weights):\n"
        "    raise NotImplementedError\n",
    )
    provide("groundingdino._C")
    project = importlib.import_module(module)
    compare(
        lambda v, at, w: project.multi_scale_deformable_attn_pytorch(v, SHAPES, at, w),
        attention,
        *attention_leaves(),
    )
    assert "groundingdino._C" in patches.active()
    with patches.disabled("groundingdino._C"), pytest.raises(NotImplementedError):
        project.multi_scale_deformable_attn_pytorch(*[None] * 4)


# DCNv3


# kernel, stride, padding and dilation; remove_center, which version 1.0 does not have
DCNV3 = [
    ((5, 3), (2, 1), (1, 2), (1, 2), ()),
    ((3, 5), (1, 2), (2, 0), (2, 1), (0,)),
    ((3, 3), (1, 1), (1, 1), (1, 1), (1,)),
]


def dcnv3_sizes(kernel, stride, padding, dilation, last) -> tuple[int, int, int]:
    size = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip((9, 7), kernel, stride, padding, dilation, strict=True)
    ]
    return *size, 2 * (kernel[0] * kernel[1] - sum(last))


@pytest.mark.parametrize(
    ("name", "geometry", "dtype"),
    [
        ("DCNv3", DCNV3[0], torch.float64),
        ("DCNv3", DCNV3[1], torch.float64),
        ("detrex._C", DCNV3[2], torch.float16),
    ],
)
def test_dcnv3(provide, package, name, geometry, dtype):
    package("detrex.config")
    provide(name)
    compiled = importlib.import_module(name)
    height, width, taps = dcnv3_sizes(*geometry)
    *sides, last = geometry
    flat = [number for side in sides for number in side]
    compare(
        lambda i, o, m: compiled.dcnv3_forward(i, o, m, *flat, 2, 4, 1.5, 256, *last),
        lambda i, o, m: reference.dcnv3(i, o, m, *sides, 2, 4, 1.5, bool(sum(last))),
        *(random(3, 9, 7, 8), random(3, height, width, taps * 2), random(3, height, width, taps)),
        dtype=dtype,
        backward=lambda g, *t: compiled.dcnv3_backward(*t, *flat, 2, 4, 1.5, g, 256, *last),
    )


@pytest.mark.parametrize("first", ["DCNv3", "pkg_resources"])
def test_dcnv3_has_a_version(provide, first):
    """``ops_dcnv3`` reads the version to decide whether to pass ``remove_center``."""
    if first == "pkg_resources":
        importlib.import_module(first)
    provide("DCNv3")
    importlib.import_module("DCNv3")
    resources = importlib.import_module("pkg_resources")
    assert float(resources.get_distribution("DCNv3").version) > 1.0
    with patches.disabled("DCNv3_version"), pytest.raises(resources.DistributionNotFound):
        resources.get_distribution("DCNv3")


# DCNv4


@pytest.mark.parametrize(("geometry", "dtype"), zip(DCNV3[1:], (torch.float64, torch.bfloat16), strict=True))
def test_dcnv4(provide, geometry, dtype):
    provide("DCNv4")
    from DCNv4 import DCNv4Function, ext

    height, width, taps = dcnv3_sizes(*geometry)
    *sides, (remove_center,) = geometry
    flat = [number for side in sides for number in side]
    leaves = (random(3, 9, 7, 8), random(3, height, width, -(-taps * 3 // 8) * 8))
    options, kernel = (*flat, 2, 4, 1.5, 256), (8, 512, False)

    def expected(input, fields):
        return reference.dcnv4(input, fields, *sides, 2, 4, 1.5, bool(remove_center))

    compare(lambda *t: DCNv4Function.apply(*t, *options, remove_center), expected, *leaves, dtype=dtype)
    compare(
        lambda *t: ext.dcnv4_forward(*t, *options, remove_center, *kernel),
        expected,
        *leaves,
        dtype=dtype,
        backward=lambda g, *t: ext.dcnv4_backward(*t, *options, g, remove_center, *kernel),
    )


@pytest.mark.parametrize(
    ("layer", "predictor"),
    [
        (DCNv3(32, group=2), "offset"),
        (DCNv4(32, group=2), "offset_mask"),
        (MSDeformAttn(32, 2, 2, 3), "attention_weights"),
    ],
)
def test_official_name_of_reset_parameters(layer, predictor):
    """Deformable DETR and InternImage call it after they have initialised all linear layers."""
    predictor = layer.get_submodule(predictor)
    nn.init.ones_(predictor.weight)
    layer._reset_parameters()
    assert not predictor.weight.any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_flash_deform_attn(provide, dtype):
    provide("DCNv4")
    from DCNv4 import FlashDeformAttnFunction, ext

    value, locations, weights = attention_leaves()
    fields = torch.cat([locations.flatten(3), weights.flatten(3)], -1)

    def expected(value, fields):
        locations, logits = fields.split([2 * 3 * 2, 2 * 3], -1)
        weights = logits.softmax(-1).unflatten(-1, (2, 3))
        return attention(value, locations.unflatten(-1, (2, 3, 2)), weights)

    levels, kernel = (SHAPES, STARTS), (2, 3, 8, 64)
    compare(
        lambda v, f: FlashDeformAttnFunction.apply(v, *levels, f, 2, 3), expected, value, fields, dtype=dtype
    )
    compare(
        lambda v, f: ext.flash_deform_attn_forward(v, *levels, f, *kernel),
        expected,
        *(value, fields),
        dtype=dtype,
        backward=lambda g, v, f: ext.flash_deform_attn_backward(v, *levels, f, g, *kernel),
    )
    with pytest.raises(RuntimeError, match=r"sampling_loc_attn: expected 48 values .*got 18"):
        FlashDeformAttnFunction.apply(value, SHAPES, STARTS, fields, 64)


def test_the_package_dcnv4(provide):
    """DCNv4's layers are importable from the package's paths."""
    provide("DCNv4")
    package = importlib.import_module("DCNv4")
    layer = importlib.import_module("DCNv4.modules.dcnv4").DCNv4(channels=32, group=2)
    assert layer(random(2, 20, 32).float(), shape=(4, 5)).shape == (2, 20, 32)
    attention = package.FlashDeformAttn(d_model=32, n_levels=2, n_heads=2, n_points=3)
    points = torch.rand(2, 7, 2, 2)
    output = attention(torch.rand(2, 7, 32), points, torch.rand(2, 46, 32), SHAPES, STARTS)
    assert output.shape == (2, 7, 32)
    assert importlib.import_module("DCNv4.functions.dcnv4_func").DCNv4Function.apply


def test_softmax_of_dcnv4_is_refused(provide):
    provide("DCNv4")
    ext = importlib.import_module("DCNv4.ext")
    options = (3, 3, 1, 1, 1, 1, 1, 1, 2, 4, 1.0, 256, 0, 8, 512, True)
    with pytest.raises(RuntimeError, match="dcnv4_forward: softmax: expected False"):
        ext.dcnv4_forward(torch.rand(1, 4, 4, 8), torch.rand(1, 4, 4, 56), *options)


# Deformable convolution


V1 = ((2, 1), (1, 0), (1, 2), 2, 2)  # stride, padding, dilation, groups, deformable groups


def v1_leaves() -> tuple[torch.Tensor, ...]:
    return random(3, 8, 9, 8), random(3, 24, 5, 6), random(4, 4, 3, 2)


def v1_reference(input, offset, weight):
    return reference.deform_conv(input, weight, offset, None, None, *V1[:4])


V2 = (2, 1, 2, 2, 2)


def v2_leaves() -> tuple[torch.Tensor, ...]:
    return random(3, 8, 11, 7), random(3, 24, 5, 4), random(3, 12, 5, 4), random(4, 4, 3, 2), random(4)


def v2_reference(input, offset, mask, weight, bias=None):
    sides = [(number, number) for number in V2[:3]]
    return reference.deform_conv(input, weight, offset, mask, bias, *sides, V2[3])


V1_NUMBERS = (2, 3, 1, 2, 0, 1, 2, 1, 2, 2)  # as the modules take them: x before y, kernel (3, 2)
V2_NUMBERS = (3, 2, 2, 2, 1, 1, 2, 2, 2, 2)  # y before x
EMPTY = torch.zeros(0)


MODULES = ["basicsr.ops.dcn.deform_conv_ext", "deform_conv_ext", "deform_conv_cuda", "detectron2._C"]


@pytest.fixture(params=MODULES)
def deform_conv_module(request, provide, package):
    *folders, name = request.param.split(".")
    if folders:
        package(".".join([*folders, "__init__"]))
    provide(name if name != "_C" else request.param)
    if folders:  # as in the projects: from . import deform_conv_ext
        package(".".join([*folders, "layer"]), f"from . import {name} as compiled")
        return importlib.import_module(".".join([*folders, "layer"])).compiled
    return importlib.import_module(name)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_deform_conv(deform_conv_module, dtype):
    name = deform_conv_module.__name__
    ending = "_cuda" if name == "deform_conv_cuda" else ""
    weight_gradient = "filter" if name == "detectron2._C" else "parameters"
    names = ("forward", "backward_input", f"backward_{weight_gradient}")
    functions = [getattr(deform_conv_module, f"deform_conv_{each}{ending}") for each in names]

    def forward(input, offset, weight):
        output = input.new_empty(3, 4, 5, 6)
        functions[0](input, weight, offset, output, EMPTY, EMPTY, *V1_NUMBERS, 2)
        return output

    def backward(grad_output, input, offset, weight):
        grad_input, grad_offset, grad_weight = map(torch.zeros_like, (input, offset, weight))
        functions[1](input, offset, grad_output, grad_input, grad_offset, weight, EMPTY, *V1_NUMBERS, 2)
        functions[2](input, offset, grad_output, grad_weight, EMPTY, EMPTY, *V1_NUMBERS, 1, 2)
        return grad_input, grad_offset, grad_weight

    compare(forward, v1_reference, *v1_leaves(), dtype=dtype, backward=backward)


@pytest.mark.parametrize(("dtype", "with_bias"), [(torch.float64, False), (torch.float16, True)])
def test_modulated_deform_conv(deform_conv_module, dtype, with_bias):
    infix = "_cuda" if deform_conv_module.__name__ == "deform_conv_cuda" else ""
    names = (f"modulated_deform_conv{infix}_{direction}" for direction in ("forward", "backward"))
    functions = [getattr(deform_conv_module, name) for name in names]

    def forward(input, offset, mask, weight, bias=EMPTY):
        output = input.new_empty(3, 4, 5, 4)
        functions[0](input, weight, bias, EMPTY, offset, mask, output, EMPTY, *V2_NUMBERS, with_bias)
        return output

    def backward(grad_output, *tensors):
        input, offset, mask, weight, bias = (*tensors, EMPTY)[:5]
        gradients = [torch.zeros_like(tensor) for tensor in (input, offset, mask, weight, bias)]
        grad_input, grad_offset, grad_mask, grad_weight, grad_bias = gradients
        written = (grad_input, grad_weight, grad_bias, grad_offset, grad_mask)
        given = (input, weight, bias, EMPTY, offset, mask, EMPTY)
        functions[1](*given, *written, grad_output, *V2_NUMBERS, with_bias)
        return gradients[: len(tensors)]

    leaves = v2_leaves()[: 4 + with_bias]
    compare(forward, v2_reference, *leaves, dtype=dtype, backward=backward)


def test_deformable_groups_are_checked(provide):
    provide("deform_conv_ext")
    compiled = importlib.import_module("deform_conv_ext")
    input, offset, weight = v1_leaves()
    arguments = (input, weight, offset, torch.zeros(3, 4, 5, 6), EMPTY, EMPTY, *V1_NUMBERS[:-1], 1, 2)
    with pytest.raises(RuntimeError, match=r"deform_conv_forward: offset: expected 12 channels .*got 24"):
        compiled.deform_conv_forward(*arguments)


# Copies of deform_conv.py in EDVR, STDF, SOLO and detectron2: the folder, the import, the name for provide()

COPY = """
IMPORT


def deform_conv(input, *others):
    if not input.is_cuda:
        raise NotImplementedError


modulated_deform_conv = deform_conv


def layer(*tensors):
    return modulated_deform_conv(*tensors, 2, 1, 2, 2, 2)
"""
LAYOUTS = [
    ("basicsr.models.ops.dcn", "from . import deform_conv_ext", "deform_conv_ext"),
    ("ops.dcn", "import deform_conv_cuda", "deform_conv_cuda"),
    ("mmdet.ops.dcn", "from . import deform_conv_cuda", "deform_conv_cuda"),
    ("detectron2.layers", "from detectron2 import _C", "detectron2._C"),
]


@pytest.mark.parametrize(("folder", "statement", "compiled"), LAYOUTS)
def test_copies_of_deform_conv(provide, package, monkeypatch, folder, statement, compiled):
    """Their functions raise on the CPU before they call the compiled module, so that dcnzoo replaces them."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "mmdet"]:
        monkeypatch.delitem(sys.modules, name)
    package(f"{folder}.deform_conv", COPY.replace("IMPORT", statement))
    package(f"{folder}.deform_pool", "from . import deform_pool_cuda")
    package(f"{folder}.__init__", "from .deform_conv import layer, deform_conv as v1")
    provide(compiled)
    project = importlib.import_module(folder)
    compare(lambda *t: project.v1(*t, *V1), v1_reference, *v1_leaves())
    compare(project.layer, v2_reference, *v2_leaves())
    with patches.disabled(compiled), pytest.raises(NotImplementedError):
        project.layer(*v2_leaves())
    project.layer(*v2_leaves())
    if compiled == "deform_conv_cuda":
        assert importlib.import_module(f"{folder}.deform_pool").deform_pool_cuda
    assert type(sys.modules[f"{folder}.deform_conv"].__loader__).__name__ == "SourceFileLoader"


def test_run_a_module_that_imports_dcnzoo_s_module(provide, package):
    """``python -m`` needs other methods of the loader than an import."""
    package("network.main", "from . import deform_conv_cuda\nname = deform_conv_cuda.__name__\n")
    provide("deform_conv_cuda")
    assert runpy.run_module("network.main")["name"] == "network.deform_conv_cuda"


def test_only_importers_of_dcnzoo_s_module_change(provide, package):
    """Not a module that names it only, and not one that imports its own compiled module."""
    package("network.layers", "# deform_conv_cuda\ndeform_conv = before = min\n")
    package("network.dcn.deform_conv_cuda")
    package("network.dcn.layers", "from . import deform_conv_cuda\ndeform_conv = before = min\n")
    provide("deform_conv_cuda")
    for name in ("network.layers", "network.dcn.layers"):
        module = importlib.import_module(name)
        assert module.deform_conv is module.before


def test_detectron2_evaluates_with_pycocotools(provide, package):
    package(
        "detectron2.evaluation.fast_eval_api",
        "from detectron2 import _C\nclass COCOeval: pass\nclass COCOeval_opt(COCOeval): pass\n",
    )
    provide("detectron2._C")
    project = importlib.import_module("detectron2.evaluation.fast_eval_api")
    assert project.COCOeval_opt is project.COCOeval
    compiled = importlib.import_module("detectron2._C")
    assert "dcnzoo" in compiled.get_compiler_version() + compiled.get_cuda_version()


# DCNv2


@pytest.mark.parametrize("module", ["_ext", "dcn_fork._ext", "network.DCNv2._ext"])
def test_dcn_v2(provide, package, module):
    *folders, _ = module.split(".")
    if folders:
        package(".".join([*folders, "dcn_v2"]))
    provide("_ext")
    backend = importlib.import_module(module)
    sides, numbers = ((2, 1), (1, 0), (1, 2)), (3, 2, 2, 1, 1, 0, 1, 2, 2)

    def backward(grad_output, input, offset, mask, weight, bias):
        return backend.dcn_v2_backward(input, weight, bias, offset, mask, grad_output, *numbers)

    for dtype in (torch.float64, torch.float32):
        compare(
            lambda i, o, m, w, b: backend.dcn_v2_forward(i, w, b, o, m, *numbers),
            lambda i, o, m, w, b: reference.deform_conv(i, w, o, m, b, *sides, 1),
            *(random(3, 8, 9, 8), random(3, 24, 5, 6), random(3, 12, 5, 6), random(4, 8, 3, 2), random(4)),
            dtype=dtype,
            backward=backward,
        )


FAIRMOT = "from dcn_v2 import DCN"
CENTERTRACK = "try:\n    from .DCNv2.dcn_v2 import DCN\nexcept:\n    DCN = None"


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("models.networks.pose_dla_dcn", FAIRMOT),
        ("model.networks.dla", CENTERTRACK),
        ("model.networks.dla", CENTERTRACK + "# with the empty folder of the git submodule"),
    ],
)
def test_networks_on_dcn_v2(provide, package, tmp_path, module, text):
    package(module, text)
    if "empty folder" in text:
        (tmp_path / "model/networks/DCNv2").mkdir()
    provide("dcn_v2")
    network = importlib.import_module(module)
    layer = network.DCN(4, 6, (3, 3), stride=1, padding=1, dilation=1, deformable_groups=1).double()
    shapes = {"weight": (6, 4, 3, 3), "bias": (6,)}
    shapes |= {"conv_offset_mask.weight": (27, 4, 3, 3), "conv_offset_mask.bias": (27,)}
    weights = {name: random(*shape) / 4 for name, shape in shapes.items()}
    layer.load_state_dict(weights)

    def expected(x):
        names = ("conv_offset_mask.weight", "conv_offset_mask.bias")
        first, second, mask = F.conv2d(x, *(weights[name] for name in names), padding=1).chunk(3, 1)
        offset = torch.cat([first, second], 1)
        one = (1, 1)
        tensors = (x, weights["weight"], offset, mask.sigmoid(), weights["bias"])
        return reference.deform_conv(*tensors, one, one, one, 1)

    compare(layer, expected, random(2, 4, 7, 5))


def psroi_pooling_by_loops(input, rois, trans, no_trans, scale, channels, group, bins, part, samples, std):
    """Dai et al. 2017, section 2.2, one sample at a time."""
    classes = 1 if no_trans else trans.shape[1] // 2
    height, width = input.shape[2:]
    values = []
    for r, c, i, j in itertools.product(range(len(rois)), range(channels), range(bins), range(bins)):
        image, x1, y1, x2, y2 = rois[r].round().tolist()
        left, top = x1 * scale - 0.5, y1 * scale - 0.5
        wide, high = (x2 + 1) * scale - 0.5 - left, (y2 + 1) * scale - 0.5 - top
        shift = random(2) * 0 if no_trans else trans[r].unflatten(0, (classes, 2))[c * classes // channels]
        if not no_trans:
            shift = shift[:, i * part // bins, j * part // bins] * std
        plane = input[int(image), (c * group + i * group // bins) * group + j * group // bins]
        inside = []
        for k, m in itertools.product(range(samples), range(samples)):
            y = top + (i + k / samples) * high / bins + shift[1] * high
            x = left + (j + m / samples) * wide / bins + shift[0] * wide
            if -0.5 <= y <= height - 0.5 and -0.5 <= x <= width - 0.5:
                y, x = y.clamp(0, height - 1), x.clamp(0, width - 1)
                rows = (1 - (y - torch.arange(height).double()).abs()).clamp(min=0)
                columns = (1 - (x - torch.arange(width).double()).abs()).clamp(min=0)
                inside.append(rows @ plane @ columns)
        values.append(sum(inside) / len(inside) if inside else plane.sum() * 0)
    return torch.stack(values).reshape(len(rois), channels, bins, bins)


@pytest.mark.parametrize("no_trans", [0, 1])
def test_psroi_pooling(provide, no_trans):
    provide("_ext")
    backend = importlib.import_module("_ext")

    # the last box is outside the map; one is partly outside
    rois = [[1, 2.3, 1, 9, 12.6], [0, -6, -4, 5, 3], [1, 8, 3, 8, 3], [0, 40, 40, 50, 44]]
    rois = torch.tensor(rois, dtype=torch.float64)
    options = (no_trans, 0.5, 4, 2, 3, 2, 2, 0.3)  # 4 channels, 2² groups, 3² bins, 2² parts, 2² samples
    trans = random(0) if no_trans else random(4, 2 * 2, 2, 2)
    input = random(2, 16, 7, 6)
    leaves = (input, trans)[: 2 - no_trans]

    def pooled(input, trans=trans):
        return backend.dcn_v2_psroi_pooling_forward(input, rois, trans, *options)[0]

    def backward(grad_output, input, trans=trans):
        _, count = backend.dcn_v2_psroi_pooling_forward(input, rois, trans, *options)
        tensors = (grad_output, input, rois, trans, count)
        return backend.dcn_v2_psroi_pooling_backward(*tensors, *options)[: len(leaves)]

    compare(
        pooled,
        lambda input, trans=trans: psroi_pooling_by_loops(input, rois, trans, *options),
        *leaves,
        backward=backward,
    )


@pytest.mark.parametrize("no_trans", [False, True])
def test_layers_of_psroi_pooling(provide, no_trans):
    provide("dcn_v2")
    dcn_v2 = importlib.import_module("dcn_v2")
    rois = torch.tensor([[1, 2.3, 1, 9, 12.6], [0, -6, -4, 5, 3]], dtype=torch.float64)
    input, options = random(2, 16, 7, 6), (0.5, 3, 4, no_trans, 2, None, 2, 0.3)
    layer = dcn_v2.DCNPooling(*options, deform_fc_dim=8).double()
    names = () if no_trans else ("0.weight", "0.bias", "2.weight", "2.bias", "4.weight", "4.bias")
    assert list(layer.state_dict()) == [f"offset_mask_fc.{name}" for name in names]
    numbers = (0.5, 4, 2, 3, 3, 2, 0.3)  # a part for each bin
    expected = psroi_pooling_by_loops(input, rois, random(2, 2, 3, 3) * 0, no_trans, *numbers)
    torch.testing.assert_close(layer(input, rois), expected * (1 if no_trans else 0.5))
    if no_trans:
        return
    torch.nn.init.normal_(layer.offset_mask_fc[4].weight)
    regular = psroi_pooling_by_loops(input, rois, random(2, 2, 3, 3), True, *numbers)
    offset, mask = layer.offset_mask_fc(regular.flatten(1)).view(2, 3, 3, 3).split([2, 1], 1)
    expected = psroi_pooling_by_loops(input, rois, offset, False, *numbers) * mask.sigmoid()
    torch.testing.assert_close(layer(input, rois), expected)
    pooling = dcn_v2.DCNv2Pooling(*options)
    torch.testing.assert_close(pooling(input, rois, offset) * mask.sigmoid(), expected)


def test_other_packages_keep_their_missing_ext(provide, package):
    package("network.layers")
    provide("_ext")
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("network._ext")


# Names


@pytest.mark.parametrize("name", extensions.EXTENSIONS)
def test_a_missing_function_is_named(provide, package, name):
    if "." in name:
        package(f"{name.partition('.')[0]}.config")
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module(name)
    provide(name)
    compiled = importlib.import_module(name)
    with pytest.raises(AttributeError, match=f"'{name}' has no attribute 'nms_rotated'.*dcnzoo"):
        compiled.nms_rotated  # noqa: B018


@pytest.mark.parametrize("names", [(), ("DCNv5",), ("DCNv3", "mmcv._ext")])
def test_wrong_names_list_the_names(provide, names):
    with pytest.raises(RuntimeError) as raised:
        provide(*names)
    assert all(name in str(raised.value) for name in (*extensions.EXTENSIONS, *names[-1:]))
    assert not extensions.status(), "none of them is provided"


@pytest.mark.parametrize("name", ["MultiScaleDeformableAttention", "groundingdino._C"])
def test_an_installed_module_stays_in_use(provide, package, name):
    package(name, "real = True")
    project = "groundingdino.models.GroundingDINO.ms_deform_attn"
    package(project, "multi_scale_deformable_attn_pytorch = from_project = object()")
    provide(name)
    assert importlib.import_module(name).real
    assert extensions.status()[name].startswith("installed, ")
    module = importlib.import_module(project)
    assert module.multi_scale_deformable_attn_pytorch is module.from_project


def test_status(provide):
    provide("MultiScaleDeformableAttention", "groundingdino._C")
    assert extensions.status() == {
        "MultiScaleDeformableAttention": "dcnzoo's",
        "groundingdino._C": "not found: No module named 'groundingdino'",
    }


def test_the_environment_names_them():
    code = "import dcnzoo, sys\nfrom importlib.util import find_spec\nassert 'torch' not in sys.modules\n"
    code += "print(find_spec('DCNv3').origin, find_spec('_ext').origin)"
    output = python("-c", code, DCNZOO_PROVIDE="DCNv3, _ext").stdout
    assert "compiled.py" in output and "dcn_v2.py" in output
    result = python("-c", "import dcnzoo", status=1, DCNZOO_PROVIDE="DCNv3,dcnv4")
    assert "DCNZOO_PROVIDE: expected one or more of these names, got 'dcnv4'" in result.stderr


def test_run(tmp_path):
    """``dcnzoo run``: a program without dcnzoo keeps its arguments, its import path and its errors."""
    (tmp_path / "helper.py").write_text("import MultiScaleDeformableAttention as MSDA\n")
    script = tmp_path / "main.py"
    script.write_text(
        "import sys\nfrom helper import MSDA\n"
        "if __name__ == '__main__':\n"
        "    print(sys.argv, MSDA.ms_deform_attn_forward.__name__, 'colorsys' in sys.modules)\n"
        "    import torch\n"
        "    print(torch.nn.Linear(2, 2).cuda()(torch.ones(2).to('cuda')).device)\n"
        "    open('no such file')\n"
    )
    command = ("-m", "dcnzoo", "run", "--provide", "MultiScaleDeformableAttention")
    command += ("--cpu", "--import", "colorsys", str(script))
    other = tmp_path / "current folder"
    other.mkdir()
    (other / "helper.py").write_text("")  # must not hide the module beside the script
    result = python(*command, "--provide", "mine", "-m", "x", status=1, cwd=other)
    lines = [f"{[str(script), '--provide', 'mine', '-m', 'x']} ms_deform_attn_forward True", "cpu"]
    assert result.stdout.splitlines() == lines, result.stderr
    assert "CUDA calls" in result.stderr
    assert "Traceback" in result.stderr and "main.py" in result.stderr


CUDA_CALLS = {
    "cuda": lambda x: x.cuda(0, non_blocking=True),
    "name": lambda x: x.to("cuda:1"),
    "index": lambda x: x.to(0),
    "device": lambda x: x.to(torch.device("cuda"), torch.float64, non_blocking=True),
    "keyword": lambda x: x.to(device="cuda"),
    "pinned": lambda x: x.pin_memory(),
    "function": lambda x: torch.zeros(2, device="cuda"),
    "method": lambda x: x.new_zeros(2, device=torch.cuda.current_device()),
    "module": lambda x: nn.Linear(2, 2).cuda().to(0).to("cuda").to(device=torch.device("cuda"))(x),
    "parallel": lambda x: nn.DataParallel(nn.Linear(2, 2), device_ids=[0]).cuda()(x),
}


@pytest.mark.parametrize("call", CUDA_CALLS)
def test_cuda_calls_on_the_cpu(call):
    with on_cpu():
        output = CUDA_CALLS[call](torch.ones(2))
    assert output.device.type == "cpu" and output.shape == (2,)
    assert output.dtype == (torch.float64 if call == "device" else torch.float32)


@pytest.mark.parametrize("location", [None, "cuda", torch.device("cuda", 0)])
def test_load_on_the_cpu(tmp_path, monkeypatch, location):
    file = tmp_path / "saved_on_a_gpu.pt"
    with monkeypatch.context() as patch:
        patch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
        torch.save(torch.ones(2), file)
    with on_cpu():
        assert torch.load(file, location).device.type == "cpu"
        assert torch.load(file, map_location="meta").is_meta
        torch.cuda.synchronize()
        with torch.cuda.device(0):
            torch.cuda.set_device(0)


def test_on_cpu_is_undone():
    owners = [(torch, "load"), (nn.Module, "to"), (torch.cuda, "synchronize"), (torch.cuda, "device")]
    before = [getattr(*each) for each in owners], dict(os.environ)
    with pytest.raises(ZeroDivisionError), on_cpu():
        assert getattr(*owners[0]) is not before[0][0] and not torch.cuda.is_available()
        raise ZeroDivisionError
    assert ([getattr(*each) for each in owners], dict(os.environ)) == before
    assert torch.ones(2, device="meta").is_meta
    if not torch.cuda.is_available():
        with pytest.raises((AssertionError, RuntimeError)):
            torch.ones(2, device="cuda")


# detectron2's layers


@pytest.mark.parametrize("activation", [None, F.relu])
@pytest.mark.parametrize("norm", [None, nn.GroupNorm(2, 4).double()])
def test_detectron2_layers(norm, activation):
    def after(x):
        x = x if norm is None else norm(x)
        return x if activation is None else activation(x)

    input, offset, weight = v1_leaves()
    sides = dict(zip(("stride", "padding", "dilation", "groups", "deformable_groups"), V1, strict=True))
    layer = detectron2.DeformConv(8, 4, (3, 2), **sides, norm=norm, activation=activation).double()
    assert layer.bias is None
    layer.weight.data.copy_(weight)
    compare(layer, lambda i, o: after(v1_reference(i, o, weight)), input, offset)

    input, offset, mask, weight, bias = v2_leaves()
    sides = dict(zip(sides, V2, strict=True))
    layer = detectron2.ModulatedDeformConv(8, 4, (3, 2), **sides, norm=norm, activation=activation).double()
    assert not layer.bias.any()
    layer.load_state_dict({**layer.state_dict(), "weight": weight, "bias": bias})
    compare(layer, lambda i, o, m: after(v2_reference(i, o, m, weight, bias)), input, offset, mask)


def test_detectron2_layers_take_nothing():
    norm = nn.BatchNorm2d(4)
    layer = detectron2.ModulatedDeformConv(8, 4, 3, padding=1, bias=False, norm=norm, activation=F.relu)
    assert set(layer.state_dict()) == {"weight", *(f"norm.{name}" for name in norm.state_dict())}
    empty = torch.zeros(0, 8, 5, 6)
    assert layer(empty, torch.zeros(0, 18, 5, 6), torch.zeros(0, 9, 5, 6)).shape == (0, 4, 5, 6)
    with pytest.raises(ValueError, match="DeformConv: bias: expected False"):
        detectron2.DeformConv(8, 4, 3, bias=True)
