"""Several processes compute the same as one process with the joined batch."""

import pytest

from ..processes import ROOT, python


@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_gradients_of_a_detector(processes):
    python("-m", "tests.distributed.worker", processes, cwd=ROOT)
