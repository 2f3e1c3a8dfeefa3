"""dcnzoo's operators in operators of torch, for compilers that know only these.

For :meth:`torch.export.ExportedProgram.run_decompositions` and backends of ``torch.compile``::

    program = torch.export.export(model, args).run_decompositions(dcnzoo.export.decompositions())

The translations to ONNX are called, and each of their nodes is computed by an operator of torch. Tensors have
at most five axes: Core ML refuses six. Inputs in float16 and bfloat16 are computed in float32: a grid in
float16 is off by .08 pixels at 168 columns.
"""

import operator
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_map_only

from dcnzoo.export.graph import DOUBLE, FLOAT, INT64, TORCH, Graph, translations
from dcnzoo.export.opsets import DEFAULT
from dcnzoo.export.registration import operator_named

_TYPES = {FLOAT: torch.float32, DOUBLE: torch.float64, INT64: torch.int64}
_NODES: dict[str, Callable] = {
    "Add": operator.add,
    "And": torch.logical_and,
    "Floor": torch.floor,
    "GreaterOrEqual": operator.ge,
    "LessOrEqual": operator.le,
    "MatMul": torch.matmul,
    "Sub": operator.sub,
}


def decompositions() -> dict[Callable, Callable]:
    """Return the functions by operator.

    NMS, RoI pooling, and calls with empty tensors stay in the program.
    """
    return {
        operator_named(name): partial(_compute, translation)
        for name, translation in translations[TORCH].items()
    }


def _compute(translation: Callable, *arguments: Any, **options: Any) -> Any:
    rank, kind, device = arguments[0].dim() - 2, arguments[0].dtype, arguments[0].device
    if any(n == 0 for value in arguments if isinstance(value, Tensor) for n in value.shape if type(n) is int):
        return NotImplemented

    def wide(value: Tensor) -> Tensor:
        return (
            value.to(torch.promote_types(value.dtype, torch.float32)) if value.is_floating_point() else value
        )

    arguments, options = tree_map_only(Tensor, wide, (arguments, options))
    results = translation(AtenGraph(rank, device), *arguments, **options)
    return tree_map_only(Tensor, lambda value: value.to(kind), results)


class AtenGraph(Graph):
    """Computes nodes by operators of torch. Numbers and lists of integers stay such: they may be symbolic."""

    def __init__(self, rank: int, device: torch.device) -> None:
        super().__init__(DEFAULT, "grid_sample" if rank <= 2 else "gathernd")
        self._device = device

    def __getattr__(self, node: str) -> Callable:
        if node in _NODES:
            return _NODES[node]
        raise AttributeError(f"AtenGraph has no node {node}")

    def type_of(self, value: Tensor) -> int:
        return next(code for code, kind in _TYPES.items() if kind == value.dtype)

    def static_shape(self, value: Tensor) -> list:
        return list(value.shape)

    Shape = static_shape

    def Constant(self, **values: Any) -> Any:
        ((name, value),) = values.items()
        if name != "value_floats":
            return value
        # torch.tensor would be a constant of the program, which run_decompositions refuses
        parts = [torch.full((1,), number, device=self._device) for number in value]
        return torch.cat(parts) if parts else torch.empty(0, device=self._device)

    def Cast(self, value: Any, to: int) -> Any:
        return value.to(_TYPES[to]) if isinstance(value, Tensor) else value

    def Concat(self, *values: Any, axis: int) -> Any:
        return torch.cat(values, axis) if isinstance(values[0], Tensor) else list(chain(*values))

    def Expand(self, value: Any, shape: list) -> Tensor:
        if not isinstance(value, Tensor):
            return torch.full(shape, value, device=self._device)
        # without a comparison of symbolic sizes
        sizes = zip(value.shape, shape, strict=True)
        return value.expand([n if isinstance(m, int) and m == 1 else m for n, m in sizes])

    def Gather(self, values: Any, index: int | list, axis: int) -> Any:
        if isinstance(index, list):  # of sizes
            return [values[i] for i in index]
        return values.select(axis, index) if isinstance(values, Tensor) else values[index]

    def GatherND(self, rows: Tensor, index: Tensor, batch_dims: int) -> Tensor:
        flat = index.flatten(batch_dims)[..., None].expand(*[-1] * (batch_dims + 1), rows.shape[-1])
        return rows.gather(batch_dims, flat).reshape(*index.shape[:-1], rows.shape[-1])

    def grid_sample(self, call: Any, coordinates: Sequence[Tensor]) -> Tensor:  # [N·groups, C / groups, K, P]
        """Sample a 2-D deformable convolution's points, with each group of channels as a separate image."""
        grid: list[Tensor] = []
        for size, coordinate in zip(call.input.shape[2:], coordinates, strict=True):
            # runtimes disagree far outside and at NaN: move all such points to one position outside
            near = torch.logical_and(coordinate > -2, coordinate < size + 1)
            position = self.Where(near, coordinate, -2.0)
            grid.insert(0, (2 * position + 1) / size - 1)  # x first
        maps = call.input.reshape(-1, call.channels // call.groups, *call.input.shape[2:])
        samples = F.grid_sample(maps, torch.stack(grid, -1).flatten(0, 1), align_corners=False)
        return samples if call.mask is None else samples * call.mask.reshape(-1, 1, *samples.shape[2:])

    def Mul(self, a: Any, b: Any) -> Any:
        return [x * y for x, y in zip(a, b, strict=True)] if isinstance(a, list) else a * b

    def Range(self, start: int, end: Any, step: int) -> Tensor:
        return torch.arange(start, end, step, device=self._device)

    def Reshape(self, value: Any, shape: list) -> Any:
        if not isinstance(value, Tensor):
            return [value]
        sizes = (value.shape[i] if isinstance(n, int) and n == 0 else n for i, n in enumerate(shape))
        return value.reshape(*sizes)

    def ScatterElements(
        self, values: Tensor, index: Tensor, parts: Tensor, axis: int, reduction: str
    ) -> Tensor:
        return values.scatter_add(axis, index, parts)

    def Slice(self, value: Tensor, start: list, end: list, axis: list) -> Tensor:
        return value.narrow(axis[0], start[0], end[0] - start[0])

    def Where(self, condition: Tensor, value: Tensor, other: Tensor | float) -> Tensor:
        # coremltools has no where of numbers
        other = other if isinstance(other, Tensor) else value.new_full((), other)
        return torch.where(condition, value, other)

    def Transpose(self, value: Tensor, perm: Sequence[int]) -> Tensor:
        return value.permute(*perm)
