"""Patches that dcnzoo applies to other packages, each with a name that switches it off.

Each replacement is a :class:`Patch`. ``import dcnzoo.models`` applies three kinds:

- the kernels of ``mmcv.ops``: :mod:`dcnzoo.openmmlab.patches.kernels`. With a compiled mmcv, dcnzoo's kernels
  run only on the CPU. On a GPU mmcv's kernels stay in use unless ``cuda`` is switched on.
- entries of OpenMMLab's registries, by their registered names.
- fixes for mmcv, mmengine and mmdet: the table in :mod:`dcnzoo.openmmlab.patches.table`.

The environment variable ``DCNZOO_PATCHES`` selects patches by their names, separated by commas: ``off``
selects none, ``-deform_conv,-DCN`` all except these, ``deform_conv,DCN`` only these, and ``cuda`` all, with
dcnzoo's CUDA kernels even if mmcv is compiled. It is read once, by ``import dcnzoo``. :func:`active` lists
the applied patches; ``dcnzoo doctor`` prints them with targets, reasons and versions.

``mmcv._ext`` for mmcv-lite replaces nothing, so it has no switch. This module imports neither torch nor
OpenMMLab.
"""

import contextlib
import functools
import os
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass, field

from dcnzoo.utils.text import nearest

VARIABLE = "DCNZOO_PATCHES"
OF_DATA = ("CocoDataset", "CocoMetric", "errors_name_pictures")  # added by dcnzoo.openmmlab.datasets, later
CUDA = "cuda"

_ABSENT = object()


class Changes(contextlib.ExitStack):
    """Changes to attributes and entries of mappings. Leaving the context, or ``close()``, undoes them.

    A :class:`Patch` keeps its changes open while it is applied.
    """

    def set(self, owner: object, name: str, value: object) -> None:
        """Sets an attribute of a module, a class or an instance."""
        # not getattr: an inherited attribute must be deleted again, and a classmethod object restored as such
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
        name: the name in DCNZOO_PATCHES and in the functions of this module.
        target: the object that is replaced.
        reason: the problem without the patch.
        versions: versions of the packages that have the problem.
        change: function that makes the changes.
        needed: function that returns whether the patch applies here. It is called before each application.
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
        """Return whether the changes are made."""
        return self._changes is not None

    def apply(self) -> None:
        """Makes the changes, unless they are made already or not needed.

        Raises:
            RuntimeError: the installed version of the package lacks a name that the patch changes.
        """
        if self.applied or not self.needed():
            return
        changes = Changes()
        try:
            self.change(changes)
        except BaseException as error:
            changes.close()
            if not isinstance(error, AttributeError) and type(error) is not ImportError:
                raise
            raise RuntimeError(
                f"{self.name}: expected {self.versions}, for which this patch of {self.target} was written, "
                f"got a version without one of its names: {error}; {VARIABLE}=-{self.name} skips the patch"
            ) from error
        self._changes = changes

    def undo(self) -> None:
        """Restores the state before :meth:`apply`."""
        if self._changes is not None:
            self._changes.close()
            self._changes = None


@dataclass(frozen=True)
class _Switches:
    """Which patches are on: ``named`` for names in it, else ``default``; ``cuda`` is off by default."""

    default: bool = True
    named: dict[str, bool] = field(default_factory=dict)

    def __getitem__(self, name: str) -> bool:
        return self.named.get(name, self.default and name != CUDA)


def _parse(text: str) -> _Switches:
    """Return the switches that ``text``, a value of DCNZOO_PATCHES, describes."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    if "off" in names:
        if len(names) > 1:
            raise RuntimeError(f"{VARIABLE}: expected either 'off' or names of patches, got {text!r}")
        return _Switches(default=False)
    on = {name: True for name in names if not name.startswith("-")}
    off = {name[1:]: False for name in names if name.startswith("-")}
    return _Switches(default=not on.keys() - {CUDA}, named={**on, **off})


_switches = _parse(os.environ.get(VARIABLE, ""))
_patches: list[Patch] = []


def enabled(name: str) -> bool:
    """Return whether a patch is switched on."""
    return _switches[name]


def add(*new: Patch, complete: bool = False) -> None:
    """Add patches, and apply each one that is switched on. A patch that was added before is skipped.

    Args:
        complete: whether all patches but those of :data:`OF_DATA` have been added now, so that names can be
            checked.

    Raises:
        RuntimeError: with ``complete``, if DCNZOO_PATCHES has a name without a patch.
    """
    known = {(patch.name, patch.target) for patch in _patches}
    added = [patch for patch in new if (patch.name, patch.target) not in known]
    _patches.extend(added)
    if complete:
        _require_known_names()
    for patch in added:
        if enabled(patch.name):
            patch.apply()


def _require_known_names() -> None:
    known = dict.fromkeys((*(patch.name for patch in _patches), *OF_DATA, CUDA))
    for name in _switches.named:
        if name not in known:
            near = nearest(name, known)
            hint = f"; did you mean {near}?" if near else f"; the names are {', '.join(known)}"
            raise RuntimeError(f"{VARIABLE}: expected off or the name of a patch, got {name!r}{hint}")


def table() -> tuple[Patch, ...]:
    """Return the known patches. The list is complete after ``import dcnzoo.models``."""
    return tuple(_patches)


def active() -> list[str]:
    """Return the names of the applied patches, and ``cuda`` if it is switched on."""
    names = [patch.name for patch in _patches if patch.applied] + [CUDA] * enabled(CUDA)
    return list(dict.fromkeys(names))
