"""``dcnzoo.compat.torchvision``: torchvision's signatures and results, and errors for wrong shapes.

``DeformConv2d`` is that of ``dcnzoo.layers``: layers/test_packed.py.
"""

import itertools
import sys

import pytest
import torch
import torch.nn.functional as F
from dcnzoo.compat.hosts.torchvision import problem, repair_command

from dcnzoo.compat.torchvision import accelerate, deform_conv2d, restore
from dcnzoo.diagnosis import _import_fix
from dcnzoo.ops import reference, reference_boxes

from ..modules import assert_same
from ..op_cases.deform_conv import make
from ..processes import ROOT, python, python_with_torch

GEOMETRY = {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2)}
OUT = (5, 9)


def tensors(groups=2, offset_groups=2, dtype=torch.float64):
    """input (3, 4, 9, 7), offset, weight (8, 4 / groups, 3, 2), bias, mask."""
    sizes = dict(batch=3, channels=4, out_channels=8, size=(9, 7), groups=groups)
    sample = make("torchvision", **sizes, offset_groups=offset_groups, mask_groups=2, **GEOMETRY)
    input, weight, offset, mask, bias = sample.to(dtype).tensors
    return input, offset, weight, bias, mask


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
        ("input", (4, 9, 7), r"got \(4, 9, 7\)"),
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


def test_accelerate_without_torchvision(monkeypatch, provide):
    """With torchvision: ``nox -s others``."""
    restore()  # nothing to undo
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(ImportError, match="torchvision"):
        accelerate()


# A torchvision whose library does not load, with the layout of 0.20 to 0.27, in a process of its own

BROKEN = {
    "extension": "def _has_ops():\n    return False\n\n\ndef _assert_has_ops():\n    assert _has_ops()\n",
    "_meta_registrations": "import torch\ntorch.library.register_fake('torchvision::nms')(lambda *a: None)\n",
    "ops.misc": "",
    "__init__": "from . import extension\nfrom . import _meta_registrations, ops\n__version__ = '0.28.0'\n",
}


@pytest.fixture
def broken(package, tmp_path):
    """The folder of the stand-in."""
    for name, text in BROKEN.items():
        package(f"torchvision.{name}", text)
    (tmp_path / "torchvision/ops/__init__.py").write_text("from . import misc\n")
    (tmp_path / "torchvision-0.28.0.dist-info").mkdir()
    (tmp_path / "torchvision-0.28.0.dist-info/METADATA").write_text("Name: torchvision\nVersion: 0.28.0\n")
    return tmp_path


def run_with(folder, code):
    start = f"import sys\nsys.path[:0] = [{str(folder)!r}, {str(ROOT)!r}]\n"
    return python_with_torch(start + code, status=None)


OPERATORS = """
from tests.compat.test_torchvision import check_operators
import dcnzoo.compat.torchvision
try:
    import torchvision  # fails: without dcnzoo
except RuntimeError:
    pass
dcnzoo.compat.torchvision.accelerate()
check_operators()
"""


def check_operators():
    ops = torch.ops.torchvision
    input, offset, weight, bias, mask = (tensor.requires_grad_() for tensor in tensors())
    numbers = [*itertools.chain(*GEOMETRY.values()), 2, 2]
    leaves = [input, weight, offset, bias]
    for use_mask, changed, given in ((True, [*leaves, mask], mask), (False, leaves, None)):
        output = ops.deform_conv2d(input, weight, offset, mask, bias, *numbers, use_mask)
        expected = reference.deform_conv(input, weight, offset, given, bias, *GEOMETRY.values(), 2)
        assert_same(output, expected, changed)
    arguments = (output, input, weight, offset, mask, bias, *numbers, False)
    assert torch.equal(ops._deform_conv2d_backward(*arguments)[3], torch.zeros_like(mask))

    maps = torch.randn(2, 8, 9, 11, dtype=torch.float64, requires_grad=True)
    rois = [[0, 2.2, 1, 14.6, 12.2], [1, -6, 4, 40, 16], [1, 30, 30, 40, 50], [0, 6, 6, 2, 2]]
    rois = torch.tensor(rois, dtype=torch.float64)
    expected = reference.roi_align(maps, rois, (2, 2), 0.5, 2, aligned=True)[0]
    assert_same(ops.roi_align(maps, rois, 0.5, 2, 2, 2, True), expected, [maps])
    with pytest.raises(NotImplementedError, match=r"torchvision.ops.roi_pool: .*pip install"):
        ops.roi_pool(maps, rois, 0.5, 2, 2)

    boxes = torch.rand(20, 4) * 10
    boxes[:, 2:] += boxes[:, :2]
    scores = torch.rand(20)
    assert torch.equal(ops.nms(boxes, scores, 0.3), reference_boxes.nms(boxes, scores, 0.3))
    torchvision = sys.modules["torchvision"]
    torchvision.extension._assert_has_ops()
    # as Deformable DETR and MOTR do
    assert float(torchvision.__version__[:3]) >= 0.7 and torchvision.__version__ == "0.28.0"
    assert torchvision.ops.misc._output_size(2, torch.ones(1, 1, 3, 5), None, 2) == [6, 10]
    assert torchvision.ops.misc._NewEmptyTensorOp.apply(boxes, [0, 3]).shape == (0, 3)
    assert torchvision.ops.misc.interpolate(torch.ones(0, 1, 3, 5), (6, 10)).shape == (0, 1, 6, 10)
    assert torchvision.ops._new_empty_tensor(boxes, [0, 3]).shape == (0, 3)


def test_operators_that_do_not_load(broken):
    result = run_with(broken, OPERATORS)
    assert result.returncode == 0, result.stderr[-3000:]


def test_run_with_a_broken_torchvision(broken):
    (broken / "main.py").write_text("import torchvision\nprint(torchvision.extension._has_ops())\n")
    assert python("-m", "dcnzoo", "run", broken / "main.py", PYTHONPATH=str(broken)).stdout == "True\n"


def test_a_torchvision_that_cannot_be_imported(broken):
    """The error names both versions and the command that repairs them."""
    (broken / "torchvision/extension.py").write_text("raise RuntimeError('different CUDA major versions')")
    result = run_with(
        broken, "import dcnzoo.compat\ndcnzoo.compat.provide('torchvision')\nimport torchvision"
    )
    error = f"ImportError: torchvision 0.28.0 does not fit torch {torch.__version__}: different CUDA major"
    assert error in result.stderr
    assert f"To repair it: {repair_command(torch.__version__)}" in result.stderr


def test_doctor_finds_the_state(broken, monkeypatch):
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)  # one that another test has imported
    assert problem() == f"torchvision 0.28.0 with torch {torch.__version__}: it has no compiled operators"
    (broken / "torchvision/_C.so").write_text("not a library")
    assert "its operators do not load: " in problem()
    command = 'pip install --no-deps --force-reinstall "torchvision==0.28.*"'
    assert repair_command("2.13.0") == command
    assert repair_command("2.13.0+cpu") == f"{command} --index-url https://download.pytorch.org/whl/cpu"
    assert _import_fix(RuntimeError("operator torchvision::nms does not exist")).startswith(command[:36])


def test_functions_that_check_for_operators_are_scripted():
    from dcnzoo.compat.hosts.torchvision import _has_ops

    assert torch.jit.script(_has_ops)() is True  # a lambda would be an error
