"""An export changes nothing that other threads see."""

import builtins
import threading
import types
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from dcnzoo.compat.patches import ThreadChanges
from dcnzoo.export import export_onnx
from dcnzoo.export.options import ExportOptions
from dcnzoo.openmmlab.export import export as export_module

from .detectors import build, predict_batch, size

pytest.importorskip("onnx")


def in_thread(function, *args):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function, *args).result()


def test_changes_are_seen_by_their_thread_only():
    class Layer:
        def name(self):
            return "layer"

        @staticmethod
        def double(x):
            return 2 * x

    module, layer = types.ModuleType("module"), Layer()
    with ThreadChanges() as changes:
        changes.set(Layer, "name", lambda self: f"{type(self).__name__} here")
        changes.set(Layer, "double", staticmethod(lambda x: -x))
        changes.set(module, "len", lambda values: 7)
        assert (layer.name(), layer.double(3), module.len("abc")) == ("Layer here", -3, 7)
        assert in_thread(layer.name) == "layer" and in_thread(layer.double, 3) == 6
        assert in_thread(module.len, "abc") == 3
    assert layer.name() == "layer" and Layer.double(3) == 6 and not hasattr(module, "len")
    assert builtins.len("abc") == 3


def test_two_exports_leave_no_function_replaced(tmp_path):
    """The first export ended before the second, which restored the first one's replacements."""
    flags = (torch.compiler.is_exporting, torch.onnx.is_in_onnx_export, torch._C._select_conv_backend)
    inside, second = threading.Event(), threading.Event()

    class First(torch.nn.Module):
        def forward(self, x):
            inside.set()
            second.wait(0.5)
            return x + 1

    class Second(torch.nn.Module):
        def forward(self, x):
            second.set()
            return x - 1

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(export_onnx, First(), (torch.zeros(2),), tmp_path / "first.onnx")
        assert inside.wait(60)
        pool.submit(export_onnx, Second(), (torch.zeros(2),), tmp_path / "second.onnx").result()
        first.result()
    current = (torch.compiler.is_exporting, torch.onnx.is_in_onnx_export, torch._C._select_conv_backend)
    assert current == flags


@pytest.mark.slow
def test_other_threads_predict_the_same_during_an_export(tmp_path):
    """In them, code of MMDetection was replaced, and torch.export switched off oneDNN."""
    families = ("Faster R-CNN", "Faster R-CNN", "Deformable DETR")
    exported, *others = map(build, families)
    detectors = [exported, *others]  # the exported one predicts, too
    images = [torch.randn(1, 3, *size(family)) for family in families]
    expected = [predict_batch(*pair) for pair in zip(detectors, images, strict=True)]
    done, counts = threading.Event(), [0] * len(detectors)

    def predict(i):
        while not done.is_set():
            (result,), (reference,) = predict_batch(detectors[i], images[i]), expected[i]
            for name in ("boxes", "scores", "labels"):
                torch.testing.assert_close(getattr(result, name), getattr(reference, name), rtol=0, atol=0)
            counts[i] += 1

    options = ExportOptions(tmp_path / "model.onnx", shape=size(families[0]))
    with ThreadPoolExecutor(len(detectors)) as pool:
        runs = [pool.submit(predict, i) for i in range(len(detectors))]
        try:
            network = export_module.own_copy(exported)
            model = export_module.Predictor(network)
            export_module.write_detector(model, images[0], options, dynamic=False, metadata={})
        finally:
            done.set()
        for run in runs:
            run.result()
    assert min(counts) > 5
