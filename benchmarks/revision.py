"""The CPU operators of other revisions, built and loaded beside the present ones."""

import os
import re
import subprocess
import sys
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from benchmarks.cases import OURS, Contestant, Forward, in_format, last
from benchmarks.measure import ROOT
from tests.op_cases import Sample
from tests.op_cases.deform_conv import geometry

LIBRARY = "dcnzoo/ops/_C_cpu.so"
# Skips the autograd rules in Python, which only the present operators have registered: 5 µs for each call.
below_autograd = torch._C._AutoDispatchBelowAutograd


def load(revision: str) -> str:
    """Load a revision's operators; return their name in torch.ops.

    Their namespaces are renamed, so that one process can load several libraries.
    """
    tree = checkout(revision, renamed=True)
    torch.ops.load_library(tree / LIBRARY)
    return f"dcnzoo_{tree.name}"


def checkout(revision: str, renamed: bool = False) -> Path:
    """Return the folder of a revision with its compiled operators; the first call builds them, in minutes."""
    git = ("git", "-C", str(ROOT))
    parse = (*git, "rev-parse", "--short=7", f"{revision}^{{commit}}")
    commit = subprocess.check_output(parse, text=True).strip()
    tree = ROOT / "build" / ("revisions" if renamed else "trees") / commit
    if not (tree / LIBRARY).exists():
        tree.mkdir(parents=True, exist_ok=True)
        archive = subprocess.check_output((*git, "archive", commit))
        subprocess.run(("tar", "-x", "-C", tree), input=archive, check=True)
        for source in (tree / "ops").rglob("*.*") if renamed else ():
            text = source.read_text(encoding="utf-8")
            source.write_text(re.sub(r"\bdcnzoo\b", f"dcnzoo_{commit}", text), encoding="utf-8")
        build = (sys.executable, "setup.py", "-q", "build_ext", "--inplace")
        subprocess.run(build, cwd=tree, env={**os.environ, "DCNZOO_CUDA": "0"}, check=True)
    return tree


class _Convolution(torch.autograd.Function):
    """Calls the compiled operators without checks in Python, which revisions share."""

    @staticmethod
    def forward(ctx, namespace: str, arguments: list, *tensors: Tensor | None) -> Tensor:
        ctx.ops, ctx.arguments = getattr(torch.ops, namespace), arguments
        ctx.save_for_backward(*tensors)
        with below_autograd():
            return ctx.ops.deform_conv(*tensors, *arguments)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        tensors, needed = ctx.saved_tensors, list(ctx.needs_input_grad[2:])
        with below_autograd():
            gradients = ctx.ops._deform_conv_backward(grad, *tensors[:4], *ctx.arguments, needed)
        return None, None, *(g if need else None for g, need in zip(gradients, needed, strict=True))


def _convolution(namespace: str, sample: Sample) -> Forward:
    arguments = [list(v) for v in geometry(sample, stride=1, padding=0, dilation=1)]
    arguments += [sample.kwargs.get("groups", 1), sample.kwargs.get("im2col_step")]
    return lambda: _Convolution.apply(namespace, arguments, *sample.tensors)


class _Pooling(torch.autograd.Function):
    """The same for RoIAlign."""

    @staticmethod
    def forward(ctx, namespace: str, bins: tuple[int, int], sampling: list, input: Tensor, rois: Tensor):
        ctx.ops, ctx.sampling, ctx.size = getattr(torch.ops, namespace), sampling, input.shape
        with below_autograd():
            output, *maxima = ctx.ops.roi_align(input, rois, *bins, *sampling)
        ctx.save_for_backward(rois, *maxima)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        with below_autograd():
            gradient = ctx.ops._roi_align_backward(grad, *ctx.saved_tensors, ctx.size, *ctx.sampling)
        return None, None, None, gradient, None


def _pooling(namespace: str, sample: Sample) -> Forward:
    sampling = [sample.kwargs["spatial_scale"], 0, 1, True]  # as in cases.py: adaptive, average, aligned
    return lambda: _Pooling.apply(namespace, sample.kwargs["output_size"], sampling, *sample.tensors)


OPERATORS = {"deform_conv2d": _convolution, "roi_align": _pooling}


def contestants(operator: str, namespaces: Iterable[str]) -> dict[str, Contestant]:
    """Return the present operator and those of the revisions, each in both memory formats."""
    call = OPERATORS[operator]
    result: dict[str, Contestant] = {}
    for name in (OURS, *namespaces):
        result[name] = partial(call, name)
        result[f"{name} channels_last"] = lambda s, name=name: call(name, in_format(s, last(s)))
    return result
