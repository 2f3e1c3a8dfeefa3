"""Marks: what dcnzoo wrote says so in itself, and other programs read the file as before."""

import io
import json
import os
import tracemalloc
import zipfile

import numpy as np
import pytest
from PIL import Image

from dcnzoo.utils.marks import (
    BLANK,
    CHECKSUM,
    KEY,
    RESULTS,
    add_mark,
    append_mark,
    config_of,
    entry,
    info,
    is_config_of_training,
    is_detection,
    is_intact,
    is_of_detector,
    is_own,
    mark,
    mark_of,
    model_name,
    seal,
    sealed_info,
)

PIXELS = np.random.default_rng(0).integers(0, 255, (13, 7, 3), dtype=np.uint8)


def encoded(kind, **options):
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, kind, **options)
    return file.getvalue()


EXIF = Image.Exif()
EXIF[0x010E] = "a description"


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("options", [{}, {"exif": EXIF, "dpi": (72, 72)}])
def test_a_marked_picture_has_the_same_pixels(tmp_path, kind, options):
    cv2 = pytest.importorskip("cv2")
    plain, path = encoded(kind, **options), tmp_path / "a.bin"
    name = 'Früchte "2" <b>\\'
    path.write_bytes(add_mark(plain, mark("detections", name)))
    assert mark_of(path).startswith("detections of Fr") and is_detection(path)
    with Image.open(path) as picture:
        expected = Image.open(io.BytesIO(plain))
        assert np.array_equal(np.asarray(picture), np.asarray(expected))
        assert picture.getexif() == expected.getexif() and picture.info.get("dpi") == expected.info.get("dpi")
        text = picture.info.get("dcnzoo") or picture.info["comment"].decode().removeprefix("dcnzoo: ")
        assert text.partition("|")[0] == mark_of(path) == mark("detections", name)
    pixels = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR)
    assert np.array_equal(pixels, cv2.imdecode(np.frombuffer(plain, np.uint8), cv2.IMREAD_COLOR))
    path.write_bytes(plain)
    assert mark_of(path) == ""


def test_other_formats_and_files_have_no_mark(tmp_path):
    for kind in ("BMP", "WEBP", "TIFF"):
        content = encoded(kind)
        assert add_mark(content, "detections of x") == content
    (tmp_path / "empty.onnx").touch()
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "link.png").symlink_to("none")
    for name in ("empty.onnx", "pipe.png", "link.png", "none", "."):
        assert mark_of(tmp_path / name) == "" and not is_detection(tmp_path / name)


def test_a_large_file_is_not_read_into_memory(tmp_path):
    video, size = tmp_path / "a.mp4", 1 << 26
    with open(video, "wb") as file:
        file.truncate(size)  # a hole, which needs no space
    tracemalloc.start()
    try:
        append_mark(video, "detections of x")
        assert is_own(video, "detections of x") and tracemalloc.get_traced_memory()[1] < size / 8
    finally:
        tracemalloc.stop()
    with open(video, "r+b") as file:
        file.write(b"x")
    assert mark_of(video) == "detections of x" and not is_own(video, "detections of x")
    (tmp_path / "empty").touch()
    seal(tmp_path / "empty")
    assert is_intact(tmp_path / "empty") is None


def test_coco_files_of_a_detector(tmp_path):
    """In any order of entries; not those of a person who described them with the same words."""
    entry = info(mark("detections", "model"))
    content = {"info": entry, "images": [], "annotations": [], "categories": []}
    path = tmp_path / "a.json"
    for options in ({}, {"indent": 1}, {"separators": (",", ":")}):
        path.write_text(json.dumps(content, **options))
        assert is_of_detector(content) and is_detection(path)
    for other in (
        {"description": "detections of cars, by hand"},
        {"description": "written by dcnzoo 1"},
        [],
        None,
    ):
        path.write_text(json.dumps({**content, "info": other}))
        assert not is_of_detector({**content, "info": other}) and not is_detection(path)
    assert not is_of_detector([]) and not is_of_detector(None)


