"""Transposed deformable convolution in three dimensions: the decoder of a U-Net."""

from __future__ import annotations

from convolutions import Case, contestants

CASES = [
    Case("up8", "decoder", 1, 128, (8, 8, 8), 2, 2, 0, transposed=True),
    Case("up16", "decoder", 1, 64, (16, 16, 16), 2, 2, 0, transposed=True),
]
FLOORS, CONTESTANTS = contestants(3, transposed=True)
