"""Definitions without which a torchvision that was built for another torch cannot be imported."""

from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


@cache
def define_missing() -> torch.library.Library | None:
    """Define the operators that ``import torchvision`` needs, if torchvision's own library does not load.

    timm, MMEngine and training import torchvision, but use none of its operators. A definition beside
    a library that loads would break the library, so this tries the library first.

    Returns:
        The definitions, which live as long as the process; None if torchvision fits or is not installed.
    """
    if not load_error():
        return None
    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in _SCHEMAS:
        library.define(schema)
    return library


@cache
def load_error() -> str | None:
    """Return why the library of the installed torchvision does not load with the installed torch, or None."""
    spec = find_spec("torchvision")
    if spec is None:
        return None
    for folder in spec.submodule_search_locations or ():
        for path in (*Path(folder).glob("_C*.so"), *Path(folder).glob("_C*.pyd")):
            try:
                torch.ops.load_library(path)
            except OSError as error:
                return str(error)
    return None
