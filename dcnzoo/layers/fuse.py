"""Inference on a CPU with fused layers: oneDNN computes a convolution, its batch norm, the sum with another
map and the activation in one call.

At each call of a model, :class:`Fuser` asks :func:`same_as` which layers compute what torch's classes do.
Only their ``forward`` is another one in this call (:mod:`.forwards`): everything else is the model's.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from dcnzoo.layers.forwards import Forwards, replaced
from dcnzoo.layers.packed import PackedDeformConv2d
from dcnzoo.layers.same_as import CALL, hooks, patched, same_as
from dcnzoo.ops import _torch_private as private
from dcnzoo.ops._arguments import can_read

Layer = Callable[..., Tensor]  # of x, and perhaps of another map
Unary = tuple[str, list, str]  # an activation, its numbers and its algorithm, as oneDNN's operators take them
DTYPES = (torch.float32, torch.bfloat16)  # of fused layers
# oneDNN's calls have a fixed cost and rearrange the weight: smaller layers stay as they are
LEAST_PIXELS, LEAST_PRODUCTS = 256, 2**23


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


Kernel = Callable[..., Tensor]
KERNELS: dict[type, Kernel] = {
    nn.Conv2d: _convolve,
    nn.Linear: _multiply,
    PackedDeformConv2d: _convolve_deformed,
}
UNARY: dict[type, Callable[[Any], Unary]] = {
    type(None): lambda module: ("none", [], ""),
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


@dataclass
class FusedLayer:
    """``activation(norm(layer(x)) + other)`` in one call where that is faster and oneDNN has the types.

    Attributes:
        unfused: computes it module by module.
        weights: the weights that contain a norm, or have another type, by the id of the layer's weight.
    """

    kernel: Kernel
    layer: Any
    norm: Any
    activation: Any
    read_unary: Callable[[Any], Unary]  # at each call: a forward may change the slope
    unfused: Layer
    weights: dict[int, tuple]

    def __call__(self, input: Tensor, other: Tensor | None = None) -> Tensor:
        mixed = torch.is_autocast_enabled("cpu")
        dtype = torch.get_autocast_dtype("cpu") if mixed else self.layer.weight.dtype
        if not (self._fits(input, dtype, mixed) and (other is None or self._adds(input, other, dtype))):
            return self.unfused(input, other)
        weight, bias = self._parameters(dtype)
        return self.kernel(self.layer, input, weight, bias, self.read_unary(self.activation), other)

    def _fits(self, input: Tensor, dtype: torch.dtype, mixed: bool) -> bool:
        # derivatives, other classes of tensors, traces and modes need the calls of the model itself
        if torch.is_grad_enabled() or private.in_dual_level():
            return False
        if type(input) is not Tensor or input.is_nested or not can_read(input):
            return False
        if private.in_dispatch_mode() or private.function_modes():
            return False
        if self.norm is not None and self.norm.training:
            return False
        if self.kernel is _convolve:
            geometry = (self.layer.padding, self.layer.stride, self.layer.dilation)
            if self.layer.padding_mode != "zeros" or not all(isinstance(value, tuple) for value in geometry):
                return False
        deformed, weight = self.kernel is _convolve_deformed, self.layer.weight
        channels = weight.shape[1] * getattr(self.layer, "groups", 1)
        products = weight.numel() // channels  # for each number of the input, at most
        least = 1 if deformed else max(LEAST_PIXELS * channels, LEAST_PRODUCTS // products)
        # oneDNN raises an error for bfloat16 on CPUs that it does not support, such as x86 without AVX-512
        computed = DTYPES if deformed or private.multiplies_bfloat16() else DTYPES[:1]
        is_map = self.kernel is not _multiply
        if (is_map and input.dim() != 4) or input.shape[1 if is_map else -1] != channels:
            return False
        known = (*DTYPES, torch.float16) if mixed else (dtype,)  # autocast does not convert float64
        return dtype in computed and input.dtype in known and input.numel() >= least

    def _adds(self, input: Tensor, other: Tensor, dtype: torch.dtype) -> bool:  # only in channels-last order
        is_last = min(input.shape[1:]) > 1 and input.is_contiguous(memory_format=torch.channels_last)
        fits = self.kernel is _convolve and self.read_unary(self.activation)[0] in ("none", "relu")
        return fits and is_last and other.dtype == dtype

    def _parameters(self, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
        """Return weight and bias in a type, with the norm: the stored ones if no value has changed since."""
        weight, bias, norm = self.layer.weight, self.layer.bias, self.norm
        if norm is None and dtype == weight.dtype:
            return weight, bias
        statistics = [] if norm is None else [norm.running_mean, norm.running_var, norm.weight, norm.bias]
        key = (dtype, None if norm is None else norm.eps)
        numbers = _fingerprint(weight, bias, *statistics)
        stored = self.weights.get(id(weight))  # equal numbers: also right if another weight had the id
        if stored is None or stored[0] != key or not torch.equal(stored[1], numbers):
            fused_weight, fused_bias = weight, bias
            if norm is not None:
                mean, variance, scale, shift = statistics
                fused_weight, fused_bias = fuse_conv_bn_weights(
                    weight, bias, mean, variance, norm.eps, scale, shift
                )
            fused_bias = None if fused_bias is None else fused_bias.detach().to(dtype)
            stored = self.weights[id(weight)] = (key, numbers, (fused_weight.detach().to(dtype), fused_bias))
        return stored[2]


@lru_cache(256)
def _random_factors(length: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(length, generator=generator, dtype=torch.float32, device="cpu")


def _fingerprint(weight: Tensor, *vectors: Tensor | None) -> Tensor:
    """Return numbers that differ if a layer's values do: writes to ``.data`` are counted nowhere.

    They are the vectors, and the layer's outputs, without bias, for one input of random numbers.
    """
    rows = weight.detach()
    if rows.dim() == 4 and rows.is_contiguous(memory_format=torch.channels_last):
        rows = rows.permute(0, 2, 3, 1)
    rows = rows.flatten(1).float()
    outputs = torch.mv(rows, _random_factors(rows.shape[1]))
    return torch.cat([outputs, *(vector.detach() for vector in vectors if vector is not None)])


class Fuser:
    """Finds the layers of a model that can be fused.

    Args:
        blocks: by class, functions that return other forwards for a module and its parts; they apply to
            subclasses that run the same forward.
        equal: classes that compute what another one does, which this module has.
    """

    def __init__(self, blocks: "Mapping[type, Block]", equal: Mapping[type, type]) -> None:
        self.blocks, self.equal = {nn.Sequential: sequential, **blocks}, equal
        self.weights: dict[int, tuple] = {}

    def __reduce__(self) -> tuple:  # copies and pickles are without the stored weights
        return Fuser, (self.blocks, self.equal)

    def forwards(self, model: nn.Module) -> dict[nn.Module, Layer]:
        """Other forwards that compute the same, faster; empty on other devices than a CPU.

        Layers with hooks stay as they are, and with hooks for all modules or another ``nn.Module.__call__``,
        every layer does.
        """
        forwards: dict[nn.Module, Layer] = {}
        parameters = {id(parameter): parameter for parameter in model.parameters()}
        if any(parameter.device.type != "cpu" for parameter in parameters.values()):
            return forwards
        for number in [*self.weights]:
            if number not in parameters:
                self.weights.pop(number, None)
        if (
            private.FUSED_LAYERS in private.missing
            or private.has_any_global_hook()
            or patched(nn.Module, CALL)
        ):
            return forwards
        for module in model.modules():
            if block := self._lookup(self.blocks, module):
                for part, forward in block(module, self).items():
                    forwards.setdefault(part, forward)  # a block's, before those of its parts
        return forwards

    def __call__(
        self, layer: nn.Module, norm: nn.Module | None = None, activation: nn.Module | None = None
    ) -> Layer:
        """Return ``activation(norm(layer(x)) + other)``, a function of ``x`` and perhaps ``other``.

        The modules are called one by one if they cannot be fused.
        """
        if norm is activation is None:
            return layer  # whose hooks run
        return self.fused_layer(layer, norm, activation) or _compose(layer, norm, activation)

    def fused_layer(
        self, layer: Any, norm: nn.Module | None = None, activation: nn.Module | None = None
    ) -> FusedLayer | None:
        """Return the same in one call; None with unknown classes, and with hooks, which it would not call."""
        kernel, read_unary = self.kernel(layer), UNARY[type(None)]
        if kernel is None:
            return None
        if norm is not None and not (
            kernel is not _multiply and self.is_norm(norm) and norm.num_features == len(layer.weight)
        ):
            return None
        if activation is not None:
            if not self.is_activation(activation):
                return None
            read_unary = self._lookup(UNARY, activation)
            if kernel is _convolve_deformed and read_unary is not UNARY[nn.ReLU]:
                return None
        parts = [part for part in (layer, norm, activation) if part is not None]
        if len(parts) > 1 and any(hooks(part, of_calls=True) for part in parts):
            return None
        steps = (
            None if part is None else partial(type(part).forward, part) for part in (layer, norm, activation)
        )
        return FusedLayer(kernel, layer, norm, activation, read_unary, _compose(*steps), self.weights)

    def kernel(self, layer: Any) -> Kernel | None:
        """Return the function that computes the layer with other weights, if there is one."""
        kernel = self._lookup(KERNELS, layer)
        if kernel is None or layer.weight.dtype not in DTYPES or getattr(layer, "track_offsets", False):
            return None
        return kernel

    def is_norm(self, module: Any) -> bool:
        """Whether the weights of a convolution can contain the module."""
        is_batch_norm = same_as(module, (nn.BatchNorm2d,)) is not None and module.running_mean is not None
        return is_batch_norm and not module.training

    def is_activation(self, module: nn.Module) -> bool:
        return self._lookup(UNARY, module) is not None

    def _lookup(self, table: Mapping[type, Any], module: nn.Module) -> Any:
        return table.get(same_as(module, table, self.equal))


# Blocks: functions that return other forwards for a module and its parts

Block = Callable[[Any, Fuser], Forwards]


def sequential(module: nn.Sequential, fuser: Fuser) -> Forwards:
    """A layer, its norm and its activation in succession are one."""
    steps: list[Layer] = []
    rest = list(module)
    while rest:
        layer, norm, activation = rest.pop(0), None, None
        if fuser.kernel(layer) is not None:
            if rest and fuser.is_norm(rest[0]):
                norm = rest.pop(0)
            if rest and fuser.is_activation(rest[0]):
                activation = rest.pop(0)
        steps.append(fuser(layer, norm, activation))

    def forward(input: Tensor) -> Tensor:
        for step in steps:
            input = step(input)
        return input

    return {module: forward}


def fused(
    model: nn.Module, blocks: Mapping[type, Block] | None = None, equal: Mapping[type, type] | None = None
) -> Callable[..., Any]:
    """A function that runs a model for inference with fused layers, if it is on a CPU::

        predict = dcnzoo.fused(network)
        outputs = predict(images)

    In an ``nn.Sequential``, a convolution, its batch norm and its activation are one call of oneDNN. Measure
    it: each call looks at all modules, which takes small networks longer than they gain. Results
    differ by rounding, and oneDNN's ReLU gives 0 for NaN: if a NaN must reach the outputs, use the model. The
    model itself runs, and each call uses its weights, hooks and modules as they are when it begins, however
    they are written: a layer that a subclass, a hook or a parametrization changes runs as in the model. Not
    seen are hooks and modules that a forward itself sets, and functions of torch that others replace.
    Several threads may call the function. The steps of a generator run later, as in the model.

    Args:
        blocks: functions that fuse other blocks, by their class, as in :mod:`dcnzoo.openmmlab.fuse`.
        equal: classes that compute what another one does, such as ``{MyConv2d: nn.Conv2d}``.

    Raises:
        TypeError: the model is not a module.
        RuntimeError: the model is in training at a call.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"fused: model: expected an nn.Module, got {type(model).__name__}")
    return partial(_predict, model, Fuser(blocks or {}, equal or {}))


@torch.no_grad()
def _predict(model: nn.Module, fuser: Fuser, /, *args: Any, **kwargs: Any) -> Any:
    if model.training:
        raise RuntimeError("fused: model: expected evaluation, got training; call model.eval() first")
    with replaced(fuser.forwards(model)):
        return model(*args, **kwargs)
