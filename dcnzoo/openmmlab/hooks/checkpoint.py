"""Checkpoints that survive a killed process: a file is complete or absent, and is verified before loading."""

import os
import re
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook, Hook
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch.distributed.fsdp import FullyShardedDataParallel

from dcnzoo.openmmlab.checkpoints import CheckpointError, SavedCheckpoints, class_names, load_file
from dcnzoo.openmmlab.weights import PARTIAL_HINT, find_weights, load_state, require_class_order
from dcnzoo.utils.errors import UserError, disk_is_full
from dcnzoo.utils.files import LAST, last_checkpoint, write_bytes


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

    The parent class removes the oldest checkpoint, or the best, before it writes the new one. Here a file is
    removed when the next checkpoint is complete and ``last_checkpoint`` names it. That checkpoint lists the
    file: if the process ends before, a resumed run removes it. With ``max_keep_ckpts=1``, no older checkpoint
    is left if the file is damaged later.

    Resuming loads the last undamaged checkpoint and names the damaged ones. If the process ended during a
    validation, that validation runs first, so that its effects (best score, learning rate on plateaus) are
    those of an uninterrupted training.

    Raises:
        UserError: all checkpoints are damaged.
    """

    backend_args: dict | None
    file_backend: Any

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        if self.backend_args is None and "://" not in str(self.out_dir):
            self.backend_args = {"backend": "atomic_local"}
        self._outdated: list[str] = []
        self._validated = False
        self._unvalidated_step: int | None = None  # of the last checkpoint

    # Resuming

    def before_run(self, runner: Runner) -> None:
        """Select the work directory's last undamaged checkpoint, unless a file is requested."""
        # before the parent class changes out_dir
        self._saved = SavedCheckpoints(Path(runner.work_dir), self.filename_tmpl, self.out_dir)
        requested = runner._has_loaded or runner._load_from is not None
        if requested or not (runner._resume and self._saved.is_local):
            return
        candidates = self._candidates()
        for path in candidates:
            try:
                if path.is_file():  # sharded optimizers save folders
                    load_file(path, map_location="meta")
            except CheckpointError as error:
                runner.logger.warning(f"checkpoint: {error}; using the previous one")
            else:
                runner._load_from = str(path)
                return
        if candidates:
            raise UserError(f"resume: expected an undamaged checkpoint, found {len(candidates)} damaged ones")

    def _candidates(self) -> list[Path]:
        """List the checkpoints to resume from, the latest first.

        The latest is the one that ``last_checkpoint`` names, unless the process ended after writing a
        checkpoint and before updating ``last_checkpoint``: then it has a higher number and a newer date.
        (Older files with higher numbers are from another run.)
        """
        work_dir = self._saved.work_dir
        pointer, last = work_dir / LAST, last_checkpoint(work_dir)
        named = self._saved.pattern.fullmatch(last.name) if last else None
        return [
            path
            for step, path in sorted(self._saved.numbered().items(), reverse=True)
            if not named or step <= int(named[1]) or path.stat().st_mtime >= pointer.stat().st_mtime
        ]

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        # checkpoints of mmengine's own hook lack this entry
        if runner._resume and checkpoint["meta"].get("validated") is False:
            runner.register_hook(_InterruptedValidation(self))

    def before_train(self, runner: Runner) -> None:
        info = runner.message_hub.runtime_info
        if "keep_ckpt_ids" in info:  # the parent class puts them into names of files that it removes
            info["keep_ckpt_ids"] = [step for step in info["keep_ckpt_ids"] if type(step) is int]
        super().before_train(runner)
        self._outdated = [*map(str, runner.message_hub.runtime_info.get("outdated_ckpts") or [])]
        runner.message_hub.update_info("outdated_ckpts", self._outdated)  # of each checkpoint
        self._backend = self.file_backend
        self.file_backend = _RemovesLater(self._backend, self._outdated)
        self._remove_outdated()
        pointer = Path(runner.work_dir, LAST)
        if pointer.exists() and not pointer.is_file():  # to write to a pipe would wait for its reader
            raise UserError(f"work_dir: expected a file or nothing at {pointer}, got something else")
        if is_main_process() and self._saved.is_local:
            for left_over in self._saved.folder.glob(f".{'[0-9a-f]' * 16}.*.partial*"):  # not the user's
                left_over.unlink(missing_ok=True)

    def validate_first(self, runner: Runner) -> None:
        """Run the validation that followed the checkpoint, if there was one."""
        if runner.val_loop is None:
            return
        loop = runner.train_loop
        loop._decide_current_val_interval()
        by_epoch = isinstance(loop, EpochBasedTrainLoop)
        now, end = (loop.epoch, loop.max_epochs) if by_epoch else (loop.iter, loop.max_iters)
        if now >= loop.val_begin and (now % loop.val_interval == 0 or now == end):
            runner.logger.info(f"Running the interrupted validation of {self._step(runner)} first")
            self._unvalidated_step = self._step(runner)
            runner.val_loop.run()

    # Saving

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: object = None) -> None:
        self._validated = False

    def after_val_epoch(self, runner: Runner, metrics: dict) -> None:
        self._validated = True
        super().after_val_epoch(runner, metrics)
        self._remove_outdated()
        # not with FlexibleRunner, whose epoch counter would be one too high
        if self._unvalidated_step == self._step(runner) and isinstance(runner, Runner):
            meta = {"epoch": runner.epoch, "iter": runner.iter}
            self._save_checkpoint_with_step(runner, self._step(runner), meta)

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        super()._save_checkpoint_with_step(runner, step, {**meta, "validated": self._validated})
        self._unvalidated_step = None if self._validated else step
        self._remove_outdated()

    def _remove_outdated(self) -> None:
        # a checkpoint that is resumed may come from elsewhere and name anything, also as the best one
        is_checkpoint = re.compile(rf"(best_[^/\\]+_)?{self._saved.pattern.pattern}").fullmatch
        for name in filter(is_checkpoint, self._outdated) if is_main_process() else ():
            path = self._backend.join_path(self.out_dir, name)
            if self._backend.isdir(path):
                self._backend.rmtree(path)
            elif self._backend.isfile(path):
                self._backend.remove(path)
        self._outdated.clear()

    def _step(self, runner: Runner) -> int:
        return runner.epoch if self.by_epoch else runner.iter


