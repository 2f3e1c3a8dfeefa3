"""The earlier path of ``make_core`` and ``save_ir``; they are in :mod:`dcnzoo.export`."""

from dcnzoo.detect.backends.openvino import make_core
from dcnzoo.export.writing import save_ir

__all__ = ["make_core", "save_ir"]
