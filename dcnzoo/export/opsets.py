"""The opsets of ONNX, and the forms of deformable convolution.

``native`` is the operator ``DeformConv`` (1 and 2 axes, opset 19 on): the fastest, if the runtime has it.
``gathernd`` gathers rows of channels (1 to 3 axes): the graph that most runtimes support. ``auto`` is
``native`` if possible, else ``gathernd``.
"""

DEFAULT = 19  # the first with DeformConv; onnxruntime lacks the RoiAlign of 22
SUPPORTED = range(18, 24)  # of torch.onnx.export
FORMS = ("auto", "native", "gathernd")


def check_target(form: str, opset: int) -> None:
    """Raise ValueError unless a form of deformable convolution can be written in this opset."""
    if form not in FORMS:
        raise ValueError(f"deform_conv: expected one of {', '.join(FORMS)}, got {form!r}")
    first = 19 if form == "native" else SUPPORTED[0]
    if not first <= opset <= SUPPORTED[-1]:
        raise ValueError(
            f"opset_version: expected {first} to {SUPPORTED[-1]} for deform_conv={form!r}, got {opset}"
        )
