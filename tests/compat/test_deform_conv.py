"""Compiled modules of deformable convolution, and projects that copied mmcv's early code."""

import importlib
import runpy
import sys

import pytest
import torch

from dcnzoo.compat import patches

from .programs import (
    EMPTY,
    V1,
    V1_NUMBERS,
    V2_NUMBERS,
    compare,
    v1_leaves,
    v1_reference,
    v2_leaves,
    v2_reference,
)

MODULES = ["basicsr.ops.dcn.deform_conv_ext", "deform_conv_ext", "deform_conv_cuda", "detectron2._C"]


@pytest.fixture(params=MODULES)
def deform_conv_module(request, provide, package):
    *folders, name = request.param.split(".")
    if folders:
        package(".".join([*folders, "__init__"]))
    provide(name if name != "_C" else request.param)
    if folders:  # as in the projects: from . import deform_conv_ext
        package(".".join([*folders, "layer"]), f"from . import {name} as compiled")
        return importlib.import_module(".".join([*folders, "layer"])).compiled
    return importlib.import_module(name)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_deform_conv(deform_conv_module, dtype):
    name = deform_conv_module.__name__
    ending = "_cuda" if name == "deform_conv_cuda" else ""
    weight_gradient = "filter" if name == "detectron2._C" else "parameters"
    names = ("forward", "backward_input", f"backward_{weight_gradient}")
    functions = [getattr(deform_conv_module, f"deform_conv_{each}{ending}") for each in names]

    def forward(input, offset, weight):
        output = input.new_empty(3, 4, 5, 6)
        functions[0](input, weight, offset, output, EMPTY, EMPTY, *V1_NUMBERS, 2)
        return output

    def backward(grad_output, input, offset, weight):
        grad_input, grad_offset, grad_weight = map(torch.zeros_like, (input, offset, weight))
        functions[1](input, offset, grad_output, grad_input, grad_offset, weight, EMPTY, *V1_NUMBERS, 2)
        for scale in (0.25, 0.75):  # adds to the gradient
            functions[2](input, offset, grad_output, grad_weight, EMPTY, EMPTY, *V1_NUMBERS, scale, 2)
        return grad_input, grad_offset, grad_weight

    compare(forward, v1_reference, *v1_leaves(), dtype=dtype, backward=backward)


@pytest.mark.parametrize(("dtype", "with_bias"), [(torch.float64, False), (torch.float16, True)])
def test_modulated_deform_conv(deform_conv_module, dtype, with_bias):
    infix = "_cuda" if deform_conv_module.__name__ == "deform_conv_cuda" else ""
    names = (f"modulated_deform_conv{infix}_{direction}" for direction in ("forward", "backward"))
    functions = [getattr(deform_conv_module, name) for name in names]

    def forward(input, offset, mask, weight, bias=EMPTY):
        output = input.new_empty(3, 4, 5, 4)
        functions[0](input, weight, bias, EMPTY, offset, mask, output, EMPTY, *V2_NUMBERS, with_bias)
        return output

    def backward(grad_output, *tensors):
        input, offset, mask, weight, bias = (*tensors, EMPTY)[:5]
        gradients = [torch.zeros_like(tensor) for tensor in (input, offset, mask, weight, bias)]
        grad_input, grad_offset, grad_mask, grad_weight, grad_bias = gradients
        written = (grad_input, grad_weight, grad_bias, grad_offset, grad_mask)
        given = (input, weight, bias, EMPTY, offset, mask, EMPTY)
        functions[1](*given, *written, grad_output, *V2_NUMBERS, with_bias)
        return gradients[: len(tensors)]

    leaves = v2_leaves()[: 4 + with_bias]
    compare(forward, v2_reference, *leaves, dtype=dtype, backward=backward)


