"""Compare the figures of README and of the guides' first screens with the sources that each section names.

::

    python -m benchmarks.claims    # exit status 1 if a section names no source, or a source lacks a figure

A figure is a number with a decimal point that is no version or code, or "3 of 10". A source is a page of
measurements, a file of rows, the revision that was measured, or a word that says who published it. All
figures of a cell or clause must be in one line of a file that the section links, in this order and rounded as
printed; the list of all timings at the end of a page does not count.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.measure import ROOT

PAGES = "benchmarks/|coverage|study|model_zoo|gpu|performance|demo_|results.csv"
SOURCE = re.compile(
    rf"\]\(([^)]*(?:{PAGES})[^)]*)\)|(\*\*published\*\*|revision \w+|`python -m benchmarks\.\w+`)"
)
CODE = re.compile(r"^```.*?^```|`[^`]*`|<!--.*?-->|\$\$.*?\$\$|\$[^$]*\$", re.DOTALL | re.MULTILINE)
VERSION = re.compile(
    r"(?:\b(?:CUDA|License|Python|Transformers|Triton|mmcv|mmdet|mmengine|onedl-\w+|onnxruntime|torch|torchvision)\s+|≥\s)"
    r"[≥=]*\s*\d+\.\d+(?:\.\d+)*|\d+\.\d+\.\d+|(?<!\d )\([−\d., ]+\)"  # or a default, or a position
)
FIGURE = re.compile(
    r"(?<![\w./])[−+-]?(?<![\w./])\d*\.\d+(?! ?(?:MiB|MB|GB))\b|\b\d[\d,]* of (?:its )?\d[\d,]*\b"
)
NUMBER = re.compile(r"[−+-]?(?<![\w.])\d[\d,]*(?:\.\d+)?|[−+-]?(?<![\w.])\.\d+")
TIMINGS = re.compile(r"^(?:All timings:|## All cases)$", re.MULTILINE)


def sections(page: Path) -> Iterator[tuple[str, str]]:
    """Yield heading and text of the sections that a reader sees first: of README all, of a guide two."""
    parts = re.split(r"^#+ (.+)$", CODE.sub("", page.read_text(encoding="utf-8")), flags=re.MULTILINE)
    pairs = [*zip(parts[1::2], parts[2::2], strict=True)]
    yield from pairs if page.name == "README.md" else pairs[:2]


def numbers(text: str) -> list[float]:
    return [float(number.replace("−", "-").replace(",", "")) for number in NUMBER.findall(text)]


def equal(figure: str, value: float) -> bool:
    """Whether a value has this figure, rounded as printed; its sign may be a word."""
    (printed,) = numbers(figure)
    value = value if figure[0] in "+-−" else abs(value)
    return abs(value - printed) <= 0.5001 * 10.0 ** -len(figure.partition(".")[2])


def has_in_order(line: list[float], figures: list[str]) -> bool:
    values = iter(line)
    return all(any(equal(figure, value) for value in values) for figure in figures)


def missing(text: str, files: list[Path]) -> list[str]:
    """Return the cells and clauses whose figures are in no line of the files."""
    lines = [
        numbers(line) for file in files for line in TIMINGS.split(file.read_text("utf-8"))[0].splitlines()
    ]
    result = []
    for clause in re.split(r"[|;\n]|\. ", text):
        figures = [part for figure in FIGURE.findall(clause) for part in re.split(" of (?:its )?", figure)]
        if figures and not any(has_in_order(line, figures) for line in lines):
            result.append(clause.strip())
    return result


def claims() -> Iterator[tuple[str, list[str], list[str], list[str]]]:
    """Yield page and heading, figures, sources, and the clauses that no source has."""
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        for heading, text in sections(page):
            sources = [link or word for link, word in SOURCE.findall(text)]
            plain = VERSION.sub("", re.sub(r"\]\([^)]*\)|\d{4}-\d\d-\d\d", "", text))
            if figures := FIGURE.findall(plain):
                files = [page.parent / link.partition("#")[0] for link in sources]
                files = [file for file in files if file.suffix in (".md", ".csv") and file.is_file()]
                lost = missing(plain, files) if files else []  # else a revision or a publisher
                yield f"{page.relative_to(ROOT)}: {heading}", figures, sources, lost


def main() -> None:
    rows = [*claims()]
    for heading, figures, sources, lost in rows:
        print(f"{heading}\n  {', '.join(figures)}\n  from: {', '.join(sources) or 'NO SOURCE'}")
        for clause in lost:
            print(f"  NOT IN THE SOURCE: {clause}")
    sys.exit(any(lost or not sources for _, _, sources, lost in rows))


if __name__ == "__main__":
    main()
