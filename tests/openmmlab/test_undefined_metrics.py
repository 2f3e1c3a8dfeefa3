"""An AP of −1, of a validation without objects, is no best score and does not count for the patience."""

from types import SimpleNamespace

import pytest
from mmengine.logging import MessageHub

import dcnzoo.models  # noqa: F401
from dcnzoo.openmmlab.hooks import AtomicCheckpointHook, PlateauEarlyStoppingHook

KEY = "coco/bbox_mAP"


class Log:
    def info(self, text):
        """Forget it."""

    warning = info


@pytest.mark.parametrize("save_best", [KEY, "auto"])
def test_undefined_ap_is_no_best_score(monkeypatch, tmp_path, save_best):
    saved = []
    hub = MessageHub(f"undefined {save_best}")
    runner = SimpleNamespace(
        message_hub=hub, epoch=1, iter=1, logger=Log(), work_dir=str(tmp_path),
        save_checkpoint=lambda *_, filename, **__: saved.append(filename),
    )  # fmt: skip
    hook = AtomicCheckpointHook(save_best=save_best)
    hook.out_dir, hook.best_ckpt_path, hook.last_ckpt = str(tmp_path), None, None
    hook.file_backend = SimpleNamespace(join_path=lambda *parts: "/".join(parts), isfile=lambda _: False)
    hook.file_backend.isdir = hook.file_backend.isfile
    monkeypatch.setattr(hook, "_remove_outdated", lambda _: None)
    for ap in (-1.0, 0.0, -1.0, 0.3):
        runner.epoch += 1
        hook.after_val_epoch(runner, {KEY: ap})
    assert saved == ["best_coco_bbox_mAP_epoch_3.pth", "best_coco_bbox_mAP_epoch_5.pth"]
    assert hub.get_info("best_score") == 0.3


def test_undefined_ap_does_not_end_the_patience():
    runner = SimpleNamespace(train_loop=SimpleNamespace(stop_training=False), logger=Log())
    hook = PlateauEarlyStoppingHook(KEY, patience=2, rule="greater")
    for ap in (0.3, -1.0, -1.0, -1.0, 0.2, -1.0):
        hook.after_val_epoch(runner, {KEY: ap})
    assert not runner.train_loop.stop_training
    hook.after_val_epoch(runner, {KEY: 0.2})
    assert runner.train_loop.stop_training
