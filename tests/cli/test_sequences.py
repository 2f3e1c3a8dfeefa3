"""Sequences of ``infer`` as in ``nox -s sequences``, with a detector that takes no time."""

import os

import pytest
from click.testing import CliRunner

from dcnzoo.cli import commands
from dcnzoo.data.shapes import ShapesSpec, make_shapes

from ..detect.test_rows import Squares
from ..sequences import User


class Killed(BaseException):
    """In the middle of a command."""


class Quick(User):
    commands = ("infer",)

    def run(self, words, seconds=None):
        calls, detect = [], Squares._detect

        def stop(detector, inputs, threshold):
            calls.append(len(inputs))
            if seconds is not None and len(calls) == 3:
                raise Killed
            return detect(detector, inputs, threshold)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Squares, "_detect", stop)
            patch.setattr("dcnzoo.load", lambda *args, **options: Squares())
            try:
                result = CliRunner().invoke(commands, words)
            except Killed:
                result = None
        self.log.append((words, result and result.output))
        if result is None or result.exit_code == 0:
            return None if result is None else ""
        assert isinstance(result.exception, SystemExit), self.log
        return result.output


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    make_shapes(folder, ShapesSpec(train=5, val=1, size=64, min_radius=8, max_radius=28))
    return folder


SEEDS = [*range(15), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(15, 60))]


@pytest.mark.parametrize("seed", SEEDS)
def test_nothing_is_lost_and_plain_sequences_run(tmp_path, monkeypatch, data, seed):
    """Without ``--force``, no file of the user changes; a command is refused only where one would."""
    monkeypatch.chdir(tmp_path)
    user = Quick(tmp_path / "user", data, seed)
    for _ in range(5):
        user.step()
    assert os.getcwd() == str(tmp_path / "user")
