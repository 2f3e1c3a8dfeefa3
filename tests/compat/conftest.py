import sys

import pytest

import dcnzoo
from dcnzoo.compat.compiled import TABLE


@pytest.fixture
def provide():
    """:func:`dcnzoo.provide`. The modules that it provides are removed after the test."""
    before = set(sys.modules)
    yield dcnzoo.provide
    for name in sys.modules.keys() - before:
        is_provided = name in TABLE or name.rpartition(".")[2] in TABLE
        if is_provided and not name.startswith("dcnzoo."):
            del sys.modules[name]
