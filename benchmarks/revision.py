"""The CPU operators of other revisions, built and loaded beside the present ones."""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable
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
Namespace = torch._ops._OpNamespace
Call = Callable[..., Tensor | tuple[Tensor | None, ...]]
# Skips the autograd rules in Python, which only the present operators have registered: 5 µs for each call.
below_autograd = torch._C._AutoDispatchBelowAutograd


def load(revision: str) -> str:
    """Load a revision's operators; return their namespace in torch.ops.

    Their namespaces are renamed, so that one process can load several libraries.
    """
    tree = built(revision)
    torch.ops.load_library(tree / LIBRARY)
    return f"dcnzoo_{tree.name}"


def built(revision: str) -> Path:
    """Return the folder of a revision, named by its commit; the first call builds it, in minutes."""
    git = ("git", "-C", str(ROOT))
    parse = (*git, "rev-parse", "--short=7", f"{revision}^{{commit}}")
    commit = subprocess.check_output(parse, text=True).strip()
    tree = ROOT / "build" / "revisions" / commit
    if not (tree / LIBRARY).exists():
        tree.mkdir(parents=True, exist_ok=True)
        archive = subprocess.check_output((*git, "archive", commit))
        subprocess.run(("tar", "-x", "-C", tree), input=archive, check=True)
        for source in (tree / "ops").rglob("*.*"):
            text = source.read_text(encoding="utf-8")
            source.write_text(re.sub(r"\bdcnzoo\b", f"dcnzoo_{commit}", text), encoding="utf-8")
        build = (sys.executable, "setup.py", "-q", "build_ext", "--inplace")
        subprocess.run(build, cwd=tree, env={**os.environ, "DCNZOO_CUDA": "0"}, check=True)
    return tree


class _Operator(torch.autograd.Function):
    """Calls compiled operators without the checks in Python, which revisions share."""

    @staticmethod
    def forward(ctx, call: Call, gradients: Call, *tensors: Tensor | None) -> Tensor:
        ctx.gradients = gradients
        with below_autograd():
            outputs = call(*tensors)
        output, *kept = outputs if isinstance(outputs, tuple) else (outputs,)
        ctx.save_for_backward(*tensors, *kept)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        needed = list(ctx.needs_input_grad[2:])
        with below_autograd():
            gradients = ctx.gradients(grad, *ctx.saved_tensors, needed)
        return None, None, *(g if need else None for g, need in zip(gradients, needed, strict=True))


def _convolution(ops: Namespace, sample: Sample) -> tuple[Call, Call]:
    arguments = [list(v) for v in geometry(sample, stride=1, padding=0, dilation=1)]
    arguments += [sample.kwargs.get("groups", 1), sample.kwargs.get("im2col_step")]

    def gradients(grad, input, weight, offset, mask, bias, needed):
        return ops._deform_conv_backward(grad, input, weight, offset, mask, *arguments, needed)

    return lambda *tensors: ops.deform_conv(*tensors, *arguments), gradients


def _pooling(ops: Namespace, sample: Sample) -> tuple[Call, Call]:
    sampling = [sample.kwargs["spatial_scale"], 0, True]  # as in cases.py: adaptive, aligned
    if "pool_mode" in str(ops.roi_align.default._schema):  # revisions that also have a maximum: the average
        sampling.insert(2, 1)
    bins, size = sample.kwargs["output_size"], sample.tensors[0].shape

    def gradients(grad, input, rois, *maxima_and_needed):
        return ops._roi_align_backward(grad, rois, *maxima_and_needed[:-1], size, *sampling), None

    return lambda *tensors: ops.roi_align(*tensors, *bins, *sampling), gradients


def _attention(ops: Namespace, sample: Sample) -> tuple[Call, Call]:
    levels = sample.kwargs.values()

    def gradients(grad, value, locations, weights, needed):
        return ops._ms_deform_attn_backward(grad, value, *levels, locations, weights, needed)

    return lambda value, *others: ops.ms_deform_attn(value, *levels, *others), gradients


# By operator: functions that return the calls of forward and backward. The forward takes a sample's tensors;
# the backward takes the gradient, these tensors, those that the forward kept, and which gradients to compute.
OPERATORS = {"deform_conv2d": _convolution, "roi_align": _pooling, "ms_deform_attn": _attention}
BOTH_FORMATS = ("deform_conv2d", "roi_align")


def contestants(operator: str, namespaces: Iterable[str]) -> dict[str, Contestant]:
    """Return the present operator and those of the revisions, each in both memory formats of an image."""

    def prepare(name: str, last_channels: bool, sample: Sample) -> Forward:
        sample = in_format(sample, last(sample)) if last_channels else sample
        calls = OPERATORS[operator](getattr(torch.ops, name), sample)
        return lambda: _Operator.apply(*calls, *sample.tensors)

    result: dict[str, Contestant] = {}
    for name in (OURS, *namespaces):
        result[name] = partial(prepare, name, False)
        if operator in BOTH_FORMATS:
            result[f"{name} channels_last"] = partial(prepare, name, True)
    return result
