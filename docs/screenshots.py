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
    parser.add_argument("--report", type=Path, default=ROOT / "work_dirs/demo/index.html")
    parser.add_argument("--chromium", default="chromium", help="the program (default: chromium)")
    args = parser.parse_args()
    if shutil.which(args.chromium) is None:
        parser.error(f"--chromium: expected a program, found none called {args.chromium}")
    if not args.report.is_file():
        parser.error(f"--report: expected a file, found none at {args.report}")
    return args


def main() -> None:
    args = parse_args()
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "explain.html"
        subprocess.run(
            [sys.executable, "tools/analysis/visualize_offsets.py", CONFIG, args.image,
             "--checkpoint", args.checkpoint, "--out", page],
            cwd=ROOT, check=True,
        )  # fmt: skip
        take(args.chromium, f"{page.as_uri()}#heat=1", "explain", (1150, 720), folder)
        take(args.chromium, args.report.resolve().as_uri(), "report", (1150, 1250), folder)


def take(chromium: str, address: str, name: str, size: tuple[int, int], folder: str) -> None:
    picture = ROOT / "docs" / "images" / f"{name}.png"
    subprocess.run(
        [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
         f"--window-size={size[0]},{size[1]}", f"--user-data-dir={folder}/profile",
         "--virtual-time-budget=2000", f"--screenshot={picture}", address],
        check=True, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    print(f"{picture}: {picture.stat().st_size // 1000} KB")


if __name__ == "__main__":
    main()
