"""The earlier place of :mod:`dcnzoo.detect.exported` and :mod:`dcnzoo.detect.session`."""

from dcnzoo.detect.exported import ExportedDetector as Detector
from dcnzoo.detect.session import Session

__all__ = ["Detector", "Session"]
