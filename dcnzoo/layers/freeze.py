"""Inference with frozen weights: deformable convolutions pack each weight only once."""

from __future__ import annotations

from functools import cache
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from dcnzoo.ops import _backend, has_ops

M = TypeVar("M", bound=nn.Module)

# Frozen weight -> its state, its storage and its packed copy; None before its first call. While the
# storage is referenced, no other tensor gets its address.
_packed = WeakTensorKeyDictionary()


def freeze(model: M) -> M:
    """Freeze a model's parameters for inference, and pack the weights of deformable convolutions only once.

    On the CPU, a deformable convolution copies its weight to another layout in every call. After this
    function, the first call of a layer keeps the copy, which takes as much memory as the weight (float16:
    twice as much). All parameters get ``requires_grad=False``. Under autocast, and for transposed
    convolutions, weights are still packed in every call.

    - A weight that changes is packed again: after ``load_state_dict``, in-place operations, an assignment to
      ``.data``, or ``model.to()``.
    - ``requires_grad_(True)`` ends it: the next call frees the copy. A copy is also freed with its weight. A
      parameter that replaces a frozen one, and a copied or unpickled model, are not frozen.
    - torch does not record writes **through** ``.data`` (``weight.data.copy_(…)``), NumPy, other libraries or
      processes that share the memory. Call ``freeze`` again after them: the results of the old weight would
      be returned.

    Returns:
        ``model``.
    """
    model.requires_grad_(False)
    if has_ops() and _backend.backend in ("auto", "compiled"):
        _keep_packed_weights()
        for parameter in model.parameters():
            _packed[parameter] = None
    return model


@cache
def _keep_packed_weights() -> None:
    """Replace the CPU kernel of ``deform_conv``, below all dispatch keys that change the arguments."""
    compiled = torch.library.get_kernel("dcnzoo::deform_conv", "CPU")

    def kernel(keys, *arguments):
        weight = arguments[1]
        if weight not in _packed:
            return compiled.call_boxed(keys, *arguments)
        if weight.requires_grad or weight.is_inference():  # inference tensors do not count their changes
            _packed.pop(weight, None)
            return compiled.call_boxed(keys, *arguments)
        state = _state(*arguments)
        known, _storage, packed = _packed.get(weight) or (None, None, None)
        if known != state:
            packed = None
        output, kept = torch.ops.dcnzoo._deform_conv_kept.default(*arguments, packed)
        if kept is not packed:
            _packed[weight] = (state, weight.untyped_storage(), kept)
        return output

    _backend.override("deform_conv", kernel, "CPU", with_keyset=True)


def _state(
    input: Tensor, weight: Tensor, offset: Tensor | None, mask: Tensor | None, *options: object
) -> tuple[object, ...]:
    """What the packed weight depends on. ``weight._version`` counts the changes that torch records."""
    _bias, _stride, _padding, _dilation, groups, _im2col_step = options
    channels = [0 if tensor is None else tensor.shape[1] for tensor in (offset, mask)]
    memory = (weight.data_ptr(), weight.dtype, weight.shape, weight.stride())
    return weight._version, *memory, groups, *channels
