"""Launches that plans prepare: Triton searches a compiled kernel once for tensors of one kind."""

from collections import defaultdict

import pytest
import torch

pytest.importorskip("triton")
from triton.runtime.jit import JITFunction

from dcnzoo.ops._arguments import arguments_of
from dcnzoo.ops.fused import deform_conv, dispatch, kernels
from dcnzoo.ops.fused.launch import Launch
from tests.helpers.plans import calls_of, tensors_of


@pytest.fixture
def triton(monkeypatch):
    """Record the arguments of searches and of launches of compiled kernels in place of running them."""
    runs = defaultdict(list)

    class Compiled:
        def __init__(self, kernel):
            self.kernel = kernel

        def __getitem__(self, grid):
            return lambda *values: runs["launched"].append(
                (grid, dict(zip(self.kernel, values, strict=True)))
            )

    def search(self, *, grid, warmup, **arguments):
        runs["searched"].append((grid, arguments))
        return Compiled(self.arg_names)

    monkeypatch.setattr(JITFunction, "run", search)
    return runs


@pytest.mark.parametrize("rows", [False, True])
def test_a_search_for_each_alignment(triton, rows):
    sizes = {"rows": 3, "columns": 5, "BLOCK_M": 4, "BLOCK_N": 8}
    run = Launch(kernels.transpose_kernel, sizes, rows=rows)
    memory = torch.empty(64, dtype=torch.bfloat16)
    for first in (0, 8, 1, 17, 1):  # 8 elements are 16 bytes
        run(7, {"source": memory[first:], "result": memory})
    assert [arguments["source"].data_ptr() % 16 for _, arguments in triton["searched"]] == [0, 2]
    assert len(triton["launched"]) == 3
    for grid, arguments in triton["searched"] + triton["launched"]:
        assert grid == (7, 1, 1) and arguments["result"] is memory
        assert (arguments["rows"], arguments["columns"], arguments["BLOCK_N"]) == (3, 5, 8)
    run(0, {"source": memory, "result": memory})
    assert len(triton["launched"]) == 3  # nothing to do


@pytest.mark.parametrize("rows", [False, True])
def test_indices_in_64_bits_for_large_tensors(triton, rows):
    """A tensor with rows per region may be larger at the next call, so that its size decides each time."""
    run = Launch(kernels.transpose_kernel, {}, rows=rows)
    small, large = (torch.empty(n, dtype=torch.uint8, device="meta") for n in (4, 2**31 + 9))
    for source in (small, large, large) if rows else (large, large):
        run(1, {"source": source, "result": small})
    wide = [arguments["USE_INT64"] for _, arguments in triton["searched"]]
    assert wide == ([False, True] if rows else [True])


@pytest.mark.parametrize("name", dispatch.MAKERS)
def test_a_later_call_searches_nothing_and_passes_its_own_tensors(triton, name):
    (first, *_) = calls_of(name)
    second = first._replace(**{field: getattr(first, field).clone() for field in tensors_of(first)})
    run = dispatch.make_run(name, first)
    run(first)
    searches = len(triton["searched"])
    run(second)
    assert searches and len(triton["searched"]) == len(triton["launched"]) == searches
    if name == "nms":  # a product and a sum that are rounded once would change which boxes are kept
        assert triton["searched"][0][1]["enable_fp_fusion"] is False
    of_first = {getattr(first, field).data_ptr() for field in tensors_of(first)} - {0}
    for _, arguments in triton["launched"]:
        passed = {value.data_ptr() for value in arguments.values() if isinstance(value, torch.Tensor)}
        assert passed and not passed & of_first


NUMBERS = ([1, 1], [1, 1], [1, 1], 1, None)


def test_gradients_of_fields_have_the_groups_of_the_fields(triton):
    """The kernel writes a plane per block of channels; a block has one offset group and one mask group."""
    input, weight = torch.randn(1, 12, 4, 5), torch.randn(6, 12, 3, 3)
    offset, mask, grad = torch.randn(1, 2 * 18, 4, 5), torch.rand(1, 3 * 9, 4, 5), torch.randn(1, 6, 4, 5)
    call = arguments_of("_deform_conv_backward")(grad, input, weight, offset, mask, *NUMBERS, [True] * 5)
    gradients = deform_conv.deform_conv_backward(call)(call)
    shapes = [tuple(tensor.shape) for tensor in (input, weight, offset, mask)]
    assert [tuple(gradient.shape) for gradient in gradients] == [*shapes, (6,)]


@pytest.mark.parametrize(("height", "dtype"), [(2**13, torch.int64), (2**13 - 1, torch.int32)])
def test_indices_of_corners_fit(triton, height, dtype):
    """An index of a pixel has 4 more bits: 2**27 pixels exceed 31 bits."""
    new = torch.empty(0, device="meta").new_empty
    call = arguments_of("deform_conv")(
        new(1, 2, height, 2**14), new(2, 2, 1, 1), new(1, 2, height + 2, 2**14 + 2), None, None, *NUMBERS
    )
    points = deform_conv.plan_points(deform_conv.Sizes(call), call)(call.offset, None)
    assert points["corners"].dtype == dtype
