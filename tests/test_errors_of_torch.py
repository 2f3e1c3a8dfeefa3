"""Errors of torch inside the operators keep their text and type."""

from __future__ import annotations

import pytest
import torch

from dcnzoo.ops import _autograd, _backend

OUT_OF_MEMORY = "CUDA out of memory. Tried to allocate 20.00 GiB."


def test_failed_allocation_keeps_torchs_message():
    """The arguments are small, but 2³¹ output pixels with 2²⁰ channels exceed any machine's memory."""
    input, weight = torch.zeros(1, 1, 1), torch.zeros(1, 1, 1).expand(2**20, 1, 1)
    with pytest.raises(RuntimeError, match="memory"):
        torch.empty(2**20, 2**31)
    with pytest.raises(RuntimeError) as error:
        torch.ops.dcnzoo.deform_conv(input, weight, None, None, None, [1], [2**30], [1], 1, None)
    if tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 13):  # older ones only print it
        assert "tried to allocate" in str(error.value)
    assert "memory" in str(error.value)


@pytest.fixture
def operator():
    """An operator whose kernel fails like a compiled one."""
    library = torch.library.Library("dcnzoo", "FRAGMENT")
    library.define("_fails_for_the_test(Tensor x, str text) -> Tensor")

    def fails(x, text):
        raise RuntimeError(text)

    library.impl("_fails_for_the_test", fails, "CPU")
    yield torch.ops.dcnzoo._fails_for_the_test
    library._destroy()


def test_out_of_memory_has_torchs_type(operator):
    """MMDetection's AvoidOOM and torch's own tools check for this type."""
    _autograd.register_autograd("_fails_for_the_test", lambda *a: None, lambda *a: None)
    for requires_grad in (False, True):
        x = torch.zeros(1, requires_grad=requires_grad)
        with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
            operator(x, OUT_OF_MEMORY)
        with pytest.raises(RuntimeError, match="something else") as error:
            operator(x, "something else")
        assert type(error.value) is RuntimeError


def test_out_of_memory_below_the_choice_of_a_backend():
    class Compiled:
        def call_boxed(self, keys, *arguments):
            raise RuntimeError(OUT_OF_MEMORY)

    kernel = _backend._kernel(lambda fallback, *a: fallback(*a), Compiled())
    with pytest.raises(torch.OutOfMemoryError):
        kernel(None, torch.zeros(1))
