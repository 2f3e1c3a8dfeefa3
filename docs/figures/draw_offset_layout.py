"""Draws offset_layout.svg: where a 3×3 tap reads, and how offset and mask lie in memory.

``python docs/figures/draw_offset_layout.py`` writes it beside this file. Plain text, no library, so that it
comes out the same everywhere (tests/test_docs.py).
"""

from __future__ import annotations

from pathlib import Path

TARGET = Path(__file__).with_name("offset_layout.svg")
CELL = 34  # of the feature map
# y, x of each tap's displacement, in pixels
OFFSETS = (
    *((-0.6, -0.8), (-0.9, 0.2), (-0.4, 0.9)),
    *((0.1, -1.1), (0.3, 0.4), (-0.3, 1.2)),
    *((0.8, -0.5), (0.6, 0.3), (1.1, 0.7)),
)
INK, FAINT, REGULAR, MOVED = "#333", "#bbb", "#1f6fb2", "#c8442c"


def text(x: float, y: float, words: str, size: int = 13, fill: str = INK, anchor: str = "start") -> str:
    return f'<text x="{x:g}" y="{y:g}" font-size="{size}" fill="{fill}" text-anchor="{anchor}">{words}</text>'


def rectangle(
    x: float, y: float, width: float, height: float, fill: str = "none", stroke: str = FAINT
) -> str:
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" fill="{fill}" stroke="{stroke}"/>'
    )


def feature_map(left: float, top: float, size: int = 7) -> list[str]:
    parts = [text(left, top - 12, "input, around one output position")]
    parts += [
        rectangle(left + column * CELL, top + row * CELL, CELL, CELL)
        for row in range(size)
        for column in range(size)
    ]
    for tap, (dy, dx) in enumerate(OFFSETS):
        row, column = divmod(tap, 3)
        x, y = (left + (2.5 + column) * CELL, top + (2.5 + row) * CELL)  # the 3×3 window in the middle
        to_x, to_y = x + dx * CELL, y + dy * CELL
        parts += [
            f'<line x1="{x:g}" y1="{y:g}" x2="{to_x:g}" y2="{to_y:g}" stroke="{MOVED}" stroke-width="1.5"/>',
            f'<circle cx="{x:g}" cy="{y:g}" r="3.5" fill="{REGULAR}"/>',
            f'<circle cx="{to_x:g}" cy="{to_y:g}" r="4.5" fill="{MOVED}"/>',
            text(to_x + 7, to_y - 5, str(tap), 11, MOVED),
        ]
    below = top + size * CELL + 20
    parts += [
        f'<circle cx="{left + 6:g}" cy="{below - 4:g}" r="3.5" fill="{REGULAR}"/>',
        text(left + 16, below, "p·stride − padding + k·dilation", 12),
        f'<circle cx="{left + 6:g}" cy="{below + 16:g}" r="4.5" fill="{MOVED}"/>',
        text(left + 16, below + 20, "plus the offset of tap k: here it reads, bilinearly", 12),
    ]
    return parts


def channels(left: float, top: float, title: str, names: list[str], note: str, width: float) -> list[str]:
    """A row of boxes, one per channel."""
    parts = [text(left, top - 12, title)]
    for index, name in enumerate(names):
        fill = {"y": "#e3eef8", "x": "#fbe9e4", "m": "#eaf4e4"}.get(name[0], "none")
        parts.append(rectangle(left + index * width, top, width, 30, fill))
        parts.append(text(left + (index + 0.5) * width, top + 20, name, 12, anchor="middle"))
    return [*parts, text(left, top + 50, note, 12, "#666")]


def draw() -> str:
    left = 330
    taps = [f"{axis}{tap}" for tap in (0, 1, 2) for axis in "yx"]
    body = [
        *feature_map(20, 40),
        *channels(
            left, 60, "offset: channels of one group (3×3 kernel: 18)", [*taps, "…", "y8", "x8"],
            "tap by tap, row by row of the kernel; y before x; in pixels of the input", 44,
        ),
        *channels(
            left, 170, "mask: channels of one group (3×3 kernel: 9)", ["m0", "m1", "m2", "…", "m8"],
            "the factor of each tap", 44,
        ),
        text(left, 268, "G offset groups follow one another; group g moves the"),
        text(left, 288, "C/G input channels from g·C/G on. The mask has groups of"),
        text(left, 308, "its own, M of them."),
    ]  # fmt: skip
    head = (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 780 340" width="780" height="340" '
        'font-family="sans-serif"><rect width="780" height="340" fill="white"/>'
    )
    return "\n".join([head, *body, "</svg>"]) + "\n"


if __name__ == "__main__":
    TARGET.write_text(draw(), encoding="utf-8")
