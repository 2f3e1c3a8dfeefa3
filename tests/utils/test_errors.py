"""Errors on one line: names from files are escaped, and an error in dcnzoo says that it is one."""

import runpy

import pytest

from dcnzoo.utils.errors import UserError, describe, one_line, printable, user_errors


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


def test_an_assertion_without_a_message_is_its_source(tmp_path):
    (tmp_path / "own.py").write_text("def check(size):\n    assert size > 2\n")
    with pytest.raises(AssertionError) as caught:
        runpy.run_path(str(tmp_path / "own.py"))["check"](1)
    assert describe(caught.value).startswith("expected size > 2 (DCNZOO_TRACEBACK=1")


def test_other_errors_have_their_type():
    with pytest.raises(UserError, match=r"^KeyError: x \(DCNZOO_TRACEBACK=1"), user_errors():
        {}["x"]
    with pytest.raises(UserError, match=r"^a: expected 1$"), user_errors():
        raise ValueError("a: expected\n1")
