"""Replacements on dcnzoo's operators for compiled modules of other projects.

Deformable DETR, Grounding DINO, InternImage, FairMOT and others contain C++ and CUDA code that you must
compile first, which often fails. Call ``dcnzoo.compat.provide("MultiScaleDeformableAttention")`` or set
``DCNZOO_PROVIDE=MultiScaleDeformableAttention`` in the environment of ``import dcnzoo``. If that module is
not installed, its import then loads a file of this folder, with the same functions, the same order of
arguments and the same tensors written in place. An installed module stays in use.

``mmcv._ext`` for mmcv-lite is always provided in this way (:mod:`dcnzoo.compat.mmcv`).

Some projects call their module only for CUDA tensors. On the CPU they raise an error or use a slow function.
dcnzoo therefore replaces these functions too, as a patch of :mod:`dcnzoo.compat.patches` with the name of the
compiled module. Projects copy these functions into files of different names, so a file is identified by its
import: :mod:`dcnzoo.compat.after_import` calls :func:`_replace_functions` after the import of each module
whose file contains the import of the compiled module, if that is dcnzoo's.

This module imports neither torch nor the projects.
"""

import importlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

from dcnzoo.compat import patches
from dcnzoo.compat.after_import import call, watch

VARIABLE = "DCNZOO_PROVIDE"


@dataclass(frozen=True)
class Extension:
    """A compiled module that :func:`provide` can replace.

    Attributes:
        file: name of the replacement in this folder.
        projects: the projects that import the module.
        modules: names under which they import it, as patterns of :mod:`fnmatch`. Default: its own name.
        cpu_functions: whether dcnzoo also replaces functions of the modules that import it.
    """

    file: str
    projects: str
    modules: tuple[str, ...] = ()
    cpu_functions: bool = False


EXT = ("_ext", "*[Dd][Cc][Nn]*._ext")
DCNV4 = ("functions", "functions.dcnv4_func", "functions.flash_deform_attn_func")
DCNV4 += ("modules", "modules.dcnv4", "modules.flash_deform_attn", "ext")
EXTENSIONS = {
    "MultiScaleDeformableAttention": Extension("compiled.py", "Deformable DETR, DINO, Mask2Former"),
    "groundingdino._C": Extension("compiled.py", "Grounding DINO", cpu_functions=True),
    "adet._C": Extension("compiled.py", "AdelaiDet, DeepSolo, TESTR"),
    "detrex._C": Extension("compiled.py", "detrex", cpu_functions=True),
    "DCNv3": Extension("compiled.py", "InternImage"),
    "DCNv4": Extension("dcnv4.py", "FlashInternImage", ("DCNv4", *(f"DCNv4.{name}" for name in DCNV4))),
    "deform_conv_ext": Extension(
        "compiled.py", "BasicSR, EDVR", ("deform_conv_ext", "*.deform_conv_ext"), True
    ),
    "deform_conv_cuda": Extension(
        "compiled.py",
        "EDVR, STDF, AlphaPose, SOLO",
        ("deform_conv_cuda", "*.deform_conv_cuda", "deform_pool_cuda", "*.deform_pool_cuda"),
        True,
    ),
    "_ext": Extension("dcn_v2.py", "DCNv2", EXT),
    "dcn_v2": Extension("dcn_v2.py", "CenterTrack, FairMOT", (*EXT, "dcn_v2", "*.DCNv2", "*.DCNv2.dcn_v2")),
    "detectron2._C": Extension("compiled.py", "detectron2", cpu_functions=True),
    "custom_op": Extension("custom_op.py", "the N-d op"),
}


class Finder:
    """Meta-path finder that comes last: Python calls it only for modules that no other finder has found."""

    def __init__(self) -> None:
        self.files: dict[str, Path] = {}  # pattern of names -> file

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        for pattern, file in self.files.items():
            if fnmatchcase(name, pattern):
                # a package, so that the finder is called for its modules too
                return spec_from_file_location(name, file, submodule_search_locations=[])
        return None


_finder = Finder()
_provided: list[str] = []


def fall_back(name: str, file: Path) -> None:
    """Make imports of ``name``, a module's name or a pattern of names, fall back to ``file``."""
    if _finder not in sys.meta_path:
        sys.meta_path.append(_finder)
    _finder.files[name] = file


def provide(*names: str) -> None:
    """Makes imports of missing compiled modules fall back to dcnzoo's operators.

    Call it before you import the project that needs them. It has no effect if the module is installed.

    Args:
        names: keys of :data:`EXTENSIONS`, such as ``"MultiScaleDeformableAttention"``.

    Raises:
        RuntimeError: no name is given, or one is unknown. The message lists all names and their projects.
    """
    _provide("provide: names", names)


