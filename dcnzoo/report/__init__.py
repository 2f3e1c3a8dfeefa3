"""Sampling points of deformable layers. ``dcnzoo report`` and ``dcnzoo explain`` show them in pages."""

from dcnzoo.report.sampling import SamplingField, record_sampling

__all__ = ["SamplingField", "record_sampling"]
