"""Calls of operators, and comparisons of their results."""

from dataclasses import replace

import torch
from torch import Tensor

from tests.op_cases import Sample, results


def moved(sample: Sample, device: str = "cuda") -> Sample:
    """Move a sample to a device, also the tensors among its other arguments, such as levels."""

    def to(value):
        if not isinstance(value, Tensor):
            return value
        # Tensor.to would allocate all elements of an expanded tensor
        stored = value[tuple(slice(0, 1) if stride == 0 else slice(None) for stride in value.stride())]
        return stored.to(device).expand_as(value)

    kwargs = {name: to(value) for name, value in sample.kwargs.items()}
    return replace(sample.map(to), kwargs=kwargs)


def assert_same(op, sample: Sample, oracle: Sample, tolerance: float) -> None:
    """Compare output and gradients of ``sample`` with those of the reference on ``oracle``, in float64."""
    actual, expected = results(op.call, sample), results(op.reference, oracle)
    for mine, true, like in zip(actual, expected, [sample.tensors[0], *sample.given], strict=True):
        assert mine.shape == true.shape and mine.dtype == like.dtype
        close = {"rtol": tolerance, "atol": tolerance * largest(true)}
        torch.testing.assert_close(mine.cpu().double(), true.double(), **close)


def largest(tensor: Tensor) -> float:
    return tensor.abs().max().item() if tensor.numel() else 0.0


def random_boxes(count: int, spread: float = 60, size: float = 40, seed: int = 0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator, dtype=torch.float64) * spread
    extent = torch.rand(count, 2, generator=generator, dtype=torch.float64) * size
    scores = torch.rand(count, generator=generator, dtype=torch.float64)
    return torch.cat([corner, corner + extent], 1).to(dtype), scores.to(dtype)


INVENTED_DEVICE = """
import torch
from torch.utils import _pytree as tree
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

_setup_privateuseone_for_python_backend("invented")

class Invented(torch.Tensor):
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, values):
        tensor = torch._C._acc.create_empty_tensor(values.shape, values.dtype)
        # a copy: torch computes views from the offset 0 of this tensor
        tensor.__class__, tensor.on_cpu = cls, values.clone(memory_format=torch.contiguous_format)
        return tensor

def run_on_cpu(operator, *args, **kwargs):
    call = tree.tree_map_only(Invented, lambda tensor: tensor.on_cpu, (args, kwargs))
    args, options = tree.tree_map_only(torch.device, lambda device: torch.device("cpu"), call)
    results = operator(*args, **options)
    if kwargs.get("device") == torch.device("cpu"):
        return results
    return tree.tree_map_only(torch.Tensor, Invented, results)

def copy(source, target, non_blocking=False):
    return getattr(target, "on_cpu", target).copy_(getattr(source, "on_cpu", source))

library = torch.library.Library("_", "IMPL")
library.fallback(run_on_cpu, "PrivateUse1")
aten = torch.library.Library("aten", "IMPL")
aten.impl("_copy_from", copy, "PrivateUse1")
aten.impl("detach", lambda tensor: Invented(tensor.on_cpu), "PrivateUse1")  # torch's own has no on_cpu
for name in ("arange", "arange.start", "arange.start_step"):  # torch's own resizes an empty tensor
    operator = getattr(torch.ops.aten.arange, name.partition(".")[2] or "default")
    aten.impl(name, lambda *args, f=operator, **kwargs: run_on_cpu(f, *args, **kwargs), "PrivateUse1")
"""
