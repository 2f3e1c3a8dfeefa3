"""The earlier place of :mod:`dcnzoo.detect.detector`."""

from dcnzoo.detect.detector import BaseDetector, Results

__all__ = ["BaseDetector", "Results"]
