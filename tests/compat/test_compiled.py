"""``dcnzoo.provide`` and ``dcnzoo run``; the compiled modules, called as projects call them."""

import importlib
import sys

import pytest
import torch
from torch import nn

from dcnzoo.compat.compiled import BY_DEFAULT, TABLE, is_installed
from dcnzoo.compat.deformable_detr import MSDeformAttn
from dcnzoo.layers import DCNv3, DCNv4
from dcnzoo.ops import reference
from tests.helpers.comparison import (
    EMPTY,
    SHAPES,
    STARTS,
    V1_NUMBERS,
    V2_NUMBERS,
    attention,
    attention_leaves,
    compare,
    random,
    v1_leaves,
    v1_reference,
    v2_leaves,
    v2_reference,
)
from tests.helpers.processes import python
from tests.op_cases import output_size

# provide


@pytest.mark.parametrize("name", TABLE)
def test_a_missing_module_is_provided(provide, name):
    assert name not in sys.modules and not is_installed(name)
    provide(name)
    module = sys.modules[name]
    assert module.__name__ == f"dcnzoo.compat.compiled.{TABLE[name]}"
    provide(name)
    assert sys.modules[name] is module, "a second call has no effect"


def test_a_name_inside_a_package(provide, package):
    """``from . import deform_conv_ext`` works in a package whose own import needs the module."""
    package("basicsr.ops.dcn.layer", "from . import deform_conv_ext as compiled")
    package("basicsr.ops.dcn.__init__", "from .layer import compiled")
    package("basicsr.__init__", "from .ops import dcn")
    provide("basicsr.ops.dcn.deform_conv_ext")
    project = importlib.import_module("basicsr.ops.dcn.layer")
    assert project.compiled.deform_conv_forward
    assert "deform_conv_ext" not in sys.modules, "no other package gets it"


@pytest.mark.parametrize("name", ["MultiScaleDeformableAttention", "groundingdino._C", "a.b._ext"])
def test_an_installed_module_stays_in_use(provide, package, name):
    package(name, "real = True")
    if "." in name:
        package(f"{name.partition('.')[0]}.__init__", "raise ImportError('the test imports it too early')")
    assert is_installed(name)
    provide(name)
    assert name not in sys.modules


