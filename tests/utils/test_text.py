"""Texts of messages."""

import pytest

from dcnzoo.utils.text import counted

SINGULARS = {
    "classes": "class", "images": "image", "categories": "category", "boxes": "box", "patches": "patch",
    "files": "file", "values": "value", "sizes": "size", "names": "name", "more layers": "more layer",
}  # fmt: skip


@pytest.mark.parametrize("plural", SINGULARS)
def test_counted(plural):
    assert counted(1, plural) == f"1 {SINGULARS[plural]}"
    assert counted(0, plural) == f"0 {plural}" and counted(2000, plural) == f"2,000 {plural}"
