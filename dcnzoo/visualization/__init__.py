"""Pictures: learning curves, detections, sampling points, and the page that shows them."""

from dcnzoo.visualization.page import Section, data_uri, render_page
from dcnzoo.visualization.plots import (
    Curves,
    Instances,
    plot_detections,
    plot_learning_curves,
    plot_offset_statistics,
    plot_sampling,
)
from dcnzoo.visualization.sampling import SamplingField, record_sampling, trace_sampling

__all__ = [
    "Curves",
    "Instances",
    "SamplingField",
    "Section",
    "data_uri",
    "plot_detections",
    "plot_learning_curves",
    "plot_offset_statistics",
    "plot_sampling",
    "record_sampling",
    "render_page",
    "trace_sampling",
]
