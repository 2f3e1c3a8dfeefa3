"""Freed buffers are reused while a detector exists, and are returned with it."""

import platform

import pytest

from tests.helpers.processes import run_code

# Prints the page faults, and the megabytes that stay in memory after the detector, and after later buffers.
PROGRAM = """
import resource
from pathlib import Path
import numpy as np
from dcnzoo.utils.memory import KeptMemory

def megabytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() >> 20

class Detector:
    def __init__(self):
        self.weights = np.ones(10 << 20)
        self._memory = KeptMemory()

def layers():
    for size in (40, 50, 30):
        np.ones(size << 17)

empty = megabytes()
detector = Detector()
layers()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    layers()
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
del detector
left = megabytes() - empty
layers()
print(faults, left, megabytes() - empty)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="settings of glibc")
def test_buffers_are_reused_and_returned():
    faults, *left = map(int, run_code(PROGRAM, DCNZOO_KEEP_MEMORY="").split())
    others, *usual = map(int, run_code(PROGRAM, DCNZOO_KEEP_MEMORY="0").split())
    assert left[0] < 20 and left[1] < usual[1] + 10, "the settings end with the last detector"
    assert others > 10 * faults + 1000
