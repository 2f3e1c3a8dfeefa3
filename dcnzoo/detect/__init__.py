"""Detectors for pictures, and their results. Requires numpy, and a runtime for exported files, but not torch.

:class:`~dcnzoo.detect.detector.BaseDetector` is the interface of every detector, with PyTorch or from a file;
:class:`~dcnzoo.detect.exported.ExportedDetector` runs a file of ``dcnzoo export``.
"""

from dcnzoo.detect.detections import Detections

__all__ = ["Detections"]
