"""List the figures of README and of the guides' first screens, and the source that each section names.

::

    python -m benchmarks.claims    # exit status 1 if a section with figures names no source

A figure is a number with a decimal point that is no version or code, or "3 of 10". A source is a page of
measurements, a file of rows, the revision that was measured, or a word that says who published it.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.measure import ROOT

PAGES = "benchmarks/|coverage|study|model_zoo|gpu|performance|demo_|results.csv"
SOURCE = re.compile(rf"\]\(([^)]*(?:{PAGES})[^)]*)\)|(published|revision \w+|`python -m benchmarks\.\w+`)")
CODE = re.compile(r"^```.*?^```|`[^`]*`|<!--.*?-->|\$\$.*?\$\$|\$[^$]*\$", re.DOTALL | re.MULTILINE)
VERSION = re.compile(
    r"(?:\b(?:CUDA|License|Python|Transformers|Triton|mmcv|mmdet|mmengine|onedl-\w+|onnxruntime|torch|torchvision)\s+|≥\s)"
    r"[≥=]*\s*\d+\.\d+(?:\.\d+)*|\d+\.\d+\.\d+|\([−\d., ]+\)"  # or a default, or a position
)
FIGURE = re.compile(r"[−+-]?(?<![\w./])\d*\.\d+(?! ?(?:MiB|MB|GB))\b|\b\d[\d,]* of (?:its )?\d[\d,]*\b")


def sections(page: Path) -> Iterator[tuple[str, str]]:
    """Yield heading and text of the sections that a reader sees first: of README all, of a guide two."""
    parts = re.split(r"^#+ (.+)$", CODE.sub("", page.read_text(encoding="utf-8")), flags=re.MULTILINE)
    found = [*zip(parts[1::2], parts[2::2], strict=True)]
    yield from found if page.name == "README.md" else found[:2]


def claims() -> Iterator[tuple[str, list[str], list[str]]]:
    """Yield page and heading, figures, sources."""
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        for heading, text in sections(page):
            sources = [link or word for link, word in SOURCE.findall(text)]
            links = re.sub(r"\]\([^)]*\)|\d{4}-\d\d-\d\d", "", text)
            if figures := FIGURE.findall(VERSION.sub("", links)):
                yield f"{page.relative_to(ROOT)}: {heading}", figures, sources


def main() -> None:
    rows = [*claims()]
    for place, figures, sources in rows:
        print(f"{place}\n  {', '.join(figures)}\n  from: {', '.join(sources) or 'NO SOURCE'}")
    sys.exit(any(not sources for _, _, sources in rows))


if __name__ == "__main__":
    main()
