"""A progress bar with the remaining time for training, validation and testing."""

import atexit
import logging
import sys

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
        self._streams: list[tuple[logging.StreamHandler, object]] = []
        self._bars: dict[str, TaskID] = {}

    def before_run(self, runner: Runner) -> None:
        if not (is_main_process() and self.console.is_terminal):
            return
        self._progress = make_progress(self.console)
        self._progress.start()
        atexit.register(self.after_run, runner)  # after an error no hook runs, but the cursor must be shown
        # rich replaces sys.stdout by a stream that writes above the bar; loggers still have the old one
        for handler in runner.logger.handlers:
            if type(handler) is logging.StreamHandler:
                self._streams.append((handler, handler.setStream(sys.stdout)))

    def before_train(self, runner: Runner) -> None:
        self._begin("train", runner.max_iters, runner.iter)

    def _before_epoch(self, runner: Runner, mode: str = "train") -> None:
        if mode != "train":
            self._begin(mode, len(getattr(runner, f"{mode}_dataloader")))

    def _begin(self, mode: str, total: int, first: int = 0) -> None:
        if self._progress is not None:
            fields = {"first": first, "note": ""}
            self._bars[mode] = self._progress.add_task(mode, total=total, completed=first, **fields)

    def _after_iter(self, runner: Runner, batch_idx, data_batch=None, outputs=None, mode="train") -> None:
        if self._progress is None:
            return
        done, note = batch_idx + 1, ""
        if mode == "train":
            loss = runner.message_hub.log_scalars.get("train/loss")
            done, note = runner.iter + 1, "" if loss is None else f"loss {loss.current():.3f}"
        self._progress.update(self._bars[mode], completed=done, note=note)

    def after_val_epoch(self, runner: Runner, metrics: dict | None = None) -> None:
        if self._progress is not None:
            self._progress.remove_task(self._bars["val"])

    def after_run(self, runner: Runner) -> None:
        if self._progress is None:
            return
        for handler, stream in self._streams:
            if stream is not None:
                handler.setStream(stream)
        self._streams.clear()
        self._progress.stop()
        self._progress = None
