import sys

import pytest
import torch.onnx  # noqa: F401  dcnzoo patches it at its import: not in the fixture, which undoes patches

import dcnzoo.compat
from dcnzoo.compat import after_import, host, patches


@pytest.fixture
def provide(monkeypatch):
    """:func:`dcnzoo.compat.provide`. Its changes and later imports are undone after the test."""
    before = dict(sys.modules)
    known = len(patches._patches)
    monkeypatch.setattr(after_import, "_missing", dict(after_import._missing))
    monkeypatch.setattr(after_import, "_watched", [])
    monkeypatch.setattr(host, "_provided", [])
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    yield dcnzoo.compat.provide
    for patch in patches._patches[known:]:
        patch.undo()
    del patches._patches[known:]
    for name in sys.modules.keys() - before:
        spec = getattr(sys.modules[name], "__spec__", None)
        if host.is_ours(spec) and not name.startswith("dcnzoo"):
            del sys.modules[name]
