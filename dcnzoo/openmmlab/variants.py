"""A detector of PyTorch in every precision, and where its time goes."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from dcnzoo.detect.detector import BaseDetector
from dcnzoo.openmmlab.detector import TorchDetector

# parts of the names of operators; the first kind that fits counts
OPERATORS = {
    "deformable operators": ("dcnzoo::deform", "dcnzoo::dcn", "dcnzoo::ms_deform"),
    "RoIAlign": ("roi_align",),
    "NMS": ("nms", "NMS"),
    "convolutions": ("conv",),
    "linear layers": ("addmm", "::mm", "bmm", "linear"),
    "norms": ("norm",),
    "copies and casts": ("copy", "cat", "contiguous", "::to"),
}


def variants(model: nn.Module, threads: int | None = None) -> dict[str, BaseDetector]:
    """Return the model's detectors in float32 (first without fused layers) and bfloat16."""
    if threads:
        torch.set_num_threads(threads)
    detectors: dict[str, BaseDetector] = {"PyTorch float32": TorchDetector(model, fuse=False)}
    if (fused := TorchDetector(model)).fuses:
        detectors["PyTorch float32, fused"] = fused
    detectors["PyTorch bf16"] = TorchDetector(model, precision="bf16")
    return detectors


def shares(detectors: Mapping[str, BaseDetector], image: np.ndarray) -> list[list[str]]:
    """Return a table with the shares of CPU time of the kinds of operators, for PyTorch's detectors."""
    columns: dict[str, dict[str, float]] = {}
    for name, detector in detectors.items():
        if isinstance(detector, TorchDetector):
            detector(image)  # a first call allocates memory and creates oneDNN's kernels
            with profile(activities=[ProfilerActivity.CPU]) as profiled:
                detector(image)
            times = dict.fromkeys((*OPERATORS, "other"), 0.0)
            for event in profiled.key_averages():
                kind = next(
                    (k for k, parts in OPERATORS.items() if any(p in event.key for p in parts)), "other"
                )
                times[kind] += event.self_cpu_time_total
            columns[name] = times
    rows = [
        [kind, *(f"{each[kind] / sum(each.values()):.1%}" for each in columns.values())]
        for kind in (*OPERATORS, "other")
    ]
    return [["", *columns], *rows]
