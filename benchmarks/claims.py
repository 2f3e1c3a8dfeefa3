"""Compare the figures of README and of the guides' first screens with the rows that each section links.

::

    python -m benchmarks.claims    # exit status 1 if a section links no rows, or the rows lack a figure

A figure is a number with a decimal point that is no version or code, a whole number with a unit (13 %,
40 µs), or "3 of 10". **Its source is a row, never a sentence**: a line of a CSV file, a row of a table that a
program wrote (docs/benchmarks, the study, the zoo), or the results of benchmarks/coverage, counted here. All
figures of a cell or clause must be in one row of a file that the section links, in this order and rounded as
printed; the list of all timings at the end of a page does not count.

A page of results has a date. A section with one must say "changed since" if a later commit changed the
operators.
"""

import functools
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.measure import ROOT

ROWS = r"benchmarks/[\w.+-]+\.md|coverage/\w+\.json|\.csv|study\.md|model_zoo\.md"
SOURCE = re.compile(rf"\]\(([^)#]*(?:{ROWS}))[^)]*\)")
CODE = re.compile(r"^```.*?^```|`[^`]*`|<!--.*?-->|\$\$.*?\$\$|\$[^$]*\$", re.DOTALL | re.MULTILINE)
VERSION = re.compile(
    r"(?:\b(?:CUDA|License|Python|Transformers|Triton|mmcv|mmdet|mmengine|onedl-\w+|onnxruntime|torch|torchvision)\s+|≥\s)"
    r"[≥=]*\s*\d+\.\d+(?:\.\d+)*|\d+\.\d+\.\d+|(?<!\d )\([−\d., ]+\)"  # or a default, a position
    r"|\b9[59] ?%|AGPL-3\.0"  # or the level of an interval, a licence
)
FIGURE = re.compile(
    r"(?<![\w./])[−+-]?(?<![\w./])\d*\.\d+(?! ?(?:MiB|MB|GB))\b|\b\d[\d,]* of (?:its )?\d[\d,]*\b"
    r"|\b\d[\d,]*(?= ?%| (?:µs|ms|times|page faults)\b)|\b\d[\d,]* / \d[\d,]*\b(?! threads)"
)
NUMBER = re.compile(r"[−+-]?(?<![\w.])\d[\d,]*(?:\.\d+)?|[−+-]?(?<![\w.])\.\d+")
DATE = re.compile(r"\d{4}-\d\d-\d\d")
WORD = re.compile(r"[^\W\d_]{2,}\d*")
RANGE = re.compile(r"\d[\d.]* – \d[\d.]*")
TIMINGS = re.compile(r"^(?:All timings:|## All cases)$", re.MULTILINE)


def sections(page: Path) -> Iterator[tuple[str, str]]:
    """Yield heading and text of the sections that a reader sees first: of README all, of a guide two."""
    parts = re.split(r"^#+ (.+)$", CODE.sub(names_of, page.read_text(encoding="utf-8")), flags=re.MULTILINE)
    pairs = [*zip(parts[1::2], parts[2::2], strict=True)]
    yield from pairs if page.name == "README.md" else pairs[:2]


@functools.cache
def numbers(text: str) -> tuple[float, ...]:
    return tuple(float(number.replace("−", "-").replace(",", "")) for number in NUMBER.findall(text))


def equal(figure: str, value: float) -> bool:
    """Whether a value has this figure, rounded as printed; its sign may be a word."""
    (printed,) = numbers(figure)
    value = value if figure[0] in "+-−" else abs(value)
    return abs(value - printed) <= 0.5001 * 10.0 ** -len(figure.partition(".")[2])


def has_in_order(line: str, figures: list[str]) -> bool:
    values = iter(numbers(line))
    return all(any(equal(figure, value) for value in values) for figure in figures)


def words(text: str) -> set[str]:
    return set(WORD.findall(text.lower())) - {"the", "of", "with", "and", "in"}


@functools.cache
def rows(file: Path) -> list[tuple[str, set[str]]]:
    """Return each row of a table with its words, or the counts of results that are ok."""
    text = TIMINGS.split(file.read_text("utf-8"))[0]
    if file.suffix == ".json":  # of benchmarks/coverage
        results = [row["result"] for row in json.loads(text).values()]
        further = sum(result.startswith("ok with further packages") for result in results)
        ok, number = sum(result.startswith("ok") for result in results), len(results)
        return [(f"{ok} {number}", {"families"}), (f"{ok - further} {number} {further}", {"families"})]
    lines = [line for line in text.splitlines() if file.suffix == ".csv" or line.startswith("|")]
    return [(line, words(line)) for line in lines]


