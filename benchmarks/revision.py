"""The CPU operators of other revisions, built and loaded beside the present ones."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterable
from functools import partial

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from benchmarks.cases import OURS, Contestant, Forward, in_format, last
from benchmarks.measure import ROOT
from tests.op_cases import Sample
from tests.op_cases.deform_conv import geometry


def load(revision: str) -> str:
    """Build a revision's deform_conv in build/revisions unless it is there; return its name in torch.ops.

    Its namespaces are renamed, so that one process can load several libraries.
    """
    git = ("git", "-C", str(ROOT))
    parse = (*git, "rev-parse", "--short=7", f"{revision}^{{commit}}")
    commit = subprocess.check_output(parse, text=True).strip()
    name, tree = f"dcnzoo_{commit}", ROOT / "build/revisions" / commit
    library = tree / "dcnzoo/ops/_C_cpu.so"
    if not library.exists():
        library.parent.mkdir(parents=True, exist_ok=True)
        paths = ("setup.py", "pyproject.toml", "README.md", "LICENSE", "dcnzoo/__init__.py")
        folders = ("ops/common", "ops/deform_conv", "ops/deform_conv_transpose")
        archive = subprocess.check_output((*git, "archive", commit, *paths, *folders))
        subprocess.run(("tar", "-x", "-C", tree), input=archive, check=True)
        for source in (tree / "ops").rglob("*.*"):
            text = source.read_text(encoding="utf-8")
            source.write_text(re.sub(r"\bdcnzoo\b", name, text), encoding="utf-8")
        build = (sys.executable, "setup.py", "-q", "build_ext", "--inplace")
        subprocess.run(build, cwd=tree, env={**os.environ, "DCNZOO_CUDA": "0"}, check=True)
    torch.ops.load_library(library)
    return name


class _Convolution(torch.autograd.Function):
    """Calls the compiled operators without checks in Python, which revisions share."""

    @staticmethod
    def forward(ctx, namespace: str, arguments: list, *tensors: Tensor | None) -> Tensor:
        ctx.ops, ctx.arguments = getattr(torch.ops, namespace), arguments
        ctx.save_for_backward(*tensors)
        return ctx.ops.deform_conv(*tensors, *arguments)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        tensors, needed = ctx.saved_tensors, list(ctx.needs_input_grad[2:])
        gradients = ctx.ops._deform_conv_backward(grad, *tensors[:4], *ctx.arguments, needed)
        return None, None, *(g if need else None for g, need in zip(gradients, needed, strict=True))


def _convolution(namespace: str, sample: Sample) -> Forward:
    arguments = [list(v) for v in geometry(sample, stride=1, padding=0, dilation=1)]
    arguments += [sample.kwargs.get("groups", 1), sample.kwargs.get("im2col_step")]
    return lambda: _Convolution.apply(namespace, arguments, *sample.tensors)


def contestants(namespaces: Iterable[str]) -> dict[str, Contestant]:
    """Return the present operators and those of the revisions, each in both memory formats."""
    result: dict[str, Contestant] = {}
    for name in (OURS, *namespaces):
        result[name] = partial(_convolution, name)
        result[f"{name} channels_last"] = lambda s, name=name: _convolution(name, in_format(s, last(s)))
    return result
