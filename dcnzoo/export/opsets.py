"""The opsets of ONNX, and the forms of deformable convolution.

==================  =====  ====  ==============================================================
form                opset  axes
==================  =====  ====  ==============================================================
``native``          >= 19  1, 2  the operator ``DeformConv``: the fastest, if the runtime has it
``gathernd``        >= 12  1–3   gathers rows of channels; the graph that most runtimes support
``gatherelements``  >= 12  1–3   gathers single values; if ``GatherND`` is missing or slow
``auto``            >= 12  1–3   ``native`` if possible, else ``gathernd``
==================  =====  ====  ==============================================================
"""

DEFAULT = 19  # the first with DeformConv; onnxruntime lacks the RoiAlign of 22
DYNAMO = range(18, 24)  # of torch.onnx.export
TORCHSCRIPT = range(12, 21)  # of torch.onnx.export(dynamo=False)
FIRST = {"auto": 12, "native": 19, "gathernd": 12, "gatherelements": 12}


def check_form(form: str, opset: int, supported: range = DYNAMO) -> None:
    """Raise ValueError unless a form of deformable convolution exists and can be written in this opset.

    Args:
        supported: the opsets of the exporter.
    """
    if form not in FIRST:
        raise ValueError(f"deform_conv: expected one of {', '.join(FIRST)}, got {form!r}")
    first = max(FIRST[form], supported[0])
    if not first <= opset <= supported[-1]:
        raise ValueError(
            f"opset_version: expected {first} to {supported[-1]} for deform_conv={form!r}, got {opset}"
        )
