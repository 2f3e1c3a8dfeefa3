"""Checkpoints that survive a killed process: a file is complete or absent, and is verified before loading."""

import os
from pathlib import Path
from typing import Any

from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from dcnzoo.detect.metrics import is_undefined
from dcnzoo.openmmlab.hooks.resume import ResumeHook
from dcnzoo.openmmlab.saved import SavedCheckpoints, best_files
from dcnzoo.utils.errors import UserError, disk_is_full
from dcnzoo.utils.files import remove_abandoned, write_bytes
from dcnzoo.utils.text import few


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


class _RemovesLater:
    """A file backend that only notes the names of the files to remove."""

    def __init__(self, backend: Any, outdated: list[str]) -> None:
        self._backend, self._outdated = backend, outdated

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def remove(self, path: str) -> None:
        self._outdated.append(os.path.basename(path))

    rmtree = remove  # sharded optimizers save folders


@HOOKS.register_module()
class AtomicCheckpointHook(CheckpointHook):
    """mmengine's ``CheckpointHook``, but ``--resume`` always finds a complete checkpoint.

    The parent class removes an old checkpoint before it writes the new one. Here, a file is removed only
    after the next checkpoint is complete and ``last_checkpoint`` names it. That checkpoint lists the file, so
    that a resumed run removes it if the process ended before. A checkpoint is written once, before the
    validation that follows. Resuming loads the last undamaged checkpoint; see :class:`ResumeHook`.

    Raises:
        UserError: all checkpoints are damaged.
    """

    backend_args: dict[str, Any] | None
    file_backend: Any
    last_ckpt: str | None
    out_dir: str | None

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        if self.file_client_args is not None:  # mmengine would refuse it, but only after an epoch
            raise UserError("default_hooks.checkpoint.file_client_args: expected backend_args in its place")
        if "://" not in str(self.out_dir):
            self.backend_args = self.backend_args or {"backend": "atomic_local"}
            # absolute, because last_checkpoint contains the path and is read from other folders
            self.out_dir = None if self.out_dir is None else os.path.abspath(self.out_dir)
        self._outdated: list[str] = []  # names of files to remove after the next checkpoint is written

    # Resuming

    def before_run(self, runner: Runner) -> None:
        """Select the work directory's last undamaged checkpoint, unless a file is requested."""
        # before the parent class changes out_dir
        self._saved = SavedCheckpoints(Path(runner.work_dir), self.filename_tmpl, self.out_dir, self.by_epoch)
        if not any(isinstance(hook, ResumeHook) for hook in runner.hooks):  # in other tools
            runner.register_hook(ResumeHook())
        if runner._resume and runner._load_from is None and not runner._has_loaded:  # in other tools
            runner._load_from = str(self._saved.undamaged() or "") or None
            runner._resume = runner._load_from is not None  # mmengine would look for one itself

    def before_train(self, runner: Runner) -> None:
        info = runner.message_hub.runtime_info
        if "keep_ckpt_ids" in info:  # the parent class removes files with these in their names
            info["keep_ckpt_ids"] = [step for step in info["keep_ckpt_ids"] if type(step) is int]
        self._keep_best(info)
        super().before_train(runner)
        self._backend = self.file_backend
        self.file_backend = _RemovesLater(self._backend, self._outdated)
        source = Path(str(runner._load_from))
        if runner._resume and self._saved.has(source):  # a later best file is of another run
            later = self._saved.after(source)
            self._outdated += [file.name for file in later if file.name.startswith("best_")]
        if is_main_process() and self._saved.is_local:
            remove_abandoned(self._saved.folder, 0)  # nobody else trains in this folder

    def _keep_best(self, info: dict[str, Any]) -> None:
        """Keep the entry of a best checkpoint if its metric is still used and its file is in this folder.

        The folder may have been renamed, and a later validation may have replaced the file.
        """
        before = {key: info.pop(key) for key in [*info] if key.startswith(("best_ckpt", "best_score"))}
        best, metrics = {}, self.key_indicators if self.save_best else []
        for metric in metrics:
            ending = f"_{metric}" if len(metrics) > 1 else ""  # mmengine's keys of a single metric have none
            prefix = "best_" if metric == "auto" else f"best_{metric}_".replace("/", "_")
            file = str(before.get(f"best_ckpt{ending}", ""))
            path = self._saved.folder / os.path.basename(file)
            if os.path.basename(file).startswith(prefix) and (path.exists() or not self._saved.is_local):
                best[f"best_ckpt{ending}"] = str(path) if self._saved.is_local else file
                best[f"best_score{ending}"] = before[f"best_score{ending}"]
        shared = [best]
        broadcast_object_list(shared)  # other ranks may not see the files yet
        info.update(shared[0])

    # Saving

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Note in a checkpoint which files are removed after it, so that a resumed run removes them too."""
        info = checkpoint["message_hub"]["runtime_info"]
        steps = [self._saved.step(Path(name)) for name in self._outdated]
        if steps := [step for step in steps if step is not None]:
            info["keep_ckpt_ids"] = [*steps, *info["keep_ckpt_ids"]]

    def after_val_epoch(self, runner: Runner, metrics: dict[str, Any]) -> None:
        monitors = self.key_indicators if self.save_best else ()
        metrics = {key: None if is_undefined(key, value) else value for key, value in metrics.items()}
        unknown = [name for name in monitors if name not in {"auto", *metrics}]
        if metrics and unknown:  # mmengine raises KeyError for these, but skips None
            text = f"expected one of {few([*metrics], 20)}, got {few(unknown)}: it has no best checkpoint"
            runner.logger.warning(f"default_hooks.checkpoint.save_best: {text}")
            metrics = {**metrics, **dict.fromkeys(unknown)}
        last, self.last_ckpt = self.last_ckpt, None  # else, the parent class writes it again after a best one
        super().after_val_epoch(runner, metrics)
        self.last_ckpt = last
        self._remove_outdated(runner)

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict[str, Any]) -> None:
        super()._save_checkpoint_with_step(runner, step, meta)
        self._remove_outdated(runner)

    def _remove_outdated(self, runner: Runner) -> None:
        # with by_epoch=True, all best checkpoints of a training by iterations have the same name
        best = {*map(os.path.basename, best_files(runner.message_hub.runtime_info))}
        # remove only checkpoints: a resumed checkpoint from elsewhere may list any file as the best one
        outdated = [name for name in {*self._outdated} - best if self._saved.number(name) is not None]
        for name in outdated if is_main_process() else ():
            path = self._backend.join_path(self.out_dir, name)
            if self._backend.isdir(path):
                self._backend.rmtree(path)
            elif self._backend.isfile(path):
                self._backend.remove(path)
        self._outdated.clear()
