"""What dcnzoo replaces in other packages, and how to switch each replacement off.

Each replacement is a :class:`Patch` with a name. ``import dcnzoo.models`` applies three kinds:

- :data:`OPERATORS`: the kernels behind ``mmcv.ops``. With a compiled mmcv, only on devices where dcnzoo's are
  proven, which is the CPU; on a GPU mmcv's stay in use unless ``cuda`` is switched on.
- :data:`REGISTERED`: entries of OpenMMLab's registries, by their registered names.
- fixes for mmcv, mmengine and mmdet: the table in :mod:`dcnzoo.openmmlab.patches`.

The environment variable ``DCNZOO_PATCHES`` chooses among them, with commas between names:

========================  ==========================================================================
not set                   all of them
``off``                   none
``-deform_conv,-DCN``     all but these
``deform_conv,DCN``       only these
``cuda``                  all, and dcnzoo's operators on CUDA too where mmcv is compiled
========================  ==========================================================================

In a program: :func:`disable`, :func:`enable`, :func:`disabled`, at any time. :func:`active` lists what is
applied; ``dcnzoo doctor`` prints it, with targets, reasons and versions. Two more patches are applied only
when a program asks for them, whatever the variable is: :func:`dcnzoo.compat.transformers.enable` and
:func:`dcnzoo.compat.torchvision.accelerate`.

``mmcv._ext`` for mmcv-lite replaces nothing and is always there. This module imports neither torch nor
OpenMMLab.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator, MutableMapping
from dataclasses import dataclass, field

VARIABLE = "DCNZOO_PATCHES"
OPERATORS = ("deform_conv", "modulated_deform_conv", "deform_roi_pool", "multi_scale_deform_attn")
REGISTERED = (  # those included of mmdet, mmpose, mmpretrain and mmseg, which may not be installed
    *("DCN", "DCNv2", "MultiScaleDeformableAttention", "FPN", "PAFPN", "CocoDataset", "CocoMetric"),
    *("HRNet", "RegNet", "Res2Net", "ResNeSt", "ResNeXt", "ResNet", "ResNetV1c", "ResNetV1d"),
    *("SEResNet", "SEResNeXt", "TridentResNet"),
)
CUDA = "cuda"

_ABSENT = object()


class Changes(contextlib.ExitStack):
    """Changes to attributes and entries of mappings. Leaving the context, or ``close()``, undoes them."""

    def set(self, owner: object, name: str, value: object) -> None:
        """Sets an attribute of a module, a class or an instance."""
        # not getattr: an inherited attribute is deleted again, a class method stays one
        before = vars(owner).get(name, _ABSENT)
        setattr(owner, name, value)
        if before is _ABSENT:
            self.callback(delattr, owner, name)
        else:
            self.callback(setattr, owner, name, before)

    def wrap(self, owner: object, name: str, wrapper: Callable) -> None:
        """Replaces a function by ``wrapper``, whose first argument is the function."""
        original = getattr(owner, name)

        @functools.wraps(original)
        def call(*args: object, **kwargs: object) -> object:
            return wrapper(original, *args, **kwargs)

        self.set(owner, name, call)

    def set_item(self, mapping: MutableMapping, key: object, value: object) -> None:
        """Sets an entry of a mapping, such as a registry's ``module_dict``."""
        before = mapping.get(key, _ABSENT)
        mapping[key] = value
        if before is _ABSENT:
            self.callback(mapping.pop, key, None)
        else:
            self.callback(mapping.__setitem__, key, before)


@dataclass(eq=False)
class Patch:
    """A replacement in another package.

    Attributes:
        name: for DCNZOO_PATCHES and the functions of this module.
        target: what is replaced.
        reason: what fails, or is missing, without it.
        versions: of the packages, in which that is so.
        change: makes the changes.
        needed: whether there is something to replace here. It is asked before each application.
    """

    name: str
    target: str
    reason: str
    versions: str
    change: Callable[[Changes], None]
    needed: Callable[[], bool] = lambda: True
    _changes: Changes | None = field(default=None, repr=False)

    @property
    def applied(self) -> bool:
        return self._changes is not None

    def apply(self) -> None:
        """Makes the changes, unless they are made already or not needed."""
        if self.applied or not self.needed():
            return
        with Changes() as changes:  # undone if the patch fails halfway
            self.change(changes)
            self._changes = changes.pop_all()

    def undo(self) -> None:
        """Restores the state before :meth:`apply`."""
        if self.applied:
            self._changes.close()
            self._changes = None


@dataclass(frozen=True)
class _Switches:
    """Which patches are on: those of ``named`` as it says, the others by ``default``."""

    default: bool = True
    named: dict[str, bool] = field(default_factory=dict)

    def __getitem__(self, name: str) -> bool:
        return self.named.get(name, self.default and name != CUDA)


