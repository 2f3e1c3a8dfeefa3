"""Checkpoints that survive a killed process: a file is complete or absent, and is verified before loading."""

import os
import re
from pathlib import Path

from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop, Runner

from dcnzoo.compat.patches import Changes
from dcnzoo.openmmlab.checkpoints import damage, seal
from dcnzoo.utils.errors import UserError, disk_is_full
from dcnzoo.utils.files import write_bytes


@register_backend("atomic_local", force=True)
class AtomicLocalBackend(LocalBackend):
    """mmengine's ``LocalBackend`` that writes to a temporary file, then renames it; archives are sealed.

    Raises:
        UserError: the file cannot be written. An existing file is then unchanged.
    """

    def put(self, obj: bytes, filepath: str | os.PathLike) -> None:
        try:
            write_bytes(filepath, seal(obj))
        except UserError as error:
            if str(filepath).endswith(".pth") and disk_is_full(error.__cause__):
                raise UserError(f"{error}, then continue with --resume") from error.__cause__
            raise

    def put_text(self, obj: str, filepath: str | os.PathLike, encoding: str = "utf-8") -> None:
        self.put(obj.encode(encoding), filepath)


@HOOKS.register_module()
class AtomicCheckpointHook(CheckpointHook):
    """mmengine's ``CheckpointHook``, but ``--resume`` always finds a complete checkpoint.

    The parent class removes the oldest checkpoint before it writes the new one, and overwrites the
    checkpoint and ``last_checkpoint`` in place. This class first completes the new file, then updates
    ``last_checkpoint``, then removes the oldest file; the best checkpoint likewise. With
    ``max_keep_ckpts=1``, no older checkpoint is left as a fallback if the file is damaged later.

    Resuming loads the last undamaged checkpoint and names the damaged ones. If the process ended during a
    validation, that validation runs first, so that its effects (best score, learning rate on plateaus) are
    those of an uninterrupted training.

    Raises:
        UserError: all checkpoints are damaged.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        if self.backend_args is None and self._is_local:
            self.backend_args = {"backend": "atomic_local"}
        self._validated = False
        self._unvalidated_step: int | None = None  # of the last checkpoint
        self._resumed_unvalidated = False

    @property
    def _is_local(self) -> bool:
        return "://" not in str(self.out_dir)

    # Resuming

    def before_run(self, runner: Runner) -> None:
        if runner._has_loaded:
            return
        found: list[str | UserError | None] = [None]
        if is_main_process():  # one process decides for all
            try:
                found = [self._find_whole(runner)]
            except UserError as error:
                found = [error]
        broadcast_object_list(found)
        if isinstance(found[0], UserError):
            raise found[0]
        runner._load_from = found[0]

    def _find_whole(self, runner: Runner) -> str | None:
        """Return the checkpoint to load: the requested file, or the work directory's last undamaged one."""
        if runner._load_from is not None or not (runner._resume and self._is_local):
            return runner._load_from  # load_file verifies it
        candidates = self._candidates(Path(runner.work_dir))
        for path in candidates:
            reason = damage(path) if path.is_file() else None  # sharded optimizers save folders
            if reason is None:
                return str(path)
            runner.logger.warning(f"checkpoint: {path} {reason}; using the previous one")
        if candidates:
            raise UserError(
                f"--resume: expected an undamaged checkpoint, found {len(candidates)} damaged ones"
            )
        return None

    def _candidates(self, work_dir: Path) -> list[Path]:
        """List the checkpoints to resume from, the latest first.

        The latest is the one that ``last_checkpoint`` names, unless the process ended after writing a
        checkpoint and before updating ``last_checkpoint``: then it has a higher number and a newer date.
        (Older files with higher numbers are from another run.)
        """
        pointer = work_dir / "last_checkpoint"
        text = pointer.read_text().strip() if pointer.is_file() else ""
        named = Path(text) if text else None
        folder = named.parent if named is not None and named.exists() else self._folder(work_dir)
        pattern = re.compile(re.escape(self.filename_tmpl).replace(r"\{\}", r"(\d+)"))
        steps = {int(m[1]): p for p in folder.glob("*") if (m := pattern.fullmatch(p.name))}
        if named is None:
            return [steps[step] for step in sorted(steps, reverse=True)]
        if not (match := pattern.fullmatch(named.name)):
            return [named] if named.exists() else []
        last, written = int(match[1]), pointer.stat().st_mtime_ns
        return [
            steps[step]
            for step in sorted(steps, reverse=True)
            if step <= last or steps[step].stat().st_mtime_ns >= written
        ]

    def _folder(self, work_dir: Path) -> Path:
        """Return the folder in which the parent class will save checkpoints."""
        if self.out_dir in (None, str(work_dir)):
            return work_dir
        return Path(self.out_dir) / work_dir.name

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        # checkpoints of mmengine's own hook lack this entry
        self._resumed_unvalidated = runner._resume and checkpoint["meta"].get("validated") is False

    def before_train(self, runner: Runner) -> None:
        super().before_train(runner)
        if is_main_process() and self._is_local:
            for left_over in Path(self.out_dir).glob(".*.partial"):
                left_over.unlink(missing_ok=True)
        if not self._resumed_unvalidated or runner.val_loop is None:
            return
        self._resumed_unvalidated = False
        loop = runner.train_loop
        loop._decide_current_val_interval()
        by_epoch = isinstance(loop, EpochBasedTrainLoop)
        now, end = (loop.epoch, loop.max_epochs) if by_epoch else (loop.iter, loop.max_iters)
        if now >= loop.val_begin and (now % loop.val_interval == 0 or now == end):
            runner.logger.info(f"Running the interrupted validation of {self._step(runner)} first")
            self._unvalidated_step = self._step(runner)
            runner.val_loop.run()

    # Saving

    def _save_checkpoint(self, runner: Runner) -> None:
        self._validated = False
        super()._save_checkpoint(runner)

    def after_val_epoch(self, runner: Runner, metrics: dict) -> None:
        self._validated = True
        super().after_val_epoch(runner, metrics)
        # not with FlexibleRunner, whose epoch counter would be one too high
        if self._unvalidated_step == self._step(runner) and isinstance(runner, Runner):
            self._save_validated(runner)

    def _save_validated(self, runner: Runner) -> None:
        meta = {"epoch": runner.epoch, "iter": runner.iter}
        self._save_checkpoint_with_step(runner, self._step(runner), meta)

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
        """Save the new best checkpoint, then remove the previous best, then save the last checkpoint again.

        The parent class removes first. The last checkpoint is saved at the end because only then a resumed
        run skips the validation.
        """
        if not self.save_best:
            return
        before, last, outdated = self._best_paths(), self.last_ckpt, []
        self.last_ckpt = None  # keeps the parent from writing it
        with Changes() as changes:
            changes.set(self.file_backend, "remove", outdated.append)
            super()._save_best_checkpoint(runner, metrics)
        self.last_ckpt = last
        for path in set(outdated) - self._best_paths():
            self.file_backend.remove(path)
        if last is not None and self._best_paths() != before:
            self._save_validated(runner)

    def _best_paths(self) -> set[str | None]:
        several = getattr(self, "best_ckpt_path_dict", {})
        return {getattr(self, "best_ckpt_path", None), *several.values()}

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        outdated = []
        if self.max_keep_ckpts > 0 and step not in self.keep_ckpt_ids:
            if len(self.keep_ckpt_ids) == self.max_keep_ckpts:
                outdated = [self.keep_ckpt_ids.popleft()]
            self.keep_ckpt_ids.append(step)
            # if the process ends before the removal below, a resumed run removes the outdated checkpoint
            runner.message_hub.update_info("keep_ckpt_ids", outdated + list(self.keep_ckpt_ids))
        self.last_ckpt = self._path(step)
        runner.message_hub.update_info("last_ckpt", self.last_ckpt)

        runner.save_checkpoint(
            self.out_dir,
            self.filename_tmpl.format(step),
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta={**meta, "validated": self._validated},
            by_epoch=self.by_epoch,
            backend_args=self.backend_args,
            **self.args,
        )
        self._unvalidated_step = None if self._validated else step
        if not is_main_process():
            return
        AtomicLocalBackend().put_text(self.last_ckpt, Path(runner.work_dir) / "last_checkpoint")
        for path in map(self._path, outdated):
            if self.file_backend.isdir(path):  # sharded optimizers save folders
                self.file_backend.rmtree(path)
            elif self.file_backend.isfile(path):
                self.file_backend.remove(path)

    def _step(self, runner: Runner) -> int:
        return runner.epoch if self.by_epoch else runner.iter

    def _path(self, step: int) -> str:
        return self.file_backend.join_path(self.out_dir, self.filename_tmpl.format(step))
