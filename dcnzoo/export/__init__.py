"""Models to ONNX and AOTInductor, and exported detectors at run time.

To export needs ``pip install "./dcnzoo[onnx]"``. :class:`Detector` needs numpy and the runtime, not torch:
nothing here is imported before it is used.
"""

from importlib import import_module

_HOME = {
    "Detections": "picture",
    "Detector": "runtime",
    "export_onnx": "exporters",
    "export_pt2": "aotinductor",
    "register_deform_conv2d_onnx_op": "exporters",
    "register_onnx_ops": "exporters",
    "translation_table": "exporters",
}
__all__ = list(_HOME)


def __getattr__(name: str):
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
