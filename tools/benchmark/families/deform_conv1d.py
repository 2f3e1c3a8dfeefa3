"""Deformable convolution in one dimension: sequences of features, and audio."""

from __future__ import annotations

from convolutions import Case, contestants

CASES = [
    Case("clips", "sequences", 16, 256, (100,)),
    Case("frames", "sequences", 2, 256, (2000,)),
    Case("frames-v1", "sequences", 2, 256, (2000,), op="v1"),
    Case("sound-s2", "sound", 4, 64, (8000,), kernel=5, stride=2, padding=2),
]
FLOORS, CONTESTANTS = contestants(1)
