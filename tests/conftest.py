import sys

import pytest

import dcnzoo  # noqa: F401  before any test imports mmcv.ops, which needs the compiled module


@pytest.fixture(autouse=True)
def no_default_scope_left_behind():
    """A Runner makes its scope the default of whatever is built after it, here in the next test."""
    yield
    registry = sys.modules.get("mmengine.registry")
    if registry is not None:
        registry.DefaultScope._instance_dict.clear()
