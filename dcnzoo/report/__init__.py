"""Sampling points of deformable layers, and sheets of annotated pictures.

``dcnzoo report``, ``dcnzoo explain`` and ``dcnzoo data show`` show them in pages.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dcnzoo.report.sampling import SamplingField, record_sampling
    from dcnzoo.report.sheet import write_sheet

__all__ = ["SamplingField", "record_sampling", "write_sheet"]


def __getattr__(name: str) -> object:
    # imported on access, because sampling needs torch
    if name in __all__:
        module = "sheet" if name == "write_sheet" else "sampling"
        return getattr(import_module(f"dcnzoo.report.{module}"), name)
    raise AttributeError(f"module 'dcnzoo.report' has no attribute {name!r}")
