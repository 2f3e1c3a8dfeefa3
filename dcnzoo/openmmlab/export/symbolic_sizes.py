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
    """Keep sizes symbolic in the functions of :data:`REPLACED`, which would turn them into constants.

    The size of a picture in the input is a pair of scalar tensors, because it differs between the images of
    ``torch.vmap``. torch does not accept them as limits of ``clamp`` or of a slice. With each function,
    torch 2.13 alone raises an error or fixes a size: tests/export/test_symbolic_sizes.py shows it.
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        return REPLACED.get(function, function)(*args, **(kwargs or {}))


def level_sizes(sizes: Sequence[Sequence[int]]) -> Tensor:  # [L, 2]
    """Return the sizes of a pyramid's levels as a tensor. A loop over it yields them as numbers."""
    values: Any = tensor_of(sizes, dtype=torch.long)
    values.sizes = sizes
    return values


def _has_sizes(values: Any) -> bool:
    if isinstance(values, list | tuple):
        return any(map(_has_sizes, values))
    return isinstance(values, torch.SymInt) or (isinstance(values, Tensor) and values.dim() == 0)


def _tensor(data: Any, **options: Any) -> Tensor:
    return (tensor_of if _has_sizes(data) else torch.tensor)(data, **options)


def _new_tensor(self: Tensor, data: Any, **options: Any) -> Tensor:
    if not _has_sizes(data):
        return self.new_tensor(data, **options)
    return tensor_of(data, **{"dtype": self.dtype, "device": self.device, **options})


def _linspace(start: Any, end: Any, steps: Any, **options: Any) -> Tensor:
    if not _has_sizes([start, end, steps]):
        return torch.linspace(start, end, steps, **options)
    between = tensor_of(steps - 1, **options).clamp(min=1)  # a single step is the start
    return start + torch.arange(steps, **options) * (end - start) / between


def _add_in_place(self: Tensor, other: Any, *, alpha: Any = 1) -> Tensor:
    """Also for ``x += y``. x has no place for the sum if only y differs between the images."""
    if isinstance(other, Tensor) and is_batchedtensor(other) and not is_batchedtensor(self):
        return torch.add(self, other, alpha=alpha)
    return self.add_(other, alpha=alpha)


def _clamp(input: Tensor, min: Any = None, max: Any = None) -> Tensor:
    if isinstance(min, Tensor) or isinstance(max, Tensor):  # torch does not accept a number with a tensor
        min, max = (limit if limit is None else torch.as_tensor(limit).to(input) for limit in (min, max))
    return torch.clamp(input, min, max)


def _clamp_in_place(input: Tensor, min: Any = None, max: Any = None) -> Tensor:
    return input.copy_(_clamp(input, min, max))  # torch.vmap would call clamp_ for each image


def _unbind(self: Tensor, dim: int = 0) -> Any:
    return self.sizes if hasattr(self, "sizes") else self.unbind(dim)  # of level_sizes


def _slice_for_maxima(values: Tensor, index: Any) -> Tensor:
    """Return ``values[index]``. A slice to a picture's size has the whole axis, filled with the least value.

    Raises:
        NotImplementedError: beside such a slice is another kind of index, with which its axis is uncertain.
    """
    parts = list(index) if isinstance(index, tuple) else [index]
    ends = [isinstance(part, slice) and isinstance(part.stop, Tensor) for part in parts]
    if not any(ends):
        return values[index]
    if not all(isinstance(part, slice | int) for part in parts):
        expected = "expected slices and numbers beside a slice to a picture's size"
        raise NotImplementedError(f"index of a tensor: {expected}, got {parts}")
    for axis, part in enumerate(parts):
        if ends[axis]:
            outside = torch.arange(values.shape[axis], device=values.device) >= part.stop
            fill = False if values.dtype == torch.bool else -torch.inf
            values = torch.where(outside.view(-1, *[1] * (values.dim() - axis - 1)), fill, values)
            parts[axis] = slice(part.start, None, part.step)
    return values[tuple(parts)]


def _conv2d(
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


REPLACED = {
    torch.tensor: _tensor,
    Tensor.new_tensor: _new_tensor,
    torch.linspace: _linspace,
    Tensor.add_: _add_in_place,
    torch.clamp: _clamp,
    Tensor.clamp: _clamp,
    Tensor.clamp_: _clamp_in_place,
    Tensor.unbind: _unbind,
    Tensor.__getitem__: _slice_for_maxima,
    F.conv2d: _conv2d,
}


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
