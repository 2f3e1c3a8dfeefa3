"""Imported by a config: a rank kills itself after some epochs, in a phase of the training."""

import os
import signal
import sys

from mmengine.config import Config
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from tests.helpers.launching import CONFIG, ROOT


@HOOKS.register_module()
class KillHook(Hook):
    def __init__(self, rank, phase, epoch):
        self.rank, self.phase, self.epoch = rank, phase, epoch
        sys.addaudithook(self._watch)

    def _end(self, phase, epoch):
        first = os.environ.get("TORCHELASTIC_RESTART_COUNT") == "0"
        if first and (phase, epoch, get_rank()) == (self.phase, self.epoch, self.rank):
            os.kill(os.getpid(), signal.SIGKILL)

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if batch_idx == 1:  # all ranks have begun the epoch
            self._end("training", runner.epoch)

    def before_val_iter(self, runner, batch_idx, data_batch=None):
        self._end("validation", runner.epoch)

    def _watch(self, event, arguments):  # dies after the file is written, before it gets its name
        if event == "os.rename" and str(arguments[1]).endswith(f"epoch_{self.epoch}.pth"):
            self._end("checkpoint", self.epoch)


def config(folder, rank, phase, epoch):
    """Write a config with the hook; phase: training, validation or checkpoint."""
    cfg, path = Config.fromfile(ROOT / CONFIG), folder / f"{phase}.py"
    cfg.custom_imports["imports"].append(__name__)
    cfg.custom_hooks.append(dict(type="KillHook", rank=rank, phase=phase, epoch=epoch))
    cfg.dump(path)
    return path
