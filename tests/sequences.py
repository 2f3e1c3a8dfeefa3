"""Commands in an order by lot, some of them killed: nothing of the user's is lost, no plain one is refused.

``python tests/sequences.py FOLDER --sequences 60``. Each command is forked from a process that has imported
all packages. SIGKILL ends a third of them at a random moment; they are then repeated.
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import re
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

import dcnzoo.cli  # noqa: E402
import dcnzoo.models  # noqa: E402  before mmdet, which needs mmcv.ops
import dcnzoo.openmmlab.export.export  # noqa: E402
import dcnzoo.report.report  # noqa: E402
from dcnzoo.data.shapes import ShapesSpec, make_shapes  # noqa: E402
from dcnzoo.utils.marks import is_detection  # noqa: E402

MODEL = "mask-rcnn_r14-mdconv_fpn_8e_shapes"
CONFIG = """
_base_ = 'dcnzoo::demo/mask-rcnn_r14_fpn_8e_shapes.py'
train_cfg = dict(max_epochs=2)
own = dict(data_root={data!r}, shapes=dict(train=4, val=2, size=64, min_radius=8, max_radius=28))
train_dataloader = dict(batch_size=2, dataset=own)
val_dataloader = dict(dataset=own)
val_evaluator = dict(ann_file={data!r} + 'annotations/val.json')
test_dataloader = val_dataloader
test_evaluator = val_evaluator
"""
INFER = [[], ["--jpeg"], ["--txt"], ["--json", "--polygons"], ["--txt", "--json"], ["--format", "jsonl"]]
SMALL = ["--epochs", "1", "--batch-size", "2"]
COMMANDS = {
    "infer": ["infer", MODEL, "photos"],
    "train": ["train", "own.py", "--work-dir", "work"],
    "data": ["train", "--data", ".", MODEL, "--work-dir", "fruits", *SMALL],
    "export": ["export", MODEL, "--out", "model.onnx", "--shape", "64", "64"],
    "report": ["report", "work", "--evaluate", "2", "--num-images", "1"],
    "test": ["test", "work", "--show-dir", "shown"],
    "split": ["data", "split", "coco.json", "parts/train.json", "parts/val.json"],
}
OUTPUTS = {  # where a file of the user may be in the way
    "infer": ["out/00000.png", "out/00001.txt", "out/detections.json"],
    "train": ["work/own.py"],
    "export": ["model.onnx"],
    "report": ["work/report.html", "work/report.csv"],
    "test": ["shown/00000.png"],
    "split": ["parts/train.json", "parts/val.json"],
}
# what docs/command_line.md and docs/scale.md refuse beside files of the user
DOCUMENTED = r"expected a folder (without checkpoints|with results of|of these results)|results\.json"


class User:
    """Somebody who runs commands in a folder, and remembers the files that are theirs.

    Attributes:
        files: their digests.
        log: what was done, for the message of a failure.
    """

    commands: Iterable[str] = COMMANDS

    def __init__(self, folder: Path, data: Path, seed: int) -> None:
        self.random, self.files, self.log, self.counts = random.Random(seed), {}, [], Counter()
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(data / "train", folder / "photos")
        shutil.copy(data / "annotations/train.json", folder / "coco.json")
        (folder / "own.py").write_text(CONFIG.format(data=f"{data.parent / 'small'}/"))
        os.chdir(folder)
        self.pictures = {path.name for path in Path("photos").iterdir()}
        for path in [*Path().rglob("*.*")]:
            self.files[path] = digest(path)

    def lost(self) -> set[Path]:
        return {path for path, content in self.files.items() if digest(path) != content}

    def place(self, path: Path) -> None:
        """Write a file of one's own in the place of an output."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"mine": self.random.random()}))
        self.files[path] = digest(path)
        self.log.append(("mine", str(path)))

    def correct(self, path: Path) -> None:
        """Change a file that a command has written, which is then one's own."""
        path.write_bytes(path.read_bytes() + b"\n")
        self.files[path] = digest(path)
        self.log.append(("corrected", str(path)))

    def run(self, words: list[str], seconds: float | None = None) -> str | None:
        """Run a command, and kill it after some seconds; return its error, None if it was killed."""
        began, process = time.monotonic(), start(words)
        while (ended := os.waitpid(process, os.WNOHANG))[0] == 0:
            if seconds is not None and time.monotonic() - began > seconds:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process, signal.SIGKILL)
            time.sleep(0.02)
        output = Path("../log").read_text()
        status = ended[1]
        self.log.append((words, "killed" if os.WIFSIGNALED(status) else status, output[-300:]))
        assert "Traceback" not in output, self.log
        if os.WIFSIGNALED(status):
            self.counts["killed"] += 1
            return None
        return "" if status == 0 else [*re.findall("^error: (.*)", output, re.MULTILINE), output][0]

    def step(self) -> None:
        trained = any(Path("work").glob("epoch_*.pth"))
        name = self.random.choice(
            [each for each in self.commands if trained or each not in ("report", "test")]
        )
        words, forced = [*COMMANDS[name]], False
        if name == "infer":
            words += self.random.choice(INFER) + self.random.choice([[], ["--out", "out"]])
        outputs = [*OUTPUTS.get(name, ()), *(path for path in Path("out").rglob("*.*g") if name == "infer")]
        if outputs and self.random.random() < 0.2:
            self.place(Path(self.random.choice(outputs)))
        written = [path for path in map(Path, outputs) if path.is_file() and path not in self.files]
        if written and self.random.random() < 0.1:
            self.correct(self.random.choice(written))
        has_checkpoint = {"train": trained, "data": any(Path("fruits").glob("epoch_*.pth"))}.get(name, False)
        if has_checkpoint:
            words.append(self.random.choice(["--resume", "--force", "--report"][: 2 + (name == "train")]))
        elif "--format" not in words and name != "data" and self.random.random() < 0.15:
            words.append("--force")
        forced = "--force" in words
        before = {path: path.read_bytes() for path in self.files if path.is_file()}
        if self.random.random() < 0.35:
            self.run(words, self.random.uniform(0, {"infer": 4, "split": 0.1}.get(name, 15)))
        error = self.run(words)
        assert error is not None, self.log
        if "--resume" not in words and "checkpoint" in error and name in ("train", "data"):
            words.append("--resume")  # as the error says
            error = self.run(words)
        self.counts[name] += 1
        self.counts["refused"] += bool(error)
        mine = any(path.name in error for path in self.files)
        assert not error or mine or re.search(DOCUMENTED, error), self.log
        for path in self.lost():  # only what the command names, or moved
            moved = [each.read_bytes() for each in Path().glob(f"*/replaced_*/{path.name}")]
            assert forced or before[path] in moved, (path, self.log)
            assert path in [*map(Path, outputs)], (path, self.log)
            del self.files[path]
        if name == "data" and not error:
            self.check_data()

    def check_data(self) -> None:
        """A training reads the pictures of the user, and no drawn one."""
        for file in Path("fruits/data").glob("*.json"):
            for image in json.loads(file.read_text())["images"]:
                assert Path(image["file_name"]).name in self.pictures, (image, self.log)
        assert not any(is_detection(path) for path in self.files), self.log


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def start(words: list[str]) -> int:
    sys.stdout.flush()
    if process := os.fork():
        return process
    os.setpgid(0, 0)
    output = os.open("../log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(output, 1)
    os.dup2(output, 2)
    status = 0
    try:
        sys.argv = ["dcnzoo", *words]
        dcnzoo.cli.main()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code)
    sys.stdout.flush()
    os._exit(status)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sequences", type=int, default=60)
    parser.add_argument("--first", type=int, default=0)
    args = parser.parse_args()
    folder, counts = args.folder.resolve(), Counter()
    torch.set_num_threads(1)
    make_shapes(folder / "data", ShapesSpec(train=6, val=1, size=64, min_radius=8, max_radius=28))
    for seed in range(args.first, args.first + args.sequences):
        user = User(folder / "user", folder / "data", seed)
        for _ in range(6):
            user.step()
        counts.update(user.counts)
        print(f"{seed}: {dict(user.counts)}", file=sys.stderr, flush=True)
    print(json.dumps({"sequences": args.sequences, **counts}))


if __name__ == "__main__":
    main()
