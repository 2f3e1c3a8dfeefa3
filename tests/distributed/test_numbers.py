"""Several processes compute the same as one process with the joined batch."""

import pytest

from ..processes import ROOT, python


@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_gradients_of_a_detector(processes):
    python("-m", "tests.distributed.worker", processes, cwd=ROOT)


def test_ranks_agree_exchange_results_and_name_the_one_that_ended(tmp_path):
    output = python("-m", "tests.distributed.agreement", tmp_path, cwd=ROOT).stdout
    assert output.count("all checks passed") == 2, output
    assert output.count("machine-1 has another folder") == 1, output
