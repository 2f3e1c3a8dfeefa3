"""The calculations of `tools/analysis/scaling.py` and the commands of `docs/scale.md`."""

import re
import runpy
import subprocess
import sys

import pytest
import yaml

from .launching import ROOT, environment

DEMO = "configs/demo/mask-rcnn_r14-mdconv_fpn_8e_shapes.py"


def test_the_command(monkeypatch, capsys):
    def run(*arguments, status=0):
        monkeypatch.chdir(ROOT)
        monkeypatch.setattr(sys, "argv", ["scaling", DEMO, *arguments])
        with pytest.raises(SystemExit) as end:
            runpy.run_path("tools/analysis/scaling.py", run_name="__main__")
        assert end.value.code == status
        return "".join(capsys.readouterr())

    output = run("--seconds", "0.5", "--nodes", "3", "--bandwidth", "0.001", "--loader")
    assert "parameters                 585,806" in output and "Data loader workers per device: " in output
    rows = [
        re.findall(r"[\d.,]+", line) for line in output.splitlines() if re.match(r"\D*\d+ +│ +\d+ +│", line)
    ]
    # 8 devices × 8 images take 0.5 s. Then 2.3 MB at 1 MB/s, of which 0.25 s overlap with computation.
    assert [row[:4] for row in rows] == [["1", "8", "64", "128.0"], ["2", "16", "128", rows[1][3]]]
    assert float(rows[1][3]) == pytest.approx(128 / (0.5 + 2.3 - 0.25), rel=0.03)

    for option, value in (("--devices", "0"), ("--seconds", "0"), ("--overlap", "2")):
        assert option in run(option, value, status=2).splitlines()[-1]


# The page


def blocks(language):
    text = (ROOT / "docs/scale.md").read_text()
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def test_kubernetes_starts_torchrun_on_every_node():
    """The job's command runs as in its containers, with the environment that the operator sets."""
    (job,) = map(yaml.safe_load, blocks("yaml"))
    replicas = job["spec"]["pytorchReplicaSpecs"]
    nodes = sum(replica["replicas"] for replica in replicas.values())
    assert job["kind"] == "PyTorchJob" and nodes == 8
    master, worker = (replicas[name]["template"]["spec"]["containers"][0] for name in ("Master", "Worker"))
    assert master == worker and master["name"] == "pytorch"
    given = environment(PYTHON="echo", RANK=3, MASTER_ADDR="train-master-0", MASTER_PORT=23456, WORLD_SIZE=64)
    result = subprocess.run(
        master["command"], cwd=ROOT, env=given, capture_output=True, text=True, check=True
    )
    words = result.stdout.split()
    gpus = master["resources"]["limits"]["nvidia.com/gpu"]
    given = f"--nnodes={nodes} --node_rank=3 --nproc_per_node={gpus} --master_addr=train-master-0"
    assert {"torch.distributed.run", *given.split(), "--master_port=23456", "--resume"} <= set(words)
    assert words[words.index("--launcher") + 1] == "pytorch"
