"""A progress bar with the remaining time for training, validation and testing."""

import atexit
import logging
import sys
from datetime import timedelta
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from rich.console import Console
from rich.progress import Progress, TaskID

from dcnzoo.utils.progress import LineProgress, make_progress

FIRST = 10  # iterations, after which a line tells the time to the end


@HOOKS.register_module()
class ProgressHook(Hook):
    """Show a progress bar below the log lines; without a terminal, see :mod:`dcnzoo.utils.progress`."""

    priority = "VERY_LOW"  # after the logger hook, which updates the current loss

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self._progress = Progress(disable=True)
        self._first = 0  # iteration of the start
        self._streams: list[tuple[logging.StreamHandler, object]] = []
        self._bars: dict[str, TaskID] = {}

    def before_train(self, runner: Runner) -> None:
        self._start(runner)
        self._first = runner.iter
        self._begin("train", runner.max_iters, runner.iter)

    def _before_epoch(self, runner: Runner, mode: str = "train") -> None:
        if isinstance(self._progress, LineProgress):
            self._progress.note_output()  # a row about the last epoch was printed
        if mode != "train":
            self._begin(mode, len(getattr(runner, f"{mode}_dataloader")))

    def _after_iter(self, runner: Runner, batch_idx: int, mode: str = "train", **_: object) -> None:
        loss = runner.message_hub.log_scalars.get("train/loss") if mode == "train" else None
        note = "" if loss is None else f"loss {loss.current():.3f}"
        done = runner.iter if mode == "train" else batch_idx
        self._progress.update(self._bars[mode], completed=done + 1, note=note)
        if mode == "train" and done + 1 - self._first == FIRST and is_main_process():
            left = runner.message_hub.get_info("eta", 0)  # of mmengine's IterTimerHook, in seconds
            text = f"about {timedelta(seconds=round(left))} to the end, without validations"
            self.console.print(text, highlight=False)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, Any] | None = None) -> None:
        self._progress.remove_task(self._bars["val"])

    def before_test(self, runner: Runner) -> None:
        self._start(runner)

    def after_train(self, runner: Runner, metrics: dict[str, Any] | None = None) -> None:
        self.stop()

    after_test_epoch = after_train

    def _begin(self, name: str, total: int, first: int = 0) -> None:
        label = {"val": "validate"}.get(name, name)
        self._bars[name] = self._progress.add_task(label, total=total, completed=first, note="")

    def _start(self, runner: Runner) -> None:
        if not is_main_process():
            return
        self._progress = make_progress(self.console)
        self._progress.start()
        if isinstance(self._progress, LineProgress):
            return
        atexit.register(self.stop)  # after an error no hook runs, but the cursor must be shown again
        # rich replaces sys.stdout by a stream that writes above the bar; loggers still have the old one
        for handler in runner.logger.handlers:
            if type(handler) is logging.StreamHandler:
                self._streams.append((handler, handler.setStream(sys.stdout)))

    def stop(self) -> None:
        atexit.unregister(self.stop)
        for handler, stream in self._streams:
            if stream is not None:
                handler.setStream(stream)
        self._streams.clear()
        self._progress.stop()
