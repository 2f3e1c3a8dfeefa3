"""Makes docs/images/sampling.jpg, explain.png and docs/scene.html with weights that are in the repository.

::

    python docs/screenshots.py

The pictures are of shapes that the project draws itself. Screenshots are of headless Chromium.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image, ImageDraw

import dcnzoo
from dcnzoo.data.shapes import ShapesSpec, draw_image
from dcnzoo.report.explain_detector import explain
from dcnzoo.report.sampling import output_window, points_of

IMAGES = Path(__file__).resolve().parent / "images"
MODEL = "mask-rcnn_r14-mdconv_fpn_8e_shapes"
INDEX = 9  # of the validation images
# a scene of 1280 × 960 pixels, and the sizes at which its objects are as large as in the trainings
SCENE, SCENE_INDEX, HEIGHT = ShapesSpec(size=1280, max_instances=12, min_radius=80, max_radius=200), 34, 960
SCENE_MODEL = "mask-rcnn_r14-mdconv_fpn_10e_shapes-320"
STEP, SCALE, PAGE_SCALE = "test_dataloader.dataset.pipeline.1.scale", (480, 360), (320, 240)
LAYER, POSITION = "backbone.layer4.0.conv2", (580, 490)  # on a trefoil of the scene
EXPLAINED = "47,65"  # on a cross of the image


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
        image, scene = folder / "shapes.png", folder / "scene.png"
        cv2.imwrite(str(image), draw_image(ShapesSpec(), "val", INDEX)[0])
        cv2.imwrite(str(scene), photograph())
        sampling(scene).save(IMAGES / "sampling.jpg", quality=88)
        run("explain", MODEL, image, "--at", EXPLAINED, "--out", folder / "explain.html")
        size = f"{STEP}={PAGE_SCALE}".replace(" ", "")  # of the smaller model: a page of less than 500 kB
        out = IMAGES.with_name("scene.html")
        run("explain", MODEL, scene, "--cfg-options", size, "--receptive-fields", 12, "--out", out, "--force")
        take(args.chromium, f"{(folder / 'explain.html').as_uri()}#heat=1", "explain", (1150, 560), folder)


def run(*command: object) -> None:
    subprocess.run([sys.executable, "-m", "dcnzoo", *map(str, command)], check=True)


def photograph() -> np.ndarray:  # [HEIGHT, size, 3], BGR
    """Draw the objects of the generated scene as bodies on a wooden table, lit from the top left."""
    flat, instances = draw_image(SCENE, "val", SCENE_INDEX)
    rng, size = np.random.default_rng(SCENE_INDEX), SCENE.size

    def noise(rows: int, columns: int) -> np.ndarray:
        return cv2.resize(rng.normal(0, 1, (rows, columns)), (size, size), interpolation=cv2.INTER_CUBIC)

    x, y = np.meshgrid(np.linspace(0, 1, size), np.linspace(0, 1, size))
    rings = np.sin(60 * (y + 0.05 * noise(6, 3) + 0.012 * noise(40, 6)))
    grain = 1 + 0.05 * rings + 0.05 * noise(500, 8) + 0.08 * noise(6, 4)
    image = np.array([36.0, 56, 80]) * grain[..., None]
    for instance in instances:
        cover = np.zeros((size, size), np.uint8)
        cv2.fillPoly(cover, [np.round(instance["polygon"] * 16).astype(np.int32)], 255, cv2.LINE_AA, 4)
        moved = cv2.warpAffine(cover, np.array([[1.0, 0, 14], [0, 1, 20]]), (size, size))
        image *= 1 - 0.55 / 255 * cv2.GaussianBlur(moved, (0, 0), 14)[..., None]  # the shadow
        # a round body: its height follows from the distance to the outline, its light from the slope
        distance = cv2.distanceTransform(cv2.inRange(cover, 128, 255), cv2.DIST_L2, 5)
        radius = float(distance.max())
        inner = np.clip(distance / (0.8 * radius), 0, 1)
        body = cv2.GaussianBlur(0.6 * radius * np.sqrt(1 - (1 - inner) ** 2), (0, 0), max(2, radius / 10))
        dy, dx = np.gradient(body)
        light = np.clip((1 + 0.55 * dx + 0.75 * dy) / np.sqrt((1 + dx**2 + dy**2) * 1.865), 0, 1)
        matt = light * (1 + 0.05 * noise(60, 60) + 0.03 * noise(300, 300))
        colour = flat[cover > 127].mean(0)
        surface = colour * (0.55 + 0.45 * matt)[..., None] + 60 * (light**60)[..., None]
        image += cv2.GaussianBlur(cover, (0, 0), 1.2)[..., None] / 255 * (surface - image)
    image *= (1.12 - 0.55 * ((x - 0.35) ** 2 + (y - 0.3) ** 2))[..., None]
    image = cv2.GaussianBlur(image, (0, 0), 1.2) + rng.normal(0, 3, image.shape)
    return np.clip(image[:HEIGHT], 0, 255).astype(np.uint8)


def sampling(scene: Path) -> Image.Image:
    """Draw the detections, and where a layer reads for one object: squares if its offsets were zero."""
    detector = dcnzoo.load(SCENE_MODEL, device="cpu", cfg_options={STEP: SCALE})
    picture = detector(str(scene)).draw()
    explanation = explain(detector, scene, layer=LAYER, at=POSITION)
    (field,), box, frame = explanation.fields, explanation.box, explanation.frame
    rows, columns = output_window(field, box, frame)
    first = torch.tensor([rows.start, columns.start]) * 2 - 1  # stride 2, padding 1
    taps = first + torch.tensor(list(np.ndindex(3, 3)))
    grid = frame.to_picture(taps * torch.tensor(frame.size) / torch.tensor(field.input_size))
    points, _ = points_of(field, box, frame)
    pen = ImageDraw.Draw(picture)
    for (row, column), (y, x) in zip(grid.tolist(), points.tolist(), strict=True):
        pen.line([column, row, x, y], fill="white", width=3)
        pen.rectangle([column - 6, row - 6, column + 6, row + 6], fill="white", outline="black")
    for y, x in points.tolist():
        pen.ellipse([x - 11, y - 11, x + 11, y + 11], fill="#d6201f", outline="white", width=3)
    return picture


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