def _provide(argument: str, names: tuple[str, ...]) -> None:
    unknown = [name for name in names if name not in EXTENSIONS]
    if unknown or not names:
        known = "".join(f"\n  {name}  ({extension.projects})" for name, extension in EXTENSIONS.items())
        text = ", ".join(map(repr, unknown)) or "none"
        raise RuntimeError(f"{argument}: expected one or more of these names, got {text}:{known}")
    for name in names:
        if name in _provided:
            continue
        _provided.append(name)
        file = Path(__file__).with_name(EXTENSIONS[name].file)
        for pattern in EXTENSIONS[name].modules or (name,):
            fall_back(pattern, file)
        if EXTENSIONS[name].cpu_functions:
            patches.add(_patch_importers(name))
        if name == "DCNv3":
            reason = "ops_dcnv3 reads the version of the package DCNv3 with pkg_resources"
            patches.add(patches.Patch("DCNv3_version", "pkg_resources", reason, "all", _add_dcnv3_version))


def provide_from_environment() -> None:
    """:func:`provide` with the names in ``DCNZOO_PROVIDE``, separated by commas, if the variable is set."""
    names = tuple(name.strip() for name in os.environ.get(VARIABLE, "").split(",") if name.strip())
    if names:
        _provide(VARIABLE, names)


def status() -> dict[str, str]:
    """Return which module an import of each provided name finds: dcnzoo's or an installed one.

    Imports the packages that contain these modules.
    """
    modules = {}
    for name in _provided:
        try:
            spec = find_spec(name)
        except Exception as error:  # raised by the parent package, which find_spec imports
            modules[name] = f"not found: {error}"
        else:
            modules[name] = "dcnzoo's" if spec is None or is_ours(spec) else f"installed, {spec.origin}"
    return modules


def is_ours(spec: ModuleSpec) -> bool:
    """Whether a module is a file of this folder."""
    return spec.origin is not None and Path(spec.origin).parent == Path(__file__).parent


def missing(module: str) -> Callable[[str], object]:
    """The ``__getattr__`` of a replacement: an error for functions that only the original module has."""

    def fail(name: str) -> object:
        raise AttributeError(
            f"module {module!r} has no attribute {name!r}: the module is dcnzoo's, because no compiled one "
            "is installed",
            name=name,
        )

    return fail


# Patches


def _patch_importers(compiled: str) -> patches.Patch:
    """A patch of all modules that import dcnzoo's ``compiled``, also of those that are imported later."""
    package, _, attribute = compiled.rpartition(".")

    def change(changes: patches.Changes) -> None:
        functions = changes.enter_context(patches.Changes())

        def use(module: ModuleType) -> None:
            spec = getattr(getattr(module, "__dict__", {}).get(attribute), "__spec__", None)
            if spec is not None and is_ours(spec):
                _replace_functions(functions, module)

        for module in list(sys.modules.values()):
            use(module)
        text = f"from {package} import {attribute}" if package else attribute
        changes.callback(watch("*", use, text=text))

    reason = "their functions for the CPU are missing or slow"
    return patches.Patch(compiled, f"modules that import dcnzoo's {compiled}", reason, "all", change)


def _replace_functions(changes: patches.Changes, module: ModuleType) -> None:
    for name in ("deform_conv", "modulated_deform_conv"):
        if callable(getattr(module, name, None)):  # not a package's submodule of this name
            changes.set(module, name, getattr(importlib.import_module("dcnzoo.compat.detectron2"), name))
    name = "multi_scale_deformable_attn_pytorch"
    if hasattr(module, name):
        mmcv = importlib.import_module("dcnzoo.compat.mmcv._ext")
        changes.set(module, name, mmcv.attention_in_place_of(getattr(module, name)))
    if hasattr(module, "COCOeval_opt"):  # it calls functions of detectron2._C that dcnzoo does not have
        changes.set(module, "COCOeval_opt", module.COCOeval)


def _add_dcnv3_version(changes: patches.Changes) -> None:
    versions = changes.enter_context(patches.Changes())

    def add(resources: ModuleType) -> None:
        spec = find_spec("DCNv3")
        if spec is not None and is_ours(spec):
            version = resources.Distribution(project_name="DCNv3", version="1.1")
            versions.set_item(resources.working_set.by_key, version.key, version)

    changes.callback(call("pkg_resources", add))
