"""Launches that plans prepare: Triton searches a compiled kernel once for tensors of one kind."""

from collections import defaultdict

import pytest
import torch

pytest.importorskip("triton")
from triton.runtime.jit import JITFunction

from dcnzoo.ops.fused import kernels, operators
from dcnzoo.ops.fused.launch import Launch

from ..ops.test_plan import calls_of, tensors_of


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


def test_a_search_for_each_alignment(triton):
    run = Launch(kernels.transpose_kernel, {"rows": 3, "columns": 5, "BLOCK_M": 4, "BLOCK_N": 8})
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


@pytest.mark.parametrize("name", operators.PLANS)
def test_a_later_call_searches_nothing_and_passes_its_own_tensors(triton, name):
    (first, *_) = calls_of(name)
    second = first._replace(**{field: getattr(first, field).clone() for field in tensors_of(first)})
    run = operators.plan(name, first)
    run(first)
    searches = len(triton["searched"])
    run(second)
    assert searches and len(triton["searched"]) == len(triton["launched"]) == searches
    of_first = {getattr(first, field).data_ptr() for field in tensors_of(first)} - {0}
    for _, arguments in triton["launched"]:
        passed = {value.data_ptr() for value in arguments.values() if isinstance(value, torch.Tensor)}
        assert passed and not passed & of_first
