"""A file that exists is refused: ``require_new`` and the commands."""

import errno
import json
import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from filelock import Timeout

import dcnzoo.models  # noqa: F401  first: mmengine needs mmcv._ext
from dcnzoo.data.tree import Tree
from dcnzoo.utils.errors import UserError
from dcnzoo.utils.files import (
    files_beside,
    numbered,
    partial_of,
    read_beside,
    replacing,
    require_new,
    write_text,
)
from dcnzoo.utils.folders import cache_folder, is_work_dir
from dcnzoo.utils.formats import picture_files
from dcnzoo.utils.lock import lock_work_dir, locked

DEMO = "mask-rcnn_r14-mdconv_fpn_8e_shapes"


def write(path, text="new", **options):
    write_text(require_new("report", path, **options), text)


def test_a_file_that_exists_is_refused(tmp_path):
    path, other = tmp_path / "out/a.html", tmp_path / "out/a.csv"
    write(path, "mine")
    for names in ((path,), (other, path)):
        with pytest.raises(UserError, match=r"a\.html.*force=True"):
            require_new("report", *names)
    assert path.read_text() == "mine"
    write(path, force=True)
    assert path.read_text() == "new"


def test_a_file_is_replaced_with_its_permissions_and_a_link_is_not_followed(tmp_path):
    path, link = tmp_path / "secret.txt", tmp_path / "link.txt"
    write(path)
    path.chmod(0o600)
    write(path, "changed", force=True)
    assert path.stat().st_mode & 0o777 == 0o600 and path.read_text() == "changed"
    link.symlink_to(path)
    for force in (False, True):
        with pytest.raises(UserError, match=r"secret\.txt"):
            write(link, force=force)
    write_text(link, "a file of its own")  # one that dcnzoo does not ask about, such as a lock
    assert path.read_text() == "changed"
    assert link.stat().st_mode & 0o777 != 0o600, "the mode of a file that a link points to is a stranger's"


def test_what_a_killed_command_has_half_written(tmp_path):
    """A later command removes old ones; another process may still write a new one. Others are not ours."""
    halves = []
    for age in (1e5, 9):
        half = partial_of(tmp_path / "a.txt")
        half.touch()
        os.utime(half, (time.time() - age,) * 2)
        halves.append(half)
    folder, live = partial_of(tmp_path / "data"), partial_of(tmp_path / "export")
    for each in (folder, live):
        each.mkdir()
        os.utime(each, (0, 0))
    (live / "model.onnx").touch()
    os.utime(live, (0, 0))
    others = [tmp_path / ".a.partial", tmp_path / ".download.partial.zip"]
    for other in others:
        other.touch()
        os.utime(other, (0, 0))
    name = require_new("report", tmp_path / "b.txt")
    assert folder.exists() and halves[0].exists(), "a check of names removes nothing"
    write_text(name, "new")
    assert not folder.exists() and live.exists(), "a file in a folder may grow"
    assert [half.exists() for half in halves] == [False, True] and all(other.exists() for other in others)


def test_a_read_that_fails_is_not_a_write(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"missing\.txt"), replacing(tmp_path / "a.txt"):
        (tmp_path / "missing.txt").read_text()
    full = OSError(errno.ENOSPC, "no space")
    with (
        pytest.raises(UserError, match=r"a\.txt cannot be written: .*disk space"),
        replacing(tmp_path / "a.txt"),
    ):
        raise full
    with pytest.raises(UserError, match=r"a\.txt cannot be written"), replacing(tmp_path / "a.txt"):
        pass  # no file was written
    with (
        pytest.raises(UserError, match=r"a\.txt cannot be written"),
        replacing(tmp_path / "a.txt") as partial,
    ):
        (partial / "b").touch()


def test_folders_are_numbered(tmp_path):
    folder = tmp_path / "infer"
    assert numbered(folder) == folder
    for name in ("infer", "infer_2", "infer_4"):
        (tmp_path / name).mkdir()
    (tmp_path / "infer_2/mine").touch()
    assert numbered(folder) == tmp_path / "infer_3"
    assert numbered(folder, lambda path: (path / "mine").exists()) == tmp_path / "infer_2"
    (tmp_path / "report.html").touch()
    assert numbered(tmp_path / "report.html") == tmp_path / "report_2.html"


