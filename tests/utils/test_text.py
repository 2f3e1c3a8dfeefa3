"""Texts of messages."""

import ast
import re

import pytest

from dcnzoo.utils.text import counted

from ..processes import ROOT

SINGULARS = {
    "classes": "class", "images": "image", "categories": "category", "boxes": "box", "patches": "patch",
    "files": "file", "values": "value", "sizes": "size", "names": "name", "more layers": "more layer",
}  # fmt: skip


@pytest.mark.parametrize("plural", SINGULARS)
def test_counted(plural):
    assert counted(1, plural) == f"1 {SINGULARS[plural]}"
    assert counted(0, plural) == f"0 {plural}" and counted(2000, plural) == f"2,000 {plural}"


def text_of(part):
    """A part of an f-string: its text, 0 for a value, nothing for one with a format such as ``:+,``."""
    return part.value if isinstance(part, ast.Constant) else "" if part.format_spec else "0"


def test_numbers_before_a_counted_word_are_counted():
    """A word that the program counts once is counted everywhere, except in "3 of 5 images"."""
    words, numbers = set(), []
    for file in (ROOT / "dcnzoo").rglob("*.py"):
        if file.is_relative_to(ROOT / "dcnzoo/ops"):
            continue  # below dcnzoo.utils
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            match node:
                case ast.Call(func=ast.Name("counted"), args=[_, ast.Constant(str(plural))]):
                    words.add(plural.split()[-1])
                case ast.JoinedStr(values=values):
                    text = "".join(map(text_of, values))
                    text = re.sub(r"\b[Oo]f (the |all )?0 \w+", "", text)
                    numbers += [(f"{file}:{node.lineno}", word) for word in re.findall(r"\b0 (\w+s)\b", text)]
    assert {"images", "classes"} <= words
    assert not [word for word in words if not re.search(r"(ies|sses|xes|ches|[^s]s)$", word)]
    assert [(position, word) for position, word in numbers if word in words] == []