def test_folders_without_init(provide, package, tmp_path, monkeypatch):
    """EDVR's packages have no ``__init__.py``; a project's folder of sources does not count as a module."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "basicsr/models/ops/dcn/deform_conv_ext").mkdir(parents=True)
    (tmp_path / "DCNv3").mkdir()
    name = "basicsr.models.ops.dcn.deform_conv_ext"
    assert not is_installed("DCNv3") and not is_installed(name)
    provide(name)
    assert importlib.import_module(name).deform_conv_forward
    (tmp_path / "basicsr/models/ops/dcn/deform_conv_ext.so").touch()
    assert is_installed(name)


@pytest.mark.parametrize("names", [(), ("DCNv5",), ("DCNv3", "some._D")])
def test_wrong_names_list_the_names(provide, names):
    with pytest.raises(ValueError, match="provide: names: expected some of") as raised:
        provide(*names)
    assert all(name in str(raised.value) for name in (*TABLE, "torchvision", *names[-1:]))
    assert "DCNv3" not in sys.modules, "none of them is provided"


VERSION = "import pkg_resources; float(pkg_resources.get_distribution('DCNv3').version)"
MSDA = "import MultiScaleDeformableAttention as MSDA"
IMPORTS = {  # name -> lines with which public projects import it
    "DCNv4": [
        "from DCNv4.modules.dcnv4 import DCNv4",  # YOLO with DCNv4
        "from DCNv4.modules import DCNv4",
        "from DCNv4.modules.flash_deform_attn import FlashDeformAttn",
        "from DCNv4.functions import DCNv4Function",  # DCNv4 in blocks of other networks
        "from DCNv4.functions.dcnv4_func import DCNv4Function",
        "from DCNv4.functions.flash_deform_attn_func import FlashDeformAttnFunction",
        "from DCNv4 import DCNv4 as dcn_v4",  # PRFPN
        "from DCNv4 import ext; ext.dcnv4_forward, ext.flash_deform_attn_backward",  # DCNv4's functions
        "from DCNv4 import modules as opsm; opsm.DCNv4",  # FlashInternImage
        "import DCNv4.modules.dcnv4; DCNv4.modules.dcnv4.DCNv4, DCNv4.FlashDeformAttn",
    ],
    "DCNv3": [
        f"import DCNv3; {VERSION}; DCNv3.dcnv3_forward, DCNv3.dcnv3_backward",  # InternImage, DCNv4
        f"import DCNv3\n{VERSION}",
        f"{VERSION}\nimport DCNv3 as _dcnv3_cuda; _dcnv3_cuda.dcnv3_forward",
        f"try:\n import DCNv3\n {VERSION}\nexcept ImportError:\n raise",  # YOLO with DCNv3
        "try:\n import DCNv3\nexcept ImportError as exc:\n raise ImportError('needed') from exc",  # DAMamba
        "import DCNv3; DCNv3.__file__",
    ],
    "MultiScaleDeformableAttention": [
        f"{MSDA}; MSDA.ms_deform_attn_forward, MSDA.ms_deform_attn_backward",  # Deformable DETR, DINO
        f"try:\n {MSDA}\nexcept ModuleNotFoundError as e:\n raise ImportError('') from e",  # Mask2Former
        f"try:\n {MSDA}\nexcept ImportError as err:\n raise",
        f"import torch\nif True:\n try:\n  {MSDA}\n except ModuleNotFoundError as e:\n  raise",
        f"{MSDA}; assert hasattr(MSDA, 'ms_deform_attn_forward')",  # MaskDINO's installation
        "from MultiScaleDeformableAttention import ms_deform_attn_forward",
    ],
    "_ext": [
        "import _ext as _backend; _backend.dcn_v2_forward, _backend.dcn_v2_backward",  # DCNv2
        "import torch\n\nimport _ext as _backend\n_backend.dcn_v2_forward",
        "import _ext as _backend\n\nuse_amp = True\n_backend.dcn_v2_backward",
        "import _ext as _backend\nimport time; _backend.dcn_v2_forward",
        "try:\n import _ext as _backend\nexcept ImportError:\n raise",
        "import _ext; _ext.dcn_v2_forward",
    ],
    "deform_conv_ext": ["import deform_conv_ext; deform_conv_ext.modulated_deform_conv_forward"],  # EDVR
    "custom_op": ["import custom_op, torch; torch.ops.custom_op.deform_conv2d"],
    "groundingdino._C": ["from groundingdino import _C; _C.ms_deform_attn_forward"],
    "detrex._C": ["from detrex import _C; _C.dcnv3_forward"],
    "adet._C": ["from adet import _C; _C.ms_deform_attn_forward"],  # TESTR, DeepSolo
}


@pytest.mark.parametrize(("name", "line"), [(name, line) for name in IMPORTS for line in IMPORTS[name]])
def test_lines_of_public_projects(provide, package, name, line):
    if name.endswith("._C"):  # a compiled module of an installed package
        package(f"{name.partition('.')[0]}.__init__", "")
    provide(name)
    exec(line, {})


@pytest.mark.parametrize("name", ["DCNv4.models", "DCNv4.functions.dcnv5_func"])
def test_a_stand_in_of_a_package_names_the_missing_module(provide, name):
    provide("DCNv4")
    with pytest.raises(ModuleNotFoundError) as error:
        importlib.import_module(name)
    assert error.value.name == name and "not a package" not in str(error.value)


def test_functions_of_dcnv4_have_gradients(provide):
    provide("DCNv4")
    functions = importlib.import_module("DCNv4.functions")
    (height, width, taps), (*sides, (remove,)) = grid_sizes(*GRIDS[2]), GRIDS[2]
    flat = [number for side in sides for number in side]
    compare(
        lambda *t: functions.DCNv4Function.apply(*t, *flat, 2, 4, 1.5, 256, remove),
        lambda *t: reference.dcnv4(*t, *sides, 2, 4, 1.5, bool(remove)),
        *(random(3, 9, 7, 8), random(3, height, width, -(-taps * 3 // 8) * 8)),
    )
    value, locations, weights = attention_leaves()
    attend = functions.FlashDeformAttnFunction.apply
    compare(
        lambda v, at, w: attend(v, SHAPES, STARTS, torch.cat([at.flatten(3), w.flatten(3)], -1), 2, 3),
        lambda v, at, w: attention(v, at, w.flatten(3).softmax(-1).view_as(w)),
        *(value, locations, weights),
    )


def test_run(tmp_path):
    """A program without dcnzoo keeps its arguments, its import path and its errors."""
    (tmp_path / "helper.py").write_text("import MultiScaleDeformableAttention as MSDA\n")
    (tmp_path / "DCNv3.py").write_text("its_own = True\n")
    script = tmp_path / "main.py"
    script.write_text(
        "import sys, DCNv3\nfrom helper import MSDA\n"
        "if __name__ == '__main__':\n"
        "    print(sys.argv, MSDA.ms_deform_attn_forward.__name__)\n"
        "    print('colorsys' in sys.modules, DCNv3.its_own)\n"
        f"    print([name for name in {list(TABLE)} if name not in sys.modules])\n"
        "    open('no such file')\n"
    )
    other = tmp_path / "current folder"
    other.mkdir()
    (other / "helper.py").write_text("")  # must not hide the module beside the script
    command = ("-m", "dcnzoo", "run", "--import", "colorsys", str(script), "--provide", "mine", "-m", "x")
    result = python(*command, status=1, cwd=other)
    arguments = [str(script), "--provide", "mine", "-m", "x"]
    others = [name for name in TABLE if name not in BY_DEFAULT]
    expected = [f"{arguments} ms_deform_attn_forward", "True True", f"{others}"]
    assert result.stdout.splitlines() == expected, result.stderr
    assert "Traceback" in result.stderr and "main.py" in result.stderr


def test_run_with_names(tmp_path):
    """They are provided beside the default ones. A fork of GroundingDINO is a package of another name."""
    script = tmp_path / "main.py"
    (tmp_path / "fork").mkdir()
    (tmp_path / "fork/__init__.py").write_text("from . import _C\n")
    names = "_ext.dcn_v2_forward.__name__, fork._C.ms_deform_attn_forward.__name__, 'DCNv4' in sys.modules"
    script.write_text(f"import _ext, fork, sys\nprint({names})\n")
    output = python("-m", "dcnzoo", "run", "--provide", "_ext, fork._C", script).stdout
    assert output == "dcn_v2_forward ms_deform_attn_forward True\n"
    result = python("-m", "dcnzoo", "run", "--provide", "_ex", script, status=1)
    assert result.stderr.startswith("error: provide: names: expected some of"), "one line, no traceback"


# Multi-scale deformable attention


@pytest.mark.parametrize(
    ("name", "levels", "dtype"),
    [
        ("MultiScaleDeformableAttention", (SHAPES, STARTS), torch.float64),
        ("MultiScaleDeformableAttention", (SHAPES,), torch.float64),  # TrackFormer computes the starts itself
        ("MultiScaleDeformableAttention", (SHAPES.int(), STARTS.int()), torch.float64),
        ("detrex._C", (SHAPES, STARTS), torch.float16),
    ],
)
def test_ms_deform_attn(provide, name, levels, dtype):
    provide(name)
    compiled = sys.modules[name]
    compare(  # 2, the im2col_step, does not divide the batch of 3
        lambda v, at, w: compiled.ms_deform_attn_forward(v, *levels, at, w, 2),
        attention,
        *attention_leaves(),
        dtype=dtype,
        backward=lambda g, v, at, w: compiled.ms_deform_attn_backward(v, *levels, at, w, g, 2),
    )


# DCNv3 and DCNv4: kernel, stride, padding and dilation; remove_center, which DCNv3 1.0 does not have

GRIDS = [
    ((5, 3), (2, 1), (1, 2), (1, 2), ()),
    ((3, 5), (1, 2), (2, 0), (2, 1), (0,)),
    ((3, 3), (1, 1), (1, 1), (1, 1), (1,)),
]


def grid_sizes(kernel, *others) -> tuple[int, int, int]:
    *geometry, last = others
    return *output_size((9, 7), kernel, *geometry), 2 * (kernel[0] * kernel[1] - sum(last))


@pytest.mark.parametrize(
    ("name", "geometry", "dtype"),
    [
        ("DCNv3", GRIDS[0], torch.float64),
        ("DCNv3", GRIDS[1], torch.float64),
        ("detrex._C", GRIDS[2], torch.float16),
    ],
)
def test_dcnv3(provide, name, geometry, dtype):
    provide(name)
    compiled = sys.modules[name]
    height, width, taps = grid_sizes(*geometry)
    *sides, last = geometry
    flat = [number for side in sides for number in side]
    compare(
        lambda i, o, m: compiled.dcnv3_forward(i, o, m, *flat, 2, 4, 1.5, 256, *last),
        lambda i, o, m: reference.dcnv3(i, o, m, *sides, 2, 4, 1.5, bool(sum(last))),
        *(random(3, 9, 7, 8), random(3, height, width, taps * 2), random(3, height, width, taps)),
        dtype=dtype,
        backward=lambda g, *t: compiled.dcnv3_backward(*t, *flat, 2, 4, 1.5, g, 256, *last),
    )


def test_dcnv3_has_a_version(provide):
    """``ops_dcnv3`` reads the version to decide whether to pass ``remove_center``."""
    provide("DCNv3")
    resources = importlib.import_module("pkg_resources")
    assert float(resources.get_distribution("DCNv3").version) > 1.0


@pytest.mark.parametrize(("geometry", "dtype"), zip(GRIDS[1:], (torch.float64, torch.bfloat16), strict=True))
def test_dcnv4(provide, geometry, dtype):
    provide("DCNv4.ext")
    ext = sys.modules["DCNv4.ext"]
    height, width, taps = grid_sizes(*geometry)
    *sides, (remove_center,) = geometry
    flat = [number for side in sides for number in side]
    leaves = (random(3, 9, 7, 8), random(3, height, width, -(-taps * 3 // 8) * 8))
    options, kernel = (*flat, 2, 4, 1.5, 256), (8, 512, False)

    def expected(input, fields):
        return reference.dcnv4(input, fields, *sides, 2, 4, 1.5, bool(remove_center))

    compare(
        lambda *t: ext.dcnv4_forward(*t, *options, remove_center, *kernel),
        expected,
        *leaves,
        dtype=dtype,
        backward=lambda g, *t: ext.dcnv4_backward(*t, *options, g, remove_center, *kernel),
    )
    with pytest.raises(RuntimeError, match="dcnv4_forward: softmax: expected False"):
        ext.dcnv4_forward(*leaves, *options, remove_center, *kernel[:2], True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_flash_deform_attn(provide, dtype):
    provide("DCNv4.ext")
    ext = sys.modules["DCNv4.ext"]
    value, locations, weights = attention_leaves()
    fields = torch.cat([locations.flatten(3), weights.flatten(3)], -1)

    def expected(value, fields):
        locations, logits = fields.split([2 * 3 * 2, 2 * 3], -1)
        weights = logits.softmax(-1).unflatten(-1, (2, 3))
        return attention(value, locations.unflatten(-1, (2, 3, 2)), weights)

    levels, kernel = (SHAPES, STARTS), (2, 3, 8, 64)
    compare(
        lambda v, f: ext.flash_deform_attn_forward(v, *levels, f, *kernel),
        expected,
        *(value, fields),
        dtype=dtype,
        backward=lambda g, v, f: ext.flash_deform_attn_backward(v, *levels, f, g, *kernel),
    )
    with pytest.raises(RuntimeError, match=r"sampling_loc_attn: expected 48 values .*got 18"):
        ext.flash_deform_attn_forward(value, SHAPES, STARTS, fields, 64)


def test_layers_of_dcnv4(provide):
    provide("DCNv4")
    package = importlib.import_module("DCNv4")
    layer = package.DCNv4(channels=32, group=2)
    assert layer(random(2, 20, 32).float(), shape=(4, 5)).shape == (2, 20, 32)
    attention = package.FlashDeformAttn(d_model=32, n_levels=2, n_heads=2, n_points=3)
    points = torch.rand(2, 7, 2, 2)
    output = attention(torch.rand(2, 7, 32), points, torch.rand(2, 46, 32), SHAPES, STARTS)
    assert output.shape == (2, 7, 32)


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


# Deformable convolution


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_dcn_v2(provide, dtype):
    provide("_ext")
    backend = sys.modules["_ext"]
    sides, numbers = ((2, 1), (1, 0), (1, 2)), (3, 2, 2, 1, 1, 0, 1, 2, 2)

    def backward(grad_output, input, offset, mask, weight, bias):
        return backend.dcn_v2_backward(input, weight, bias, offset, mask, grad_output, *numbers)

    compare(
        lambda i, o, m, w, b: backend.dcn_v2_forward(i, w, b, o, m, *numbers),
        lambda i, o, m, w, b: reference.deform_conv(i, w, o, m, b, *sides, 1),
        *(random(3, 8, 9, 8), random(3, 24, 5, 6), random(3, 12, 5, 6), random(4, 8, 3, 2), random(4)),
        dtype=dtype,
        backward=backward,
    )


def test_dcn_v2_with_a_larger_offset(provide):
    """Forward and backward read the same values of it, as the original does: the first ones of each image."""
    provide("_ext")
    backend, numbers = sys.modules["_ext"], (3, 3, 1, 1, 1, 1, 1, 1, 1)
    shapes = ((2, 4, 5, 6), (2, 18, 7, 8), (2, 9, 7, 8), (3, 4, 3, 3), (3,))
    leaves = [random(*shape).requires_grad_() for shape in shapes]
    input, offset, mask, weight, bias = leaves
    output = backend.dcn_v2_forward(input, weight, bias, offset, mask, *numbers)
    grad_output = random(*output.shape)
    expected = torch.autograd.grad(output, leaves, grad_output)
    with torch.no_grad():
        found = backend.dcn_v2_backward(input, weight, bias, offset, mask, grad_output, *numbers)
    for gradient, exact in zip(found, expected, strict=True):
        torch.testing.assert_close(gradient, exact)


def test_dcn_v2_in_mixed_precision(provide):
    """Autocast converts the input, not the parameters: the forward accepts it, and so must the backward."""
    provide("_ext")
    backend, numbers = sys.modules["_ext"], (3, 2, 2, 1, 1, 0, 1, 2, 2)
    half = [random(3, 8, 9, 8).bfloat16(), random(3, 24, 5, 6).bfloat16()]
    input, offset, mask, weight, bias = (
        *half,
        *(random(*s).float() for s in ((3, 12, 5, 6), (4, 8, 3, 2), (4,))),
    )
    output = backend.dcn_v2_forward(input, weight, bias, offset, mask, *numbers)
    gradients = backend.dcn_v2_backward(input, weight, bias, offset, mask, torch.ones_like(output), *numbers)
    tensors = (input, offset, mask, weight, bias)
    assert [each.dtype for each in gradients] == [each.dtype for each in tensors]
    exact = backend.dcn_v2_backward(
        *(each.double() for each in (input, weight, bias, offset, mask, torch.ones_like(output))), *numbers
    )
    for gradient, expected in zip(gradients, exact, strict=True):
        assert (gradient.double() - expected).norm() / expected.norm() < 3e-2


@pytest.fixture
def deform_conv_ext(provide):
    provide("deform_conv_ext")
    return sys.modules["deform_conv_ext"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_deform_conv(deform_conv_ext, dtype):
    def forward(input, offset, weight):
        output = input.new_empty(3, 4, 5, 6)
        deform_conv_ext.deform_conv_forward(input, weight, offset, output, EMPTY, EMPTY, *V1_NUMBERS, 2)
        return output

    def backward(grad_output, input, offset, weight):
        grad_input, grad_offset, grad_weight = map(torch.zeros_like, (input, offset, weight))
        given = (input, offset, grad_output, grad_input, grad_offset, weight, EMPTY)
        deform_conv_ext.deform_conv_backward_input(*given, *V1_NUMBERS, 2)
        given = (input, offset, grad_output, grad_weight, EMPTY, EMPTY)
        for scale in (0.25, 0.75):  # adds to the gradient
            deform_conv_ext.deform_conv_backward_parameters(*given, *V1_NUMBERS, scale, 2)
        return grad_input, grad_offset, grad_weight

    compare(forward, v1_reference, *v1_leaves(), dtype=dtype, backward=backward)


@pytest.mark.parametrize(("dtype", "with_bias"), [(torch.float64, False), (torch.float16, True)])
def test_modulated_deform_conv(deform_conv_ext, dtype, with_bias):
    def forward(input, offset, mask, weight, bias=EMPTY):
        output = input.new_empty(3, 4, 5, 4)
        given = (input, weight, bias, EMPTY, offset, mask, output, EMPTY)
        deform_conv_ext.modulated_deform_conv_forward(*given, *V2_NUMBERS, with_bias)
        return output

    def backward(grad_output, *tensors):
        input, offset, mask, weight, bias = (*tensors, EMPTY)[:5]
        gradients = [torch.zeros_like(tensor) for tensor in (input, offset, mask, weight, bias)]
        grad_input, grad_offset, grad_mask, grad_weight, grad_bias = gradients
        written = (grad_input, grad_weight, grad_bias, grad_offset, grad_mask)
        given = (input, weight, bias, EMPTY, offset, mask, EMPTY)
        deform_conv_ext.modulated_deform_conv_backward(*given, *written, grad_output, *V2_NUMBERS, with_bias)
        return gradients[: len(tensors)]

    leaves = v2_leaves()[: 4 + with_bias]
    compare(forward, v2_reference, *leaves, dtype=dtype, backward=backward)


def test_deformable_groups_are_checked(deform_conv_ext):
    input, offset, weight = v1_leaves()
    arguments = (input, weight, offset, torch.zeros(3, 4, 5, 6), EMPTY, EMPTY, *V1_NUMBERS[:-1], 1, 2)
    with pytest.raises(RuntimeError, match=r"deform_conv_forward: offset: expected 12 channels .*got 24"):
        deform_conv_ext.deform_conv_forward(*arguments)
