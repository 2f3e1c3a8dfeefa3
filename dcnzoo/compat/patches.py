"""What dcnzoo replaces in other packages, and how to switch each replacement off.

``import dcnzoo.models`` replaces three kinds of things, each under a name of its own:

- :data:`OPERATORS`: the kernels behind ``mmcv.ops``. With a compiled mmcv, only on devices where dcnzoo's are
  proven, which is the CPU; on a GPU mmcv's stay in use unless ``cuda`` is switched on.
- :data:`LAYERS`: entries of OpenMMLab's registries, by their registered names.
- :data:`FIXES`: functions of :mod:`dcnzoo.openmmlab.patches`, which fix faults of mmengine and mmdet.

The environment variable ``DCNZOO_PATCHES`` chooses among them, with commas between names:

========================  ==========================================================================
not set                   all of them
``off``                   none
``-deform_conv,-DCN``     all but these
``deform_conv,DCN``       only these
``cuda``                  all, and dcnzoo's operators on CUDA too where mmcv is compiled
========================  ==========================================================================

In a program: :func:`disable`, :func:`enable`, :func:`disabled`. :func:`active` lists what is in use.

``mmcv._ext`` for mmcv-lite replaces nothing and is always there. This module imports neither torch nor
OpenMMLab.
"""

from __future__ import annotations

import contextlib
import difflib
import os
from collections.abc import Callable, Iterator

VARIABLE = "DCNZOO_PATCHES"
OPERATORS = ("deform_conv", "modulated_deform_conv", "deform_roi_pool", "multi_scale_deform_attn")
LAYERS = (
    *(
        "DCN",
        "DCNv2",
        "MultiScaleDeformableAttention",
        "FPN",
        "PAFPN",
        "HRNet",
        "RegNet",
        "Res2Net",
        "ResNeSt",
    ),
    *("ResNeXt", "ResNet", "ResNetV1c", "ResNetV1d", "SEResNet", "SEResNeXt", "TridentResNet"),
)
FIXES = (
    *("inherit_from_packages", "hub_finds_packages", "load_own_checkpoints", "checkpoints_run_nothing"),
    "weights_by_name",
    *("amp_on_cpu", "distributed_without_cuda", "sync_batch_norm_on_cpu", "offsets_have_their_learning_rate"),
    *("roi_align_without_torchvision", "sync_batch_norm_alone", "ssd_predicts", "cascade_rpn_alone"),
    *("teachers_are_found", "masks_outside_the_image", "configs_take_to_deformable"),
)
CUDA = "cuda"
NAMES = (*OPERATORS, *LAYERS, *FIXES, CUDA)

_registered: dict[str, list[tuple]] = {}  # layer -> (registry, the entry before, dcnzoo's)
_applied: set[str] = set()  # fixes


def _check(owner: str, name: str) -> None:
    if name not in NAMES:
        near = difflib.get_close_matches(name, NAMES, 1)
        hint = f"; did you mean {near[0]}?" if near else f"; the names are {', '.join(NAMES)}"
        raise RuntimeError(f"{owner}: expected off or the name of a patch, got {name!r}{hint}")


def _chosen(text: str) -> set[str]:
    """The names that ``text``, a value of DCNZOO_PATCHES, switches on."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    if "off" in names:
        if len(names) > 1:
            raise RuntimeError(f"{VARIABLE}: expected off alone, or names without it, got {text!r}")
        return set()
    for name in names:
        _check(VARIABLE, name.removeprefix("-"))
    only = {name for name in names if not name.startswith("-")} - {CUDA}
    chosen = only or set(NAMES) - {CUDA}
    return (chosen | ({CUDA} & set(names))) - {name[1:] for name in names if name.startswith("-")}


_on = _chosen(os.environ.get(VARIABLE, ""))


def enabled(name: str) -> bool:
    """Whether a patch is switched on."""
    return name in _on


def disable(*names: str) -> None:
    """Switches patches off: at once for operators and layers that are built from now on.

    Without names, all of them.

    Raises:
        RuntimeError: there is no such patch; or it is one of :data:`FIXES` and applied already: call this
            before ``import dcnzoo.models``, or set DCNZOO_PATCHES.
    """
    for name in names:
        _check("disable", name)
    stuck = sorted(_applied & set(names))
    if stuck:
        raise RuntimeError(
            f"disable: {', '.join(stuck)}: expected a patch that is not applied yet, got one that is; call "
            f"this before `import dcnzoo.models`, or set {VARIABLE}=-{',-'.join(stuck)}"
        )
    _set(_on - set(names or set(NAMES) - _applied))


def enable(*names: str) -> None:
    """Switches patches on again, and ``cuda``. :data:`FIXES`: before ``import dcnzoo.models``."""
    for name in names:
        _check("enable", name)
    _set(_on | set(names or set(NAMES) - {CUDA}))


@contextlib.contextmanager
def disabled(*names: str) -> Iterator[None]:
    """Within it, patches are switched off, as by :func:`disable`."""
    before = set(_on)
    disable(*names)
    try:
        yield
    finally:
        _set(before)


def _set(names: set[str]) -> None:
    global _on
    _on = names
    for layer in _registered:
        _register(layer)


def replace(registry, name: str | None = None) -> Callable[[type], type]:
    """A decorator: the class takes the place of another in a registry of mmengine, while its name is on."""

    def decorate(layer: type) -> type:
        own = name or layer.__name__
        before = registry.module_dict.get(own)
        _registered.setdefault(own, []).append((registry, before, layer))
        _register(own)
        return layer

    return decorate


def _register(name: str) -> None:
    for registry, before, layer in _registered[name]:
        current = layer if enabled(name) else before
        if current is None:
            registry.module_dict.pop(name, None)
        else:
            registry.register_module(name=name, module=current, force=True)


def apply_fix(fix: Callable[[], None]) -> None:
    """Calls a function of :data:`FIXES` unless it is switched off."""
    _check("apply_fix", fix.__name__)
    if enabled(fix.__name__):
        fix()
        _applied.add(fix.__name__)


def active() -> list[str]:
    """The names of the patches in use, those that ``import dcnzoo.models`` would apply included."""
    return [name for name in NAMES if enabled(name)]
