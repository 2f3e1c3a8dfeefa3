"""ONNX translations, one file per family of operators. New files are imported automatically.

A translation creates nodes by a :class:`dcnzoo.export.graph.Graph`; :mod:`dcnzoo.export.registration` gives
all of them to torch's exporters.
"""

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
