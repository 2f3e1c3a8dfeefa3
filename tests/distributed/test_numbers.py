"""Several processes compute the same as one process with the joined batch."""

import json

import pytest

from ..processes import ROOT, python


@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_gradients_of_a_detector(processes, tmp_path):
    python("-m", "tests.distributed.worker", tmp_path / "error.json", processes, cwd=ROOT)
    # of a tensor's largest value, in float32
    assert json.loads((tmp_path / "error.json").read_text()) <= 1e-4
