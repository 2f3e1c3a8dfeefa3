"""Requirements for convolutions beyond tests/test_ops.py: torch.func, scripting, export and mixed types."""

from __future__ import annotations

import io

import pytest
import torch
from torch.func import grad, vmap

import dcnzoo.ops

from . import op_cases
from .op_cases import Sample
from .test_ops import largest

OPERATORS = [op for op in op_cases.operators() if op.name.startswith("deform_conv")]
FORMS = [(op, sample) for op in OPERATORS for sample in op.forms()]

every_op = pytest.mark.parametrize("op", OPERATORS, ids=lambda op: op.name)
every_form = pytest.mark.parametrize(("op", "sample"), FORMS, ids=[f"{o.name}-{s.name}" for o, s in FORMS])


@every_op
@pytest.mark.parametrize("value", ["same", 1.5, None], ids=str)
def test_geometry_of_another_type(op, value):
    for name in ("stride", "dilation"):
        with pytest.raises(TypeError, match=f"^{name}: .*got {value!r}$"):
            op.call(Sample("", op.forms()[0].tensors, {name: value}))


@every_op
def test_what_is_no_tensor_is_named(op):
    tensors = op.forms()[0].tensors
    for index, name in enumerate(("input", "weight", "offset", "mask", "bias")):
        for wrong in ([1.0], None):
            if wrong is None and index > 1:
                continue
            call = (*tensors[:index], wrong, *tensors[index + 1 :])
            with pytest.raises(TypeError, match=f"^{op.name}: {name}: .*got {type(wrong).__name__}"):
                op.call(Sample("", call, {}))
    with pytest.raises(TypeError, match=f"^{op.name}: input: .*got NoneType"):
        op.call(Sample("", (None, tensors[1], None, None, None), {}))


@every_op
def test_offset_as_mask(op):
    """Its channels would be a mask of several groups."""
    input, weight, offset, *_ = op.forms()[0].tensors
    with pytest.raises(RuntimeError, match=f"^{op.name}: mask: "):
        op.call(Sample("", (input, weight, offset, offset, None), {}))


def test_torchvisions_order_of_the_arguments():
    input, offset, weight = torch.zeros(2, 4, 5, 6), torch.zeros(2, 18, 5, 6), torch.zeros(3, 4, 3, 3)
    deform_conv2d = dcnzoo.ops.deform_conv2d
    for given in (weight, weight[:, :2]):  # the second in two groups
        with pytest.raises(RuntimeError, match=r"weight: .*got 18 .*torchvision"):
            deform_conv2d(input, offset, given, padding=1)
    with pytest.raises(TypeError, match=r"bias: .*got tuple .*input, weight, offset"):
        deform_conv2d(input, offset, weight, None, (1, 1), (1, 1))


@every_op
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_maps_with_float32_offsets_and_masks(op, dtype):
    """Coordinates keep float32's precision, and gradients their arguments' types."""
    sample = op.forms()[0].to(torch.float32)
    input, weight, offset, mask, bias = sample.tensors
    mixed = Sample("mixed", (input.to(dtype), weight.to(dtype), offset, mask, bias.to(dtype)), sample.kwargs)
    leaves = mixed.leaves()
    output = op.call(leaves)
    exact = op.reference(mixed.to(torch.float64))
    assert output.dtype == dtype
    assert largest(output.double() - exact) <= torch.finfo(dtype).eps * largest(exact)
    output.float().sum().backward()
    assert [t.grad.dtype for t in leaves.tensors] == [dtype, dtype, torch.float32, torch.float32, dtype]


# Deployment


@every_op
def test_script(op):
    """Saved, loaded and run, with one number or one per axis, forward and backward."""
    rank = op.forms()[0].tensors[1].dim() - 2
    samples = list(op.samples())
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(getattr(dcnzoo.ops, op.name)), buffer)
    buffer.seek(0)
    loaded = torch.jit.load(buffer)
    lists = ["stride", "padding", "output_padding", "dilation"]
    if "transpose" not in op.name:
        lists.remove("output_padding")
    for sample in samples:
        given = dict.fromkeys(lists, 1) | {"padding": 0, "groups": 1, "im2col_step": None}
        given |= {"output_padding": 0} if "output_padding" in lists else {}
        leaves = sample.leaves()
        output = loaded(*leaves.tensors, **{**given, **sample.kwargs})
        torch.testing.assert_close(output, op.reference(sample))
        output.sum().backward()
        assert all(t.grad is not None for t in leaves.given)
    with pytest.raises(torch.jit.Error, match=f"{op.name}: weight: expected {rank + 2} dimensions"):
        broken = samples[0].tensors[1][0]
        loaded(samples[0].tensors[0], broken, *samples[0].tensors[2:], **{**given, **samples[0].kwargs})


@every_op
def test_compile_torch_func(op):
    """Per-sample gradients, compiled."""
    torch._dynamo.reset()
    sample = op.forms()[0]
    input, weight, offset, mask, bias = sample.tensors
    many = [torch.stack([t * (1 + 0.1 * i) for i in range(3)]) for t in (input, offset, mask)]

    def loss(weight, input, offset, mask, bias):
        return op.call(Sample("", (input, weight, offset, mask, bias), sample.kwargs)).square().sum()

    per_sample = vmap(grad(loss), in_dims=(None, 0, 0, 0, None))
    compiled = torch.compile(per_sample, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(weight, *many, bias), per_sample(weight, *many, bias))
