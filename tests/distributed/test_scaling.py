"""The Kubernetes job of `docs/scale.md`."""

import re
import subprocess

import yaml

from .launching import ROOT, environment


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
