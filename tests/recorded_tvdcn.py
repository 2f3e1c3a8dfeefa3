"""Recorded results of tvdcn 1.1.0.

tvdcn requires torch 2.7 and dcnzoo 2.10, so that they cannot run in one process. To record the tables below
again, run ``python tests/recorded_tvdcn.py`` in an environment with ``torch 2.7.1`` and ``tvdcn 1.1.0``.
"""

import itertools
import math

import torch

KERNEL = {1: (3,), 2: (3, 2), 3: (3, 1, 2)}
STRIDE = {1: (2,), 2: (2, 1), 3: (2, 1, 1)}
PADDING = {1: (1,), 2: (1, 2), 3: (1, 0, 1)}
DILATION = {1: (2,), 2: (1, 2), 3: (1, 1, 2)}
OUTPUT_PADDING = {1: (1,), 2: (1, 0), 3: (1, 0, 0)}
SIZE = {1: (11,), 2: (7, 6), 3: (5, 4, 3)}
CASES = list(itertools.product((1, 2, 3), (False, True)))  # rank, transposed


def wave(*shape, pace, scale=1.0):
    """Values that look random and are the same in every version of torch."""
    steps = torch.arange(math.prod(shape), dtype=torch.float64)
    return (torch.sin(steps * pace) * scale).reshape(shape)


def fingerprint(tensor):
    """A weighted sum, in which every element has a different weight."""
    return (tensor.flatten() * torch.linspace(-1, 2, tensor.numel(), dtype=torch.float64)).sum().item()


def geometry(rank, transposed):
    options = {"stride": STRIDE[rank], "padding": PADDING[rank], "dilation": DILATION[rank], "groups": 2}
    return options | ({"output_padding": OUTPUT_PADDING[rank]} if transposed else {})


def name(rank, transposed):
    return f"{'_transpose' if transposed else ''}{rank}d"


def function_figures(module, rank, transposed):
    """Fingerprints of the output and the gradients of all tensors, with 2 offset groups and 1 mask group."""
    out = SIZE[rank]
    if not transposed:
        sizes = zip(SIZE[rank], KERNEL[rank], STRIDE[rank], PADDING[rank], DILATION[rank], strict=True)
        out = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in sizes]
    taps = math.prod(KERNEL[rank])
    tensors = (
        wave(2, 4, *SIZE[rank], pace=1.1),
        wave(*((4, 3) if transposed else (6, 2)), *KERNEL[rank], pace=1.7),
        wave(2, 2 * taps * rank, *out, pace=2.3, scale=2.0),
        wave(2, taps, *out, pace=0.7),
        wave(6, pace=1.3),
    )
    for tensor in tensors:
        tensor.requires_grad_()
    output = getattr(module.ops, f"deform_conv{name(rank, transposed)}")(
        *tensors, **geometry(rank, transposed)
    )
    gradients = torch.autograd.grad(output.square().sum(), tensors)
    return [fingerprint(tensor.detach()) for tensor in (output, *gradients)]


def pack_figures(module, rank, transposed):
    """Fingerprints of a pack's output with each mask activation, from a state dict of tvdcn 1.1."""
    taps, kernel = math.prod(KERNEL[rank]), KERNEL[rank]
    point = (1,) * rank if transposed else kernel
    state = {
        "weight": wave(*((4, 3) if transposed else (6, 2)), *kernel, pace=1.7),
        "bias": wave(6, pace=1.3),
        "offset_generator.weight": wave(2 * taps * rank, 2, *point, pace=0.9),  # 2 groups
        "mask_generator.weight": wave(taps, 4, *point, pace=0.8),
    }
    constructor = getattr(module, f"PackedDeformConv{name(rank, transposed).replace('_t', 'T')}")
    figures = []
    for activation in ("sigmoid", "softmax"):
        pack = constructor(
            4,
            6,
            kernel,
            offset_groups=2,
            modulated=True,
            mask_activation=activation,
            dtype=torch.float64,
            **geometry(rank, transposed),
        )
        pack.load_state_dict(state)
        figures.append(fingerprint(pack(wave(2, 4, *SIZE[rank], pace=1.1)).detach()))
    return figures


def softmax_figure(module, rank):
    mask = wave(2, 2 * math.prod(KERNEL[rank]), *SIZE[rank], pace=0.7, scale=3.0)
    return fingerprint(getattr(module.ops, f"mask_softmax{rank}d")(mask, KERNEL[rank]))


FUNCTIONS = {
    (1, False): [-5.778137756, -13.29314781, 16.25508619, 4.720699689, -18.69947176, -30.39212278],
    (1, True): [-26.24972179, -0.1025838972, -16.93004949, 1.083496144, -0.6839230656, -149.5527214],
    (2, False): [-35.3014288, 18.21587955, 16.91892314, -19.03752199, 13.3531334, -231.8022296],
    (2, True): [-72.75469914, -39.96238188, -2.802945408, -15.4638291, -31.41530931, -366.4992155],
    (3, False): [-41.23379517, 1.017019664, 0.663133891, 121.3767756, 13.83239284, -216.4696351],
    (3, True): [-157.3245505, -66.26035861, 18.09172191, 24.51502921, -1.688030075, -792.3733333],
}
PACKS = {
    (1, False): [-8.427413984, -7.320019958],
    (1, True): [-37.37477285, -34.35437666],
    (2, False): [-32.14893622, -41.84522498],
    (2, True): [-70.5324477, -72.264314],
    (3, False): [-49.06524838, -47.28473182],
    (3, True): [-159.0957244, -156.2063047],
}
SOFTMAX = {
    1: 21.85963109,
    2: 83.10309448,
    3: 119.4162881,
}


if __name__ == "__main__":
    import tvdcn

    print({case: function_figures(tvdcn, *case) for case in CASES})
    print({case: pack_figures(tvdcn, *case) for case in CASES})
    print({rank: softmax_figure(tvdcn, rank) for rank in (1, 2, 3)})
