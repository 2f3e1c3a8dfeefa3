"""Checks after a conversion: the network uses the new layers, and its output is the same."""

import copy
import warnings
import weakref
from collections.abc import Collection, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from dcnzoo.layers import packed
from dcnzoo.layers.forwards import replaced
from dcnzoo.utils.text import few

NOT_CALLED = "that are not called"


def require_used(model: nn.Module, names: Collection[str], example: Any) -> None:
    """Raise RuntimeError unless a copy of the model uses the layers, in training and in evaluation."""
    for training in (True, False):
        for what, lacking in _unused_layers(model, names, example, training).items():
            if lacking:
                raise RuntimeError(f"check: {_unused_text(lacking, training, what)}")


def require_same_output(model: nn.Module, converted: nn.Module, names: Collection[str], example: Any) -> None:
    """Raise RuntimeError if the conversion of these layers changes the output in evaluation.

    For this, the new layers compute with torch's convolutions, so that the results do not differ by rounding.
    """
    arguments, converted = _arguments(example), copy.deepcopy(converted).eval()
    modules: dict[str, Any] = dict(converted.named_modules(remove_duplicate=False))
    expected, again = (_run(copy.deepcopy(model).eval(), arguments) for _ in range(2))
    with replaced({modules[name]: modules[name].plain().forward for name in names}):
        output = _run(converted, arguments)
    if _equal(expected, again) and not _equal(expected, output):
        raise RuntimeError(
            "to_deformable: model: expected the same output in evaluation after the conversion, got another; "
            "does its code check classes, such as isinstance(layer, nn.Conv2d)?"
        )


def _arguments(example: Any) -> tuple:
    return example if isinstance(example, tuple) else (example,)


def _run(model: nn.Module, arguments: tuple, options: Mapping[str, Any] | None = None) -> Any:
    arguments, options = tree_map_only(Tensor, torch.clone, (arguments, dict(options or {})))
    with torch.no_grad(), torch.random.fork_rng():
        return model(*arguments, **options)


def _equal(outputs: Any, others: Any) -> bool:
    """Whether two outputs have the same tensors; on a GPU, repeated sums may differ by rounding."""
    one, two = ([x for x in tree_leaves(each) if isinstance(x, Tensor)] for each in (outputs, others))
    return len(one) == len(two) and all(
        x.shape == y.shape and torch.allclose(x.float(), y.float(), 1e-3, 1e-6, equal_nan=True)
        for x, y in zip(one, two, strict=True)
    )


def _weights_are_used(
    model: nn.Module, names: Collection[str], arguments: tuple, options: Mapping[str, Any] | None = None
) -> bool:
    """Whether a model uses the weights of these layers in evaluation, although it does not call the layers.

    A model that merges weights does. Auxiliary heads, which only a training calls, are not used: the output
    does not depend on them.
    """
    outputs = []
    for is_changed in (False, True):
        copied = copy.deepcopy(model).train()
        modules: dict[str, Any] = dict(copied.named_modules(remove_duplicate=False))
        for layer in (modules[name] for name in names):
            FirstForward.forget(layer)
            if is_changed:
                with torch.random.fork_rng():
                    layer.weight.data.normal_()
        outputs.append(_run(copied.eval(), arguments, options))
    return not _equal(*outputs)


def _unused_text(names: Collection[str], training: bool, what: str = NOT_CALLED) -> str:
    mode = "training" if training else "evaluation"
    expected = f"a forward pass in {mode} that calls the deformable layers"
    return f"model: expected {expected}, got layers {what}: {few([repr(name) for name in names], 3)}"


def _unused_layers(
    model: nn.Module, names: Collection[str], example: Any, training: bool
) -> dict[str, list[str]]:
    """The layers that a copy of the model does not call, and those whose offsets get no gradient."""
    original, model, arguments = model, copy.deepcopy(model), _arguments(example)
    packs: dict[str, Any] = dict(model.named_modules(remove_duplicate=False))
    called = set()
    for name in names:
        FirstForward.forget(packs[name])
        packs[name].register_forward_pre_hook(lambda module, args: called.add(module))
    model.train(training)  # some networks merge weights here
    try:
        with torch.set_grad_enabled(training), torch.random.fork_rng():
            outputs = model(*arguments)
    except Exception as error:
        expected = f"an input of the model's forward pass in {'training' if training else 'evaluation'}"
        raise RuntimeError(
            f"check: example: expected {expected}, got {type(error).__name__}: {error}"
        ) from error
    unused = {NOT_CALLED: [name for name in names if packs[name] not in called]}
    if not training and unused[NOT_CALLED] and not _weights_are_used(original, unused[NOT_CALLED], arguments):
        unused[NOT_CALLED] = []
    leaves = [x for x in tree_leaves(outputs) if isinstance(x, Tensor)]
    if training and leaves:  # there are none if the outputs are objects of an unknown class
        sums = [x.float().sum() for x in leaves if x.requires_grad]
        if sums:
            torch.stack(sums).sum().backward()
        predictors = {name: getattr(packs[name], "conv_offset", None) for name in names}
        without = [n for n, p in predictors.items() if p and p.weight.requires_grad and p.weight.grad is None]
        unused["whose offsets get no gradient"] = without
    return unused


class FirstForward:
    """Warns of converted layers that the first forward of a model in training or in evaluation does not call.

    A hook of the model, which removes itself, and is copied with it. The layers add to ``called``, through
    a weak reference: a layer neither keeps the model's other layers, nor is it copied with them. Calls are
    kept, with the layer's mode, so that a forward in another thread cannot lose them.
    """

    def __init__(self, model: nn.Module, names: Collection[str]) -> None:
        self.modes, self.called = {True, False}, cast(set[tuple[str, bool]], set())
        modules: dict[str, Any] = dict(model.named_modules(remove_duplicate=False))
        self.layers = weakref.WeakKeyDictionary((modules[name], name) for name in names)
        self.forget(*self.layers)
        self.handle = model.register_forward_hook(self.finish, with_kwargs=True)
        self.__setstate__(self.__getstate__())

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "layers": dict(self.layers)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # of a copy, which its layers do not refer to
        vars(self).update(state, layers=weakref.WeakKeyDictionary(state["layers"]))
        for layer, name in self.layers.items():  # the name, because views of a layer share its attributes
            vars(layer)["_first_forward"] = weakref.ref(self), name

    def finish(self, model: nn.Module, arguments: tuple, options: dict[str, Any], output: object) -> None:
        if torch.compiler.is_compiling() or model.training not in self.modes:
            return
        modules = dict(model.named_modules(remove_duplicate=False))
        if any(isinstance(m, torch.jit.ScriptModule) or m._compiled_call_impl for m in modules.values()):
            return
        try:
            self.modes.remove(model.training)
        except KeyError:  # another thread has finished first
            return
        present = {*modules.values()}
        names = [
            name
            for layer, name in self.layers.items()
            if (layer in present or isinstance(modules.get(name), packed._Pack))  # DataParallel has copies
            and (name, layer.training) not in self.called
        ]
        deleted = [n for n in self.layers.values() if n not in modules and n.rpartition(".")[0] in modules]
        try:
            is_fault = bool(names) and (model.training or _weights_are_used(model, names, arguments, options))
        except Exception:  # the model cannot be copied
            is_fault = True
        if names := (names if is_fault else []) + deleted:
            warnings.warn(f"to_deformable: {_unused_text(names, model.training)}", stacklevel=2)
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
