"""Makes the pictures of docs/images in a headless Chromium, after ``make demo``."""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CONFIG = "configs/demo/mask-rcnn_r14-mdconv_fpn_8e_shapes.py"


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--image", default="data/demo/val/00000.png")
    parser.add_argument("--checkpoint", default="work_dirs/demo/v2-seed0/epoch_8.pth")
    parser.add_argument("--chromium", default="chromium", help="the program (default: chromium)")
    args = parser.parse_args()
    if shutil.which(args.chromium) is None:
        parser.error(f"--chromium: expected a program, found none called {args.chromium}")
    return args


def main() -> None:
    args = parse_args()
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "explain.html"
        subprocess.run(
            [sys.executable, "tools/analysis/visualize_offsets.py", args.image, "--model", CONFIG,
             "--checkpoint", args.checkpoint, "--out", page],
            cwd=ROOT, check=True,
        )  # fmt: skip
        subprocess.run(
            [args.chromium, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
             "--window-size=1150,720", f"--user-data-dir={folder}/profile", "--virtual-time-budget=2000",
             f"--screenshot={ROOT / 'docs' / 'images' / 'explain.png'}", f"{page.as_uri()}#heat=1"],
            check=True, stderr=subprocess.DEVNULL,
        )  # fmt: skip


if __name__ == "__main__":
    main()
