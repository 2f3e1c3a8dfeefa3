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
    for name in list(sys.modules):
        is_provided = {name.partition(".")[0], name, name.rpartition(".")[2]} & TABLE.keys()
        if is_provided and not name.startswith(("dcnzoo.", "mmcv.", "torch.")):
            del sys.modules[name]
