"""Makes docs/images/{photo,explain,report}.png, from a detector of fruits, in headless Chromium.

First train the detector (two minutes; the weights in the repository are those of such a training)::

    dcnzoo data download --dataset-name fruits_nuts
    dcnzoo train configs/demo/mask-rcnn_r14-mdconv_fpn_8e_fruits-nuts.py --work-dir work_dirs/fruits --report
    python docs/screenshots.py

The images are from https://github.com/Tony607/mmdetection_instance_segmentation_demo (MIT).
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "docs" / "images"
LAYER, PLACE = "backbone.layer3.0.conv2", "375,260"  # of the photograph, on a date


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--work-dir", type=Path, default=ROOT / "work_dirs/fruits")
    parser.add_argument("--image", type=Path, default=IMAGES / "fruits.jpg")
    parser.add_argument("--chromium", default="chromium", help="the program (default: chromium)")
    args = parser.parse_args()
    if shutil.which(args.chromium) is None:
        parser.error(f"--chromium: expected a program, found none called {args.chromium}")
    for name, path in (("--work-dir", args.work_dir / "report.html"), ("--image", args.image)):
        if not path.is_file():
            parser.error(f"{name}: expected a file, found none at {path}")
    return args


def main() -> None:
    args = parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        dcnzoo("infer", args.work_dir, args.image, "--out", folder)
        explain = ("explain", args.work_dir, args.image, "--at", PLACE)
        dcnzoo(*explain, "--layer", LAYER, "--out", folder / "points.png")
        dcnzoo(*explain, "--out", folder / "explain.html")
        beside("photo", Image.open(folder / f"{args.image.stem}.png"), Image.open(folder / "points.png"))
        page = (folder / "explain.html").as_uri()
        take(args.chromium, f"{page}#heat=1", "explain", (1150, 560), folder)
        take(
            args.chromium, (args.work_dir / "report.html").resolve().as_uri(), "report", (1150, 1400), folder
        )


def dcnzoo(*command: object) -> None:
    subprocess.run([sys.executable, "-m", "dcnzoo", *map(str, command)], check=True)


def beside(name: str, left: Image.Image, right: Image.Image, width: int = 1300) -> None:
    """Place two pictures of the same height side by side."""
    height = round(width / (left.width / left.height + right.width / right.height))
    whole = Image.new("RGB", (width, height), "white")
    left = left.resize((round(left.width * height / left.height), height))
    whole.paste(left)
    whole.paste(right.convert("RGB").resize((width - left.width, height)), (left.width, 0))
    save(whole, name)


def take(chromium: str, address: str, name: str, size: tuple[int, int], folder: Path) -> None:
    subprocess.run(
        [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
         f"--window-size={size[0]},{size[1]}", f"--user-data-dir={folder}/profile",
         "--virtual-time-budget=2000", f"--screenshot={folder / name}.png", address],
        check=True, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    save(Image.open(folder / f"{name}.png").convert("RGB"), name)


def save(picture: Image.Image, name: str) -> None:
    path = IMAGES / f"{name}.png"
    # octrees keep rare colours, such as those of boxes and points
    picture.quantize(256, Image.Quantize.FASTOCTREE).save(path, optimize=True)
    print(f"{path}: {path.stat().st_size // 1000} kB")


if __name__ == "__main__":
    main()
