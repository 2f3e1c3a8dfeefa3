"""``make demo``, with trainings of a second."""

import subprocess
import sys

from .distributed.launching import environment, settings
from .processes import ROOT


def test_demo(tmp_path):
    """Each training runs once, although the command is repeated."""
    command = [sys.executable, "tools/demo.py", "--arms", "v2", "--work-dir", tmp_path / "demo"]
    options = settings(tmp_path / "data", 8, 4, 1)
    for _ in range(2):
        subprocess.run([*command, *options], cwd=ROOT, env=environment(), check=True)
        assert "box AP" in (tmp_path / "demo/index.html").read_text(encoding="utf-8")
    assert len(list((tmp_path / "demo/v2-seed0").glob("*/vis_data/scalars.json"))) == 1
