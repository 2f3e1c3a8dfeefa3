"""Another path of ``make_core`` and ``save_ir``, which are in :mod:`dcnzoo.export`; older programs import it."""

from dcnzoo.detect.backends.openvino import make_core
from dcnzoo.export.writing import save_ir

__all__ = ["make_core", "save_ir"]
