"""``dcnzoo.compat.torchvision``: torchvision's signatures and results, and errors for wrong shapes.

``DeformConv2d`` is that of ``dcnzoo.layers``: layers/test_packed.py.
"""

import pytest
import torch
import torch.nn.functional as F

from dcnzoo.compat.torchvision import deform_conv2d
from dcnzoo.ops import reference
from tests.helpers.modules import assert_same
from tests.helpers.processes import ROOT, python_with_torch
from tests.helpers.torchvision import GEOMETRY, tensors

OUT = (5, 9)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("with_mask", [True, False])
@pytest.mark.parametrize("with_bias", [True, False])
def test_deform_conv2d(groups, with_mask, with_bias):
    """``nox -s others`` compares with torchvision itself, signatures included."""
    input, offset, weight, bias, mask = tensors(groups)
    bias, mask = bias if with_bias else None, mask if with_mask else None
    leaves = [t.requires_grad_() for t in (input, offset, weight, bias, mask) if t is not None]
    output = deform_conv2d(input, offset, weight, bias, **GEOMETRY, mask=mask)
    expected = reference.deform_conv(input, weight, offset, mask, bias, *GEOMETRY.values(), groups)
    assert_same(output, expected, leaves)
    offset, mask = offset[..., :4].contiguous(), mask[..., :4].contiguous() if with_mask else None
    output = deform_conv2d(input, offset, weight, bias, 2, 1, 1, mask)  # integers, by position
    expected = reference.deform_conv(input, weight, offset, mask, bias, (2, 2), (1, 1), (1, 1), groups)
    torch.testing.assert_close(output, expected)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("weight", (6, 3, 3, 2), "got 3 .*order is input"),
        ("weight", (6, 0, 3, 2), "got 0"),
        ("weight", (6, 2, 3), "4 dimensions"),
        ("input", (4, 9), r"got \(4, 9\)"),
    ],
)
def test_bad_input(name, shape, message):
    given = dict(zip(("input", "offset", "weight", "bias", "mask"), tensors(), strict=True))
    given[name] = torch.zeros(shape, dtype=torch.float64)
    with pytest.raises(RuntimeError, match=f"{name}: expected .*{message}"):
        deform_conv2d(**given, **GEOMETRY)


def test_defaults():
    input, _, weight, *_ = tensors()
    output = deform_conv2d(input, torch.zeros(3, 12, 7, 6, dtype=torch.float64), weight)
    torch.testing.assert_close(output, F.conv2d(input, weight, groups=2))


def test_scripted():
    input, offset, weight, bias, mask = tensors()
    scripted = torch.jit.script(deform_conv2d)
    geometry = tuple(GEOMETRY.values())
    expected = deform_conv2d(input, offset, weight, bias, *geometry, mask)
    assert torch.equal(scripted(input, offset, weight, bias, *geometry, mask), expected)


# A torchvision whose library does not load, in a process of its own


@pytest.fixture
def broken(package, tmp_path):
    """The folder of a torchvision that does not fit: its import needs operators that are not defined."""
    package("torchvision.extension", "import torch\ntorch.library.register_fake('torchvision::nms')(print)\n")
    package("torchvision.__init__", "from . import extension\n")
    (tmp_path / "torchvision/_C.so").write_text("not a library")
    return tmp_path


IMPORTS = """
import sys
import torch
import dcnzoo
from dcnzoo.utils import torchvision_schemas
sys.path.insert(0, {folder!r})
assert not hasattr(torch.ops.torchvision, "nms"), "nothing is defined by an import of dcnzoo"
try:
    import torchvision
except RuntimeError as error:
    assert "torchvision::nms" in str(error), error
dcnzoo.provide("torchvision")
dcnzoo.provide("torchvision")
import torchvision
assert "_C.so" in torchvision_schemas.load_error()
"""


def test_a_torchvision_that_does_not_fit(broken):
    python_with_torch(IMPORTS.format(folder=str(broken)))


FITS = """
import sys
import torch
library = torch.library.Library("torchvision", "DEF")
sys.path.insert(0, {folder!r})
from dcnzoo.utils import torchvision_schemas
assert torchvision_schemas.define_missing() is None
library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""


# A torchvision that lacks kernels, as CPU builds lack those of GPUs: here the CPU's, in a process of its own

LACKS = """
import sys
import torch
sys.path.insert(0, {root!r})
import dcnzoo
if {early}:
    dcnzoo.provide("torchvision")
library = torch.library.Library("torchvision", "DEF")
tensors = "Tensor input, Tensor weight, Tensor offset, Tensor mask, Tensor bias"
names = "stride_h stride_w pad_h pad_w dilation_h dilation_w groups offset_groups"
numbers = ", ".join(f"SymInt {{name}}" for name in names.split())
library.define(f"deform_conv2d({{tensors}}, {{numbers}}, bool use_mask) -> Tensor")
results = ", ".join(["Tensor"] * 5)
inputs = f"Tensor grad, {{tensors}}, {{numbers}}, bool use_mask"
library.define(f"_deform_conv2d_backward({{inputs}}) -> ({{results}})")
forward, backward = torch.ops.torchvision.deform_conv2d, torch.ops.torchvision._deform_conv2d_backward

def setup_context(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:5])
    ctx.numbers = inputs[5:]

def backward_of_autograd(ctx, grad):
    return *backward(grad, *ctx.saved_tensors, *ctx.numbers), *[None] * 9

torch.library.register_autograd(
    "torchvision::deform_conv2d", backward_of_autograd, setup_context=setup_context, lib=library
)
own = {own!r}.split()
if "forward" in own:
    library.impl("deform_conv2d", lambda *arguments: torch.full((3, 8, 5, 9), 7.0).double(), "CPU")
if "backward" in own:
    library.impl("_deform_conv2d_backward", lambda grad, *t: tuple(torch.ones_like(x) for x in t[:5]), "CPU")

from dcnzoo.ops import reference
from tests.helpers.torchvision import GEOMETRY, tensors
dcnzoo.provide("torchvision")
for masked in (True, False):
    input, offset, weight, bias, mask = [tensor.requires_grad_() for tensor in tensors(groups=2)]
    leaves = [input, weight, offset, mask, bias]
    if not masked:
        mask = None
        leaves[3] = torch.zeros(3, 0).double().requires_grad_()  # as torchvision's function passes it
    geometry = GEOMETRY.values()
    output = forward(*leaves, *(number for side in geometry for number in side), 2, 2, masked)
    expected = reference.deform_conv(input, weight, offset, mask, bias, *geometry, 2)
    gradients = torch.autograd.grad(output.sum(), leaves)
    if "forward" in own:
        assert (output == 7).all()
    else:
        torch.testing.assert_close(output, expected)
    if "backward" in own:
        assert all((gradient == 1).all() for gradient in gradients)
    else:
        right = torch.autograd.grad(expected.sum(), leaves, allow_unused=True, materialize_grads=True)
        torch.testing.assert_close(gradients, right)
"""


@pytest.mark.parametrize(
    ("own", "early"), [("", False), ("", True), ("forward", False), ("forward backward", True)]
)
def test_operators_without_a_kernel_for_a_device(own, early):
    """A device gets the kernels that torchvision does not have for it; those of torchvision stay in use."""
    python_with_torch(LACKS.format(own=own, early=early, root=str(ROOT)))


def test_a_torchvision_that_fits_or_is_absent_is_left_alone(package, tmp_path):
    """dcnzoo's definitions beside those of its own library would break it."""
    package("torchvision.__init__")
    python_with_torch(FITS.format(folder=str(tmp_path)))
