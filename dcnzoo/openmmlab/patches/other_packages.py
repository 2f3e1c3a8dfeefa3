"""Patches for OpenMMLab's other packages. A patch takes effect when its package is imported."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

import numpy as np

from dcnzoo.compat.after_import import call, watch
from dcnzoo.compat.patches import Changes, Patch


def while_imported(importer: str, module: str, name: str, value: object) -> Callable[[Changes], None]:
    """Return a change that sets ``module.name`` to ``value`` while the module ``importer`` is being imported.

    A package compares versions only in its ``__init__.py``, so other code sees the real ``__version__``.
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
    """Use pycocotools' ``_mask``, the original of xtcocotools' copy, if the copy does not load."""

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
    for name, value in NUMPY_1.items():
        if name not in vars(np):
            changes.set(np, name, value)


# openmmlab/__init__.py applies it: mmdet imports mmpretrain, albumentations and imgaug if they are installed
NUMPY_1_NAMES = Patch(
    "numpy_1_names",
    change=numpy_1_names,
    target="numpy.bool8, int0 and sctypes",
    reason="imgaug, mmagic and mmocr use names that numpy 2 removed (numpy has no attribute 'bool8')",
    versions="imgaug 0.4.0, mmagic 1.2.0, mmocr 1.0.1",
    needed=lambda: any(map(find_spec, ("imgaug", "mmagic", "mmocr"))),
)


def text_center_lines(changes: Changes) -> None:
    """Compute center lines of text in float64, as with numpy 1: OpenCV rejects colors in NumPy's float32."""

    def resample(original: Callable, loss: object, line: np.ndarray, n: int) -> np.ndarray:
        return original(loss, line.astype(np.float64), n)

    def change(module: ModuleType) -> None:
        changes.wrap(module.TextSnakeModuleLoss, "_resample_line", resample)

    changes.callback(call("mmocr.models.textdet.module_losses.textsnake_module_loss", change))
