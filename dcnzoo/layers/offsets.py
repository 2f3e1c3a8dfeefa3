"""Prediction of offsets: convolutions, limit and learning rate."""

from collections.abc import Callable, Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dcnzoo.layers.base import refuse
from dcnzoo.layers.statistics import tracks_offsets
from dcnzoo.ops.tracing import can_read

if TYPE_CHECKING:
    from typing_extensions import Self  # of Python 3.11


class OffsetPredictor(nn.Module):
    """Mixin: the weight starts at zero, the bias at zero or ``start``; they stay there until training.

    A call raises RuntimeError if a norm of the weight, such as ``weight_norm``, has turned the zero weight
    into NaN: all samples would be zero, without an error and without gradients.

    Attributes:
        start: initial values of the bias. None: zero.
    """

    if TYPE_CHECKING:  # for type checkers only: TorchScript must not see these annotations
        weight: Tensor
        bias: Tensor | None
    start: list[float] | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        output = super().__call__(*args, **kwargs)
        if "weight" not in self._parameters and can_read(self.weight) and not self.weight.isfinite().all():
            expected = "finite numbers (apply a norm of the weight after training)"
            refuse(self, "weight", expected, "NaN", RuntimeError)
        return output

    @torch.no_grad()
    def reset_parameters(self) -> None:
        for name in ("weight", "bias"):
            parameter = self._parameters.get(name)  # None if weight_norm or prune computes it
            if parameter is not None:  # not nn.init.zeros_, which Transformers disables at times
                parameter.copy_(self._start_of(parameter))

    def _start_of(self, parameter: Tensor) -> Tensor:
        if self.start is None or parameter.dim() > 1:
            return torch.zeros_like(parameter)
        return parameter.new_tensor(self.start)

    def apply(self, fn: Callable[[nn.Module], None]) -> "Self":
        """Apply ``fn`` as ``nn.Module`` does, but restore a predictor that had its initial values.

        ``network.apply(init)`` would otherwise start the training with random offsets.
        """
        values = [value for value in (self.weight, self.bias) if value is not None]
        is_at_start = all(can_read(v) and torch.equal(v, self._start_of(v)) for v in values)
        super().apply(fn)
        if is_at_start:
            self.reset_parameters()
        return self


# mmengine initialises layers by class name (layer='Conv2d'), which it compares with a module's class and its
# direct bases. The class in between excludes these layers from a parent's Kaiming initialisation, while
# isinstance(…, nn.Conv2d), which mmengine's dcn_offset_lr_mult uses, is still true.
class _ZeroConv1d(OffsetPredictor, nn.Conv1d):
    pass


class _ZeroConv2d(OffsetPredictor, nn.Conv2d):
    pass


class _ZeroConv3d(OffsetPredictor, nn.Conv3d):
    pass


class _ZeroLinear(OffsetPredictor, nn.Linear):  # type: ignore[misc]  # its bias may be None
    pass


class OffsetConv1d(_ZeroConv1d):
    """:class:`OffsetConv2d` in 1-D."""


class OffsetConv2d(_ZeroConv2d):
    """Predicts offsets or masks: an ``nn.Conv2d`` that starts at zero.

    It stays at zero until training: ``init_weights()`` of an OpenMMLab model does not change it, nor does
    ``model.apply(init)``.
    """


class OffsetConv3d(_ZeroConv3d):
    """:class:`OffsetConv2d` in 3-D."""


class OffsetLinear(_ZeroLinear):
    """:class:`OffsetConv2d` as an ``nn.Linear``, for channels-last maps."""


def limit_offset(offset: Tensor, limit: float) -> Tensor:
    """Bounds offsets smoothly to ±``limit`` pixels: ``limit · tanh(offset / limit)``.

    Small offsets are almost unchanged (slope 1 at 0), large ones saturate, and an infinite one becomes
    ±``limit``. Samples therefore stay near the regular grid for any prediction. A prediction far beyond the
    limit gets almost no gradient, so it stays there.
    """
    return limit * torch.tanh(offset / limit)


