"""Plots of learning curves and detections, and sampling points."""

from dcnzoo.report.plots import (
    Curves,
    Instances,
    plot_detections,
    plot_learning_curves,
)
from dcnzoo.report.sampling import SamplingField, record_sampling, trace_sampling

__all__ = [
    "Curves",
    "Instances",
    "SamplingField",
    "plot_detections",
    "plot_learning_curves",
    "record_sampling",
    "trace_sampling",
]
