"""Inference on a CPU with fused layers: oneDNN computes a convolution, its batch norm, the sum with another
map and the activation in one call.

A model is never changed: :func:`view` copies its modules, but not its parameters, and :class:`Fuser` replaces
``forward`` in the copies. The model itself gives the same bits as before. What a forward of the copies stores
in attributes, :func:`stores` stores in the model.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache, partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from dcnzoo.layers.packed import PackedDeformConv2d
from dcnzoo.layers.same_as import hooks, same_as
from dcnzoo.ops import _torch_private as private

Copies = dict[nn.Module, nn.Module]  # module of the model -> its copy in the view
Layer = Callable[..., Tensor]  # of x, and perhaps of another map
Unary = tuple[str, list, str]  # an activation, its numbers and its algorithm, as oneDNN's operators take them
DTYPES = (torch.float32, torch.bfloat16)  # of fused layers
# oneDNN's calls cost 40 µs and rearrange the weight: other layers stay as they are
LEAST_PIXELS, LEAST_PRODUCTS = 256, 2**23


def view(model: nn.Module) -> Copies:
    """Copy a model's modules for inference; parameters, buffers and hooks are shared with the model.

    They belong to the caller, who can change them. They have the modes of their modules, but are all in
    evaluation if the model is in training.
    """
    copies: Copies = {}
    for module in model.modules():
        copies[module] = module
        if not isinstance(module, torch.jit.ScriptModule):
            copies[module] = copy = object.__new__(type(module))
            copy.__dict__.update(module.__dict__, training=module.training and not model.training)
    for module, copy in copies.items():
        if copy is not module:
            children = module._modules.items()
            copy.__dict__["_modules"] = {name: child and copies[child] for name, child in children}
    return copies


@contextlib.contextmanager
def stores(copies: Copies) -> Iterator[None]:
    """A context for calls of the copies: an attribute that changes in a copy is stored in its module, too."""
    before = {copy: dict(vars(copy)) for copy in copies.values()}
    try:
        yield
    finally:
        for module, copy in copies.items():
            vars(module).update((n, v) for n, v in vars(copy).items() if v is not before[copy].get(n))


# Kernels: a layer with other weights, then an activation


def _convolve(
    conv: Any, x: Tensor, weight: Tensor, bias: Tensor | None, unary: Unary, other: Tensor | None
) -> Tensor:
    x, geometry = x.to(weight.dtype), (conv.padding, conv.stride, conv.dilation, conv.groups)
    if other is None:
        return private.conv_pointwise(x, weight, bias, *geometry, *unary)
    other = other.contiguous(memory_format=torch.channels_last)
    return private.conv_pointwise.binary(x, other, weight, bias, *geometry, "add", 1.0, *unary)


def _multiply(
    linear: Any, x: Tensor, weight: Tensor, bias: Tensor | None, unary: Unary, other: None
) -> Tensor:
    return private.linear_pointwise(x.to(weight.dtype), weight, bias, *unary)


def _convolve_deformed(
    conv: Any, x: Tensor, weight: Tensor, bias: Tensor | None, unary: Unary, other: None
) -> Tensor:
    same = object.__new__(type(conv))  # a patch may choose another kernel in the layer's own method
    same.__dict__.update(conv.__dict__, _parameters={"weight": weight, "bias": bias})
    output = same._convolve(x.to(weight.dtype), *conv.predict(x))  # which may predict in float32
    return output.relu_() if unary[0] == "relu" else output


KERNELS: dict[type, Callable[..., Tensor]] = {
    nn.Conv2d: _convolve,
    nn.Linear: _multiply,
    PackedDeformConv2d: _convolve_deformed,
}
UNARY: dict[type, Callable[[Any], Unary]] = {
    nn.ReLU: lambda module: ("relu", [], ""),
    nn.SiLU: lambda module: ("swish", [], ""),
    nn.LeakyReLU: lambda module: ("leaky_relu", [module.negative_slope], ""),
    nn.GELU: lambda module: ("gelu", [], module.approximate),
}


def _compose(layer: Any, norm: Any, activation: Any) -> Layer:
    def forward(input: Tensor, other: Tensor | None = None) -> Tensor:
        x = layer(input)
        x = x if norm is None else norm(x)
        x = x if other is None else x + other
        return x if activation is None else activation(x)

    return forward


class Layers:
    """Makes the fused layers of one view."""

    def __init__(self, copies: Copies, fuser: "Fuser") -> None:
        self.copies, self._fuser = copies, fuser

    def _lookup(self, table: Mapping[type, Any], module: nn.Module) -> Any:
        return table.get(same_as(module, table, self._fuser.equal))

    def kernel(self, layer: Any) -> Callable[..., Tensor] | None:
        """Return the function that computes the layer with other weights, if there is one."""
        kernel = self._lookup(KERNELS, layer)
        if kernel is None or layer.weight.dtype not in DTYPES or getattr(layer, "track_offsets", False):
            return None
        if kernel is _convolve and (layer.padding_mode != "zeros" or isinstance(layer.padding, str)):
            return None
        return kernel

    def block(self, module: nn.Module) -> Callable[[Any, "Layers"], Layer | None]:
        """Return the function that fuses the module."""
        return self._lookup(self._fuser.blocks, module) or single

    def is_norm(self, module: Any) -> bool:
        """Whether the weights of a convolution can contain the module."""
        is_batch_norm = same_as(module, (nn.BatchNorm2d,)) is not None and module.running_mean is not None
        return is_batch_norm and not self.copies[module].training

    def is_activation(self, module: nn.Module) -> bool:
        return self._lookup(UNARY, module) is not None

    def __call__(
        self, layer: nn.Module, norm: nn.Module | None = None, activation: nn.Module | None = None
    ) -> Layer:
        """Return ``activation(norm(layer(x)) + other)``, a function of ``x`` and perhaps ``other``.

        The arguments are modules of the model. They are called one by one if they cannot be fused.
        """
        steps = [part and self.copies[part] for part in (layer, norm, activation)]
        return self.fused(layer, norm, activation) or _compose(*steps)

    def fused(
        self, layer: Any, norm: nn.Module | None = None, activation: nn.Module | None = None
    ) -> Layer | None:
        """Return the fused function; None with unknown classes, and with hooks, which it would not call.

        The function calls the modules one by one with few products and with types that oneDNN lacks.
        """
        kernel = self.kernel(layer)
        unary: Unary = ("none", [], "")
        parts = [part for part in (norm, activation) if part is not None]
        hooked = any(hooks(part, forward_only=True) for part in (layer, *parts))
        if kernel is None or (parts and hooked):
            return None
        if norm is not None and (kernel is _multiply or not self.is_norm(norm)):
            return None
        if activation is not None:
            if not self.is_activation(activation):
                return None
            unary = self._lookup(UNARY, activation)(activation)
            if kernel is _convolve_deformed and unary[0] != "relu":
                return None
        copy = self.copies[layer]
        channels = layer.weight.shape[1] * getattr(layer, "groups", 1)
        products = layer.weight.numel() // channels  # for each number of the input, at most
        least = (
            1 if kernel is _convolve_deformed else max(LEAST_PIXELS * channels, LEAST_PRODUCTS // products)
        )
        steps = [
            part and partial(type(part).forward, self.copies[part]) for part in (layer, norm, activation)
        ]
        unfused = _compose(*steps)
        # oneDNN raises an error for bfloat16 on CPUs that it does not support, such as x86 without AVX-512
        computed = DTYPES if kernel is _convolve_deformed or private.multiplies_bfloat16() else DTYPES[:1]

        def forward(input: Tensor, other: Tensor | None = None) -> Tensor:
            mixed = torch.is_autocast_enabled("cpu")
            dtype = torch.get_autocast_dtype("cpu") if mixed else layer.weight.dtype
            fits = dtype in computed and input.numel() >= least and (mixed or input.dtype == dtype)
            fits = fits and (kernel is _multiply or input.dim() == 4)  # not a picture without a batch axis
            if other is not None:  # oneDNN adds only in channels-last order
                fits = fits and kernel is _convolve and min(input.shape[1:]) > 1
                fits = fits and input.is_contiguous(memory_format=torch.channels_last)
                fits = fits and other.dtype == dtype and unary[0] in ("none", "relu")
            if not fits:
                return unfused(input, other)
            weight, bias = self._parameters(layer, norm, dtype)
            return kernel(copy, input, weight, bias, unary, other)

        return forward

    def _parameters(self, layer: Any, norm: Any, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
        """Return weight and bias in a type, with the norm: the stored ones if no value has changed since."""
        weight, bias = layer.weight, layer.bias
        if norm is None and dtype == weight.dtype:
            return weight, bias
        statistics = [] if norm is None else [norm.running_mean, norm.running_var, norm.weight, norm.bias]
        key = (dtype, None if norm is None else norm.eps)
        numbers = _numbers(weight, bias, *statistics)
        stored = self._fuser.weights.get(layer)
        if stored is None or stored[0] != key or not torch.equal(stored[1], numbers):
            if norm is not None:
                mean, variance, scale, shift = statistics
                weight, bias = fuse_conv_bn_weights(weight, bias, mean, variance, norm.eps, scale, shift)
            bias = None if bias is None else bias.detach().to(dtype)
            stored = self._fuser.weights[layer] = (key, numbers, (weight.detach().to(dtype), bias))
        return stored[2]


@lru_cache(256)
def _factors(length: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(length, generator=generator, dtype=torch.float32, device="cpu")


def _numbers(weight: Tensor, *vectors: Tensor | None) -> Tensor:
    """Return numbers that differ if a layer's values do: writes to ``.data`` are counted nowhere.

    They are the vectors, and the layer's outputs, without bias, for one input of random numbers. This reads
    the weights once: 1 % of the time of a ResNet-50 for 800×1344 pixels, 3 to 4 % for 400×672.
    """
    rows = weight.detach()
    if rows.dim() == 4 and rows.is_contiguous(memory_format=torch.channels_last):
        rows = rows.permute(0, 2, 3, 1)
    rows = rows.flatten(1).float()
    outputs = torch.mv(rows, _factors(rows.shape[1]))
    return torch.cat([outputs, *(vector.detach() for vector in vectors if vector is not None)])


# Blocks: functions that return the fused ``forward`` of a module, or None


def single(module: Any, layers: Layers) -> Layer | None:
    return layers.fused(module) if layers.kernel(module) in (_convolve, _multiply) else None


def sequential(module: nn.Sequential, layers: Layers) -> Layer:
    """A layer, its norm and its activation in succession are one."""
    steps: list[Layer] = []
    rest = list(module)
    while rest:
        layer, norm, activation = rest.pop(0), None, None
        if layers.kernel(layer) is not None:
            if rest and layers.is_norm(rest[0]):
                norm = rest.pop(0)
            if rest and layers.is_activation(rest[0]):
                activation = rest.pop(0)
        alone = norm is activation is None
        steps.append(layers.copies[layer] if alone else layers(layer, norm, activation))

    def forward(input: Tensor) -> Tensor:
        for step in steps:
            input = step(input)
        return input

    return forward


class Fuser:
    """Fuses the layers of views, and stores the weights that contain a batch norm.

    Args:
        blocks: a function for each class; it applies to subclasses that run the same forward.
        equal: classes that compute what another one does, which this module has.
    """

    def __init__(
        self,
        blocks: Mapping[type, Callable[[Any, Layers], Layer | None]],
        equal: Mapping[type, type],
    ) -> None:
        self.blocks, self.equal = {nn.Sequential: sequential, **blocks}, equal
        self.weights: WeakKeyDictionary[nn.Module, tuple] = WeakKeyDictionary()

    def __reduce__(self) -> tuple:  # copies and pickles are without the stored weights
        return Fuser, (self.blocks, self.equal)

    def fuse(self, copies: Copies) -> int:
        """Fuse the layers of a view, and return the number of modules with another ``forward``.

        Layers with hooks stay as they are, and with hooks for all modules, every layer does. Hooks that are
        added later may not be called.
        """
        if private.has_any_global_hook():
            return 0
        layers = Layers(copies, self)
        for module, copy in copies.items():
            forward = layers.block(module)(module, layers)
            if forward is not None and "forward" not in copy.__dict__:
                copy.__dict__["forward"] = forward
        return sum("forward" in copy.__dict__ for copy in copies.values())


def fused(
    model: nn.Module,
    blocks: Mapping[type, Callable[[Any, Layers], Layer | None]] | None = None,
    equal: Mapping[type, type] | None = None,
) -> Callable[..., Any]:
    """A function that runs a model for inference, faster on a CPU::

        predict = dcnzoo.fused(network)
        outputs = predict(images)

    In an ``nn.Sequential``, a convolution, its batch norm and its activation are one call of oneDNN. Results
    differ by rounding. The model keeps its modules and its ``forward``, and each call uses its weights, hooks
    and modules as they are then, however they are written: a layer that a subclass, a hook or a
    parametrization changes runs as in the model. What a forward stores in attributes is stored in the model.

    Args:
        blocks: functions that fuse other blocks, by their class, as in :mod:`dcnzoo.openmmlab.fuse`.
        equal: classes that compute what another one does, such as ``{MyConv2d: nn.Conv2d}``.

    Raises:
        RuntimeError: the model is in training at a call.
    """
    return partial(_predict, model, Fuser(blocks or {}, equal or {}))


@torch.no_grad()
def _predict(model: nn.Module, fuser: Fuser, /, *args: Any, **kwargs: Any) -> Any:
    if model.training:  # a module that is reached without its copy would train
        raise RuntimeError("fused: model: expected evaluation, got training; call model.eval() first")
    copies = view(model)
    parameter = next(model.parameters(), None)
    if (
        parameter is not None
        and parameter.device.type == "cpu"
        and private.FUSED_LAYERS not in private.missing
    ):
        fuser.fuse(copies)
    with stores(copies):
        return copies[model](*args, **kwargs)
