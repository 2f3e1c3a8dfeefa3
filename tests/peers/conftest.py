"""Comparisons with mmcv's compiled operators. They run if those are installed: ``nox -s peers``."""

from importlib.util import find_spec

import pytest

from dcnzoo.compat.mmcv import EXTENSION, OWN_FILE


def pytest_collection_modifyitems(items):
    if not find_spec("mmcv") or find_spec(EXTENSION).origin == str(OWN_FILE):
        for item in (item for item in items if "peers" in item.path.parts):
            item.add_marker(pytest.mark.skip("mmcv is not compiled here"))
