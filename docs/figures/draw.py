"""Draws the pictures of the operators' pages: ``python docs/figures/draw.py`` writes them beside this file.

Plain text, no plotting library, so that they come out the same everywhere. What an
operator computes is computed by the operator.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch

from dcnzoo.ops import deform_conv1d, deform_conv2d, deform_conv_transpose2d, mask_softmax2d, nms

FOLDER = Path(__file__).parent
WIDTH = 760
INK, SOFT, FAINT = "#333333", "#6b6b6b", "#c8c8c8"
REGULAR, MOVED, THIRD = "#1f6fb2", "#c8442c", "#3d8a4e"  # where a plain operator reads; where this one does
Y_FILL, X_FILL, M_FILL = "#e3eef8", "#fbe9e4", "#e6f3e8"  # channels of y, of x, of the mask

# y, x of the displacement of each tap of a 3×3 kernel, in pixels, and its factor
OFFSETS = (
    *((-0.6, -0.8), (-0.9, 0.2), (-0.4, 0.9)),
    *((0.1, -1.1), (0.3, 0.4), (-0.3, 1.2)),
    *((0.8, -0.5), (0.6, 0.3), (1.1, 0.7)),
)
MASK = (0.35, 0.7, 0.5, 0.9, 1.0, 0.3, 0.6, 0.85, 0.45)


class Picture:
    """SVG on a white card, which reads on a light page and on a dark one."""

    def __init__(self, height: int) -> None:
        self.height = height
        self.parts: list[str] = []

    def text(
        self, x: float, y: float, words: object, size: int = 13, fill: str = INK, anchor: str = "start"
    ) -> None:
        self.parts.append(
            f'<text x="{_number(x)}" y="{_number(y)}" font-size="{size}" fill="{fill}" '
            f'text-anchor="{anchor}">{words}</text>'
        )

    def lines(self, x: float, y: float, lines: Iterable[str], size: int = 12, fill: str = INK) -> None:
        for index, line in enumerate(lines):
            self.text(x, y + index * (size + 6), line, size, fill)

    def box(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        fill: str = "none",
        stroke: str = FAINT,
        thick: float = 1,
        dash: str = "",
        opacity: float = 1,
    ) -> None:
        extra = f' stroke-dasharray="{dash}"' if dash else ""
        extra += f' fill-opacity="{_number(opacity)}"' if opacity != 1 else ""
        self.parts.append(
            f'<rect x="{_number(x)}" y="{_number(y)}" width="{_number(width)}" height="{_number(height)}" '
            f'fill="{fill}" stroke="{stroke}" stroke-width="{_number(thick)}"{extra}/>'
        )

    def grid(self, x: float, y: float, columns: int, rows: int, cell: float, fill: str = "none") -> None:
        """Pixels, drawn as lines: a box for each would be many."""
        self.box(x, y, columns * cell, rows * cell, fill)
        inner = [f"M{_number(x + i * cell)} {_number(y)}v{_number(rows * cell)}" for i in range(1, columns)]
        inner += [f"M{_number(x)} {_number(y + i * cell)}h{_number(columns * cell)}" for i in range(1, rows)]
        self.parts.append(f'<path d="{"".join(inner)}" stroke="{FAINT}"/>')

    def dot(self, x: float, y: float, radius: float, fill: str, opacity: float = 1) -> None:
        extra = f' fill-opacity="{_number(opacity)}"' if opacity != 1 else ""
        self.parts.append(
            f'<circle cx="{_number(x)}" cy="{_number(y)}" r="{_number(radius)}" fill="{fill}"{extra}/>'
        )

    def line(
        self, x: float, y: float, to_x: float, to_y: float, stroke: str, thick: float = 1.5, dash: str = ""
    ) -> None:
        extra = f' stroke-dasharray="{dash}"' if dash else ""
        self.parts.append(
            f'<line x1="{_number(x)}" y1="{_number(y)}" x2="{_number(to_x)}" y2="{_number(to_y)}" '
            f'stroke="{stroke}" stroke-width="{_number(thick)}"{extra}/>'
        )

    def arrow(self, x: float, y: float, to_x: float, words: str = "") -> None:
        """To the right, with words above it."""
        self.line(x, y, to_x - 6, y, SOFT)
        self.parts.append(f'<path d="M{_number(to_x)} {_number(y)}l-9 -4.5v9z" fill="{SOFT}"/>')
        if words:
            self.text((x + to_x) / 2, y - 8, words, 12, SOFT, "middle")

    def channels(self, x: float, y: float, names: Sequence[str], cell: float) -> None:
        """A row of boxes, one per channel, coloured by the first letter."""
        for index, name in enumerate(names):
            fill = {"y": Y_FILL, "x": X_FILL, "m": M_FILL}.get(name[0], "none")
            self.box(x + index * cell, y, cell, 28, fill)
            self.text(x + (index + 0.5) * cell, y + 19, name, 12, anchor="middle")

    def svg(self) -> str:
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {self.height}" width="{WIDTH}" '
            f'height="{self.height}" font-family="sans-serif">'
            f'<rect x="0.5" y="0.5" width="{WIDTH - 1}" height="{self.height - 1}" rx="8" fill="white" '
            'stroke="#e0e0e0"/>'
        )
        return "\n".join([head, *self.parts, "</svg>"]) + "\n"


def _number(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0").replace("-0", "0" if f"{value:.1f}" == "-0.0" else "-0")


def _taps(picture: Picture, left: float, top: float, cell: float, moved: bool, masked: bool = False) -> None:
    """The taps of a 3×3 kernel in the middle of 7×7 pixels."""
    picture.grid(left, top, 7, 7, cell)
    for tap, (dy, dx) in enumerate(OFFSETS):
        row, column = divmod(tap, 3)
        x, y = left + (2.5 + column) * cell, top + (2.5 + row) * cell
        if moved:
            to_x, to_y = x + dx * cell, y + dy * cell
            picture.line(x, y, to_x, to_y, MOVED, 1.2)
            picture.dot(x, y, 2.5, REGULAR)
            picture.dot(to_x, to_y, 2 + 5 * MASK[tap] ** 0.5 if masked else 4.5, MOVED)
        else:
            picture.dot(x, y, 4.5, REGULAR)


def draw_deform_conv() -> Picture:
    picture = Picture(312)
    top, cell = 44, 26
    for left, title in (
        (20, "F.conv2d: a fixed grid"),
        (224, "v1: each tap moved"),
        (428, "v2: and weighted"),
    ):
        picture.text(left, 28, title)
        _taps(picture, left, top, cell, moved=left > 20, masked=left > 400)
    # four pixels around a sample
    left, top, cell, (y, x) = 648, 64, 44, (0.3, 0.6)
    picture.text(632, 28, "one sample")
    for row in (0, 1):
        for column in (0, 1):
            share = (y if row else 1 - y) * (x if column else 1 - x)
            place = left + column * cell, top + row * cell
            picture.box(
                place[0] - cell / 2 + 10, place[1] - cell / 2 + 10, cell, cell, MOVED, FAINT, 1, "", share
            )
            picture.text(place[0] + 10, place[1] + 2, f"{share:.2f}", 11, anchor="middle")
    picture.dot(left + 10 + x * cell, top + 10 + y * cell, 4.5, MOVED)
    picture.lines(632, 162, ("bilinear: the", "shares of the", "four pixels"), 12, SOFT)
    picture.dot(26, 248, 4.5, REGULAR)
    picture.text(38, 252, "where the regular grid reads: p · stride − padding + k · dilation", 12)
    picture.dot(26, 270, 4.5, MOVED)
    picture.text(
        38,
        274,
        "where this tap reads: plus its offset, in pixels of the input; the larger, the higher its mask",
        12,
    )
    picture.text(
        20,
        298,
        "The samples of all taps and channels, times mask and weight, are summed to one output pixel.",
        12,
    )
    return picture


def draw_offset_layout() -> Picture:
    picture = Picture(340)
    left, top, cell = 20, 44, 34
    picture.text(left, 28, "input, around one output position")
    picture.grid(left, top, 7, 7, cell)
    for tap, (dy, dx) in enumerate(OFFSETS):
        row, column = divmod(tap, 3)
        x, y = left + (2.5 + column) * cell, top + (2.5 + row) * cell
        to_x, to_y = x + dx * cell, y + dy * cell
        picture.line(x, y, to_x, to_y, MOVED)
        picture.dot(x, y, 3.5, REGULAR)
        picture.dot(to_x, to_y, 4.5, MOVED)
        picture.text(to_x + 7, to_y - 5, tap, 11, MOVED)
    picture.dot(26, 302, 3.5, REGULAR)
    picture.text(38, 306, "p · stride − padding + k · dilation", 12)
    picture.dot(26, 322, 4.5, MOVED)
    picture.text(38, 326, "plus the offset of tap k", 12)
    left = 300
    picture.text(left, 28, "offset: the channels of one group (3×3 kernel: 18)")
    taps = [f"{axis}{tap}" for tap in (0, 1, 2, 3) for axis in "yx"]
    picture.channels(left, 40, [*taps, "…", "y8", "x8"], 40)
    picture.text(
        left, 88, "tap by tap, row by row of the kernel; y before x; in pixels of the input", 12, SOFT
    )
    picture.text(left, 126, "mask: the channels of one group (3×3 kernel: 9)")
    picture.channels(left, 138, ["m0", "m1", "m2", "m3", "…", "m8"], 40)
    picture.text(left, 186, "the factor of each tap", 12, SOFT)
    picture.text(left, 224, "G offset groups follow one another; M mask groups do")
    groups = (("group 0: 18 channels", "#f2f2f2"), ("group 1: 18 channels", "#e4e4e4"), ("…", "none"))
    for index, (name, fill) in enumerate(groups):
        picture.box(left + index * 150, 236, 150 if index < 2 else 40, 28, fill)
        picture.text(left + index * 150 + (75 if index < 2 else 20), 255, name, 12, anchor="middle")
    picture.lines(
        left,
        288,
        (
            "Group g moves the C/G input channels from g · C/G on.",
            "The mask has groups of its own, M of them.",
        ),
        12,
        SOFT,
    )
    return picture


def draw_offset_shift() -> Picture:
    """An offset of (0, 1) for every tap, on a real row of numbers."""
    picture = Picture(236)
    image = torch.arange(1.0, 13.0).reshape(1, 1, 3, 4)
    offset = torch.zeros(1, 2, 3, 4)
    offset[:, 1] = 1
    shifted = deform_conv2d(image, torch.ones(1, 1, 1, 1), offset)
    cell = 40
    panels = (
        (20, "input", image, "#ffffff"),
        (296, "offset: y 0, x +1 everywhere", offset[:, 1:], X_FILL),
        (572, "output", shifted, "#ffffff"),
    )
    for left, title, values, fill in panels:
        picture.text(left, 30, title)
        picture.grid(left, 44, 4, 3, cell, fill)
        for row in range(3):
            for column in range(4):
                value = f"{values[0, 0, row, column]:g}"
                x, y = left + (column + 0.5) * cell, 44 + (row + 0.5) * cell
                picture.text(x, y + 5, f"+{value}" if fill == X_FILL else value, 14, anchor="middle")
    picture.arrow(190, 104, 284)
    picture.arrow(466, 104, 560)
    picture.lines(
        20,
        192,
        (
            "Each output pixel reads one pixel to the right of its place: the picture moves to the left.",
            "The last column reads beyond the map: zero.",
        ),
    )
    return picture


def draw_border() -> Picture:
    picture = Picture(218)
    left, zero, unit, height = 200, 150, 90, 100
    for pixel in range(4):
        picture.box(left + (pixel - 0.5) * unit, zero - height, unit, height, "#f2f6fa", FAINT)
        picture.text(left + pixel * unit, zero - height - 8, "1", 13, SOFT, "middle")
    picture.text(left - unit - 45, zero - height - 8, "a row of ones:", 13, SOFT)
    picture.text(640, zero - height + 5, "sample: 1", 12)
    picture.text(640, zero - 6, "sample: 0", 12)
    picture.line(30, zero, 730, zero, INK, 1)
    picture.line(left + 3.5 * unit, zero - height, 632, zero - height, FAINT, 1, "3 3")
    points = torch.linspace(-1.5, 4.5, 241)
    offset = torch.zeros(len(points), 1, 4)
    offset[:, 0, 0] = points
    values = deform_conv1d(torch.ones(len(points), 1, 4), torch.ones(1, 1, 1), offset)[:, 0, 0]
    path = " ".join(
        f"{_number(left + x * unit)},{_number(zero - y * height)}"
        for x, y in zip(points.tolist(), values.tolist(), strict=True)
    )
    picture.parts.append(f'<polyline points="{path}" fill="none" stroke="{MOVED}" stroke-width="2.5"/>')
    for tick in range(-1, 5):
        picture.line(left + tick * unit, zero, left + tick * unit, zero + 5, INK, 1)
        picture.text(left + tick * unit, zero + 20, str(tick).replace("-", "−"), 12, anchor="middle")
    picture.text(
        WIDTH / 2,
        202,
        "coordinate of the sample: it counts between −1 and the size, here 4, both excluded",
        12,
        SOFT,
        "middle",
    )
    return picture


def draw_deform_conv_transpose() -> Picture:
    picture = Picture(316)
    offsets = torch.zeros(1, 2 * 16, 3, 3)
    moves = torch.tensor(
        [
            *((-0.5, -0.6), (-0.4, 0.1), (-0.7, 0.2), (-0.3, 0.6)),
            *((0.1, -0.7), (0.2, 0.3), (-0.3, -0.2), (0.1, 0.7)),
            *((0.3, -0.4), (-0.2, 0.2), (0.4, -0.3), (0.0, 0.5)),
            *((0.6, -0.6), (0.3, 0.0), (0.5, 0.4), (0.7, 0.7)),
        ]
    )
    offsets[0, :, 1, 1] = moves.flatten()
    source = torch.zeros(1, 1, 3, 3)
    source[0, 0, 1, 1] = 1
    output = deform_conv_transpose2d(source, torch.ones(1, 1, 4, 4), offsets, stride=2, padding=1)[0, 0]
    picture.text(20, 28, "input: pixel p")
    picture.grid(20, 84, 3, 3, 44)
    picture.box(64, 128, 44, 44, MOVED, opacity=0.8)
    picture.text(86, 156, "p", 15, "#ffffff", "middle")
    picture.arrow(172, 150, 306, "writes 4×4 taps")
    left, top, cell = 330, 44, 40
    picture.text(left, 28, "output, stride 2, padding 1: what arrives")
    for row in range(6):
        for column in range(6):
            share = float(output[row, column]) / float(output.max())
            if share > 0:
                picture.box(
                    left + column * cell, top + row * cell, cell, cell, MOVED, "none", 1, "", 0.45 * share
                )
    picture.grid(left, top, 6, 6, cell)
    for tap, (dy, dx) in enumerate(moves.tolist()):
        row, column = divmod(tap, 4)
        x, y = left + (2 - 1 + column + 0.5) * cell, top + (2 - 1 + row + 0.5) * cell
        picture.line(x, y, x + dx * cell, y + dy * cell, MOVED, 1.2)
        picture.dot(x, y, 2.5, REGULAR)
        picture.dot(x + dx * cell, y + dy * cell, 4, MOVED)
    picture.lines(
        590,
        70,
        (
            "The place of tap k,",
            "p · stride − padding",
            "+ k · dilation,",
            "plus its offset.",
            "",
            "Its share goes to the",
            "four pixels around it,",
            "bilinearly.",
        ),
        12,
    )
    picture.text(20, 304, "Offsets and mask have the size of the input: every input pixel has its own.", 12)
    return picture


def draw_mask_softmax() -> Picture:
    picture = Picture(240)
    raw = torch.tensor([0.2, 1.4, -0.3, 0.9, 2.1, -1.2, 0.4, 1.1, -0.6])
    mask = mask_softmax2d(raw.reshape(1, 9, 1, 1), kernel_size=3).flatten()
    panels = (
        (60, "mask of one pixel and group, as predicted", raw, False),
        (470, "mask_softmax2d(mask, kernel_size=3)", mask, True),
    )
    for left, title, values, shaded in panels:
        picture.text(left - 40, 30, title)
        for tap, value in enumerate(values.tolist()):
            row, column = divmod(tap, 3)
            x, y = left + column * 52, 44 + row * 44
            picture.box(x, y, 52, 44, THIRD if shaded else "none", FAINT, 1, "", value if shaded else 1)
            words = f"{value:.2f}" if shaded else f"{value:.1f}".replace("-", "−")
            picture.text(x + 26, y + 27, words, 13, anchor="middle")
    picture.arrow(240, 110, 446, "exp, divided by their sum")
    picture.text(20, 204, "any values")
    picture.text(430, 204, "positive, with sum 1")
    picture.text(20, 226, "Each pixel and each group of a mask by itself.", 12, SOFT)
    return picture


def _roi(picture: Picture, left: float, top: float, cell: float) -> tuple[float, float, float, float]:
    """A map of 12×8 pixels and a RoI on it: (x, y, width, height) on the picture."""
    picture.grid(left, top, 12, 8, cell)
    x, y, width, height = 2.2, 1.3, 7.2, 5.1
    return left + x * cell, top + y * cell, width * cell, height * cell


def draw_roi_align() -> Picture:
    picture = Picture(318)
    picture.text(20, 28, "map, a RoI, its 3×3 bins, sampling_ratio=2")
    x, y, width, height = _roi(picture, 20, 44, 30)
    for row in range(3):
        for column in range(3):
            picture.box(
                x + column * width / 3, y + row * height / 3, width / 3, height / 3, "none", REGULAR, 1
            )
            for sample in range(4):
                down, right = divmod(sample, 2)
                at_x = x + (column + (right + 0.5) / 2) * width / 3
                at_y = y + (row + (down + 0.5) / 2) * height / 3
                picture.dot(at_x, at_y, 3.5, REGULAR)
    picture.box(x, y, width, height, "none", REGULAR, 2.5)
    picture.arrow(396, 164, 470, "average")
    picture.text(490, 28, "output, 3×3")
    picture.grid(490, 104, 3, 3, 40, Y_FILL)
    picture.lines(
        630,
        108,
        (
            "Each sample is",
            "bilinear between",
            "the centres of",
            "four pixels; each",
            "bin is the average",
            "of its samples,",
            "or the largest.",
        ),
        12,
    )
    picture.text(20, 304, "The RoI keeps its fractions: nothing is rounded to pixels.", 12, SOFT)
    return picture


def draw_deform_roi_pool() -> Picture:
    picture = Picture(318)
    picture.text(20, 28, "map, a RoI, its 3×3 bins, moved")
    x, y, width, height = _roi(picture, 20, 44, 30)
    moves = (
        *((-0.8, -0.6), (0.3, -0.9), (0.9, -0.4)),
        *((-1.2, 0.2), (0.2, 0.4), (1.1, -0.3)),
        *((-0.6, 0.9), (0.4, 0.7), (1.0, 0.8)),
    )
    for third in (1, 2):
        picture.line(x + third * width / 3, y, x + third * width / 3, y + height, REGULAR, 1, "4 3")
        picture.line(x, y + third * height / 3, x + width, y + third * height / 3, REGULAR, 1, "4 3")
    for index, (dx, dy) in enumerate(moves):
        row, column = divmod(index, 3)
        at_x, at_y = x + column * width / 3, y + row * height / 3
        to_x, to_y = at_x + dx * 15, at_y + dy * 15
        picture.box(to_x, to_y, width / 3, height / 3, MOVED, MOVED, 1.2, "", 0.1)
        centre = at_x + width / 6, at_y + height / 6
        picture.line(*centre, centre[0] + dx * 15, centre[1] + dy * 15, MOVED)
        picture.dot(*centre, 2.5, REGULAR)
        picture.dot(centre[0] + dx * 15, centre[1] + dy * 15, 3.5, MOVED)
    picture.box(x, y, width, height, "none", REGULAR, 2.5)
    picture.arrow(396, 164, 470, "average")
    picture.text(490, 28, "output, 3×3")
    picture.grid(490, 104, 3, 3, 40, X_FILL)
    picture.lines(
        630,
        108,
        (
            "Bin (i, j) moves",
            "by γ · width · Δx",
            "and γ · height · Δy",
            "of the RoI; then",
            "it is sampled as in",
            "RoIAlign.",
        ),
        12,
    )
    picture.text(
        20, 304, "Dashed: the bins of RoIAlign. Filled: where they are read, on and beyond the RoI.", 12, SOFT
    )
    return picture


def draw_dcnv3_dcnv4() -> Picture:
    picture = Picture(330)
    kernels = (
        (20, "deform_conv2d", lambda row, column: 3 * row + column, "row by row, pairs (y, x)"),
        (200, "dcnv3, dcnv4", lambda row, column: 3 * column + row, "column by column, (x, y)"),
    )
    for left, title, number, note in kernels:
        picture.text(left, 28, title)
        picture.grid(left, 40, 3, 3, 38, "#ffffff")
        path = [
            (left + (c + 0.5) * 38, 40 + (r + 0.5) * 38)
            for _, r, c in sorted((number(r, c), r, c) for r in range(3) for c in range(3))
        ]
        points = " ".join(f"{_number(x)},{_number(y)}" for x, y in path)
        picture.parts.append(f'<polyline points="{points}" fill="none" stroke="{X_FILL}" stroke-width="7"/>')
        for index, (x, y) in enumerate(path):
            picture.text(x, y + 5, index, 14, anchor="middle")
        picture.text(left, 174, note, 12, SOFT)
    left, cell = 400, 31
    picture.text(left, 28, "dcnv3, offset (N, H, W, group · 18): one group")
    picture.channels(left, 40, ["x0", "y0", "x1", "y1", "x2", "y2", "x3", "…", "x8", "y8"], cell)
    picture.text(left, 98, "dcnv3, mask (N, H, W, group · 9): one group")
    picture.channels(left, 110, ["m0", "m1", "m2", "m3", "…", "m8"], cell)
    picture.text(left, 160, "Channels are the last axis; taps are numbered as beside.", 12, SOFT)
    picture.text(
        20,
        212,
        "dcnv4, offset_mask (N, H, W, channels): padded once, at the end, to a multiple of 8 channels",
    )
    picture.channels(20, 224, ["x0", "y0", "…", "x8", "y8", "m0", "…", "m8"], 36)
    picture.channels(308, 224, ["x0", "y0", "…", "x8", "y8", "m0", "…", "m8"], 36)
    picture.channels(596, 224, ["…", "0", "0"], 36)
    for x, width, words in (
        (20, 288, "group 0: 27 channels"),
        (308, 288, "group 1: 27 channels"),
        (632, 72, "padding"),
    ):
        picture.line(x + 3, 260, x + width - 3, 260, SOFT, 1)
        picture.text(x + width / 2, 276, words, 12, SOFT, "middle")
    picture.text(
        20,
        310,
        "deform_conv2d instead: offset (N, G · 18, H, W), mask (N, M · 9, H, W), channels before the size.",
        12,
        SOFT,
    )
    return picture


def draw_ms_deform_attn() -> Picture:
    picture = Picture(262)
    reference, points = (0.58, 0.46), (
        ((-0.2, -0.12), (0.05, -0.2), (0.14, 0.03), (-0.07, 0.12)),
        ((-0.3, 0.05), (0.1, -0.25), (0.22, 0.12), (0.02, 0.28)),
        ((-0.35, -0.25), (0.28, -0.2), (0.3, 0.25), (-0.25, 0.3)),
    )  # fmt: skip
    weights = ((0.12, 0.08, 0.16, 0.05), (0.1, 0.14, 0.06, 0.04), (0.08, 0.05, 0.09, 0.03))
    for level in range(3):
        left, columns, rows = 20 + level * 190, 12 >> level, 8 >> level
        cell = 168 / columns
        picture.text(left, 28, f"level {level}: {rows}×{columns}")
        picture.grid(left, 44, columns, rows, cell)
        at_x, at_y = left + reference[0] * 168, 44 + reference[1] * 112
        for (dx, dy), weight in zip(points[level], weights[level], strict=True):
            to_x, to_y = at_x + dx * 168, at_y + dy * 112
            picture.line(at_x, at_y, to_x, to_y, MOVED, 1)
            picture.dot(to_x, to_y, 14 * weight**0.5, MOVED)
        picture.line(at_x - 6, at_y, at_x + 6, at_y, REGULAR, 2.5)
        picture.line(at_x, at_y - 6, at_x, at_y + 6, REGULAR, 2.5)
    picture.lines(
        588,
        60,
        (
            "One query, one head:",
            "L · P points, here 3 · 4,",
            "each times its weight,",
            "summed to D channels.",
        ),
        12,
    )
    picture.line(20, 187, 32, 187, REGULAR, 2.5)
    picture.line(26, 181, 26, 193, REGULAR, 2.5)
    picture.text(42, 191, "reference point of the query, the same place of the image on every level", 12)
    picture.dot(26, 213, 5, MOVED)
    picture.text(
        42,
        217,
        "sampling location, (x, y) from 0 to 1 across the level; the larger, the higher its attention weight",
        12,
    )
    picture.text(
        20,
        244,
        "Bilinear on each level, padded with zeros. All weights of a head together are the softmax's: sum 1.",
        12,
        SOFT,
    )
    return picture


def draw_nms() -> Picture:
    picture = Picture(290)
    boxes = torch.tensor(
        [
            *([20, 30, 140, 150], [34, 44, 156, 158], [8, 50, 120, 166]),
            *([190, 20, 290, 110], [202, 30, 304, 116], [150, 120, 250, 190]),
        ]
    )
    scores = torch.tensor([0.9, 0.8, 0.55, 0.7, 0.75, 0.6])
    labels = ((22, 26), (160, 60), (12, 180), (192, 16), (280, 131), (254, 188))  # beside the boxes
    kept = set(nms(boxes.float(), scores, iou_threshold=0.5).tolist())
    for left, title, only in (
        (20, "boxes and their scores", False),
        (410, "nms(boxes, scores, iou_threshold=0.5)", True),
    ):
        picture.text(left, 28, title)
        picture.box(left, 40, 330, 200, "#fafafa")
        for index, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
            good = index in kept or not only
            color = REGULAR if good else FAINT
            picture.box(
                left + x1, 40 + y1, x2 - x1, y2 - y1, "none", color, 2 if good else 1.2, "" if good else "4 3"
            )
        for index, (x, y) in enumerate(labels):
            if index in kept or not only:
                picture.text(left + x, 40 + y, f"{scores[index]:g}", 12, REGULAR)
    picture.arrow(358, 140, 402)
    picture.text(
        20,
        268,
        "Best score first: a box goes if its overlap (IoU) with one that stayed is above the threshold.",
        12,
    )
    return picture


PICTURES: dict[str, Callable[[], Picture]] = {
    name.removeprefix("draw_"): draw for name, draw in list(globals().items()) if name.startswith("draw_")
}


def main() -> None:
    for name, draw in PICTURES.items():
        (FOLDER / f"{name}.svg").write_text(draw().svg(), encoding="utf-8")


if __name__ == "__main__":
    main()