class _InterruptedValidation(Hook):
    """Runs a validation after the ``before_train`` of all hooks: it calls them."""

    priority = "LOWEST"

    def __init__(self, checkpoints: AtomicCheckpointHook) -> None:
        self._checkpoints = checkpoints

    def before_train(self, runner: Runner) -> None:
        self._checkpoints.validate_first(runner)


class LoadCheckpointHook(Hook):
    """Load by :func:`dcnzoo.openmmlab.weights.load_state`, which converts weights and requires that all fit.

    mmengine's runners load with ``strict=False`` and only log mismatches. They call this hook after reading a
    file and before loading it; the hook loads the weights and hands the loaded state back to the runner.

    Args:
        fine_tune: if the classes of ``load_from`` differ, do not load the parameters that depend on them.
        allow_partial: load the parameters that fit.
    """

    priority = "VERY_HIGH"  # before EMAHook, which copies the weights

    def __init__(self, fine_tune: bool = False, allow_partial: bool = False) -> None:
        self.fine_tune = fine_tune
        self.allow_partial = allow_partial

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        model, resume = runner.model, runner._resume
        if isinstance(model, FullyShardedDataParallel):
            runner.logger.warning("load_from: with torch's first FSDP, the weights are not checked")
            return
        while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
            model = model.module
        source = runner._load_from or (resume if isinstance(resume, str) else "resume")
        meta = checkpoint.get("meta") or {}
        if resume or not self.fine_tune:
            loader = runner.cfg.get("train_dataloader" if self.fine_tune else "test_dataloader")
            require_class_order(loader, class_names(meta).get("classes"), source)
        report = load_state(
            model,
            find_weights(checkpoint, source),
            source,
            meta=meta,
            fine_tune=self.fine_tune and not resume,
            allow_partial=self.allow_partial and not resume,
            hint="resume=True requires the model of the interrupted training" if resume else PARTIAL_HINT,
        )
        if report:
            runner.logger.info(f"{source}: {report}")
        numbers = [meta.get(key) for key in ("epoch", "iter")]
        if resume and not all(type(number) is int and number >= 0 for number in numbers):
            raise UserError(
                f"resume: expected a checkpoint of an interrupted training, got {source} of epoch and "
                f"iteration {numbers}: the setting load_from={source} starts a training from them"
            )
        if "state_dict" not in checkpoint:  # the file contains only weights
            checkpoint.clear()
            checkpoint["meta"] = meta
        checkpoint["state_dict"] = model.state_dict()
