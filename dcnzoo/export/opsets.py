"""The opsets of ONNX in which dcnzoo's operators can be written: the only place that has them.

==================  =====  ====  ==============================================================
form                opset  axes
==================  =====  ====  ==============================================================
``native``          >= 19  1, 2  the operator ``DeformConv``: the fastest, if the runtime has it
``gathernd``        >= 12  1–3   gathers rows of channels; the graph that most runtimes support
``gatherelements``  >= 12  1–3   gathers single values; if ``GatherND`` is missing or slow
``gridsample``      >= 16  1, 2  the fewest nodes; slightly less exact; not for TensorRT
``auto``            >= 12  1–3   ``native`` if possible, else ``gathernd``
==================  =====  ====  ==============================================================
"""

DEFAULT = 19  # the first with DeformConv; onnxruntime lacks the RoiAlign of 22
DYNAMO = range(18, 24)  # of torch.onnx.export(dynamo=True)
TORCHSCRIPT = range(12, 21)  # of torch.onnx.export(dynamo=False)
FIRST = {"native": 19, "gathernd": 12, "gatherelements": 12, "gridsample": 16, "auto": 12}
# RoiAlign with half-pixel coordinates; ScatterElements that adds
FIRST_OF_OPERATOR = {"roi_align": 16, "deform_conv_transpose": 16}
MAX_RANK = {"native": 2, "gathernd": 3, "gatherelements": 3, "gridsample": 2, "auto": 3}
FORMS = ("auto", "native", "gathernd", "gridsample")  # of detectors


def require_opset(opset: int) -> None:
    """Raise ValueError unless torch's default exporter and dcnzoo support an opset."""
    if opset not in DYNAMO:
        raise ValueError(
            f"opset_version: expected {DYNAMO[0]} to {DYNAMO[-1]} for dynamo=True, got {opset}"
            + (f"; dynamo=False supports {TORCHSCRIPT[0]} and later" if opset < DYNAMO[0] else "")
        )


def require_operator(name: str, opset: int) -> None:
    """Raise ValueError if an opset is too old for one of dcnzoo's operators."""
    if opset < FIRST_OF_OPERATOR[name]:
        raise ValueError(
            f"opset_version: expected at least {FIRST_OF_OPERATOR[name]} for {name}, got {opset}"
        )


def check_target(target: str, opset: int) -> None:
    """Check that a form of deformable convolution can be written in this opset.

    Raises:
        ValueError: it cannot, or the form is unknown.
    """
    if target not in FIRST:
        raise ValueError(f"deform_conv: expected one of {', '.join(FIRST)}, got {target!r}")
    if opset < FIRST[target]:
        possible = [t for t, first in FIRST.items() if first <= opset and t != "auto"]
        otherwise = f"; opset {opset} supports {' and '.join(possible)}" if possible else ""
        raise ValueError(
            f"opset_version: expected at least {FIRST[target]} for deform_conv={target!r}, "
            f"got {opset}{otherwise}"
        )
