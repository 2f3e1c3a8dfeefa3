"""Several processes compute the same as one process with the joined batch."""

from tests.helpers.processes import ROOT, python


def test_ranks_compute_the_same_and_agree(tmp_path):
    output = python("-m", "tests.programs.agreement", tmp_path, cwd=ROOT).stdout
    assert output.count("all checks passed") == 3, output
