"""Sizes in the traced code of MMDetection: symbolic numbers for inputs, scalar tensors for pictures.

:class:`SymbolicSizes` is a mode of torch that sees each call of a function while
:mod:`dcnzoo.openmmlab.export.predict` is traced. Loops over images are the matter of
:mod:`dcnzoo.export.vmap`.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmdet.structures import DetDataSample
from torch import Tensor, nn
from torch._C._functorch import is_batchedtensor
from torch.overrides import TorchFunctionMode


class SymbolicSizes(TorchFunctionMode):
    """Keep sizes symbolic in functions that would turn them into constants.

    The size of a picture in the input is a pair of scalar tensors, because it differs between the images of
    ``torch.vmap``. torch does not accept them as limits of ``clamp`` or of a slice. With each function below,
    torch 2.13 alone raises an error or fixes a size: tests/export/test_symbolic_sizes.py shows it.
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in (torch.tensor, Tensor.new_tensor) and _has_sizes(args[-1]):
            like = {} if function is torch.tensor else dict(dtype=args[0].dtype, device=args[0].device)
            return tensor_of(args[-1], **{**like, **kwargs})
        if function is torch.linspace and _has_sizes(args):
            start, end, steps = args
            between = tensor_of(steps - 1, **kwargs).clamp(min=1)  # a single step is the start
            return start + torch.arange(steps, **kwargs) * (end - start) / between
        if function is Tensor.add_:  # also x += y. x has no place for the sum if only y differs by image
            differs = [isinstance(v, Tensor) and is_batchedtensor(v) for v in (*args, *kwargs.values())]
            if any(differs) and not differs[0]:
                return torch.add(*args, **kwargs)
        if function in (Tensor.clamp, torch.clamp):
            return _clamp(*args, **kwargs)
        if function is Tensor.clamp_:  # torch.vmap would call it for each image
            return args[0].copy_(_clamp(*args, **kwargs))
        if function is Tensor.unbind and hasattr(args[0], "sizes"):
            return args[0].sizes
        if function is Tensor.__getitem__ and isinstance(args[1], tuple):
            return _cut(*args)
        if function is F.conv2d:
            return _convolve(*args, **kwargs)
        return function(*args, **kwargs)


def level_sizes(sizes: Sequence[Sequence[int]]) -> Tensor:  # [L, 2]
    """Return the sizes of a pyramid's levels as a tensor. A loop over it yields them as numbers."""
    values: Any = tensor_of(sizes, dtype=torch.long)
    values.sizes = sizes
    return values


def _has_sizes(values: Any) -> bool:
    if isinstance(values, list | tuple):
        return any(map(_has_sizes, values))
    return isinstance(values, torch.SymInt) or (isinstance(values, Tensor) and values.dim() == 0)


def _clamp(values: Tensor, min: Any = None, max: Any = None) -> Tensor:
    if isinstance(min, Tensor) or isinstance(max, Tensor):  # torch does not accept a number with a tensor
        min, max = (limit if limit is None else torch.as_tensor(limit).to(values) for limit in (min, max))
    return torch.clamp(values, min, max)


def _cut(values: Tensor, index: tuple) -> Tensor:
    """Return ``values[index]``; where a slice ends at a picture's size, fill the rest."""
    parts = list(index)
    for axis, part in enumerate(index):
        if isinstance(part, slice) and isinstance(part.stop, Tensor):
            outside = torch.arange(values.shape[axis], device=values.device) >= part.stop
            fill = False if values.dtype == torch.bool else -torch.inf
            values = torch.where(outside.view(-1, *[1] * (values.dim() - axis - 1)), fill, values)
            parts[axis] = slice(part.start, None)
    return values[tuple(parts)]


def _convolve(
    input: Tensor,  # [N, groups·c, H, W]
    weight: Tensor,  # [groups·C, c, 1, 1]
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """Call ``F.conv2d``, or compute grouped 1 × 1 convolutions by other weights as products of matrices.

    With weights that are computed for each image, ``torch.vmap`` multiplies ``groups`` by the number of
    images, but ONNX stores it as a constant.
    """
    if groups == 1 or weight.shape[2:] != (1, 1) or isinstance(weight, nn.Parameter):
        return F.conv2d(input, weight, bias, stride, padding, dilation, groups)
    rows = input.unflatten(1, (groups, -1)).flatten(3)
    output = (weight.flatten(1).unflatten(0, (groups, -1)) @ rows).flatten(1, 2)
    output = output.unflatten(2, input.shape[2:])
    return output if bias is None else output + bias[:, None, None]


def tensor_of(values: Any, **options: Any) -> Tensor:
    """Return ``torch.tensor(values, **options)`` for nested lists of numbers, which may be symbolic."""
    if isinstance(values, list | tuple):
        return torch.stack([tensor_of(value, **options) for value in values])
    return values.to(**options) if isinstance(values, Tensor) else torch.full((), values, **options)


def data_sample(size: Sequence[Any] | Tensor, padded: Sequence[Any]) -> DetDataSample:
    """Describe an image of a batch, which is neither resized nor in a border, to ``detector.predict``."""
    size, padded = tuple(size), tuple(padded)
    values = dict(img_shape=size, ori_shape=size, pad_shape=padded, batch_input_shape=padded)
    values |= dict(scale_factor=(1.0, 1.0), border=(0.0,) * 4)  # CenterNet reads border
    sample = DetDataSample()
    for name, value in values.items():  # set_metainfo copies values, which symbolic sizes do not support
        sample.set_field(value, name, field_type="metainfo")
    return sample
