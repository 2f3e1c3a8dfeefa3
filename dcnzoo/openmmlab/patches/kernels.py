"""Patches that run OpenMMLab's layers on dcnzoo: the kernels of ``mmcv.ops``, and classes in registries."""

from collections.abc import Callable
from functools import partial, wraps
from importlib import import_module
from types import ModuleType

import torch
from mmengine.registry import Registry
from torch import Tensor

from dcnzoo.compat import mmcv
from dcnzoo.compat.patches import Changes, Patch
from dcnzoo.openmmlab.patches.devices import attends_on_dcnzoo, runs_on_dcnzoo
from dcnzoo.ops import ms_deform_attn
from dcnzoo.ops.deform_attn import level_starts
from dcnzoo.ops.tracing import exporting

OPERATORS = ("deform_conv", "modulated_deform_conv", "deform_roi_pool", "multi_scale_deform_attn")


class ByDevice:
    """Replacement of ``ext_module`` in a module of mmcv: dcnzoo's functions or mmcv's, by device."""

    def __init__(self, operator: str, dcnzoos: ModuleType, mmcvs: ModuleType) -> None:
        self.operator, self.dcnzoos, self.mmcvs = operator, dcnzoos, mmcvs

    def __getattr__(self, name: str) -> Callable:
        def call(first: Tensor, *args: object, **kwargs: object) -> object:
            module = self.dcnzoos if runs_on_dcnzoo(self.operator, first.device) else self.mmcvs
            return getattr(module, name)(first, *args, **kwargs)

        return call


def kernels() -> list[Patch]:
    """Patches that run mmcv's own deformable layers on dcnzoo's operators, if ``runs_on_dcnzoo`` is true.

    To replace the registry's entries is not enough: several heads import ``DeformConv2d`` and
    ``ModulatedDeformConv2d`` directly, and RoI extractors look up the deformable RoI pools in ``mmcv.ops``.
    All of these use ``ext_module`` of their module at every call, so the patches replace it. On the CPU, a
    compiled mmcv has no deformable RoI pooling, and a function in PyTorch for the attention, which the patch
    replaces too.
    """
    reason = "mmcv-lite has no kernels, and a compiled mmcv's CPU kernels are slower"
    return [
        Patch(name, f"mmcv.ops.{name}.ext_module", reason, "mmcv 2.0 to 2.2", partial(_replace_kernels, name))
        for name in OPERATORS
    ]


def _replace_kernels(operator: str, changes: Changes) -> None:
    extension, compiled = import_module("dcnzoo.compat.mmcv._ext"), mmcv.compiled_extension()
    # not `import … as`: mmcv.ops has functions with the names of its modules
    module = import_module(f"mmcv.ops.{operator}")
    changes.set(module, "ext_module", ByDevice(operator, extension, compiled) if compiled else extension)
    name = "multi_scale_deformable_attn_pytorch"
    if hasattr(module, name):
        changes.set(module, name, attention_in_place_of(getattr(module, name)))


def attention_in_place_of(plain: Callable) -> Callable:
    """Return a replacement for mmcv's ``multi_scale_deformable_attn_pytorch`` that runs dcnzoo's operator.

    ``plain`` runs where dcnzoo has no compiled library, and in an export, because exporters cannot translate
    the operator.
    """

    @wraps(plain)
    def attention(
        value: Tensor,  # [N, S, heads, D]
        value_spatial_shapes: Tensor,  # [L, 2]
        sampling_locations: Tensor,  # [N, Q, heads, L, P, 2]
        attention_weights: Tensor,  # [N, Q, heads, L, P]
    ) -> Tensor:  # [N, Q, heads·D]
        if exporting() or not attends_on_dcnzoo(value.device):
            return plain(value, value_spatial_shapes, sampling_locations, attention_weights)
        shapes = torch.as_tensor(value_spatial_shapes, device=value.device, dtype=torch.int64)
        if not torch.compiler.is_compiling() and (total := int(shapes.prod(1).sum())) != value.shape[1]:
            raise RuntimeError(f"{plain.__name__}: value: expected {total} pixels, got {value.shape[1]}")
        return ms_deform_attn(value, shapes, level_starts(shapes), sampling_locations, attention_weights)

    return attention


def registered(registry: Registry, kind: type, reason: str, importers: tuple[str, ...] = ()) -> Patch:
    """A patch that replaces the class of the same name in a registry, and in modules that import it.

    While it is applied, the attribute ``replaces`` of the new class is the class that it replaces.
    """
    name = kind.__name__

    def change(changes: Changes) -> None:
        changes.set(kind, "replaces", registry.module_dict[name])
        changes.set_item(registry.module_dict, name, kind)
        for importer in importers:
            changes.set(import_module(importer), name, kind)

    target = " and ".join([f"{registry.scope}'s {name}, in the registry", *importers])
    return Patch(name, target, reason, "all", change)