def test_deformable_groups_are_checked(provide):
    provide("deform_conv_ext")
    compiled = importlib.import_module("deform_conv_ext")
    input, offset, weight = v1_leaves()
    arguments = (input, weight, offset, torch.zeros(3, 4, 5, 6), EMPTY, EMPTY, *V1_NUMBERS[:-1], 1, 2)
    with pytest.raises(RuntimeError, match=r"deform_conv_forward: offset: expected 12 channels .*got 24"):
        compiled.deform_conv_forward(*arguments)


# Copies of deform_conv.py in EDVR, STDF, SOLO and detectron2: the folder, the import, the name for provide()

COPY = """
IMPORT


def deform_conv(input, *others):
    if not input.is_cuda:
        raise NotImplementedError


modulated_deform_conv = deform_conv


def layer(*tensors):
    return modulated_deform_conv(*tensors, 2, 1, 2, 2, 2)
"""
LAYOUTS = [
    ("basicsr.models.ops.dcn", "from . import deform_conv_ext", "deform_conv_ext"),
    ("ops.dcn", "import deform_conv_cuda", "deform_conv_cuda"),
    ("mmdet.ops.dcn", "from . import deform_conv_cuda", "deform_conv_cuda"),
    ("detectron2.layers", "from detectron2 import _C", "detectron2._C"),
]


@pytest.mark.parametrize(("folder", "statement", "compiled"), LAYOUTS)
def test_copies_of_deform_conv(provide, package, monkeypatch, folder, statement, compiled):
    """Their functions raise on the CPU before they call the compiled module, so that dcnzoo replaces them."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "mmdet"]:
        monkeypatch.delitem(sys.modules, name)
    package(f"{folder}.deform_conv", COPY.replace("IMPORT", statement))
    package(f"{folder}.deform_pool", "from . import deform_pool_cuda")
    package(f"{folder}.__init__", "from .deform_conv import layer, deform_conv as v1")
    provide(compiled)
    project = importlib.import_module(folder)
    compare(lambda *t: project.v1(*t, *V1), v1_reference, *v1_leaves())
    compare(project.layer, v2_reference, *v2_leaves())
    with patches.disabled(compiled), pytest.raises(NotImplementedError):
        project.layer(*v2_leaves())
    project.layer(*v2_leaves())
    if compiled == "deform_conv_cuda":
        assert importlib.import_module(f"{folder}.deform_pool").deform_pool_cuda
    assert type(sys.modules[f"{folder}.deform_conv"].__loader__).__name__ == "SourceFileLoader"


def test_run_a_module_that_imports_dcnzoo_s_module(provide, package):
    """``python -m`` needs other methods of the loader than an import."""
    package("network.main", "from . import deform_conv_cuda\nname = deform_conv_cuda.__name__\n")
    provide("deform_conv_cuda")
    assert runpy.run_module("network.main")["name"] == "network.deform_conv_cuda"


def test_only_importers_of_dcnzoo_s_module_change(provide, package):
    """Not a module that names it only, and not one that imports its own compiled module."""
    package("network.layers", "# deform_conv_cuda\ndeform_conv = before = min\n")
    package("network.dcn.deform_conv_cuda")
    package("network.dcn.layers", "from . import deform_conv_cuda\ndeform_conv = before = min\n")
    provide("deform_conv_cuda")
    for name in ("network.layers", "network.dcn.layers"):
        module = importlib.import_module(name)
        assert module.deform_conv is module.before


def test_detectron2_evaluates_with_pycocotools(provide, package):
    package(
        "detectron2.evaluation.fast_eval_api",
        "from detectron2 import _C\nclass COCOeval: pass\nclass COCOeval_opt(COCOeval): pass\n",
    )
    provide("detectron2._C")
    project = importlib.import_module("detectron2.evaluation.fast_eval_api")
    assert project.COCOeval_opt is project.COCOeval
    compiled = importlib.import_module("detectron2._C")
    assert "dcnzoo" in compiled.get_compiler_version() + compiled.get_cuda_version()
