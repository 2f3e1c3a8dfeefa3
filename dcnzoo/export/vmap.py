"""Rules of ``torch.vmap`` that keep the number of images symbolic. Those of torch turn it into a constant.

:mod:`dcnzoo.openmmlab.export.predict` calls MMDetection's code for one image by ``torch.vmap``; these rules
are registered while it is traced. An operator that is missing here shows as a batch size that the file fixes:
tests/export/test_vmap.py has a case of each.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from dcnzoo.ops._transforms import fold, unfold

aten = torch.ops.aten
# operators that treat the rows of their first axis separately
ROW_BY_ROW = (
    *(aten._adaptive_avg_pool2d.default, aten.avg_pool2d.default, aten.max_pool2d_with_indices.default),
    *(aten._native_batch_norm_legit_no_training.default, aten.native_batch_norm.default),
    *(aten.native_group_norm.default, aten.native_layer_norm.default, aten.convolution.default),
    *(aten.upsample_bilinear2d.default, aten.upsample_bilinear2d.vec, aten.upsample_nearest2d.default),
    *(aten.upsample_nearest2d.vec, aten.replication_pad2d.default, aten.grid_sampler_2d.default),
    aten.pixel_shuffle.default,
)
# operators along an axis, which is their second argument
ALONG_AXIS = (aten.cat.default, aten.gather.default, aten.scatter.src, aten.scatter.value)


@contextmanager
def symbolic_batches() -> Iterator[None]:
    """Context with these rules for ``torch.vmap``, in which a traced number of images stays symbolic."""
    library = torch.library.Library("aten", "IMPL")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "(?s).*Overriding a previously registered kernel")
            for operator in ROW_BY_ROW:
                inputs = 2 if operator is aten.grid_sampler_2d.default else 1
                # the number of rows is also an argument of group norm
                counts = 3 if operator is aten.native_group_norm.default else None
                torch.library.register_vmap(operator, row_by_row(operator, inputs, counts), lib=library)
            for operator in ALONG_AXIS:
                torch.library.register_vmap(operator, _along_axis(operator), lib=library)
        yield
    finally:
        library._destroy()  # torch has no public name for it


def row_by_row(operator: Callable, inputs: int, counts: int | None = None) -> Callable:
    """Return a rule that makes the vmap axis a part of the first axis of the first ``inputs`` arguments.

    Args:
        counts: position of an argument that is the number of rows.
    """

    def rule(info: Any, dims: tuple, *arguments: Any) -> tuple:
        size, others = info.batch_size, list(arguments)
        for i in range(inputs):
            others[i] = fold(others[i], dims[i], size, 0)
        if counts is not None:
            others[counts] *= size
        results = operator(*others)
        if isinstance(results, Tensor):
            return unfold(results, size, 0), 0
        return tuple(unfold(result, size, 0) for result in results), (0,) * len(results)

    return rule


def _along_axis(operator: Callable) -> Callable:
    def rule(info: Any, dims: tuple, values: Any, axis: int = 0, *others: Any) -> tuple:
        def first(value: Any, dim: Any) -> Any:  # with the vmap axis as the first
            if isinstance(value, list):
                return [first(*pair) for pair in zip(value, dim, strict=True)]
            if not isinstance(value, Tensor):
                return value
            return value.expand(info.batch_size, *value.shape) if dim is None else value.movedim(dim, 0)

        others = tuple(first(value, dim) for value, dim in zip(others, dims[2:], strict=True))
        return operator(first(values, dims[0]), axis + 1 if axis >= 0 else axis, *others), 0

    return rule
