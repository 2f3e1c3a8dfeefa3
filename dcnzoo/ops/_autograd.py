"""Registers derivatives, as ``torch.library.register_autograd`` does, and makes them ``torch.func``'s too.

torch's own registration refuses ``torch.func.grad`` and its kin, and lets forward-mode tangents vanish.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch._functorch.autograd_function import enable_single_level_autograd_function
from torch.autograd import forward_ad
from torch.autograd.function import _SingleLevelFunction

_library = torch.library.Library("dcnzoo", "IMPL")


def register_autograd(
    name: str, setup_context: Callable, backward: Callable, in_plain_torch: Callable | None = None
) -> None:
    """Give the operator ``dcnzoo::name`` its derivatives, in the form of ``torch.autograd.Function``.

    Forward mode goes through ``in_plain_torch``, which takes the same arguments; without it, it is an error.
    """
    operator = getattr(torch.ops.dcnzoo, name).default

    def below_autograd(*arguments):
        *arguments, keys = arguments
        with torch._C._AutoDispatchBelowAutograd():
            return operator.redispatch(keys & torch._C._after_autograd_keyset, *arguments)

    def forward(*arguments):
        if not torch._C._are_functorch_transforms_active():
            return below_autograd(*arguments)
        # Only this transform's graph is complete: the ones beneath it have theirs still to record.
        with torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True):
            return below_autograd(*arguments)

    # Of a single level: that of the transform which is being applied, or plain autograd's. The dispatcher
    # takes the tensors through the others.
    function = type(
        f"dcnzoo_{name}",
        (_SingleLevelFunction,),
        {
            "forward": staticmethod(forward),
            "setup_context": staticmethod(
                lambda ctx, inputs, output: setup_context(ctx, inputs[:-1], output)
            ),
            "backward": staticmethod(lambda ctx, *grads: (*backward(ctx, *grads), None)),
        },
    )

    def autograd(keys, *arguments):
        forward_mode = forward_ad._current_level >= 0
        if forward_mode and in_plain_torch is not None:
            return in_plain_torch(*arguments)
        if forward_mode or (torch.is_grad_enabled() and torch._C._any_requires_grad(*arguments)):
            with enable_single_level_autograd_function():
                return function.apply(*arguments, keys)
        return below_autograd(*arguments, keys)

    _library.impl(name, autograd, "Autograd", with_keyset=True)
