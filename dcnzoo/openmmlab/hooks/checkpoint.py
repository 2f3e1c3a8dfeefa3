"""Checkpoints that survive a killed process: a file is complete or absent, and is verified before loading."""

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from dcnzoo.detect.metric_names import is_undefined
from dcnzoo.openmmlab.hooks.resume import ResumeHook
from dcnzoo.openmmlab.saved import SavedCheckpoints, best_files
from dcnzoo.utils.errors import UserError, disk_is_full
from dcnzoo.utils.files import remove_abandoned, write_bytes
from dcnzoo.utils.text import few

_FILES = "checkpoint_files"  # key of the list in a checkpoint's runtime_info


@register_backend("atomic_local", force=True)
class AtomicLocalBackend(LocalBackend):
    """mmengine's ``LocalBackend`` that writes a checkpoint to a temporary file, then renames it.

    Raises:
        UserError: the file cannot be written. An existing file is then unchanged.
    """

    def put(self, obj: bytes, filepath: str | os.PathLike) -> None:
        try:
            write_bytes(filepath, obj)
        except UserError as error:
            hint = ", then continue with resume=True" if disk_is_full(error.__cause__) else ""
            raise UserError(f"{error}{hint}") from error.__cause__


@HOOKS.register_module()
class AtomicCheckpointHook(CheckpointHook):
    """mmengine's ``CheckpointHook``, but ``--resume`` always finds a complete checkpoint.

    The parent class removes an old checkpoint before it writes the new one. Here, it removes nothing. Each
    checkpoint lists the files that its training has written. When a new file is complete (and
    ``last_checkpoint`` names it), those beyond ``max_keep_ckpts`` are removed, and best checkpoints that are
    not the best any more. A resumed training continues the list, so that files are also removed if the
    process ended before. Best checkpoints that are later than the one to resume from stay until the training
    has repeated their validation: until then, they are its best. A checkpoint is written once, before the
    validation that follows. Resuming loads the last undamaged checkpoint; see :class:`ResumeHook`.

    Raises:
        UserError: all checkpoints are damaged.
    """

    _saved: SavedCheckpoints  # since before_run, which knows the work directory
    backend_args: dict[str, Any] | None
    last_ckpt: str | None
    max_keep_ckpts: int
    out_dir: str | None

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        if self.file_client_args is not None:  # mmengine would refuse it, but only after an epoch
            raise UserError("default_hooks.checkpoint.file_client_args: expected backend_args in its place")
        self.backend_args = self.backend_args or {"backend": "atomic_local"}
        self._limit, self.max_keep_ckpts = self.max_keep_ckpts, -1
        self._validated: float = 0  # the last epoch or iteration that this process has validated
        self._files: list[str] = []  # the names of the training's checkpoints, in the order of their writing

    # Resuming

    def before_run(self, runner: Runner) -> None:
        """Select the work directory's last undamaged checkpoint, unless a file is requested."""
        # before the parent class changes out_dir
        self._saved = SavedCheckpoints(Path(runner.work_dir), self.filename_tmpl, self.out_dir, self.by_epoch)
        if self.out_dir is not None:  # last_checkpoint contains the path and is read from other folders
            self.out_dir = os.path.abspath(self.out_dir)
        if not any(isinstance(hook, ResumeHook) for hook in runner.hooks):  # in other tools
            runner.register_hook(ResumeHook())
        if runner._resume and runner._load_from is None and not runner._has_loaded:  # in other tools
            runner._load_from = str(self._saved.undamaged() or "") or None
            runner._resume = runner._load_from is not None  # mmengine would look for one itself

    def before_train(self, runner: Runner) -> None:
        self._keep_best(runner.message_hub.runtime_info)
        self._files = self._files_before(runner)
        super().before_train(runner)
        if is_main_process():  # only what a training writes here: an export to this folder may be running
            for ending in (Path(self.filename_tmpl).suffix, ".py", ".txt"):  # also its config and its lock
                remove_abandoned(self._saved.folder, 0, ending)

    def _files_before(self, runner: Runner) -> list[str]:
        """Return the names of the checkpoints that the training wrote before it was resumed.

        Best files are those of metrics in use.
        """
        info = runner.message_hub.runtime_info
        names = [name for name in info.get(_FILES, ()) if self._saved.step(Path(name)) is not None]
        names += [os.path.basename(file) for file in best_files(info)]
        source = Path(str(runner._load_from))
        if runner._resume and self._saved.has(source):  # of the interrupted process, or of other settings
            names += [file.name for file in self._saved.after(source) if file.name.startswith("best_")]
        return [*dict.fromkeys(names)]

    def _keep_best(self, info: dict[str, Any]) -> None:
        """Keep the entry of a best checkpoint if its metric is still used and its file is in this folder.

        The folder may have been renamed, and a later validation may have replaced the file.
        """
        before = {key: info.pop(key) for key in [*info] if key.startswith(("best_ckpt", "best_score"))}
        best = {}
        for metric in self._monitors:
            ending = f"_{metric}" if len(self._monitors) > 1 else ""  # of mmengine's keys
            file = str(before.get(f"best_ckpt{ending}", ""))
            path = self._saved.folder / os.path.basename(file)
            if self._saved.is_best_by(metric, path.name) and path.exists():
                best[f"best_ckpt{ending}"] = str(path)
                best[f"best_score{ending}"] = before[f"best_score{ending}"]
        shared = [best]
        broadcast_object_list(shared)  # other ranks may not see the files yet
        info.update(shared[0])

    # Saving

    def after_val_epoch(self, runner: Runner, metrics: dict[str, Any]) -> None:
        info = runner.message_hub.runtime_info
        with self._parent_knows_no_files(info):
            super().after_val_epoch(runner, self._known(runner, metrics))
        for file in best_files(info):
            self._list(runner, os.path.basename(file))
        self._validated = runner.epoch if self.by_epoch else runner.iter
        self._remove_outdated(runner)

    def _known(self, runner: Runner, metrics: dict[str, Any]) -> dict[str, Any]:
        """Return the metrics with None for those that are undefined, or that ``save_best`` alone names.

        MMEngine skips None, but raises KeyError for a metric that is absent.
        """
        metrics = {key: None if is_undefined(key, value) else value for key, value in metrics.items()}
        absent = [name for name in self._monitors if name not in {"auto", *metrics}]
        if not (metrics and absent):
            return metrics
        text = f"expected one of {few([*metrics], 20)}, got {few(absent)}: it has no best checkpoint"
        runner.logger.warning(f"default_hooks.checkpoint.save_best: {text}")
        return {**metrics, **dict.fromkeys(absent)}

    @contextmanager
    def _parent_knows_no_files(self, info: dict[str, Any]) -> Iterator[None]:
        """Context in which the parent's ``after_val_epoch`` knows no earlier file; at its end, it does again.

        Else it would remove the previous best files before the new ones are written, and write the last
        checkpoint again after a new best one.
        """
        last, self.last_ckpt = self.last_ckpt, None
        self.best_ckpt_path, self.best_ckpt_path_dict = None, dict.fromkeys(self._monitors)
        yield
        self.last_ckpt, self.best_ckpt_path = last, info.get("best_ckpt")
        names = {name: f"best_ckpt_{name}" for name in self._monitors}
        self.best_ckpt_path_dict = {name: info[key] for name, key in names.items() if key in info}

    @property
    def _monitors(self) -> Sequence[str]:
        """The metrics of ``save_best``; ``auto`` stands for the first metric until a validation has run."""
        return self.key_indicators if self.save_best else ()

    def after_train(self, runner: Runner) -> None:
        if best_files(runner.message_hub.runtime_info):  # else, a later file of the interrupted process stays
            self._validated = math.inf
            self._remove_outdated(runner)
        super().after_train(runner)

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict[str, Any]) -> None:
        self._list(runner, self.filename_tmpl.format(step))
        super()._save_checkpoint_with_step(runner, step, meta)
        self._remove_outdated(runner)

    def _list(self, runner: Runner, name: str) -> None:
        """Add a name to the end of the list, which the next checkpoint contains."""
        self._files = [*(file for file in self._files if file != name), name]
        runner.message_hub.update_info(_FILES, self._files)

    def _remove_outdated(self, runner: Runner) -> None:
        """Remove the oldest files beyond the limit, and the best files that are not the best any more."""
        best = {*map(os.path.basename, best_files(runner.message_hub.runtime_info))}
        numbered = [name for name in self._files if self._saved.step(Path(name)) is not None]
        others = {*self._files} - {*numbered} - best
        outdated = {name for name in others if (self._saved.number(name) or 0) <= self._validated}
        if self._limit > 0:
            outdated |= {*numbered[: -self._limit]}
        if is_main_process():
            for name in outdated:
                self._remove(name)
        self._files = [name for name in self._files if name not in outdated]

    def _remove(self, name: str) -> None:
        """Remove a checkpoint of this folder. One from elsewhere may list any name, which is left alone."""
        path = self._saved.folder / os.path.basename(name)
        if self._saved.number(name) is not None and name == path.name and path.is_file():
            self.file_backend.remove(path)
