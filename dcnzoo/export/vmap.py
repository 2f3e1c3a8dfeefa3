"""Rules of ``torch.vmap`` that keep the number of images symbolic. Those of torch turn it into a constant.

:mod:`dcnzoo.openmmlab.export.predict` calls MMDetection's code for one image by ``torch.vmap``; the rules of
:data:`BATCHING` are registered while it is traced. An operator that is missing here shows as a batch size
that the file fixes: tests/export/test_vmap.py has a case of each.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from dcnzoo.ops._transforms import fold, unfold


def row_by_row(operator: Callable, inputs: int = 1, count: int | None = None) -> Callable:
    """Return the rule of an operator that treats the rows of the first axis separately.

    The rows of all images become one first axis.

    Args:
        inputs: the number of arguments, from the first, that have such rows.
        count: the position of an argument that is the number of rows.

    Raises:
        NotImplementedError: in its call, if other arguments differ between the images.
    """

    def rule(info: Any, dims: tuple, *arguments: Any) -> tuple:
        if any(dim is not None for dim in tree_leaves(dims[inputs:])):
            expected = f"expected only the first {inputs} arguments to differ between the images"
            raise NotImplementedError(f"{operator}: {expected}, got others, too")
        size, folded = info.batch_size, list(arguments)
        for i in range(inputs):
            folded[i] = fold(folded[i], dims[i], size, 0)
        if count is not None:
            folded[count] *= size
        results = operator(*folded)
        if isinstance(results, Tensor):
            return unfold(results, size, 0), 0
        return tuple(unfold(result, size, 0) for result in results), (0,) * len(results)

    return rule


def along_axis(operator: Callable) -> Callable:
    """Return the rule of an operator along an axis, which is its second argument."""

    def rule(info: Any, dims: tuple, values: Any, axis: int = 0, *others: Any) -> tuple:
        def images_first(value: Any, dim: Any) -> Any:
            if isinstance(value, list):
                return [images_first(*pair) for pair in zip(value, dim, strict=True)]
            if not isinstance(value, Tensor):
                return value
            return value.expand(info.batch_size, *value.shape) if dim is None else value.movedim(dim, 0)

        others = tuple(images_first(value, dim) for value, dim in zip(others, dims[2:], strict=True))
        return operator(images_first(values, dims[0]), axis + 1 if axis >= 0 else axis, *others), 0

    return rule


aten = torch.ops.aten
ROW_BY_ROW = (
    *(aten._adaptive_avg_pool2d.default, aten.avg_pool2d.default, aten.max_pool2d_with_indices.default),
    *(aten.native_batch_norm.default, aten.native_layer_norm.default, aten.convolution.default),
    *(aten.upsample_bilinear2d.vec, aten.upsample_nearest2d.vec, aten.pixel_shuffle.default),
    aten.replication_pad2d.default,
)
ALONG_AXIS = (aten.cat.default, aten.gather.default, aten.scatter.src, aten.scatter.value)
BATCHING = {
    **{operator: row_by_row(operator) for operator in ROW_BY_ROW},
    aten.grid_sampler_2d.default: row_by_row(aten.grid_sampler_2d.default, inputs=2),
    aten.native_group_norm.default: row_by_row(aten.native_group_norm.default, count=3),
    **{operator: along_axis(operator) for operator in ALONG_AXIS},
}


@contextmanager
def symbolic_batches() -> Iterator[None]:
    """Context with these rules for ``torch.vmap``, in which a traced number of images stays symbolic."""
    library = torch.library.Library("aten", "IMPL")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "(?s).*Overriding a previously registered kernel")
            for operator, rule in BATCHING.items():
                torch.library.register_vmap(operator, rule, lib=library)
        yield
    finally:
        library._destroy()  # torch's own rules again; torch has no public name for it
