"""``dcnzoo export``: ``tools/deployment/pytorch2onnx.py``."""

from dcnzoo.cli import door

command = door("export", "deployment/pytorch2onnx", "Export a detector to ONNX: CONFIG CHECKPOINT.")
