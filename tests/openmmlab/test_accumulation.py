"""Training with accumulated gradients."""

from ..commands import run
from ..distributed.launching import CONFIG, settings


def test_no_warnings_of_each_accumulation(tmp_path, recwarn):
    """The schedules step more often than the optimizer, and the demo's network has batch norms."""
    options = settings(tmp_path / "shapes", train=8, val=1, optim_wrapper__accumulative_counts=2)
    output = run("train", CONFIG, "--work-dir", tmp_path / "work", *options)
    assert (tmp_path / "work/epoch_1.pth").exists()
    assert not [str(each.message) for each in recwarn if "scheduler.step" in str(each.message)]
    assert "scheduler.step" not in output and "BatchNorm layers" not in output