def accept_legacy_offsets(model: nn.Module) -> None:
    """Makes ``model.load_state_dict`` accept keys from before mmcv 1.0.

    Such keys are beside the layer, not in it: ``conv2_offset.weight`` for ``conv2.conv_offset.weight``. torch
    passes a layer only the keys below its own name, so a module above the layer must rename them.
    """
    model.register_load_state_dict_pre_hook(_rename_legacy_offsets)


def _rename_legacy_offsets(model: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_: object) -> None:
    for name, layer in model.named_modules():
        if not name or not tracks_offsets(layer) or not hasattr(layer, "conv_offset"):
            continue
        for parameter in ("weight", "bias"):
            old, new = f"{prefix}{name}_offset.{parameter}", f"{prefix}{name}.conv_offset.{parameter}"
            if old in state_dict and new not in state_dict:
                state_dict[new] = state_dict.pop(old)


def offset_parameter_groups(
    model: nn.Module, lr: float, offset_lr_mult: float = 0.1, groups: Sequence[dict[str, Any]] | None = None
) -> list[dict[str, Any]]:
    """Returns optimizer parameter groups with a lower learning rate for predictors of offsets and masks.

    Example: ``torch.optim.AdamW(offset_parameter_groups(model, lr=1e-3), weight_decay=0.05)``. In a config of
    mmengine, ``dcn_offset_lr_mult`` has this effect.

    Args:
        model: a model with layers of :mod:`dcnzoo.layers` or :mod:`dcnzoo.models` that predict offsets.
        lr: learning rate of all other parameters.
        offset_lr_mult: the predictors' learning rate, as a multiple of ``lr``, or of the group's rate.
        groups: existing groups to split, with their options, such as exemptions from weight decay (timm's
            ``param_groups_weight_decay(model)``). Default: one group of all parameters.

    Returns:
        For each group, a group of all other parameters and a group of the predictors', without empty groups.
        Each parameter is in one group.

    Raises:
        TypeError: ``model`` is not a module.
        ValueError: ``lr`` or ``offset_lr_mult`` is not a number of at least 0, or the model has predictors,
            but ``groups`` has none of their parameters.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"offset_parameter_groups: model: expected an nn.Module, got {type(model).__name__}")
    for name, value in (("lr", lr), ("offset_lr_mult", offset_lr_mult)):
        if not isinstance(value, Real | Tensor) or not value >= 0:  # optimizers do not check a group's lr
            raise ValueError(f"offset_parameter_groups: {name}: expected at least 0, got {value!r}")
    predictors: list[nn.Module] = [m for m in model.modules() if isinstance(m, OffsetPredictor)]
    features = (getattr(module, "offset_features", None) for module in model.modules())
    predictors += [module for module in features if isinstance(module, nn.Module)]  # prediction='separable'
    offsets = {id(parameter) for module in predictors for parameter in module.parameters()}
    split, has_offsets = [], False
    for group in [{"params": model.parameters()}] if groups is None else groups:
        entries = [group["params"]] if isinstance(group["params"], Tensor) else list(group["params"])
        options = {"lr": lr, **group}
        others: list[Any] = []
        predictions: list[Any] = []
        for entry in entries:  # a parameter, or a (name, parameter) pair
            parameter = entry[1] if isinstance(entry, tuple) else entry
            (predictions if id(parameter) in offsets else others).append(entry)
        has_offsets |= bool(predictions)
        for parameters, factor in ((others, 1.0), (predictions, offset_lr_mult)):
            if parameters:
                split.append({**options, "params": parameters, "lr": options["lr"] * factor})
    if split and offsets and not has_offsets:
        raise ValueError(
            "offset_parameter_groups: groups: expected parameters that predict offsets, got none of them: "
            "make the groups after the conversion"
        )
    return split
