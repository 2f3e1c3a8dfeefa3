"""Deformable convolution in three dimensions: video clips and volumes."""

from __future__ import annotations

from convolutions import Case, contestants

CASES = [
    Case("clip-res3", "video", 1, 128, (8, 28, 28)),
    Case("clip-res4", "video", 1, 256, (4, 14, 14)),
    Case("clip-res4-v1", "video", 1, 256, (4, 14, 14), op="v1"),
    Case("volume-s2", "volumes", 1, 32, (32, 48, 48), stride=2),
]
FLOORS, CONTESTANTS = contestants(3)