def test_folders_of_a_detector(tmp_path):
    for text in ("", "[1]", "{}", '{"model": "a"}', "[" * 100_000):
        (tmp_path / RESULTS).write_text(text)
        assert not is_detection(tmp_path)
    (tmp_path / RESULTS).write_text('{"format": "jsonl", "model": "12ab", "score_threshold": 0.3}')
    assert is_detection(tmp_path)


def marked(path, text):
    """Write a file with a mark, as the command of its format does."""
    pictures = {".png": "PNG", ".jpg": "JPEG"}
    if path.suffix in pictures:
        path.write_bytes(add_mark(encoded(pictures[path.suffix]), text))
    elif path.suffix == ".html":
        path.write_bytes(add_mark(b"<!doctype html>\n<head></head><p>a page</p>", text))
    elif path.suffix == ".json":
        path.write_text(json.dumps({"info": sealed_info(text), "annotations": [{"bbox": [1, 2, 3, 4]}]}))
        seal(path)
    elif path.suffix in (".onnx", ".xml"):
        before = {".onnx": b"\x0a\x0b%b\x12\x0b", ".xml": b'<%b value="'}[path.suffix]
        entries = {KEY: entry(text), CHECKSUM: BLANK}.items()
        path.write_bytes(
            bytes(range(256)) * 40
            + b"".join(before % key.encode() + value.encode() + b'" />r' for key, value in entries)
        )
        seal(path)
    else:
        if path.suffix == ".pt2":
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("model", bytes(range(256)))
        else:
            path.write_bytes(bytes(range(256)) * 40)
        append_mark(path, text)


@pytest.mark.parametrize(
    "ending", [".png", ".jpg", ".html", ".json", ".onnx", ".xml", ".pt2", ".mp4", ".avi"]
)
def test_a_changed_file_is_nobodys_to_replace(tmp_path, ending):
    """Of the command with the mark, while it has the bytes that were written."""
    path, text = tmp_path / f"a{ending}", mark("export", "a")
    marked(path, text)
    content = path.read_bytes()
    assert mark_of(path) == text and is_own(path, text)
    assert not is_own(path, mark("export", "b")) and not is_own(path, "")
    for place in (len(content) * 2 // 3, len(content) - 12):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        assert not is_own(path, text)
    path.write_bytes(content + b"\n")
    assert not is_own(path, text)
    path.write_bytes(content)
    assert is_own(path, text), "also a copy, with another time"


@pytest.mark.parametrize("ending", [".onnx", ".xml", ".pt2", ".mp4", ".avi"])
def test_marks_at_the_end(tmp_path, ending):
    """Of an entry in metadata, as each format stores it, and of the blocks after a video."""
    path, text = tmp_path / f"a{ending}", mark("export", "a")
    path.write_bytes(bytes(range(256)) * 40)
    assert mark_of(path) == ""
    marked(path, text)
    assert mark_of(path) == text


def test_configs_of_trainings(tmp_path):
    path = tmp_path / "a.py"
    path.write_text(config_of("a.py", "a = 1\n"))
    own = mark("config", "a.py")
    assert is_config_of_training(path) and is_own(path, own)
    path.write_text(f"{path.read_text()}# edited")
    assert is_config_of_training(path) and not is_own(path, own)
    path.rename(tmp_path / "b.py")
    assert not is_config_of_training(tmp_path / "b.py")


def test_names_of_models(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("work_dirs/fruits", "configs"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("configs/a.b.py", "work_dirs/fruits/epoch_1.pth", "m.onnx"):
        (tmp_path / name).touch()
    for model, expected in (
        ("work_dirs/fruits/", "fruits"),
        (tmp_path / "work_dirs/fruits", "fruits"),
        ("work_dirs/fruits/epoch_1.pth", "fruits/epoch_1.pth"),
        ("configs/a.b.py", "a.b"),
        ("m.onnx", "m.onnx"),
        ("dcnzoo::x", "dcnzoo::x"),
        ("hf://owner/name", "hf://owner/name"),
    ):
        assert model_name(model) == expected
    assert (
        model_name("a", "x/epoch_2.pth") == "a with epoch_2.pth" and model_name("a", "best") == "a with best"
    )
