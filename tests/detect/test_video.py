"""Videos."""

import os
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from dcnzoo.detect import video
from dcnzoo.detect.sources import count
from dcnzoo.utils.errors import UserError


@pytest.mark.parametrize("ending", video.CODECS)
def test_videos(tmp_path, ending):
    ramp = np.linspace(0, 255, 96).astype(np.uint8)
    picture = np.zeros((64, 96, 3), np.uint8)
    picture[..., 0], picture[:16, :16, 2] = ramp, 255  # red grows to the right; a blue corner
    paths = [tmp_path / f"{part}{ending}" for part in ("first", "second")]
    for path, sources in zip(paths, ([], ["x.png", paths[0]]), strict=True):
        file = video.VideoFile(path, sources)
        assert file.close() == []
        for size in ((96, 64), (96, 64), (48, 32)):
            file.add(Image.fromarray(picture).resize(size))
        assert not path.exists() and file.close() == [path]
    assert video.head_of(paths[1], "FPS") == pytest.approx(10)
    read = list(video.frames(paths[1]))
    assert len(read) == 3 and all(frame.shape == picture.shape for frame in read)
    assert np.abs(read[0][..., ::-1].astype(int) - picture).mean() < 12
    (tmp_path / "text.avi").write_text("no video")
    assert video.head_of(paths[1], "FRAME_COUNT") == 3 and count(["a.png", paths[1], paths[0]]) == 7
    assert count(["a.png", tmp_path / "text.avi"]) is None
    with pytest.raises(ValueError, match="expected a video"):
        list(video.frames(tmp_path / "text.avi"))


@pytest.mark.parametrize("ending", video.CODECS)
def test_a_video_that_is_cut_replaces_nothing(tmp_path, ending):
    """A full disk cuts a video, and OpenCV reports no error."""
    path = tmp_path / f"out{ending}"
    path.write_text("before")
    file = video.VideoFile(path, [])
    for number in range(5):
        noise = np.random.default_rng(number).integers(0, 256, (64, 96, 3))
        file.add(Image.fromarray(noise.astype(np.uint8)))
    release = file._writer.release

    def release_and_cut():
        release()
        os.truncate(file._partial, file._partial.stat().st_size // 2)

    file._writer = SimpleNamespace(release=release_and_cut)
    with pytest.raises(UserError, match="not complete"):
        file.close()
    assert path.read_text() == "before" and [*tmp_path.iterdir()] == [path]


def test_a_video_that_ends_before_its_header_says(tmp_path, capfd):
    path = tmp_path / "cut.avi"
    file = video.VideoFile(path, [])
    for number in range(20):
        noise = np.random.default_rng(number).integers(0, 256, (64, 96, 3))
        file.add(Image.fromarray(noise.astype(np.uint8)))
    file.close()
    assert len([*video.frames(path)]) == 20 and "frames" not in capfd.readouterr().err
    os.truncate(path, path.stat().st_size // 2)
    number = len([*video.frames(path)])
    text = f"{path}: the header states 20 frames, {number} were read"
    assert 0 < number < 20 and text in capfd.readouterr().err