def missing(text: str, folder: Path) -> list[str]:
    """Return the cells and clauses whose figures are in no row that shares a word with their line.

    The row is in a file that the line links, or, if it links none, the line before; else in any of the text.
    """
    every = SOURCE.findall(text)
    links, result, heads, before = every, [], list[str](), ""
    for sentence in re.split(r"\n(?=\|)|\n\n|\. ", text):
        links = SOURCE.findall(sentence) or (links if sentence.startswith("| |") else every)
        heads = before.split("|") if sentence.startswith("|---") else heads if sentence[:1] == "|" else []
        before = plain = without_links(sentence)
        near = [row for link in links for row in rows(folder / link) if words(plain) & row[1]]
        cells = [cell.split(";") for cell in plain.split("|")]
        names = [cell for cell in cells if not FIGURE.search(";".join(cell))]
        for column, clauses in enumerate(cells):
            # it tells columns apart
            head = words("".join(heads[column : column + 1])) if len(names) < len(cells) - 1 else set()
            for part, clause in enumerate(clauses):
                figures = re.split(r" of (?:its )?| / |\n", "\n".join(FIGURE.findall(clause)))
                own = [cell[part] if len(cell) == len(clauses) else ";".join(cell) for cell in names]
                lines = nearest(near, words(" ".join([clause, *own])), head, len(figures))
                if any(figures) and not any(has_in_order(line, figures) for line in lines):
                    result.append(clause.strip())
    return result


def nearest(near: list[tuple[str, set[str]]], label: set[str], head: set[str], figures: int) -> list[str]:
    """Return the rows that may have the figures of a clause.

    Some row has a figure alone by chance: only those count that share the most words with the clause and the
    names in its line, then with the head of its column; and no ranges, such as quartiles.
    """
    if figures > 1:
        return [line for line, _ in near]
    common = [(len(label & labels), len(head & labels)) for _, labels in near]
    return [RANGE.sub("", near[n][0]) for n, shared in enumerate(common) if shared == max(common)]


def without_links(text: str) -> str:
    return VERSION.sub(names_of, re.sub(r"\]\([^)]*\)|\d{4}-\d\d-\d\d", "", text))


def names_of(match: re.Match[str]) -> str:
    """Return the words of a code or of a version, without their figures."""
    return " ".join(WORD.findall(match[0]))


def claims() -> Iterator[tuple[str, list[str], list[str], list[str]]]:
    """Yield page and heading, figures, sources, and the clauses that no source has."""
    written = {ROOT / "docs/study.md", ROOT / "docs/coverage.md"}  # from rows, by programs
    for page in (ROOT / "README.md", *sorted({*(ROOT / "docs").glob("*.md")} - written)):
        for heading, text in sections(page):
            if figures := FIGURE.findall(without_links(text)):
                lost = missing(text, page.parent)
                if is_outdated(text):
                    lost.append('expected "changed since" beside the date')
                yield f"{page.relative_to(ROOT)}: {heading}", figures, SOURCE.findall(text), lost


def undated() -> list[str]:
    """Return the pages of results without a date."""
    pages = sorted({*(ROOT / "docs/benchmarks").glob("*.md")} - {ROOT / "docs/benchmarks/README.md"})
    return [page.name for page in pages if not DATE.search(page.read_text(encoding="utf-8"))]


def is_outdated(text: str) -> bool:
    """Whether the operators have changed since the first date of a section, without a word about it."""
    command = ("git", "-C", str(ROOT), "log", "-1", "--format=%cs", "--", "ops", "dcnzoo/ops")
    changed = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    dates = DATE.findall(text)
    return bool(dates) and min(dates) < changed and "changed since" not in text


def main() -> None:
    checked = [*claims()]
    for heading, figures, sources, lost in checked:
        print(f"{heading}\n  {', '.join(figures)}\n  from: {', '.join(sources) or 'NO SOURCE'}")
        for clause in lost:
            print(f"  NOT IN THE SOURCE: {clause}")
    for page in undated():
        print(f"NO DATE: {page}")
    sys.exit(bool(undated()) or any(lost or not sources for _, _, sources, lost in checked))


if __name__ == "__main__":
    main()
