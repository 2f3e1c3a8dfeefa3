"""Replacements on dcnzoo's operators for compiled modules of other projects.

Deformable DETR, Grounding DINO, InternImage, CenterNet and others contain C++ and CUDA code that you must
compile first, which often fails. Call ``dcnzoo.compat.provide("MultiScaleDeformableAttention")`` or set
``DCNZOO_PROVIDE=MultiScaleDeformableAttention`` in the environment of ``import dcnzoo``. If that module is
not installed, its import then loads a file of this folder, with the same functions, the same order of
arguments and the same tensors written in place. An installed module stays in use.

``mmcv._ext`` for mmcv-lite is always provided in this way (:mod:`dcnzoo.compat.mmcv`).

Some projects call their module only for CUDA tensors. On the CPU they raise an error or use a slow function.
:data:`AFTER_IMPORT` lists the functions of these projects that dcnzoo replaces too, as patches of
:mod:`dcnzoo.compat.patches`.

This module imports neither torch nor the projects.
"""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

from dcnzoo.compat import patches
from dcnzoo.compat.after_import import watch

VARIABLE = "DCNZOO_PROVIDE"


@dataclass(frozen=True)
class Extension:
    """A compiled module that :func:`provide` can replace.

    Attributes:
        file: name of the replacement in this folder.
        projects: the projects that import the module.
        modules: names under which they import it, as patterns of :mod:`fnmatch`.
    """

    file: str
    projects: str
    modules: tuple[str, ...]


DCNV4 = ("functions", "functions.dcnv4_func", "functions.flash_deform_attn_func")
DCNV4 += ("modules", "modules.dcnv4", "modules.flash_deform_attn", "ext")
EXTENSIONS = {
    "MultiScaleDeformableAttention": Extension(
        "ms_deform_attn.py", "Deformable DETR, DINO, Mask2Former", ("MultiScaleDeformableAttention",)
    ),
    "groundingdino._C": Extension("ms_deform_attn.py", "Grounding DINO", ("groundingdino._C",)),
    "adet._C": Extension("ms_deform_attn.py", "DeepSolo, TESTR", ("adet._C",)),
    "detrex._C": Extension("ms_deform_attn.py", "detrex", ("detrex._C",)),
    "DCNv3": Extension("dcnv3.py", "InternImage", ("DCNv3",)),
    "DCNv4": Extension("dcnv4.py", "FlashInternImage", ("DCNv4", *(f"DCNv4.{name}" for name in DCNV4))),
    "deform_conv_ext": Extension("deform_conv.py", "BasicSR, EDVR", ("deform_conv_ext", "*.deform_conv_ext")),
    "deform_conv_cuda": Extension(
        "deform_conv.py", "EDVR, AlphaPose", ("deform_conv_cuda", "*.deform_conv_cuda")
    ),
    "_ext": Extension("dcn_v2.py", "DCNv2: CenterNet, CenterTrack, FairMOT", ("_ext", "*[Dd][Cc][Nn]*._ext")),
    "detectron2._C": Extension("detectron2.py", "detectron2", ("detectron2._C",)),
    "custom_op": Extension("custom_op.py", "the N-d op", ("custom_op",)),
}


class Finder:
    """Meta-path finder that comes last: Python calls it only for modules that no other finder has found."""

    def __init__(self) -> None:
        self.files: dict[str, Path] = {}  # pattern of names -> file

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        for pattern, file in self.files.items():
            if fnmatchcase(name, pattern):
                is_package = any(other.startswith(f"{name}.") for other in self.files)
                locations: list[str] | None = [] if is_package else None
                return spec_from_file_location(name, file, submodule_search_locations=locations)
        return None


def _apply(patch: patches.Patch, module: ModuleType) -> None:
    if not patches.enabled(patch.name):
        return
    try:
        patch.apply()
    except AttributeError as error:  # another version of the project, whose import must not fail
        warnings.warn(f"dcnzoo: {patch.name}: {patch.target} is not patched: {error}", stacklevel=2)


_finder = Finder()
_provided: list[str] = []


def answer(name: str, file: Path) -> None:
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
        given = ", ".join(map(repr, unknown)) or "none"
        raise RuntimeError(f"{argument}: expected one or more of these names, got {given}:{known}")
    for name in names:
        if name in _provided:
            continue
        _provided.append(name)
        file = Path(__file__).with_name(EXTENSIONS[name].file)
        for pattern in EXTENSIONS[name].modules:
            answer(pattern, file)
            for each in AFTER_IMPORT:
                if fnmatchcase(each.compiled, pattern):
                    _watch(each)


