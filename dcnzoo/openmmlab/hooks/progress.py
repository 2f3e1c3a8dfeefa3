"""A progress bar with the remaining time for training, validation and testing."""

import atexit
import logging
import sys
from collections.abc import Sequence

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from rich.console import Console
from rich.progress import Progress, TaskID

from dcnzoo.utils.progress import make_progress


@HOOKS.register_module()
class ProgressHook(Hook):
    """Show a progress bar below the log lines if the output is a terminal."""

    priority = "VERY_LOW"  # after the logger hook, which updates the current loss

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self._progress: Progress | None = None
        self._train: TaskID | None = None
        self._eval: TaskID | None = None
        self._streams: list[tuple[logging.StreamHandler, object]] = []

    def before_train(self, runner: Runner) -> None:
        if self._start(runner):
            self._train = self._progress.add_task(
                "train", total=runner.max_iters, completed=runner.iter, note=""
            )

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None):
        if self._progress is not None:
            loss = runner.message_hub.log_scalars.get("train/loss")
            note = "" if loss is None else f"loss {loss.current():.3f}"
            self._progress.update(self._train, completed=runner.iter + 1, note=note)

    def before_val_epoch(self, runner: Runner) -> None:
        self._start_eval("validate", runner.val_dataloader)

    def after_val_iter(self, runner: Runner, batch_idx: int, data_batch=None, outputs=None):
        if self._progress is not None:
            self._progress.update(self._eval, completed=batch_idx + 1)

    after_test_iter = after_val_iter

    def after_val_epoch(self, runner: Runner, metrics: dict | None = None) -> None:
        if self._progress is not None:
            self._progress.remove_task(self._eval)

    def before_test(self, runner: Runner) -> None:
        self._start(runner)

    def before_test_epoch(self, runner: Runner) -> None:
        self._start_eval("test", runner.test_dataloader)

    def after_train(self, runner: Runner, metrics: dict | None = None) -> None:
        self._stop()

    after_test_epoch = after_train

    def _start(self, runner: Runner) -> bool:
        if not (is_main_process() and self.console.is_terminal):
            return False
        self._progress = make_progress(self.console)
        self._progress.start()
        atexit.register(self._stop)  # after an error no hook runs, but the cursor must be shown again
        # rich replaces sys.stdout by a stream that writes above the bar; loggers still have the old one
        for handler in runner.logger.handlers:
            if type(handler) is logging.StreamHandler:
                self._streams.append((handler, handler.setStream(sys.stdout)))
        return True

    def _stop(self) -> None:
        if self._progress is None:
            return
        for handler, stream in self._streams:
            if stream is not None:
                handler.setStream(stream)
        self._streams.clear()
        self._progress.stop()
        self._progress = None

    def _start_eval(self, description: str, dataloader: Sequence) -> None:
        if self._progress is not None:
            self._eval = self._progress.add_task(description, total=len(dataloader), note="")
