"""AP of the small models that ``dcnzoo train --data`` chooses on a CPU, on folders of annotated pictures.

    python -m benchmarks.own_data FOLDER… --seeds 0 1 2

Each training runs in a process of its own with one thread. Its row is added to the CSV file: the AP of the
checkpoint that the training keeps as its best, the last one's, and CPU seconds. A training that the file has
already is not run again, so that an interrupted benchmark continues. Those of a tree with other changes than
results are: their revision ends in -dirty, unless ``--revision`` names it.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.measure import ROOT, append_row, parser_of, read_rows, revision
from dcnzoo.zoo.own_data import ITERATIONS

OUT = ROOT / "docs" / "benchmarks" / "own_data.csv"
KEYS = ("set", "seed", "pictures", "revision")
COLUMNS = (*KEYS, "metric", "best", "last", "cpu_s", "size", "start")


def train(folder: Path, seed: int) -> dict[str, object]:
    """Train on a folder in this process; return the row without its keys."""
    import torch

    import dcnzoo
    from dcnzoo.openmmlab.runs.recipe import read_config_file

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as work_dir:
        before = sum(os.times()[:4])  # of this process and of its children
        dcnzoo.train(data=folder, work_dir=work_dir, seed=seed, device="cpu")
        seconds = sum(os.times()[:4]) - before
        (config,) = Path(work_dir, "data").glob("*.py")
        cfg = read_config_file(config)
        metric = cfg.default_hooks.checkpoint.save_best
        logs = sorted(Path(work_dir).glob("*/vis_data/scalars.json"))
        rows = [json.loads(line) for log in logs for line in log.read_text().splitlines()]
        values = [row[metric] for row in rows if metric in row]
        sizes = [step.scale[0] for step in cfg.test_dataloader.dataset.pipeline if step.type == "Resize"]
    return {
        "metric": metric,
        "best": round(max(values), 3),
        "last": round(values[-1], 3),
        "cpu_s": round(seconds),
        "size": sizes[0],
        "start": Path(cfg.get("load_from") or "random").name,
    }


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--revision", default=revision())
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)  # in the process of a training
    args = parser.parse_args()
    if args.one:
        print(json.dumps(train(args.folders[0], args.seeds[0])))
        return
    known = {tuple(row[key] for key in KEYS) for row in read_rows(args.out)}
    for seed in args.seeds:
        for folder in args.folders:
            keys = dict(zip(KEYS, (folder.name, seed, 4 * ITERATIONS, args.revision), strict=True))
            if tuple(map(str, keys.values())) in known and not args.revision.endswith("-dirty"):
                continue
            command = [sys.executable, "-m", "benchmarks.own_data", str(folder)]
            command += ["--one", "--seeds", str(seed)]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
            row = {**keys, **json.loads(done.stdout.splitlines()[-1])}
            if not math.isfinite(row["best"]):
                raise RuntimeError(f"{folder}: expected an AP, got {row}")
            append_row(args.out, COLUMNS, row)
            print(row, flush=True)


if __name__ == "__main__":
    main()
