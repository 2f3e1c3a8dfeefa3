"""Operators of ``mmcv.ops`` on dcnzoo's operators: recorded results, gradients and half precision.

The results were recorded with dcnzoo 0.2, whose functions equalled mmcv's compiled operators, or its CUDA
kernels on CPU threads, in hundreds of random cases. ``python -m tests.compat.test_mmcv_ops`` records again.
"""

import importlib
import json
import math
import re
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import dcnzoo.compat.mmcv
import dcnzoo.models
from dcnzoo.compat.mmcv import _ext

ops = importlib.import_module("mmcv.ops")
RECORDED = Path(__file__).parents[1] / "data/mmcv_ops.json"


def wave(*shape, pace, scale=1.0):
    """Values that look random and are the same in every version of torch."""
    steps = torch.arange(math.prod(shape), dtype=torch.float64)
    return (torch.sin(steps * pace) * scale).reshape(shape)


def fingerprint(tensor):
    """A weighted sum, in which every element has a different weight."""
    return (tensor.flatten() * torch.linspace(-1, 2, tensor.numel(), dtype=torch.float64)).sum().item()


# Boxes: some overlap, one has zero area

CORNERS = 10 + wave(20, 2, pace=1.3, scale=8.0)
BOXES = torch.cat([CORNERS, CORNERS + 6 + wave(20, 2, pace=0.7, scale=5.0)], 1).float()
BOXES[3, 2] = BOXES[3, 0]
SCORES = wave(20, pace=2.1).abs().float()
DETECTIONS = torch.cat([BOXES, SCORES[:, None]], 1)


def soft_nms(method, offset):
    return ops.soft_nms(BOXES, SCORES, 0.3, 0.5, 0.05, method, offset)


RESULTS = {
    "nms": lambda: [*ops.nms(BOXES, SCORES, 0.3), *ops.nms(BOXES, SCORES, 0.3, offset=1)],
    **{
        f"soft_nms {m}": lambda m=m: [*soft_nms(m, 0), *soft_nms(m, 1)]
        for m in ("naive", "linear", "gaussian")
    },
    "nms_match": lambda: [torch.cat([g, g[:1] * 100]) for g in ops.nms_match(DETECTIONS, 0.3)],
}

# Operators with gradients: the function, and the tensors with a gradient

MAPS = wave(2, 4, 7, 9, pace=1.7) + wave(2, 4, 7, 9, pace=0.23)
# inside; across the border; outside; inverted
ROIS = torch.tensor(
    [[0, 1.25, 0.75, 7.125, 5.875], [1, -2.125, 3, 16, 8.75], [1, 40, 40, 50, 60], [0, 6, 6, 2, 2]]
).double()
TARGET = torch.tensor([0, 3, 1, 4, 2, 4, 0])  # 4: background
LOGITS, WEIGHT = wave(7, 4, pace=1.7, scale=4.0), wave(4, pace=0.8).abs()

DIFFERENTIABLE = {
    "roi_align avg": (lambda x: ops.roi_align(x, ROIS, (2, 3), 0.9, 2, "avg", True), MAPS),
    "deform_roi_pool": (
        lambda x, offset: ops.deform_roi_pool(x, ROIS[:2], offset, (2, 3), 0.9, 2, 0.3),
        *(MAPS, wave(2, 2, 2, 3, pace=0.6)),
    ),
    "deform_roi_pool without": (lambda x: ops.deform_roi_pool(x, ROIS, None, (2, 3), 0.9, 2, 0.3), MAPS),
    "carafe": (lambda x, m: ops.carafe(x, m, 3, 2, 2), MAPS[..., :2, :3], wave(2, 18, 4, 6, pace=0.6)),
    "sigmoid_focal_loss": (lambda x: ops.sigmoid_focal_loss(x, TARGET, 1.7, 0.3, None, "none"), LOGITS),
    "sigmoid_focal_loss, weighted": (
        lambda x: ops.sigmoid_focal_loss(x, TARGET, 2.0, 0.3, WEIGHT, "none"),
        LOGITS,
    ),
}


def leaves_of(name, dtype=torch.float64):
    function, *tensors = DIFFERENTIABLE[name]
    return function, [t.detach().to(dtype).clone().requires_grad_() for t in tensors]


def figures(name):
    """The fingerprint of each output and gradient."""
    if name in RESULTS:
        tensors = RESULTS[name]()
    else:
        function, leaves = leaves_of(name)
        output = function(*leaves)
        tensors = [output, *torch.autograd.grad(output.sin().sum(), leaves)]
    return [fingerprint(t.detach().double().nan_to_num(7, 9)) for t in tensors]


@pytest.mark.parametrize("name", [*RESULTS, *DIFFERENTIABLE])
def test_recorded_results(name):
    assert figures(name) == pytest.approx(json.loads(RECORDED.read_text())[name], rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["carafe", "sigmoid_focal_loss"])
def test_half_precision_is_computed_in_float32(name, dtype):
    """The result equals that of float32 for the same values, rounded once."""
    function, half = leaves_of(name, dtype)
    got = function(*half)
    assert got.dtype == dtype
    torch.testing.assert_close(got, function(*(t.float() for t in half)).to(dtype))


# By hand


