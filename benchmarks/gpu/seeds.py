"""Train the demo's detector with DCNv2 on the GPU and on the CPU, three seeds each, and compare AP."""

import os
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.gpu.journal import Journal, results
from benchmarks.measure import ROOT
from dcnzoo.openmmlab.hooks.history import History

SEEDS = 3
# three of the demo's eight epochs
SHORT = ["--cfg-options", "train_cfg.max_epochs=3", "train_cfg.val_interval=3"]
METRICS = ("bbox_mAP", "segm_mAP")


def train(device: str, folder: Path, rehearse: bool) -> dict:
    """Run the demo in a process of its own; on the CPU, the GPU is hidden from it."""
    seeds, options = SEEDS, SHORT
    if rehearse:
        parts = ("train", "val", "test")
        sizes = [f"{part}_dataloader.dataset.shapes.{size}=8" for part in parts for size in parts[:2]]
        seeds, options = 2, ["--cfg-options", "train_cfg.max_epochs=1", *sizes]
    command = ["tools/demo.py", "--arms", "v2", "--seeds", str(seeds), "--jobs", str(seeds), *options]
    environment = os.environ | ({"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {})
    command = [sys.executable, *command, "--work-dir", str(folder)]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=sys.stderr)
    histories = [History.read(folder / f"v2-seed{seed}") for seed in range(seeds)]
    last = [history.validation[max(history.validation)] for history in histories]
    return {name: [metrics[f"coco/{name}"] for metrics in last] for name in METRICS}


def compare(gpu: dict, cpu: dict) -> dict:
    """Return mean and standard deviation of both; the difference in units of its standard error."""
    result: dict[str, object] = {}
    for name in METRICS:
        sides = gpu[name], cpu[name]
        error = sum(statistics.variance(side) / len(side) for side in sides) ** 0.5
        difference = statistics.mean(sides[0]) - statistics.mean(sides[1])
        result[name] = f"{difference:+.3f} ± {error:.3f} (standard error)"
    return result


def main() -> None:
    journal, args = Journal.of_command_line()
    with tempfile.TemporaryDirectory() as name:

        def run(device: str) -> None:
            job = {"device": device, "seeds": SEEDS}
            journal.run(job, lambda: train(device, Path(name) / device, args.rehearse))

        with ThreadPoolExecutor() as pool:  # at the same time: each waits for its child process
            list(pool.map(run, {args.device, "cpu"}))
    sides = [result for _, result in results(args.file, seeds=SEEDS) if "problem" not in result]
    if len(sides) == 2:
        journal.run({"step": "compare"}, lambda: compare(*sides))
    journal.exit()


if __name__ == "__main__":
    main()
