"""Write files of modules: ONNX, OpenVINO.

* To trace and to write ONNX: ``onnx``, ``passes``; for each operator, ``registration``, ``opsets``,
  ``graph``, ``sampling`` and ``operators``.
* For detectors, whose code is in :mod:`dcnzoo.openmmlab.export`: ``fixed_size`` and ``vmap`` of
  post-processing; ``options``, ``precision``, ``writing`` and ``result`` of a file.
* For other compilers: ``aten_graph``, in operators of torch; ``pnnx``, for ncnn.

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
    "make_core": "detect.backends.openvino.make_core",
    "register_deform_conv2d_onnx_op": "export.registration.register_deform_conv2d_onnx_op",
    "register_onnx_ops": "export.registration.register_onnx_ops",
    "save_ir": "export.writing.save_ir",
    "translation_table": "export.registration.translation_table",
}
__all__ = list(_HOME)


def __getattr__(name: str):
    if name in _HOME:
        module, _, attribute = _HOME[name].rpartition(".")
        return getattr(import_module(f"dcnzoo.{module}"), attribute)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
