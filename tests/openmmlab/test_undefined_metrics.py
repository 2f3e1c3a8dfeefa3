"""An AP of −1, of a validation without objects, is no best score and does not count for the patience."""

import pytest
from mmengine.evaluator import Evaluator

import dcnzoo.models  # noqa: F401

from ..training import SAVING, Score, checkpoints, make_runner

KEY = "coco/bbox_mAP"


class Given(Score):
    """Returns the values of a list, one in each validation."""

    default_prefix = "coco"

    def __init__(self, values):
        super().__init__()
        self.values = iter(values)

    def compute_metrics(self, results):
        return {"bbox_mAP": next(self.values)}


def train(work_dir, values, **hooks):
    loop = {"by_epoch": True, "max_epochs": len(values), "val_interval": 1}
    runner = make_runner(work_dir, "ap", train_cfg=loop, val_evaluator=Evaluator([Given(values)]), **hooks)
    runner.train()
    return runner


@pytest.mark.parametrize("save_best", [KEY, "auto"])
def test_undefined_ap_is_no_best_score(tmp_path, save_best):
    hook = {**SAVING["checkpoint"], "save_best": save_best}
    for values, best in (((-1.0, 0.0, -1.0), 2), ((-1.0, 0.0, -1.0, 0.3), 4)):
        runner = train(tmp_path / str(best), values, default_hooks={"checkpoint": hook})
        assert checkpoints(tmp_path / str(best))[0] == f"best_coco_bbox_mAP_epoch_{best}.pth"
        assert runner.message_hub.get_info("best_score") == max(values)


def test_undefined_ap_does_not_end_the_patience(tmp_path):
    hook = {"type": "PlateauEarlyStoppingHook", "monitor": KEY, "patience": 2, "rule": "greater"}
    values = (0.3, -1.0, -1.0, -1.0, 0.2, -1.0, 0.2, 0.2, 0.2)
    assert train(tmp_path, values, custom_hooks=[hook]).epoch == 7
