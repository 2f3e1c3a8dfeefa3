"""Transposed deformable convolution in two dimensions: decoders of CenterNet and segmentation."""

from __future__ import annotations

from convolutions import Case, contestants

CASES = [
    Case("up16", "decoder", 1, 256, (16, 16), 4, 2, transposed=True),
    Case("up32", "decoder", 1, 128, (32, 32), 4, 2, transposed=True),
    Case("up64", "decoder", 1, 64, (64, 64), 4, 2, transposed=True),
    Case("up64-v1", "decoder", 1, 64, (64, 64), 4, 2, transposed=True, op="v1"),
]
FLOORS, CONTESTANTS = contestants(2, transposed=True)
