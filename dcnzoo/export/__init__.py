"""Models to ONNX. Needs ``pip install dcnzoo[onnx]``."""

from dcnzoo.export.exporters import (
    export_onnx,
    register_deform_conv2d_onnx_op,
    register_onnx_ops,
    translation_table,
)

__all__ = ["export_onnx", "register_deform_conv2d_onnx_op", "register_onnx_ops", "translation_table"]
