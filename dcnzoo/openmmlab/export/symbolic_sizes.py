"""Sizes in the traced code of MMDetection: symbolic numbers for inputs, scalar tensors for pictures."""

from collections.abc import Sequence
from typing import Any

import torch
from mmdet.structures import DetDataSample
from torch import Tensor
from torch.overrides import TorchFunctionMode


class SymbolicSizes(TorchFunctionMode):
    """Keep sizes symbolic in functions that would turn them into constants.

    The size of a picture in the input is a pair of scalar tensors, because it differs between the images of
    ``torch.vmap``. torch does not accept them as limits of ``clamp`` or of a slice.
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in (torch.tensor, Tensor.new_tensor) and _has_sizes(args[-1]):
            like = {} if function is torch.tensor else dict(dtype=args[0].dtype, device=args[0].device)
            return tensor_of(args[-1], **{**like, **kwargs})
        if function is torch.linspace and _has_sizes(args):
            start, end, steps = args
            return start + torch.arange(steps, **kwargs) * (end - start) / tensor_of(steps - 1, **kwargs)
        if function in (Tensor.add_, Tensor.__iadd__):  # x += y: y may differ between images, but x not
            return torch.add(*args, **kwargs)
        if function in (Tensor.clamp, torch.clamp):
            return _clamp(*args, **kwargs)
        if function is Tensor.clamp_:  # torch.vmap would call it for each image
            return args[0].copy_(_clamp(*args, **kwargs))
        if function is Tensor.unbind and hasattr(args[0], "sizes"):
            return args[0].sizes
        if function is Tensor.__getitem__ and isinstance(args[1], tuple):
            return _cut(*args)
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


def tensor_of(values: Any, **options: Any) -> Tensor:
    """Return ``torch.tensor(values, **options)`` for nested lists of numbers, which may be symbolic."""
    if isinstance(values, list | tuple):
        return torch.stack([tensor_of(value, **options) for value in values])
    return values.to(**options) if isinstance(values, Tensor) else torch.full((), values, **options)


def number_of_rows(values: Any) -> int:
    """Replace ``len``, which would make the size of a batch, or the number of rows, a constant."""
    values = getattr(values, "bboxes", values)
    return values.shape[0] if isinstance(values, Tensor) else len(values)


def data_sample(size: Sequence[Any] | Tensor, padded: Sequence[Any]) -> DetDataSample:
    """Describe an image of a batch, which is neither resized nor in a border, to ``detector.predict``."""
    size, padded = tuple(size), tuple(padded)
    values = dict(img_shape=size, ori_shape=size, pad_shape=padded, batch_input_shape=padded)
    values |= dict(scale_factor=(1.0, 1.0), border=(0.0,) * 4)  # CenterNet reads border
    sample = DetDataSample()
    for name, value in values.items():  # set_metainfo copies values, which symbolic sizes do not support
        sample.set_field(value, name, field_type="metainfo")
    return sample
