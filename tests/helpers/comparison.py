"""Comparisons of other programs' functions with dcnzoo.ops.reference."""

import torch

from dcnzoo.ops import reference


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64)


def compare(
    function, expected, *leaves: torch.Tensor, dtype: torch.dtype = torch.float64, backward=None
) -> None:
    """Compare outputs and gradients of ``function`` in ``dtype`` with those of ``expected`` in float64.

    ``backward(grad_output, *leaves)`` returns the gradients; by default autograd computes them.
    """
    given = [leaf.detach().to(dtype).requires_grad_(backward is None) for leaf in leaves]
    exact = [leaf.detach().double().requires_grad_() for leaf in given]
    output, wanted = function(*given), expected(*exact)
    assert output.dtype == dtype
    cotangent = torch.randn_like(output)
    gradients = backward(cotangent, *given) if backward else torch.autograd.grad(output, given, cotangent)
    actual = (output, *gradients)
    wanted = (wanted, *torch.autograd.grad(wanted, exact, cotangent.double()))
    for a, w in zip(actual, wanted, strict=True):
        if dtype == torch.float64:
            torch.testing.assert_close(a, w)
        else:
            assert a.dtype == dtype
            error = (a.double() - w).norm() / w.norm()
            assert error < {torch.float32: 1e-5, torch.float16: 3e-3, torch.bfloat16: 2e-2}[dtype]


SHAPES = torch.tensor([[5, 8], [3, 2]])
STARTS = torch.tensor([0, 40])


def attention(value: torch.Tensor, locations: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    return reference.ms_deform_attn(value, SHAPES, STARTS, locations, weights)


def attention_leaves() -> tuple[torch.Tensor, ...]:
    value = random(3, 46, 2, 6)
    return value, torch.rand(3, 7, 2, 2, 3, 2).double() * 1.4 - 0.2, torch.rand(3, 7, 2, 2, 3).double()


V1 = ((2, 1), (1, 0), (1, 2), 2, 2)  # stride, padding, dilation, groups, deformable groups


def v1_leaves() -> tuple[torch.Tensor, ...]:
    return random(3, 8, 9, 8), random(3, 24, 5, 6), random(4, 4, 3, 2)


def v1_reference(input, offset, weight):
    return reference.deform_conv(input, weight, offset, None, None, *V1[:4])


V2 = (2, 1, 2, 2, 2)


def v2_leaves() -> tuple[torch.Tensor, ...]:
    return random(3, 8, 11, 7), random(3, 24, 5, 4), random(3, 12, 5, 4), random(4, 4, 3, 2), random(4)


def v2_reference(input, offset, mask, weight, bias=None):
    sides = [(number, number) for number in V2[:3]]
    return reference.deform_conv(input, weight, offset, mask, bias, *sides, V2[3])


V1_NUMBERS = (2, 3, 1, 2, 0, 1, 2, 1, 2, 2)  # as the modules take them: x before y, kernel (3, 2)
V2_NUMBERS = (3, 2, 2, 2, 1, 1, 2, 2, 2, 2)  # y before x
EMPTY = torch.zeros(0)
