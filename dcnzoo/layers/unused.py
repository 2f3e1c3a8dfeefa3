"""Converted layers that a network does not use: it trains or predicts without their offsets."""

import copy
import warnings
import weakref
from collections.abc import Collection
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from dcnzoo.layers import packed
from dcnzoo.utils.text import few

NOT_CALLED = "that are not called"


def require_used(model: nn.Module, names: Collection[str], example: Any) -> None:
    """Raise RuntimeError unless a copy of the model uses the layers, in training and in evaluation."""
    for training in (True, False):
        for what, lacking in _unused(model, names, example, training).items():
            if lacking:
                raise RuntimeError(f"check: {_not_used(lacking, training, what)}")


def _not_used(names: Collection[str], training: bool, what: str = NOT_CALLED) -> str:
    mode = "training" if training else "evaluation"
    expected = f"a forward pass in {mode} that calls the deformable layers"
    return f"model: expected {expected}, got layers {what}: {few([repr(name) for name in names], 3)}"


def _unused(model: nn.Module, names: Collection[str], example: Any, training: bool) -> dict[str, list[str]]:
    """The layers that a copy of the model does not call, and those whose offsets get no gradient."""
    model = copy.deepcopy(model).train(training)
    modules, called = dict(model.named_modules(remove_duplicate=False)), set()
    for name in names:
        FirstForward.forget(modules[name])
        modules[name].register_forward_pre_hook(lambda module, args: called.add(module))
    arguments = example if isinstance(example, tuple) else (example,)
    try:
        with torch.set_grad_enabled(training):
            outputs = model(*arguments)
    except Exception as error:
        expected = f"an input of the model's forward pass in {'training' if training else 'evaluation'}"
        raise RuntimeError(
            f"check: example: expected {expected}, got {type(error).__name__}: {error}"
        ) from error
    unused = {NOT_CALLED: [name for name in names if modules[name] not in called]}
    leaves = [x for x in tree_leaves(outputs) if isinstance(x, Tensor) and x.requires_grad]
    if leaves:
        torch.stack([x.float().sum() for x in leaves]).sum().backward()
        predictors = {name: getattr(modules[name], "conv_offset", None) for name in names}
        without = [n for n, p in predictors.items() if p and p.weight.requires_grad and p.weight.grad is None]
        unused["whose offsets get no gradient"] = without
    return unused


class FirstForward:
    """Warns of converted layers that the first forward of a model in training or in evaluation does not call.

    A hook of the model, which removes itself, and is copied with it. The layers add to ``called``, through
    a weak reference: a layer neither keeps the model's other layers, nor is it copied with them. Notes are
    kept, by the layer's mode, so that a forward in another thread cannot lose them.
    """

    def __init__(self, model: nn.Module, names: Collection[str]) -> None:
        self.modes, self.called = {True, False}, cast(set[tuple[str, bool]], set())
        modules: dict[str, Any] = dict(model.named_modules(remove_duplicate=False))
        self.layers = {modules[name]: name for name in names}
        self.forget(*self.layers)
        self.handle = model.register_forward_hook(self.finish)
        self.__setstate__(vars(self))

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)  # of a copy, which its layers do not refer to
        for layer, name in self.layers.items():  # the name, because a fused view has copies of the layers
            vars(layer)["_first_forward"] = weakref.ref(self), name

    def finish(self, model: nn.Module, arguments: object, output: object) -> None:
        if torch.compiler.is_compiling() or model.training not in self.modes:
            return
        modules = dict(model.named_modules(remove_duplicate=False))
        if any(isinstance(m, torch.jit.ScriptModule) or m._compiled_call_impl for m in modules.values()):
            return
        try:
            self.modes.remove(model.training)
        except KeyError:  # another thread has finished first
            return
        packs = {name: module for name, module in modules.items() if isinstance(module, packed._Pack)}
        names = [name for name in self.layers.values() if name in packs]
        if names := [name for name in names if (name, packs[name].training) not in self.called]:
            warnings.warn(f"to_deformable: {_not_used(names, model.training)}", stacklevel=2)
        if not self.modes:
            self.forget(*self.layers)

    @staticmethod
    def forget(*layers: Any) -> None:
        """Remove the hooks of the layers' models, which :mod:`torch.jit.script` would compile."""
        for layer in layers:
            first = layer.first_forward() if isinstance(layer, packed._Pack) else None
            if first is not None:
                layer._first_forward = None
                first.handle.remove()
