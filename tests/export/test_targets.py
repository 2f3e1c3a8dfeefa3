"""``verify`` runs a file in the runtime that it is for."""

import numpy as np
import pytest

from dcnzoo.export import targets


def test_a_runtime_that_is_not_installed(tmp_path, monkeypatch):
    def missing(path, names):
        raise ModuleNotFoundError("No module named 'MNN'")

    monkeypatch.setitem(targets.OPEN, "mnn", missing)
    session = type("", (), dict(backend="onnxruntime", path="x", output_names=[]))()
    assert list(targets.runtimes(session, "mnn")) == ["onnxruntime"]


@pytest.mark.parametrize("runtime", targets.OPEN)
def test_a_small_graph(runtime, tmp_path):
    """Run by ``nox -s runtimes`` where the packages are."""
    pytest.importorskip({"mnn": "MNN"}.get(runtime, runtime))
    import torch

    layer = torch.nn.Conv2d(3, 4, 3).eval()
    path = tmp_path / "x.onnx"
    torch.onnx.export(
        layer, (torch.zeros(1, 3, 8, 9),), path, dynamo=False, input_names=["input"], output_names=["y"]
    )
    image = np.random.default_rng(0).standard_normal((1, 3, 8, 9), np.float32)
    (output,) = targets.OPEN[runtime](str(path), ["y"])({"input": image})
    with torch.no_grad():
        np.testing.assert_allclose(output.reshape(1, 4, 6, 7), layer(torch.from_numpy(image)), atol=1e-5)
