"""Errors on one line: names from files are escaped, and an error in dcnzoo says that it is one."""

import pytest

from dcnzoo.utils.errors import UserError, printable, user_errors


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


def test_other_errors_have_their_type():
    with pytest.raises(UserError, match=r"^KeyError: x \(DCNZOO_TRACEBACK=1"), user_errors():
        {}["x"]
    with pytest.raises(UserError, match=r"^a: expected 1$"), user_errors():
        raise ValueError("a: expected\n1")
