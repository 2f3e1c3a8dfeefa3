"""Checkpoints that survive a killed process: a file is complete or absent, and is verified before loading."""

import os
from pathlib import Path
from typing import Any

from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook, EarlyStoppingHook, EMAHook, Hook, LoggerHook, ParamSchedulerHook
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch.distributed.fsdp import FullyShardedDataParallel

from dcnzoo.openmmlab.checkpoints import class_names
from dcnzoo.openmmlab.hooks.history import History
from dcnzoo.openmmlab.saved import LAST, SavedCheckpoints
from dcnzoo.openmmlab.weights import PARTIAL_HINT, find_weights, load_state
from dcnzoo.utils.errors import UserError, disk_is_full
from dcnzoo.utils.files import remove_abandoned, write_bytes, write_text
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

    The parent class removes the oldest checkpoint, or the best, before it writes the new one. Here a file is
    removed when the next checkpoint is complete and ``last_checkpoint`` names it. That checkpoint still lists
    the file: if the process ends before, a resumed run removes it. With ``max_keep_ckpts=1``, no older
    checkpoint is left if the file is damaged later.

    Resuming loads the last undamaged checkpoint and names the damaged ones. A checkpoint is written once,
    before the validation that follows. Its effects (best score, learning rate on plateaus) are those of an
    uninterrupted training: the metrics come from the log, or the validation runs again if it was interrupted.

    Raises:
        UserError: all checkpoints are damaged.
    """

    backend_args: dict[str, Any] | None
    file_backend: Any
    last_ckpt: str | None
    out_dir: str | None

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        if self.file_client_args is not None:  # mmengine refuses it beside its own default, after an epoch
            raise UserError("default_hooks.checkpoint.file_client_args: expected backend_args in its place")
        if "://" not in str(self.out_dir):
            self.backend_args = self.backend_args or {"backend": "atomic_local"}
            # last_checkpoint has the path, and is read from other folders
            self.out_dir = None if self.out_dir is None else os.path.abspath(self.out_dir)
        self._outdated: list[str] = []

    # Resuming

    def before_run(self, runner: Runner) -> None:
        """Select the work directory's last undamaged checkpoint, unless a file is requested."""
        # before the parent class changes out_dir
        self._saved = SavedCheckpoints(Path(runner.work_dir), self.filename_tmpl, self.out_dir)
        if runner._resume and runner._load_from is None and not runner._has_loaded:  # of other tools
            runner._load_from = str(self._saved.undamaged() or "") or None
            runner._resume = runner._load_from is not None  # mmengine would look for one itself

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        if runner._resume:
            last: Any = Hook()  # after the ``before_train`` of all hooks: a validation calls them
            last.before_train = self.validate_first
            runner.register_hook(last, priority="LOWEST")

    def before_train(self, runner: Runner) -> None:
        info = runner.message_hub.runtime_info
        if "keep_ckpt_ids" in info:  # the parent class puts them into names of files that it removes
            info["keep_ckpt_ids"] = [step for step in info["keep_ckpt_ids"] if type(step) is int]
        best = Path(str(info.get("best_ckpt")))
        files = [best.name.removeprefix(f"best_{metric}_".replace("/", "_")) for metric in self._metrics()]
        is_others = files and all(file == best.name or self._saved.number(file) is None for file in files)
        is_gone = [self._saved.is_local and not (best.exists() or (self._saved.folder / best.name).exists())]
        broadcast_object_list(is_gone)
        if is_others or is_gone[0]:  # of another metric, or of a run that was given up
            for key in ("best_ckpt", "best_score"):
                info.pop(key, None)
        super().before_train(runner)
        if not isinstance(runner.train_loop, EpochBasedTrainLoop):  # no epoch ends
            runner.log_processor.by_epoch = False
            for hook in (hook for hook in runner.hooks if isinstance(hook, LoggerHook)):
                hook.log_metric_by_epoch = False
        self._backend = self.file_backend
        self.file_backend = _RemovesLater(self._backend, self._outdated)
        pointer = Path(runner.work_dir, LAST)
        if is_main_process() and self._saved.is_local:
            remove_abandoned(self._saved.folder, 0)  # nobody else trains in this folder
            if runner._resume and runner._load_from and self._saved.has(runner._load_from):
                write_text(pointer, os.path.abspath(runner._load_from))  # those after it are of another run

    def _metrics(self) -> set[str]:
        """Return the metrics whose best checkpoints are saved, those that are known before a validation."""
        return {*self.key_indicators} - {"auto"} if self.save_best else set()

    def validate_first(self, runner: Runner) -> None:
        """Repeat the effects of the validation that followed the checkpoint, if there was one.

        Those of all validations on ``EarlyStoppingHook``, which has no state in the file.
        """
        loop = runner.train_loop
        by_epoch = isinstance(loop, EpochBasedTrainLoop)
        if runner.val_loop is None:
            return
        now, end = (loop.epoch, loop.max_epochs) if by_epoch else (loop.iter, loop.max_iters)
        file = runner._load_from
        folder = self._saved.log_folder(file) if file else Path(runner.work_dir)
        message = [History.read(folder).validation if is_main_process() else {}]
        broadcast_object_list(message)
        if not self._metrics() <= message[0].get(now, {}).keys():
            message[0].pop(now, None)  # it measured others
        for step, metrics in message[0].items():
            if step > now:
                continue
            loop.stop_training = False  # a later validation was better, or the patience was smaller
            kinds = (EarlyStoppingHook, CheckpointHook, ParamSchedulerHook)[: 3 if step == now else 1]
            for hook in (hook for hook in runner.hooks if isinstance(hook, kinds)):
                hook.after_val_epoch(runner, metrics=metrics)
            if os.path.realpath(folder) != os.path.realpath(runner.work_dir):  # the next resume reads it here
                runner.visualizer.add_scalars(metrics, step=step)
        if now not in message[0]:
            loop._decide_current_val_interval()
            if now >= loop.val_begin and (now % loop.val_interval == 0 or now == end):
                runner.logger.info(f"Running the interrupted validation of {now} first")
                runner.val_loop.run()

    # Saving

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """List the files that are removed after this one is written; a resumed run removes them first."""
        info = checkpoint["message_hub"]["runtime_info"]
        steps = [self._saved.step(Path(name)) for name in self._outdated]
        if steps := [step for step in steps if step is not None]:
            info["keep_ckpt_ids"] = [*steps, *info["keep_ckpt_ids"]]

    def after_val_epoch(self, runner: Runner, metrics: dict[str, Any]) -> None:
        last, self.last_ckpt = self.last_ckpt, None  # else, the parent class writes it again after a best one
        super().after_val_epoch(runner, metrics)
        self.last_ckpt = last
        self._remove_outdated()

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict[str, Any]) -> None:
        super()._save_checkpoint_with_step(runner, step, meta)
        self._remove_outdated()

    def _remove_outdated(self) -> None:
        # a checkpoint that is resumed may come from elsewhere and name anything as the best one
        for name in filter(self._saved.number, self._outdated) if is_main_process() else ():
            path = self._backend.join_path(self.out_dir, name)
            if self._backend.isdir(path):
                self._backend.rmtree(path)
            elif self._backend.isfile(path):
                self._backend.remove(path)
        self._outdated.clear()


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

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        model, resume = runner.model, runner._resume
        if isinstance(model, FullyShardedDataParallel):
            runner.logger.warning("load_from: with torch's first FSDP, the weights are not checked")
            return
        while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
            model = model.module
        source = runner._load_from or (resume if isinstance(resume, str) else "resume")
        averages = any(isinstance(hook, EMAHook) for hook in runner.hooks)
        if resume and not averages and "ema_state_dict" in checkpoint:
            EMAHook()._swap_ema_state_dict(checkpoint)  # those that were trained, in place of the average
            runner.logger.warning("resume: without EMAHook, the weights are no longer averaged")
        meta = checkpoint.get("meta") or {}
        if resume or not self.fine_tune:
            from dcnzoo.openmmlab.classes import require_order  # needs mmdet, the other hooks do not

            loader = runner.cfg.get("train_dataloader" if self.fine_tune else "test_dataloader")
            require_order(loader, class_names(meta).get("classes"), source)
        report = load_state(
            model,
            find_weights(checkpoint, source),
            source,
            settings=runner.cfg.get("model"),
            fine_tune=self.fine_tune and not resume,
            allow_partial=self.allow_partial and not resume,
            hint="resume=True requires the model of the interrupted training" if resume else PARTIAL_HINT,
        )
        if report:
            log = runner.logger.warning if self.allow_partial else runner.logger.info
            log(f"{source}: {report}")
        if resume:
            _require_resumable(runner, checkpoint, source)
        if "state_dict" not in checkpoint:  # the file contains only weights
            checkpoint.clear()
            checkpoint["meta"] = meta
        checkpoint["state_dict"] = model.state_dict()


def _require_resumable(runner: Runner, checkpoint: dict[str, Any], source: object) -> None:
    """Raise UserError for a file with less than a training writes: that of the best validation, or weights.

    mmengine would train on without the optimizer's state, and begin the warm-up again.
    """
    meta = checkpoint.get("meta") or {}
    numbers = {key: meta.get(key) for key in ("epoch", "iter")}
    lacking = [key for key, number in numbers.items() if type(number) is not int or number < 0]
    parts = {"message_hub": True}
    if isinstance(runner, Runner):  # the strategies of FlexibleRunner have other files
        hook = next((hook for hook in runner.hooks if isinstance(hook, CheckpointHook)), CheckpointHook())
        parts["optimizer"] = hook.save_optimizer
        parts["param_schedulers"] = bool(runner.param_schedulers) and hook.save_param_scheduler
    if lacking := lacking + [key for key, is_saved in parts.items() if is_saved and key not in checkpoint]:
        raise UserError(
            f"resume: expected a checkpoint of an interrupted training, got {source} without "
            f"{few(lacking)}: the setting load_from={source} starts a training from its weights"
        )
