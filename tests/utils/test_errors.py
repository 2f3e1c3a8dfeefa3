"""Errors on one line: names from files are escaped, and an error in dcnzoo says that it is one."""

import json
import runpy

import pytest

from dcnzoo.compat.mmcv import _ext
from dcnzoo.utils.errors import UserError, describe, one_line, printable, user_errors
from dcnzoo.utils.text import few

from ..commands import error_of


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("fig", "fig"),
        ("Früchte 果物 🍇", "Früchte 果物 🍇"),
        ("\x1b[31mred\x07", r"\x1b[31mred\x07"),
        ("two\nlines\r\t", r"two\nlines\r\t"),
        ("\x9b2J", r"\x9b2J"),  # the same sequence in one byte of C1
        ("a\u202egnp.exe", r"a\u202egnp.exe"),  # reverses the order of what follows
        ("\udcff.png", r"\udcff.png"),  # a file name that is not UTF-8, as Python decodes it
        ("a\0b", r"a\x00b"),
    ],
)
def test_names_are_printable(text, expected):
    assert printable(text) == expected
    printable(text).encode("utf-8")


def test_errors_are_printable():
    assert one_line(UserError("class \x1b]0;title\x07:\n  expected a name")) == (
        r"class \x1b]0;title\x07: expected a name"
    )


def test_an_assertion_names_its_values(tmp_path):
    (tmp_path / "own.py").write_text("def check(size):\n    assert size > 2\n")
    with pytest.raises(AssertionError) as caught:
        runpy.run_path(str(tmp_path / "own.py"))["check"](1)
    assert describe(caught.value).startswith("expected size > 2, got size=1")


def test_an_error_in_dcnzoo_says_that_it_is_one(monkeypatch):
    """Not one in a file of the user, nor in a module of the user that dcnzoo calls."""
    with pytest.raises(UserError, match=r"in dcnzoo: TypeError: .*DCNZOO_TRACEBACK=1"), user_errors():
        few(None)
    not_supported = _ext.sync_bn_forward_mean
    for wrong in (lambda: json.loads("{"), lambda: {}["key"], lambda: 1 / 0, not_supported):
        with pytest.raises(Exception) as caught:
            wrong()
        assert "in dcnzoo" not in describe(caught.value)
    monkeypatch.setattr("dcnzoo.zoo.search", None)
    assert "in dcnzoo" in error_of("zoo", "list", "mask")
