"""Programs of others that run on dcnzoo's operators without a change of their code.

Deformable DETR, Grounding DINO, InternImage, FairMOT and others contain C++ and CUDA code that you must
compile first, which often fails. Call ``dcnzoo.compat.provide("MultiScaleDeformableAttention")`` or set
``DCNZOO_PROVIDE=MultiScaleDeformableAttention`` in the environment of ``import dcnzoo``. If that module is
not installed, its import then finds dcnzoo's module, with the same functions, the same order of arguments and
the same tensors written in place. An installed module stays in use.

Each program is a :class:`Host` in :mod:`dcnzoo.compat.hosts`. This module imports neither torch nor the
programs.
"""

import importlib
import importlib.abc
import os
import pkgutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from dcnzoo.compat import hosts, patches
from dcnzoo.compat.after_import import call, provide_missing
from dcnzoo.compat.patches import Patch

VARIABLE = "DCNZOO_PROVIDE"


@dataclass(frozen=True)
class Host:
    """What a program of others needs to run on dcnzoo's operators.

    Attributes:
        name: the name for :func:`provide`: the compiled module that is missing, or a function that is slow.
        projects: the projects that need it. ``benchmarks/projects`` runs their own code.
        provides: dcnzoo's modules that have the functions of the missing module.
        names: functions with another name in the missing module: its name → dcnzoo's.
        imports: names under which projects import the missing module, as patterns of :mod:`fnmatch`.
            Default: its own name.
        functions: functions of the project that dcnzoo replaces, because they do not call the compiled module
            on the CPU: keys of :data:`dcnzoo.compat.functions.REPLACEMENTS`. Projects copy these functions to
            files of any name: a file is identified by its import of the missing module, or by ``name``.
        patches: other changes.
        missing: functions of the missing module that dcnzoo does not have, for the documentation.
    """

    name: str
    projects: tuple[str, ...]
    provides: tuple[str, ...] = ()
    names: Mapping[str, str] = field(default_factory=dict)
    imports: tuple[str, ...] = ()
    functions: tuple[str, ...] = ()
    patches: tuple[Patch, ...] = ()
    missing: str = ""

    def provide(self) -> None:
        """Make imports fall back to dcnzoo's module, and apply the patches."""
        for pattern in (self.imports or (self.name,)) if self.provides else ():
            provide_missing(pattern, partial(_spec, self))
        if self.functions:
            patches.add(_patch_functions(self))
        patches.add(*self.patches)


@cache
def known() -> dict[str, Host]:
    """All hosts, by their names."""
    modules = (
        importlib.import_module(f"{hosts.__name__}.{m.name}") for m in pkgutil.iter_modules(hosts.__path__)
    )
    return {host.name: host for module in modules for host in module.HOSTS}


class _Loader(importlib.abc.Loader):
    """Fills a missing module with dcnzoo's functions."""

    def __init__(self, host: Host) -> None:
        self.host = host

    def exec_module(self, module: ModuleType) -> None:
        ours = [importlib.import_module(name) for name in self.host.provides]
        public = {name: value for each in ours for name, value in vars(each).items() if name[0] != "_"}
        vars(module).update(public, **{name: public[other] for name, other in self.host.names.items()})
        missing = partial(_no_attribute, module.__name__)
        vars(module)["__getattr__"] = getattr(ours[-1], "__getattr__", missing)


def _spec(host: Host, name: str) -> ModuleSpec:
    ours = find_spec(host.provides[-1])
    # a package without a folder, so that the finder is called for its modules too
    spec = ModuleSpec(name, _Loader(host), origin=ours.origin if ours else None, is_package=True)
    spec.has_location = True  # for __file__
    return spec


def _no_attribute(module: str, name: str) -> object:
    raise AttributeError(
        f"module {module!r} has no attribute {name!r}: the module is dcnzoo's, because no compiled one is "
        "installed",
        name=name,
    )


_provided: list[str] = []


def provide(*names: str) -> None:
    """Makes programs of others run on dcnzoo's operators.

    Call it before you import the project. Imports of missing compiled modules then find dcnzoo's; installed
    modules stay in use. ``"torchvision"`` is always included: it defines operators that an installed
    torchvision lacks (:mod:`dcnzoo.compat.torchvision`).

    Args:
        names: such as ``"MultiScaleDeformableAttention"``.

    Raises:
        RuntimeError: no name is given, or one is unknown. The message lists all names and their projects.
    """
    _provide("provide: names", names)


def _provide(argument: str, names: tuple[str, ...]) -> None:
    unknown = [name for name in names if name not in known()]
    if unknown or not names:
        text = ", ".join(map(repr, unknown)) or "none"
        lines = "".join(f"\n  {name}  ({', '.join(host.projects)})" for name, host in known().items())
        raise RuntimeError(f"{argument}: expected one or more of these names, got {text}:{lines}")
    for name in (*names, "torchvision"):
        if name not in _provided:
            _provided.append(name)
            known()[name].provide()


def provide_from_environment() -> None:
    """:func:`provide` with the names in ``DCNZOO_PROVIDE``, separated by commas, if the variable is set."""
    names = tuple(name.strip() for name in os.environ.get(VARIABLE, "").split(",") if name.strip())
    if not names:
        return
    try:
        _provide(VARIABLE, names)
    except RuntimeError as error:
        if Path(sys.argv[0]).name == "dcnzoo" or sys.orig_argv[1:3] == ["-m", "dcnzoo"]:
            sys.exit(f"error: {error}")  # the command line has not started yet
        raise


def status() -> dict[str, str]:
    """Return which module an import of each provided name finds: dcnzoo's or an installed one.

    Imports the packages that contain these modules.
    """
    modules = {}
    for name in _provided:
        if not known()[name].provides:
            continue
        try:
            spec = find_spec(name)
        except Exception as error:  # raised by the parent package, which find_spec imports
            modules[name] = f"not found: {error}"
        else:
            modules[name] = "dcnzoo's" if spec is None or is_ours(spec) else f"installed, {spec.origin}"
    return modules


def is_ours(spec: ModuleSpec | None) -> bool:
    """Whether a module is dcnzoo's instead of a missing one."""
    return spec is not None and isinstance(spec.loader, _Loader)


def _patch_functions(host: Host) -> Patch:
    """A patch of the functions of all modules that import dcnzoo's module, also if imported later."""
    package, _, attribute = host.name.rpartition(".")
    text = f"from {package} import {attribute}" if package else attribute

    def change(changes: patches.Changes) -> None:
        originals: dict[object, object] = {}  # by replacement

        def replace(module: ModuleType) -> None:
            compiled = getattr(module, "__dict__", {}).get(attribute)
            if host.provides and not is_ours(getattr(compiled, "__spec__", None)):
                return
            for name in host.functions:
                original = getattr(module, name, None)
                if original in originals:  # imported by name from a module handled before
                    changes.callback(setattr, module, name, originals[original])
                elif callable(original):  # not a package's submodule of this name
                    functions = importlib.import_module("dcnzoo.compat.functions")
                    replacement = functions.REPLACEMENTS[name](original)
                    originals[replacement] = original
                    changes.set(module, name, replacement)

        changes.callback(call("*", replace, text))

    reason = "their functions for the CPU are missing or slow"
    return Patch(host.name, f"modules that contain {text}", reason, "all", change)