def test_threads_that_write_one_file(tmp_path):
    """Each has a temporary file of its own, also for a name of the maximum length."""
    path, barrier = tmp_path / f"{'é' * 125}.png", threading.Barrier(2)

    def write_together(text):
        with replacing(path) as partial:
            partial.write_text(text)
            barrier.wait(10)
            assert partial.read_text() == text
            barrier.wait(10)
        return partial

    with ThreadPoolExecutor(2) as pool:
        partials = {*pool.map(write_together, ("one", "other"))}
    assert len(partials) == 2 and path.read_text() in ("one", "other")
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_damaged_files_beside_a_model(tmp_path, capfd):
    """What a command reads by itself: a damaged file is named in a warning and not used; nothing hangs."""
    for name in ("a.pth", "b.pth"):
        (tmp_path / name).write_text("weights")
    os.mkfifo(tmp_path / "c.pth")
    (tmp_path / "d.pth").symlink_to(tmp_path / "none")
    (tmp_path / "e.pth").mkdir()
    assert sorted(path.name for path in files_beside(tmp_path, "*.pth")) == ["a.pth", "b.pth"]
    for text in (b"", b"\xff\x00", b"[1", b"{}", b'{"runs": []}', b'{"runs": 3}', b"[" * 100_000):
        (tmp_path / "x.json").write_bytes(text)
        assert read_beside(tmp_path / "x.json", lambda text: json.loads(text)["runs"][0]) is None
        assert "x.json: not used: " in capfd.readouterr().err
    (tmp_path / "x.json").write_text('{"runs": [7]}')
    assert read_beside(tmp_path / "x.json", lambda text: json.loads(text)["runs"][0]) == 7
    assert read_beside(tmp_path / "c.pth") is None
    assert read_beside(tmp_path / "missing") is None and capfd.readouterr().err == ""


def test_the_lock_of_a_training_that_failed(tmp_path):
    with pytest.raises(ZeroDivisionError), lock_work_dir(tmp_path):
        assert "process" in (tmp_path / ".training.txt").read_text()
        1 / 0  # noqa: B018
    assert not (tmp_path / ".training.txt").exists()
    with pytest.raises(ZeroDivisionError), lock_work_dir(tmp_path / "work_dirs/new"):
        1 / 0  # noqa: B018
    assert not (tmp_path / "work_dirs").exists()
    with pytest.raises(ZeroDivisionError), lock_work_dir(tmp_path / "work_dirs/new"):
        (tmp_path / "work_dirs/other").mkdir()
        1 / 0  # noqa: B018
    assert [path.name for path in (tmp_path / "work_dirs").iterdir()] == ["other"]


def test_a_lock_that_another_holds(tmp_path, capfd):
    """A wait that may take long is announced; without an end, it ends when the lock is released."""
    path, held, release = tmp_path / "a.lock", threading.Event(), threading.Event()

    def hold():
        with locked(path):
            held.set()
            release.wait(20)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait(20)
    for seconds, is_announced in ((0, False), (0.1, False), (1.1, True)):
        with pytest.raises(Timeout), locked(path, seconds):
            pass
        assert ("waiting for another process" in capfd.readouterr().err) == is_announced
    threading.Timer(1.2, release.set).start()
    with locked(path, -1):
        assert release.is_set() and "waiting" in capfd.readouterr().err
    holder.join()


def test_places_where_nothing_is_written(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "none")
    os.mkfifo(tmp_path / "pipe")
    places = (tmp_path, tmp_path / "file" / "x", tmp_path / "link", tmp_path / "pipe", Path("/proc/dcnzoo/x"))
    for place in places:
        with pytest.raises(UserError, match=str(place).removesuffix("/x")):
            write(place)
    for name in ("a.jpg", "a.txt"):
        with pytest.raises(UserError, match="input"):
            write(tmp_path / name, inputs=[str(tmp_path / "a.jpg")], force=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link", "pipe"]


@pytest.mark.parametrize("name", ["TORCH_HOME", "XDG_CACHE_HOME", "HOME"])
def test_the_folder_of_downloads_is_torchs(name, tmp_path, monkeypatch):
    for variable in ("TORCH_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv(name, str(tmp_path))
    expected = Path(torch.hub.get_dir(), "checkpoints")
    assert tmp_path in expected.parents and cache_folder() == expected
    monkeypatch.delitem(sys.modules, "torch")
    assert cache_folder() == expected


@pytest.mark.parametrize(
    ("file", "expected"),
    [("last_checkpoint", True), ("20261130_120000/vis_data/config.py", True), ("vis_data/config.py", False)],
)
def test_a_work_directory_has_a_log_or_a_last_checkpoint(file, expected, tmp_path):
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).touch()
    assert is_work_dir(tmp_path) == expected


def test_pictures_of_a_folder_are_those_of_a_training(tmp_path):
    """Through links, also in a circle, and without the hidden files of macOS and Jupyter."""
    for name in ("in/a.jpg", "in/._a.jpg", "in/.ipynb_checkpoints/a.jpg", "in/__MACOSX/a.jpg", "out/b.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "in/link").symlink_to(tmp_path / "out")
    left = [str(tmp_path / name) for name in ("in/a.jpg", "in/link/b.jpg")]
    assert picture_files(tmp_path / "in") == left == [*map(str, Tree(tmp_path / "in").files)]
    (tmp_path / "out/circle").symlink_to(tmp_path / "in")
    (tmp_path / "in/below").mkdir()
    (tmp_path / "in/below/up").symlink_to("..")
    assert picture_files(tmp_path / "in") == left, "each once"
