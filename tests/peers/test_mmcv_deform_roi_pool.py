"""deform_roi_pool against mmcv's CUDA kernels, on threads of the host: mmcv has none for the CPU.

mmcv's package brings the source of its kernels, which tests/cuda/emulation runs as it runs dcnzoo's.
"""

import importlib

import pytest
import torch

import dcnzoo.models  # noqa: F401  which puts its operators under mmcv's

mmcv_ops = importlib.import_module("mmcv.ops")
WRAPPER = r"""
extern "C" void forward(int count, const double* input, const double* rois, const double* offset,
                        double* output, int bins_h, int bins_w, double scale, int ratio, double gamma,
                        int channels, int height, int width) {
  emulate(1, dim3(32), [=] {
    deform_roi_pool_forward_cuda_kernel<double>(count, input, rois, offset, output, bins_h, bins_w, scale,
                                                ratio, gamma, channels, height, width);
  });
}

extern "C" void backward(int count, const double* grad_output, const double* input, const double* rois,
                         const double* offset, double* grad_input, double* grad_offset, int bins_h,
                         int bins_w, double scale, int ratio, double gamma, int channels, int height,
                         int width) {
  emulate(1, dim3(32), [=] {
    deform_roi_pool_backward_cuda_kernel<double>(count, grad_output, input, rois, offset, grad_input,
                                                 grad_offset, bins_h, bins_w, scale, ratio, gamma,
                                                 channels, height, width);
  });
}
"""


@pytest.fixture(scope="module")
def mmcv_kernels(compile_kernels):
    return compile_kernels(WRAPPER, "deform_roi_pool")


def theirs(kernels, grad, input, rois, offset, scale, ratio, gamma):
    """Output and gradients by mmcv's kernels."""
    output, grad_input, grad_offset = (torch.zeros_like(t) for t in (grad, input, offset))
    geometry = (*output.shape[2:], scale, ratio, gamma, *input.shape[1:])
    kernels("forward", output.numel(), input, rois, offset, output, *geometry)
    tensors = (grad, input, rois, offset, grad_input, grad_offset)
    kernels("backward", output.numel(), *tensors, *geometry)
    return output, grad_input, grad_offset


def ours(grad, input, rois, offset, scale, ratio, gamma):
    leaves = [input.clone().requires_grad_(), offset.clone().requires_grad_()]
    size = tuple(grad.shape[2:])
    output = mmcv_ops.deform_roi_pool(leaves[0], rois, leaves[1], size, scale, ratio, gamma)
    # without RoIs mmcv gives the offset no gradient
    return output.detach(), *torch.autograd.grad(output, leaves, grad, materialize_grads=True)


def random_case(seed, low, high):
    """Maps of 15×18 pixels, at half the scale of RoIs whose corners are between ``low`` and ``high``.

    Every ninth without RoIs; in every fifth some have no area.
    """
    count = 0 if seed % 9 == 8 else 1 + seed % 6
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape):
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    corners = (uniform(count, 2, 2) * (high - low) + low).sort(dim=1).values
    if seed % 5 == 4:
        corners[::2, 1, seed % 2] = corners[::2, 0, seed % 2]
    rois = torch.cat([torch.randint(2, (count, 1), generator=generator).double(), corners.flatten(1)], 1)
    offset = (uniform(count, 2, 3, 2) - 0.5) * 2
    return uniform(count, 3, 3, 2) - 0.5, uniform(2, 3, 15, 18) - 0.5, rois, offset, 0.5


@pytest.mark.parametrize("seed", range(100))
@pytest.mark.parametrize("ratio", [0, 2])
def test_inside_the_map(mmcv_kernels, seed, ratio):
    arguments = (*random_case(seed, 5.0, 25.0), ratio, 0.1)
    for got, want in zip(ours(*arguments), theirs(mmcv_kernels, *arguments), strict=True):
        assert want.any() or not len(arguments[2]) or seed % 5 == 4
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("seed", range(100))
@pytest.mark.parametrize("ratio", [0, 2])
def test_across_the_border(mmcv_kernels, seed, ratio):
    """All but the offsets' gradient, which dcnzoo takes of the border pixel's constant continuation."""
    arguments = (*random_case(seed, -10.0, 45.0), ratio, 0.4)
    *got, _ = ours(*arguments)
    *want, _ = theirs(mmcv_kernels, *arguments)
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w)
