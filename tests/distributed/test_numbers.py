"""Several processes compute the same as one process with the joined batch."""

from ..processes import ROOT, python


def test_ranks_compute_the_same_agree_and_name_the_one_that_ended(tmp_path):
    output = python("-m", "tests.distributed.agreement", tmp_path, cwd=ROOT).stdout
    assert output.count("all checks passed") == 3, output
    assert output.count("machine-1 has another folder") == 1, output