def test_soft_nms_keeps_mmcvs_order_of_equal_scores():
    """The best box swaps places with the first, and the last box replaces a suppressed one."""
    boxes = torch.tensor([[0.0, 0, 1, 1], [10, 0, 11, 1], [0, 0, 1, 1], [20, 0, 21, 1], [30, 0, 31, 1]])
    scores = torch.tensor([0.5, 0.9, 0.9, 0.5, 0.5])
    # 1 | 0 2 3 4 -> 2 | 0 3 4, 0 is suppressed and 4 replaces it -> 4, 3
    _, order = ops.soft_nms(boxes, scores, 0.3, min_score=0.1, method="naive")
    assert order.tolist() == [1, 2, 4, 3]


def test_nms_match_at_the_threshold():
    """mmcv suppresses a box whose overlap equals the threshold."""
    boxes = torch.tensor([[0.0, 0, 2, 2, 0.9], [0, 0, 2, 1, 0.8], [5, 5, 7, 7, 0.7]])  # an overlap of 1/2
    for threshold, groups in ((0.5, [[0, 1], [2]]), (0.5001, [[0], [1], [2]])):
        assert [list(map(int, group)) for group in ops.nms_match(boxes, threshold)] == groups


def test_focal_loss_of_certain_logits_are_finite():
    logits = torch.tensor([[200.0, -200.0]]).requires_grad_()
    for target in (0, 1, 2):
        value = ops.sigmoid_focal_loss(logits, torch.tensor([target]), 2.0)
        assert value.isfinite() and torch.autograd.grad(value, logits)[0].isfinite().all()


@pytest.mark.parametrize("count", [0, 1, 20])
def test_masked_conv2d(count):
    """A convolution where the mask is set, zero elsewhere."""
    layer, input, mask = ops.MaskedConv2d(4, 6, 3, padding=1).double(), MAPS[:1], torch.zeros(63)
    mask[torch.randperm(63)[:count]] = 1
    mask = mask.view(1, 7, 9)
    expected = F.conv2d(input, layer.weight, layer.bias, padding=1) * mask
    torch.testing.assert_close(layer(input, mask), expected)


def test_carafe_of_mmcvs_layer_under_autocast():
    layer = ops.CARAFEPack(4, 2, compressed_channels=6)
    with torch.autocast("cpu", torch.bfloat16):
        output = layer(torch.randn(1, 4, 3, 5))
    assert output.shape == (1, 4, 6, 10)
    output.float().sum().backward()
    assert layer.channel_compressor.weight.grad.isfinite().all()


def test_nothing():
    """No boxes, no regions."""
    none, rois, maps = torch.zeros(0, 4), ROIS[:0], MAPS
    assert ops.nms(none, SCORES[:0], 0.5)[1].tolist() == ops.nms_match(torch.zeros(0, 5), 0.5) == []
    assert [tuple(t.shape) for t in ops.soft_nms(none, SCORES[:0])] == [(0, 5), (0,)]
    for pooled in (
        ops.deform_roi_pool(maps, rois, None, (3, 2)),
        ops.deform_roi_pool(maps, rois, maps.new_zeros(0, 2, 3, 2), (3, 2)),
    ):
        assert pooled.shape == (0, 4, 3, 2)


# Names


def test_every_name_of_mmcv_ops_imports():
    missing = [name for name in ops.__all__ if not hasattr(ops, name)]
    assert not missing
    assert len(ops.__all__) > 90


def test_every_function_of_mmcv_exists_or_names_a_replacement():
    missing = []
    for path in (Path(find_spec("mmcv").origin).parent / "ops").glob("*.py"):
        for names in re.findall(r"load_ext\(\s*'_ext',\s*\[(.*?)\]", path.read_text(), re.DOTALL):
            functions = {name: getattr(_ext, name) for name in re.findall(r"'(\w+)'", names)}
            missing += [(name, f) for name, f in functions.items() if hasattr(f, "instead")]
    assert missing
    for name, function in missing:
        expected = re.escape(function.instead)
        with pytest.raises(NotImplementedError, match=rf"^mmcv\.ops: {name}: .*{expected}"):
            function()


def test_the_last_finder_provides_one_name():
    dcnzoo.compat.mmcv.provide_extension()  # a second call has no effect
    assert sys.meta_path.count(dcnzoo.compat.mmcv._Finder) == 1
    assert find_spec("mmcv._ext").origin == str(dcnzoo.compat.mmcv.OWN_FILE)
    assert "dcnzoo" in _ext.get_compiler_version() and "dcnzoo" in _ext.get_compiling_cuda_version()
    assert not hasattr(_ext, "__wrapped__")  # attributes that inspection looks up are not operators


if __name__ == "__main__":
    rows = (
        f"  {json.dumps(name)}: {[float(f'{x:.7g}') for x in figures(name)]}"
        for name in (*RESULTS, *DIFFERENTIABLE)
    )
    RECORDED.write_text("{\n" + ",\n".join(rows) + "\n}\n")


def test_unknown_arguments_of_the_compiled_functions_are_refused():
    from dcnzoo.compat.mmcv import _ext

    with pytest.raises(
        TypeError, match=r"deform_conv_forward: expected arguments of input .*, got kernel, sides"
    ):
        _ext.deform_conv_forward(*map(torch.zeros, range(1, 7)), kernel=3, sides=1)
