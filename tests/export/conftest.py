"""Skip models with DeformConv if onnxruntime does not support it (before 1.25, e.g. on Python 3.10)."""

from importlib.metadata import version

import pytest

from dcnzoo.detect.backends.onnxruntime import FIRST_DEFORM_CONV, release


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call():
    try:
        return (yield)
    except Exception as error:
        if "DeformConv" in str(error) and release(version("onnxruntime")) < FIRST_DEFORM_CONV:
            pytest.skip("this onnxruntime has no DeformConv, which came with 1.25")
        raise
