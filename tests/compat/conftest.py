import sys

import pytest

import dcnzoo
from dcnzoo.compat.compiled import TABLE


@pytest.fixture
def provide():
    """:func:`dcnzoo.provide`. The modules that it provides are removed after the test."""
    remove_provided()  # those that `dcnzoo run` has provided in other tests
    yield dcnzoo.provide
    remove_provided()


def remove_provided():
    for name, module in list(sys.modules.items()):
        is_ours = getattr(module, "__name__", "").startswith("dcnzoo.compat.compiled.")
        if name.partition(".")[0] in TABLE or (is_ours and not name.startswith("dcnzoo.")):
            del sys.modules[name]
