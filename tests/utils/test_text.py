"""Texts of messages: each function by examples."""

import pytest

from dcnzoo.utils.text import columns, counted, cut, few, nearest, short


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (counted(1, "images"), "1 image"),
        (counted(0, "images"), "0 images"),
        (counted(2000, "images"), "2,000 images"),
        (counted(1, "categories"), "1 category"),
        (counted(1, "classes"), "1 class"),
        (counted(1, "boxes or polygons"), "1 box or polygon"),
        (counted(2, "boxes or polygons"), "2 boxes or polygons"),
        (cut("abcdefghi", 9), "abcdefghi"),
        (cut("abcdefghij", 9), "abcdef…hij"),
        (short("a" * 80), f"'{'a' * 27}...{'a' * 28}'"),
        (short(0.1 + 0.2), "0.3"),
        (short([[[[1]]]]), "[[[[...]]]]"),
        (few([]), "none"),
        (few(["a", "b"]), "a, b"),
        (few(["a", "b", "c"], 2), "a, b and 1 more"),
        (nearest("trian", ["train", "test"]), "train"),
        (nearest("x", ["train", "test"]), ""),
        (list(columns([("a", "1"), ("bcd", "22")], numbers=True)), ["a     1", "bcd  22"]),
        (list(columns([("図", "1"), ("bcd", "22")])), ["図   1", "bcd  22"]),
    ],
)
def test_examples(text, expected):
    assert text == expected
