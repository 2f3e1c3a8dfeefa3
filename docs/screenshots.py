"""Makes docs/images/{sampling,explain}.png and docs/scene.html with weights that are in the repository.

::

    python docs/screenshots.py

The pictures are of the demo's data, which the project draws itself. Screenshots are of headless Chromium.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import cv2
from PIL import Image

from dcnzoo.data.shapes import ShapesSpec, draw_image

IMAGES = Path(__file__).resolve().parent / "images"
MODEL = "mask-rcnn_r14-mdconv_fpn_8e_shapes"
INDEX = 9  # of the validation images
# a scene of 1280 × 960 pixels, and the size at which its objects are as large as in the training
SCENE, SCENE_INDEX = ShapesSpec(size=1280, max_instances=14, min_radius=60, max_radius=200), 10
SCALE = "test_dataloader.dataset.pipeline.1.scale=(320,240)"
LAYER, POSITION = "backbone.layer3.0.conv2", "47,65"  # on a cross


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--chromium", default="chromium", help="the program (default: chromium)")
    args = parser.parse_args()
    if shutil.which(args.chromium) is None:
        parser.error(f"--chromium: expected a program, found none called {args.chromium}")
    return args


def main() -> None:
    args = parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        image = folder / "shapes.png"
        cv2.imwrite(str(image), draw_image(ShapesSpec(), "val", INDEX)[0])
        dcnzoo("infer", MODEL, image, "--out", folder / "detections", "--score-threshold", 0.5)
        explain = ("explain", MODEL, image, "--at", POSITION)
        dcnzoo(*explain, "--layer", LAYER, "--out", folder / "points.png")
        dcnzoo(*explain, "--out", folder / "explain.html")
        photo = cv2.GaussianBlur(draw_image(SCENE, "val", SCENE_INDEX)[0][:960], (0, 0), 2)
        cv2.imwrite(str(folder / "scene.png"), photo)
        scene = ("explain", MODEL, folder / "scene.png", "--cfg-options", SCALE)
        dcnzoo(*scene, "--receptive-fields", 12, "--out", IMAGES.with_name("scene.html"), "--force")
        left, right = (Image.open(folder / file) for file in ("detections/shapes.png", "points.png"))
        save(side_by_side(left, right), "sampling")
        take(args.chromium, f"{(folder / 'explain.html').as_uri()}#heat=1", "explain", (1150, 560), folder)


def dcnzoo(*command: object) -> None:
    subprocess.run([sys.executable, "-m", "dcnzoo", *map(str, command)], check=True)


def side_by_side(left: Image.Image, right: Image.Image, width: int = 1300) -> Image.Image:
    """Return both pictures, scaled to one height."""
    height = round(width / (left.width / left.height + right.width / right.height))
    both = Image.new("RGB", (width, height), "white")
    left = left.convert("RGB").resize((round(left.width * height / left.height), height))
    both.paste(left)
    both.paste(right.convert("RGB").resize((width - left.width, height)), (left.width, 0))
    return both


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
