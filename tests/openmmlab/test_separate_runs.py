"""Several trainings in one process."""

import gc
import multiprocessing
import os
import shutil
import time
from pathlib import Path

import pytest
import torch
import torch._dynamo  # optimizers need it; forked processes get it from here
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from mmengine.registry import HOOKS, DefaultScope

import dcnzoo
import dcnzoo.zoo.training
from dcnzoo.openmmlab.history import History
from dcnzoo.openmmlab.runs import execute
from tests.helpers.demo import PLAIN, small_settings

# folder, arguments: another folder, the same one again, and its continuation
TRAININGS = (
    ("first", {}),
    ("second", {}),
    ("second", {"force": True}),
    ("second", {"resume": True, "epochs": 2}),
)


def train(root, name, arguments, **more):
    epochs = arguments.get("epochs", 1)
    options = small_settings(root.parent / "data", 4, 2, epochs, randomness={"seed": 3})
    dcnzoo.train(PLAIN, work_dir=root / name, cfg_options={**options, **more}, **arguments)


@pytest.fixture(autouse=True)
def _a_prepared_config_stays(monkeypatch):
    """Trainings, tests and their continuations change no setting of the recipe that they got."""
    build_runner, prepared = execute.build_runner, []

    def record(cfg, *arguments, **options):
        prepared.append((cfg, repr(cfg.to_dict())))
        return build_runner(cfg, *arguments, **options)

    monkeypatch.setattr(execute, "build_runner", record)
    yield
    assert all(repr(cfg.to_dict()) == text for cfg, text in prepared)


def in_own_process(root, name, arguments):
    torch.set_num_threads(1)  # a forked process has only one thread of OpenMP
    train(root, name, arguments)


def contents(folder):
    """The files below a folder with the number of their start instead of its time, and the curves."""
    starts = {path.name: f"start {number}" for number, path in enumerate(sorted(folder.rglob("2*_*[0-9]")))}
    files = [str(path.relative_to(folder)) for path in folder.rglob("*")]
    for second, start in starts.items():
        files = [name.replace(second, start) for name in files]
    history = History.read(folder)
    losses = {step: (entry["loss"], entry["lr"]) for step, entry in history.training.items()}
    return sorted(files), losses, history.validation


def memory():
    gc.collect()
    tensors = [item for item in gc.get_objects() if issubclass(type(item), torch.Tensor)]
    return sum(item.numel() for item in tensors if not torch.nn.parameter.is_lazy(item)), len(
        os.listdir("/proc/self/fd")
    )


def test_each_training_writes_what_one_in_a_process_of_its_own_writes(tmp_path, set_threads):
    set_threads(1)
    gc.collect()  # a forked process would finalize objects that earlier tests left
    expected = []
    for name, arguments in TRAININGS[1:]:
        child = multiprocessing.get_context("fork").Process(
            target=in_own_process, args=(tmp_path / "alone", name, arguments)
        )
        child.start()
        child.join()
        assert child.exitcode == 0
        expected.append(contents(tmp_path / "alone" / name))
    used = []
    for (name, arguments), alone in zip(TRAININGS, (expected[0], *expected), strict=True):
        time.sleep(1 - time.time() % 1)  # mmengine names a start's folder after the current second
        train(tmp_path / "together", name, arguments)
        used.append(memory())
        assert contents(tmp_path / "together" / name) == alone
        if name == "first":
            shutil.rmtree(tmp_path / "together" / name)
    assert used[-1] == used[0]


def test_a_finished_training_without_its_best_checkpoint_validates_again(tmp_path):
    """The best checkpoint is missing after a kill between the log and the file, or on a full disk."""
    option = {"default_hooks.checkpoint.save_best": "auto"}
    train(tmp_path, "two", {"epochs": 1}, **option)
    (best,) = (tmp_path / "two").glob("best_*")
    best.unlink()
    train(tmp_path, "two", {"resume": True, "epochs": 1}, **option)
    assert best.exists()


@HOOKS.register_module()
class InterruptHook(Hook):
    def after_train_iter(self, *args, **kwargs):
        raise KeyboardInterrupt

    after_test_iter = after_train_iter


def test_an_interrupted_training_leaves_nothing_open(tmp_path):
    scope = DefaultScope.get_current_instance()
    logger = MMLogger.get_current_instance()
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, "interrupted", {}, custom_hooks=[{"type": "InterruptHook"}])
    assert DefaultScope.get_current_instance() is scope and MMLogger.get_current_instance() is logger
    opened = [os.path.realpath(path) for path in Path("/proc/self/fd").iterdir()]
    assert not [path for path in opened if path.startswith(str(tmp_path)) and path.endswith(".log")]
