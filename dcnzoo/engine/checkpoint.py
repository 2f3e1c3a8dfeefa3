"""Checkpoints that are whole or absent, whenever the process is killed."""

import os
from pathlib import Path

from mmengine.dist import is_main_process
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook
from mmengine.registry import HOOKS
from mmengine.runner import Runner


@register_backend("atomic_local", force=True)
class AtomicLocalBackend(LocalBackend):
    """mmengine's local files, written beside the target and then renamed over it."""

    def put(self, obj: bytes, filepath: str | os.PathLike) -> None:
        target = Path(filepath)
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
        try:
            with open(partial, "wb") as file:
                file.write(obj)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, target)
        finally:
            partial.unlink(missing_ok=True)

    def put_text(self, obj: str, filepath: str | os.PathLike, encoding: str = "utf-8") -> None:
        self.put(obj.encode(encoding), filepath)


@HOOKS.register_module()
class AtomicCheckpointHook(CheckpointHook):
    """mmengine's ``CheckpointHook`` in an order in which ``--resume`` always finds a checkpoint.

    The parent removes the oldest checkpoint before it writes the new one, and writes both the
    checkpoint and ``last_checkpoint`` in place: killed in between, a run with
    ``max_keep_ckpts=1`` has nothing left to resume from. Here the new file is complete first, then
    ``last_checkpoint`` names it, then the oldest goes.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        if self.backend_args is None and "://" not in str(self.out_dir):
            self.backend_args = {"backend": "atomic_local"}

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        outdated = None
        if self.max_keep_ckpts > 0 and step not in self.keep_ckpt_ids:
            if len(self.keep_ckpt_ids) == self.max_keep_ckpts:
                outdated = self._path(self.keep_ckpt_ids.popleft())
            self.keep_ckpt_ids.append(step)
            runner.message_hub.update_info("keep_ckpt_ids", list(self.keep_ckpt_ids))
        self.last_ckpt = self._path(step)
        runner.message_hub.update_info("last_ckpt", self.last_ckpt)

        runner.save_checkpoint(
            self.out_dir,
            self.filename_tmpl.format(step),
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            by_epoch=self.by_epoch,
            backend_args=self.backend_args,
            **self.args,
        )
        if not is_main_process():
            return
        AtomicLocalBackend().put_text(self.last_ckpt, Path(runner.work_dir) / "last_checkpoint")
        if outdated is None:
            return
        if self.file_backend.isdir(outdated):  # sharded optimizers save folders
            self.file_backend.rmtree(outdated)
        elif self.file_backend.isfile(outdated):
            self.file_backend.remove(outdated)

    def _path(self, step: int) -> str:
        return self.file_backend.join_path(self.out_dir, self.filename_tmpl.format(step))
