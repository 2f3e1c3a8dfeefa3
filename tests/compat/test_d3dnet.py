"""The compiled module of D3Dnet, called as its function does."""

import importlib

from dcnzoo.ops import reference

from .programs import compare, random


def test_deform_conv(provide):
    provide("D3D")
    compiled = importlib.import_module("D3D")
    sides = ((2, 1, 1), (1, 0, 1), (1, 2, 1))
    numbers = (2, 1, 3, *(number for side in sides for number in side), 2, 2, 64)

    def backward(grad_output, input, offset, weight, bias):
        return compiled.deform_conv_backward(input, weight, bias, offset, grad_output, *numbers)

    compare(
        lambda i, o, w, b: compiled.deform_conv_forward(i, w, b, o, *numbers),
        lambda i, o, w, b: reference.deform_conv(i, w, o, None, b, *sides, 2),
        *(random(2, 4, 5, 4, 6), random(2, 2 * 3 * 6, 3, 4, 6), random(6, 2, 2, 1, 3), random(6)),
        backward=backward,
    )
