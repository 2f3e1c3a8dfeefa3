"""The runtimes that a file can be written for: a row has what each of them needs.

``nox -s runtimes`` compares files in those of phones and boards: docs/benchmarks/runtimes.md.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Runtime:
    """What a runtime needs.

    Attributes:
        form: of deformable convolution (:mod:`dcnzoo.export.opsets`).
        is_fixed: whether the input has one size, and no input ``img_shape``.
        has_nms: whether complete files run; otherwise only raw outputs.
    """

    form: str = "auto"
    is_fixed: bool = False
    has_nms: bool = True


RUNTIMES = {
    "onnxruntime": Runtime(),
    "openvino": Runtime(),
    "tensorrt": Runtime("gathernd"),
    "coreml": Runtime(),
    "mnn": Runtime("gathernd", is_fixed=True),
    "litert": Runtime("gathernd", is_fixed=True, has_nms=False),
    "tract": Runtime("gathernd", is_fixed=True, has_nms=False),
}


def require_options(
    name: str, shape: tuple[int, int] | None, img_shape: str | None, raw_outputs: bool
) -> None:
    """Raise ValueError unless a runtime is known and supports a file with these options."""
    if name not in RUNTIMES:
        raise ValueError(f"runtime: expected one of {', '.join(RUNTIMES)}, got {name!r}")
    runtime, needed = RUNTIMES[name], []
    if runtime.is_fixed and shape is None:
        needed.append("shape=(height, width)")
    if runtime.is_fixed and img_shape is not None:
        needed.append("img_shape=None")
    if not runtime.has_nms and not raw_outputs:
        needed.append("raw_outputs=True")
    if needed:
        raise ValueError(f"runtime: expected {', '.join(needed)} for {name}")
