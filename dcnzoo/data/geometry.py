"""Polygons and boxes: areas, the parts inside a picture, the upright box around a turned one."""

import math
from collections.abc import Sequence
from itertools import pairwise

Corners = tuple[float, float, float, float]  # x1, y1, x2, y2
Point = tuple[float, float]
Polygon = Sequence[Point]


def polygon_area(polygon: Polygon) -> float:
    """Return the enclosed area; parts with the opposite orientation count as negative."""
    x0, y0 = polygon[0]  # far from the origin, the products would lose precision
    points = [(x - x0, y - y0) for x, y in polygon]
    pairs = zip(points, [*points[1:], points[0]], strict=True)
    return abs(sum(x1 * y2 - x2 * y1 for (x1, y1), (x2, y2) in pairs)) / 2


def clip_polygon(polygon: Polygon, size: tuple[int, int]) -> list[Polygon]:
    """Return the parts of a polygon that are inside a picture, in no particular order.

    The polygon is cut at one border after the other, as by Sutherland and Hodgman ("Reentrant Polygon
    Clipping", 1974). Unlike theirs, parts that are apart are not joined by lines along the border, which
    would make the box larger.
    """
    width, height = size
    parts = [polygon]
    for axis, border, sign in ((0, 0, 1), (0, width, -1), (1, 0, 1), (1, height, -1)):
        parts = [piece for part in parts for piece in _cut(part, axis, border, sign)]
    return [part for part in parts if polygon_area(part) > 0]


def _cut(polygon: Polygon, axis: int, border: int, sign: int) -> list[Polygon]:
    """Return the parts of a polygon on the side of a border where ``sign * (coordinate - border) >= 0``."""
    first = next((n for n, point in enumerate(polygon) if sign * (point[axis] - border) < 0), None)
    if first is None:
        return [polygon]
    points = [*polygon[first:], *polygon[: first + 1]]  # from a point outside to the same point
    chains: list[list[Point]] = []  # of points inside, each between two points on the border
    for one, other in pairwise(points):
        before, after = sign * (one[axis] - border), sign * (other[axis] - border)
        if (before < 0) != (after < 0):
            share = before / (before - after)
            crossing = [a + share * (b - a) for a, b in zip(one, other, strict=True)]
            crossing[axis] = border
            if after >= 0:
                chains.append([])
            chains[-1].append((crossing[0], crossing[1]))
        if after >= 0:
            chains[-1].append(other)
    # along the border, the polygon is inside between the first and the second end of a chain, and so on
    ends = sorted((chain[-last][1 - axis], n, last) for n, chain in enumerate(chains) for last in (0, 1))
    pairs = zip(ends[::2], ends[1::2], strict=True)
    next_end = {one[1:]: other[1:] for pair in pairs for one, other in (pair, pair[::-1])}
    parts: list[Polygon] = []
    while next_end:
        part, (number, last) = list[Point](), next(iter(next_end))
        while next_end.pop((number, last), None):
            part += chains[number][:: -1 if last else 1]
            number, last = next_end.pop((number, 1 - last))
        parts.append(part)
    return parts


def turned_box(corners: Corners, angle: float, size: tuple[int, int]) -> Corners:
    """Return the upright box, clipped to the picture, around a box that CVAT turned by ``angle`` degrees."""
    x1, y1, x2, y2 = corners
    cos, sin = abs(math.cos(math.radians(angle))), abs(math.sin(math.radians(angle)))
    u, v = ((x2 - x1) * cos + (y2 - y1) * sin) / 2, ((x2 - x1) * sin + (y2 - y1) * cos) / 2
    x, y = (x1 + x2) / 2, (y1 + y2) / 2
    return max(x - u, 0), max(y - v, 0), min(x + u, size[0]), min(y + v, size[1])
