"""Compare the figures of README and of the guides' first screens with the rows that each section links.

::

    python -m benchmarks.claims    # exit status 1 if a section links no rows, or the rows lack a figure

A figure is a number with a decimal point that is no version or code, a whole number with a unit (13 %,
40 µs), or "3 of 10". **Its source is a row, never a sentence**: a line of a CSV file, a row of a table that a
program wrote (docs/benchmarks, the study, the zoo), or the results of benchmarks/coverage, counted here. All
figures of a cell or clause must be in one row of a file that the section links, in this order and rounded as
printed; the list of all timings at the end of a page does not count.

A section with a date of measurement must say "changed since" if a commit changed the operators later.
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


def words(text: str) -> set[str]:
    return set(re.findall(r"[^\W\d_]{2,}\d*", text.lower())) - {"the", "of", "with", "and", "in"}


@functools.cache
def rows(file: Path) -> list[tuple[list[float], set[str]]]:
    """Return the numbers and words of each row of a table, or the counts of results that are ok."""
    text = TIMINGS.split(file.read_text("utf-8"))[0]
    if file.suffix == ".json":  # of benchmarks/coverage
        results = [row["result"] for row in json.loads(text).values()]
        further = sum(result.startswith("ok with further packages") for result in results)
        ok = sum(result.startswith("ok") for result in results)
        return [([ok, len(results)], {"families"}), ([ok - further, len(results), further], {"families"})]
    lines = [line for line in text.splitlines() if file.suffix == ".csv" or line.startswith("|")]
    return [(numbers(line), words(line)) for line in lines]


def missing(text: str, folder: Path) -> list[str]:
    """Return the cells and clauses whose figures are in no row that shares a word with their line.

    The row is in a file that the line links, or, if it links none, the line before; else in any of the text.
    """
    every = SOURCE.findall(text)
    links, result = every, []
    for sentence in re.split(r"\n(?=\|)|\n\n|\. ", text):
        links = SOURCE.findall(sentence) or (links if sentence.startswith("| |") else every)
        plain = without_links(sentence)
        near = [line for link in links for line, labels in rows(folder / link) if words(plain) & labels]
        for clause in re.split(r"[|;]", plain):
            figures = re.split(r" of (?:its )?| / |\n", "\n".join(FIGURE.findall(clause)))
            if any(figures) and not any(has_in_order(line, figures) for line in near):
                result.append(clause.strip())
    return result


def without_links(text: str) -> str:
    return VERSION.sub("", re.sub(r"\]\([^)]*\)|\d{4}-\d\d-\d\d", "", text))


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


def is_outdated(text: str) -> bool:
    """Whether the operators have changed since the first date of a section, without a word about it."""
    command = ("git", "-C", str(ROOT), "log", "-1", "--format=%cs", "--", "ops", "dcnzoo/ops")
    changed = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    dates = re.findall(r"\d{4}-\d\d-\d\d", text)
    return bool(dates) and min(dates) < changed and "changed since" not in text


def main() -> None:
    checked = [*claims()]
    for heading, figures, sources, lost in checked:
        print(f"{heading}\n  {', '.join(figures)}\n  from: {', '.join(sources) or 'NO SOURCE'}")
        for clause in lost:
            print(f"  NOT IN THE SOURCE: {clause}")
    sys.exit(any(lost or not sources for _, _, sources, lost in checked))


if __name__ == "__main__":
    main()
