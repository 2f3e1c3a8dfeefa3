"""Several processes compute the same as one process with the joined batch."""

import json

import pytest

from .launching import torchrun

CASES = ("layer_gradients", "detector_gradients")


def errors(processes, folder):
    torchrun(processes, "-m", "tests.distributed.worker", folder / "results.json", *CASES)
    return json.loads((folder / "results.json").read_text())


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    return errors(2, tmp_path_factory.mktemp("two"))


@pytest.mark.parametrize("case", CASES)
def test_two_processes(two, case):
    assert max(two[case].values()) <= 1e-5, two[case]


def test_every_layer_is_compared(two):
    from dcnzoo import layers

    packed = {name for name in layers.__all__ if name.startswith("Packed") or name.endswith("Pack")}
    compared = {name.partition(",")[0] for name in two["layer_gradients"]}
    assert packed | {"DCN", "DCNv2", "DCNv3", "DCNv4", "MultiScaleDeformableAttention"} == compared


@pytest.mark.slow
def test_four_processes(tmp_path):
    for case, found in errors(4, tmp_path).items():
        assert max(found.values()) <= 1e-5, (case, found)
