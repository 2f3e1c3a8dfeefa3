"""Commands in the order of somebody who has not read the documentation: nothing of theirs is lost."""

import hashlib
import json
import random
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner

from dcnzoo.cli.infer import command

from ..detect.test_rows import Squares, make_pictures

OPTIONS = [[], ["--jpeg"], ["--txt"], ["--json"], ["--txt", "--json"], ["--format", "jsonl"]]


class Killed(BaseException):
    """In the middle of a command."""


class User:
    """Somebody who runs commands, and remembers the files that are theirs.

    Attributes:
        files: their content. A command may replace them only with ``--force`` and only if it names them.
        log: what was done, for the message of a failure.
    """

    def __init__(self, folder, seed, monkeypatch):
        self.folder, self.random, self.monkeypatch = folder, random.Random(seed), monkeypatch
        self.log, self.files = [], {}
        (folder / "photos").mkdir()
        for path in make_pictures(folder / "photos/a", 3) + make_pictures(folder / "photos/b", 2):
            self.own(Path(path))

    def own(self, path, content=None):
        if content is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        self.files[path] = digest_of(path)

    def lost(self):
        return {
            path for path, digest in self.files.items() if not path.is_file() or digest != digest_of(path)
        }

    def infer(self, *words, killed=False):
        """Run the command; with ``killed``, stop at the third picture. Return its error, or none."""
        calls, detect = [], Squares._detect

        def stop(detector, inputs, threshold):
            calls.append(len(inputs))
            if killed and len(calls) == 3:
                raise Killed
            return detect(detector, inputs, threshold)

        with self.monkeypatch.context() as patch:
            patch.setattr(Squares, "_detect", stop)
            try:
                result = CliRunner().invoke(command, ["m.onnx", *words])
            except Killed:
                result = None
        self.log.append((words, "killed" if killed else result and result.exception))
        if result is None or isinstance(result.exception, SystemExit | None):
            return "", len(calls)
        return str(result.exception), len(calls)

    def edit(self, out):
        """Change or add a file in an output folder."""
        files = sorted(path for path in out.rglob("*") if path.is_file() and path.suffix in (".txt", ".png"))
        names = [out / "a/0.png", out / "a/0.txt", out / "detections.json", out / "notes.md"]
        path = self.random.choice(names if self.random.random() < 0.6 or not files else files)
        if path.suffix == ".png":
            content = cv2.imencode(".png", np.full((5, 5, 3), self.random.randrange(255), np.uint8))[
                1
            ].tobytes()
        else:
            content = json.dumps({"by hand": self.random.random()}).encode()
        self.log.append(("edit", path))
        self.own(path, content)


def digest_of(path):
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


@pytest.fixture
def user(request, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("dcnzoo.load", lambda *args, **options: Squares())
    (tmp_path / "m.onnx").touch()
    return User(tmp_path, request.param, monkeypatch)


@pytest.mark.parametrize("user", range(60), indirect=True)
def test_nothing_is_lost_and_plain_sequences_run(user, tmp_path):
    """Without ``--force``, no file of the user changes; a command is refused only where one would."""
    chosen = user.random.choices(OPTIONS, k=2)
    outs = [[], ["--out", "out"]]
    for _ in range(5):
        options, out = user.random.choice(chosen), user.random.choice(outs)
        action = user.random.choice(("run", "run", "kill", "edit", "force"))
        words = ("photos/**/*.png", *options, *out)
        if action == "edit":
            user.edit(tmp_path / "out")
        elif action == "kill":
            user.infer(*words, killed=True)
            before = user.log[-1]
            error, calls = user.infer(*words)
            assert not error or is_about_own_files(error, user), user.log
            assert error or calls < 5 or before[1] != "killed" or "--format" in words, user.log
        elif action == "force" and "--format" not in options:
            replaced = {path for path in user.files if tmp_path / "out" in path.parents} if out else set()
            error, _ = user.infer(*words, "--force")
            assert not error, user.log
            assert user.lost() <= replaced, user.log
            for path in user.lost():
                del user.files[path]
        else:
            error, _ = user.infer(*words)
            assert not error or is_about_own_files(error, user), user.log
        assert not user.lost(), user.log


def is_about_own_files(error, user):
    """Whether an error names a file of the user's, or a folder with results of another kind."""
    return any(path.name in error for path in user.files) or "results.json" in error or "use another" in error
