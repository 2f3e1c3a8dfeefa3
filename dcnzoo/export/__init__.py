"""Write files of modules: ONNX, OpenVINO.

Requires ``pip install "./dcnzoo[onnx]"``. :mod:`dcnzoo.detect` runs the files; its :class:`Detections` and
:class:`Detector`, the detector of a file, are also here. Nothing is imported before it is used.
"""

from importlib import import_module

_HOME = {
    "Detections": "detect.detections.Detections",
    "Detector": "detect.exported.ExportedDetector",
    "ExportResult": "export.result.ExportResult",
    "Int8": "export.options.Int8",
    "decompositions": "export.aten_graph.decompositions",
    "export_onnx": "export.onnx.export_onnx",
    "for_pnnx": "export.pnnx.for_pnnx",
    "register_deform_conv2d_onnx_op": "export.registration.register_deform_conv2d_onnx_op",
    "register_onnx_ops": "export.registration.register_onnx_ops",
    "translation_table": "export.registration.translation_table",
}
__all__ = list(_HOME)


def __getattr__(name: str):
    if name in _HOME:
        module, _, attribute = _HOME[name].rpartition(".")
        return getattr(import_module(f"dcnzoo.{module}"), attribute)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
