"""The effective receptive field of a layer: the influence of each pixel of the input on an output."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from dcnzoo.backbones.vit_adapter import Extractor
from dcnzoo.layers import DCNv3, DCNv4


class _Reached(Exception):
    """Raised when the layer has run, to skip the rest of the model."""


def receptive_fields(
    model: nn.Module,
    run: Callable[[Tensor], object],
    inputs: Tensor,
    name: str,
    windows: Sequence[tuple[slice, slice]],
) -> list[Tensor]:
    """Compute the influence of each pixel on outputs: the effective receptive field (Luo et al. 2016).

    Its value is the magnitude, over the image's channels, of the gradient of the sum over the output's
    channels. The gradient includes the paths through the offsets and the mask.

    Args:
        run: runs the model on ``inputs``; stopped as soon as the layer has run.
        inputs: [1, C, H, W], the model's input.
        name: of a layer with the output [1, C', oH, oW], or [1, oH, oW, C'] for DCNv3 and DCNv4, or of an
            extractor of ViT-Adapter; ``name #2`` for its second run.
        windows: rows and columns of its output.

    Returns:
        for each window, the field [H, W], not smoothed, on the CPU

    Raises:
        ValueError: the layer does not run, or has no gradient to the image.
    """
    name, _, number = name.partition(" #")
    inputs = inputs.detach().clone().requires_grad_()
    outputs: list[Tensor] = []

    def stop(module: nn.Module, arguments: tuple, output: Tensor) -> None:
        if isinstance(module, Extractor):  # tokens of several maps
            height, width = arguments[3][0]
            output = output[:, : height * width].transpose(1, 2).unflatten(2, (height, width))
        outputs.append(output[0])
        if len(outputs) == int(number or 1):
            raise _Reached

    layer = model.get_submodule(name)
    with layer.register_forward_hook(stop), torch.enable_grad():
        try:
            run(inputs)
        except _Reached:
            output = outputs[-1].movedim(-1, 0) if isinstance(layer, DCNv3 | DCNv4) else outputs[-1]
        else:
            raise ValueError(
                f"receptive_fields: name: expected a layer that runs in the forward pass, got {name}"
            )
    fields = []
    for rows, columns in windows:
        with torch.enable_grad():
            total = output[:, rows, columns].sum()
        gradient = None
        if total.requires_grad:
            (gradient,) = torch.autograd.grad(total, inputs, allow_unused=True, retain_graph=True)
        if gradient is None:
            raise ValueError(
                f"receptive_fields: name: expected a layer with a gradient to the image, got {name}"
            )
        fields.append(gradient[0].float().norm(dim=0).cpu())
    return fields