def _parse(text: str) -> _Switches:
    """The switches that ``text``, a value of DCNZOO_PATCHES, describes."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    if "off" in names:
        if len(names) > 1:
            raise RuntimeError(f"{VARIABLE}: expected off alone, or names without it, got {text!r}")
        return _Switches(default=False)
    on = {name: True for name in names if not name.startswith("-")}
    off = {name[1:]: False for name in names if name.startswith("-")}
    return _Switches(default=not on.keys() - {CUDA}, named={**on, **off})


_switches = _parse(os.environ.get(VARIABLE, ""))
_patches: list[Patch] = []
_complete = False  # whether _patches has all names


def _check(owner: str, *names: str) -> None:
    known = dict.fromkeys((*OPERATORS, *REGISTERED, *(patch.name for patch in _patches), CUDA))
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean {near[0]}?" if near else f"; the names are {', '.join(known)}"
            raise RuntimeError(f"{owner}: expected off or the name of a patch, got {name!r}{hint}")


def enabled(name: str) -> bool:
    """Whether a patch is switched on."""
    return _switches[name]


def disable(*names: str) -> None:
    """Undoes patches, and switches them off: without names, all of them.

    Objects that exist already keep their class: a model that is built stays as it is.

    Raises:
        RuntimeError: there is no such patch. Before ``import dcnzoo.models`` not all names are known, and
            that import raises the error.
    """
    _switch("disable", False, names)


def enable(*names: str) -> None:
    """Switches patches on again, and ``cuda``: without names, all but ``cuda``."""
    _switch("enable", True, names)


def _switch(owner: str, on: bool, names: tuple[str, ...]) -> None:
    if _complete:
        _check(owner, *names)
    if names:
        _set(_Switches(_switches.default, {**_switches.named, **dict.fromkeys(names, on)}))
    else:
        _set(_Switches(on, {CUDA: on and enabled(CUDA)}))


@contextlib.contextmanager
def disabled(*names: str) -> Iterator[None]:
    """Within it, patches are undone and switched off, as by :func:`disable`."""
    before = _switches
    disable(*names)
    try:
        yield
    finally:
        _set(before)


def _set(switches: _Switches) -> None:
    global _switches
    before, _switches = _switches, switches
    for patch in _patches:
        if before[patch.name] != switches[patch.name]:
            patch.apply() if switches[patch.name] else patch.undo()


def add(*new: Patch, complete: bool = False) -> None:
    """Adds patches, and applies those that are switched on. Patches that are there already are kept.

    Args:
        complete: with these, all names are known.

    Raises:
        RuntimeError: ``complete``, and a name that was given before is that of no patch.
    """
    global _complete
    there = {(patch.name, patch.target): patch for patch in _patches}
    _patches.extend(patch for patch in new if (patch.name, patch.target) not in there)
    _complete = _complete or complete
    if _complete:
        _check(VARIABLE, *_switches.named)
    for patch in new:
        if enabled(patch.name):
            there.get((patch.name, patch.target), patch).apply()


def require(owner: str, package: str) -> None:
    """Checks that a package is there to be patched, without importing it.

    Raises:
        ImportError: it is not installed.
    """
    if package not in sys.modules and importlib.util.find_spec(package) is None:
        raise ImportError(
            f"{owner}: {package}: expected an installed package, got none; pip install {package}"
        )


def switch_on(patch: Patch) -> None:
    """Applies a patch that a program asks for, whatever DCNZOO_PATCHES is."""
    add(patch)
    enable(patch.name)


def switch_off(patch: Patch) -> None:
    """Undoes :func:`switch_on`, if it was called."""
    if patch in _patches:
        disable(patch.name)


@contextlib.contextmanager
def switched_on(patch: Patch, on: Callable[[], None]) -> Iterator[None]:
    """Within it, a patch is applied, by ``on``. After it, it is as before."""
    before = patch.applied
    on()
    try:
        yield
    finally:
        if not before:
            switch_off(patch)


def replace(registry, reason: str) -> Callable[[type], type]:
    """A decorator: the class takes the place of that of its name in a registry of mmengine."""

    def decorate(cls: type) -> type:
        name = cls.__name__

        def change(changes: Changes) -> None:
            changes.set_item(registry.module_dict, name, cls)

        add(Patch(name, f"{registry.scope}'s {name}, in the registry", reason, "all", change))
        return cls

    return decorate


def table() -> tuple[Patch, ...]:
    """The patches that are known: all of them after ``import dcnzoo.models``."""
    return tuple(_patches)


def active() -> list[str]:
    """The names of the patches that are applied, and ``cuda`` if it is switched on."""
    names = [patch.name for patch in _patches if patch.applied] + [CUDA] * enabled(CUDA)
    return list(dict.fromkeys(names))
