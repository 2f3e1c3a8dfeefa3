"""Imports of OpenMMLab's other packages. None of them is imported here: a patch waits until one is."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module

import numpy as np

from dcnzoo.compat.after_import import watch
from dcnzoo.compat.patches import Changes


def while_imported(importer: str, module: str, name: str, value: object) -> Callable[[Changes], None]:
    """A change: while the module ``importer`` is executed for its import, ``module.name`` is ``value``.

    A package compares versions in its ``__init__.py`` alone: nothing else reads such a ``__version__``.
    """

    @contextmanager
    def during_import() -> Iterator[None]:
        with Changes() as changes:
            changes.set(import_module(module), name, value)
            yield

    def change(changes: Changes) -> None:
        changes.callback(watch(importer, around=during_import))

    return change


def xtcocotools_mask(changes: Changes) -> None:
    """``xtcocotools._mask`` is pycocotools', of which it is a copy, where its own does not load."""

    @contextmanager
    def provide_mask() -> Iterator[None]:
        try:
            import_module("xtcocotools._mask")
        except (ImportError, ValueError):  # "numpy.dtype size changed"
            changes.set_item(sys.modules, "xtcocotools._mask", import_module("pycocotools._mask"))
        yield

    changes.callback(watch("xtcocotools.mask", around=provide_mask))


NUMPY_1 = {
    "bool8": np.bool_,
    "int0": np.intp,
    "sctypes": {
        "int": [np.int8, np.int16, np.int32, np.int64],
        "uint": [np.uint8, np.uint16, np.uint32, np.uint64],
        "float": [np.float16, np.float32, np.float64],
        "complex": [np.complex64, np.complex128],
        "others": [bool, object, bytes, str, np.void],
    },
}


def numpy_1_names(changes: Changes) -> None:
    """From the first import of a package that needs them on."""
    names = changes.enter_context(Changes())

    @contextmanager
    def add_names() -> Iterator[None]:
        for name, value in NUMPY_1.items():
            if name not in vars(np):
                names.set(np, name, value)
        yield

    for package in ("imgaug", "mmagic", "mmocr"):
        changes.callback(watch(package, around=add_names))
