"""Transposed deformable convolution in one dimension: upsampling of audio and sequences."""

from __future__ import annotations

from convolutions import Case, contestants

CASES = [
    Case("frames-s2", "sequences", 2, 256, (1000,), 4, 2, transposed=True),
    Case("sound-s2", "sound", 4, 64, (4000,), 4, 2, transposed=True),
]
FLOORS, CONTESTANTS = contestants(1, transposed=True)
