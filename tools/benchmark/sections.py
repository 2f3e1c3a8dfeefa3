"""Write tables in Markdown, and replace those on a page that stand between two comments."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from dcnzoo.utils.files import write_text

PAGE = Path(__file__).resolve().parents[2] / "docs" / "gpu.md"


def markdown(rows: Sequence[Sequence[object]]) -> str:
    head, *body = [[str(cell).replace("|", "\\|") for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *body))


def replace_section(name: str, rows: Sequence[Sequence[object]], write: bool, page: Path = PAGE) -> None:
    """Print a table and, with ``write``, replace the section of this name on the page."""
    text = markdown(rows)
    print(text)
    if write:
        pattern = rf"(<!-- {name}: [^\n]*-->\n).*?(<!-- end of {name} -->)"
        before = page.read_text(encoding="utf-8")
        after, count = re.subn(pattern, lambda m: f"{m[1]}\n{text}\n\n{m[2]}", before, flags=re.DOTALL)
        if count != 1:
            raise SystemExit(f"error: {page}: expected one section <!-- {name}: … -->, found {count}")
        write_text(page, after)
        print(f"written: {page}")
