"""Replacements for the compiled modules of published projects, implemented with dcnzoo's operators.

Deformable DETR, Grounding DINO, InternImage, DCNv2, EDVR and others contain C++ and CUDA code that must be
compiled first, which often fails. :func:`provide` replaces such a module, if it is missing, by one of dcnzoo
with the same functions, which have the same order of arguments and write the same tensors in place. The
project's code stays unchanged. The functions run on CPUs and GPUs, but some projects refuse CPU tensors.

This module imports neither torch nor the projects.
"""

import sys
from importlib import import_module
from importlib.machinery import all_suffixes
from importlib.util import find_spec
from pathlib import Path

# name of a compiled module -> the module of this folder that has its functions
TABLE = {
    "MultiScaleDeformableAttention": "attention",  # Deformable DETR, DINO, Mask2Former, MaskDINO, MOTR
    "groundingdino._C": "attention",
    "detrex._C": "detrex",
    "adet._C": "attention",  # TESTR, DeepSolo
    "_C": "attention",  # the same in a package of another name
    "DCNv3": "intern_image",
    "DCNv4.ext": "dcnv4.ext",  # if only the compiled part of the package is missing
    "DCNv4": "dcnv4",  # the whole package, for FlashInternImage
    "_ext": "dcn_v2",  # DCNv2 and its forks
    "deform_conv_ext": "deform_conv",  # BasicSR, EDVR
    "custom_op": "custom_op",  # Pytorch-Implmentation-of-Deformable-Convolution-Nd
}
TORCHVISION = "torchvision"
COMMON_NAMES = ("_C", "_ext", "custom_op")  # names that some projects use for other modules
BY_DEFAULT = [name for name in TABLE if name not in COMMON_NAMES]


def provide(*names: str) -> None:
    """Replace compiled modules that are missing, and operators that lack a kernel for a device.

    Call it before you import the project, and after a change of ``sys.path``. A module that is installed, or
    imported already, stays in use. A second call has no effect.

    Args:
        names: keys of the table in :mod:`dcnzoo.compat.compiled`, such as
            ``"MultiScaleDeformableAttention"``. A project that has the module inside a package needs the full
            name, whose last part is in the table: ``"basicsr.ops.dcn.deform_conv_ext"``. ``"torchvision"``
            defines the two operators without which a torchvision that was built for another torch cannot be
            imported, and gives ``deform_conv2d`` a kernel on devices for which torchvision has none.

    Raises:
        ValueError: no name is given, or one is unknown. The message lists the names.
    """
    unknown = [name for name in names if name != TORCHVISION and not _source(name)]
    if unknown or not names:
        known = ", ".join((*TABLE, TORCHVISION))
        raise ValueError(f"provide: names: expected some of {known}, got {', '.join(unknown) or 'none'}")
    for name in names:
        if name == TORCHVISION:
            import_module("dcnzoo.utils.torchvision_schemas").define_missing()
            import_module("dcnzoo.compat.torchvision").add_missing_kernels()
        elif name not in sys.modules and not is_installed(name):
            sys.modules[name] = import_module(f"{__name__}.{_source(name)}")


def _source(name: str) -> str | None:
    """Return the name of the file in this folder that replaces a compiled module, or None."""
    return TABLE.get(name) or TABLE.get(name.rpartition(".")[2])


def is_installed(name: str) -> bool:
    """Return whether an import finds a module. Unlike importlib's ``find_spec``, this imports no package.

    The packages of the table import their compiled module, which is missing, so they cannot be imported here.
    A folder without ``__init__.py`` is no module: projects keep C++ code and empty submodules there.
    """
    package, *parts = name.split(".")
    spec = find_spec(package)
    if spec is None or not parts:
        return spec is not None and spec.origin is not None
    folders = [Path(folder, *parts[:-1]) for folder in spec.submodule_search_locations or ()]
    files = [f"{parts[-1]}/__init__.py", *(parts[-1] + suffix for suffix in all_suffixes())]
    return any((folder / file).is_file() for folder in folders for file in files)
