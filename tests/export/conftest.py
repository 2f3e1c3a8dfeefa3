"""Skip models with DeformConv if onnxruntime does not support it (before 1.25, e.g. on Python 3.10)."""

import functools

import pytest


@pytest.fixture(scope="session", autouse=True)
def models_that_onnxruntime_knows():
    try:
        import onnx
        import onnxruntime as ort
    except ImportError:
        yield  # each test checks its own requirements
        return
    if tuple(map(int, ort.__version__.split(".")[:2])) >= (1, 25):
        yield
        return
    construct = ort.InferenceSession.__init__

    @functools.wraps(construct)
    def unless_it_convolves_deformably(self, model, *args, **kwargs):
        loaded = onnx.load_from_string(model) if isinstance(model, bytes) else onnx.load(model)
        if any(node.op_type == "DeformConv" for node in loaded.graph.node):
            pytest.skip(f"onnxruntime {ort.__version__} has no DeformConv, which came with 1.25")
        construct(self, model, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ort.InferenceSession, "__init__", unless_it_convolves_deformably)
        yield