def provide_from_environment() -> None:
    """:func:`provide` with the names in ``DCNZOO_PROVIDE``, separated by commas, if the variable is set."""
    names = tuple(name.strip() for name in os.environ.get(VARIABLE, "").split(",") if name.strip())
    if names:
        _provide(VARIABLE, names)


def status() -> dict[str, str]:
    """Return which module an import of each provided name finds: dcnzoo's or an installed one.

    Imports the packages that contain these modules.
    """
    found = {}
    for name in _provided:
        try:
            spec = find_spec(name)
        except Exception as error:  # raised by the parent package, which find_spec imports
            found[name] = f"not found: {error}"
        else:
            found[name] = "dcnzoo's" if spec is None or is_ours(spec) else f"installed, {spec.origin}"
    return found


def is_ours(spec: ModuleSpec) -> bool:
    """Whether a module is a file of this folder."""
    return spec.origin is not None and Path(spec.origin).parent == Path(__file__).parent


# Patches


@dataclass(frozen=True)
class AfterImport:
    """A patch of a project's module, applied only where dcnzoo provides the project's compiled module.

    Attributes:
        name, reason: of the patch.
        compiled: name under which the project imports its compiled module.
        module: name of the module to change after its import.
        change: function that makes the changes.
    """

    name: str
    reason: str
    compiled: str
    module: str
    change: Callable[[patches.Changes, ModuleType], None]


def _watch(each: AfterImport) -> None:
    def needed() -> bool:
        module = sys.modules.get(each.module)
        if module is None:
            return False
        # the module that the project has imported (BasicSR may have compiled its own) or would import
        compiled = getattr(module, each.compiled.rpartition(".")[2], None)
        spec = getattr(compiled, "__spec__", None) or find_spec(each.compiled)
        return spec is not None and is_ours(spec)

    def change(changes: patches.Changes) -> None:
        each.change(changes, sys.modules[each.module])

    patch = patches.Patch(each.name, each.module, each.reason, "all", change, needed)
    watch(each.module, partial(_apply, patch))
    patches.add(patch)


def _use_deform_conv(changes: patches.Changes, module: ModuleType) -> None:
    ours = importlib.import_module("dcnzoo.compat.detectron2")
    for name in ("deform_conv", "modulated_deform_conv"):
        if not hasattr(module, name):
            raise AttributeError(f"expected a function {name}, found none")
        changes.set(module, name, getattr(ours, name))


def _use_attention(changes: patches.Changes, module: ModuleType) -> None:
    name = "multi_scale_deformable_attn_pytorch"
    mmcv = importlib.import_module("dcnzoo.compat.mmcv._ext")
    changes.set(module, name, mmcv.attention_in_place_of(getattr(module, name)))


def _use_pycocotools(changes: patches.Changes, module: ModuleType) -> None:
    changes.set(module, "COCOeval_opt", module.COCOeval)


def _add_dcnv3_version(changes: patches.Changes, module: ModuleType) -> None:
    version = module.Distribution(project_name="DCNv3", version="1.1")
    changes.set_item(module.working_set.by_key, version.key, version)


AFTER_IMPORT = (
    AfterImport(
        name="DCNv3_version",
        reason="ops_dcnv3 reads the version of the package DCNv3 with pkg_resources",
        compiled="DCNv3",
        module="pkg_resources",
        change=_add_dcnv3_version,
    ),
    AfterImport(
        name="detectron2_deform_conv",
        reason="on the CPU, detectron2's v1 has no gradients and only one deformable group; v2 is missing",
        compiled="detectron2._C",
        module="detectron2.layers.deform_conv",
        change=_use_deform_conv,
    ),
    AfterImport(
        name="detectron2_cocoeval",
        reason="COCOeval_opt calls functions of detectron2._C that dcnzoo does not have",
        compiled="detectron2._C",
        module="detectron2.evaluation.fast_eval_api",
        change=_use_pycocotools,
    ),
    AfterImport(
        name="basicsr_deform_conv",
        reason="BasicSR has no deformable convolution for the CPU",
        compiled="basicsr.ops.dcn.deform_conv_ext",
        module="basicsr.ops.dcn.deform_conv",
        change=_use_deform_conv,
    ),
    AfterImport(
        name="groundingdino_attention",
        reason="Grounding DINO uses F.grid_sample on the CPU",
        compiled="groundingdino._C",
        module="groundingdino.models.GroundingDINO.ms_deform_attn",
        change=_use_attention,
    ),
    AfterImport(
        name="detrex_attention",
        reason="detrex uses F.grid_sample on the CPU",
        compiled="detrex._C",
        module="detrex.layers.multi_scale_deform_attn",
        change=_use_attention,
    ),
)
