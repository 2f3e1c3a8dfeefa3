"""Example inputs of detectors and their operations, for tools that count operations or measure time."""

import contextlib
from collections.abc import Iterator

import torch
from mmengine.config import Config
from mmengine.runner import Runner

import dcnzoo.openmmlab.models  # before mmdet, which needs mmcv.ops
import dcnzoo.ops.flops  # noqa: F401  registers the counts of dcnzoo's operators

# isort: split
from mmdet.models import CascadeRoIHead
from mmdet.structures import DetDataSample
from mmdet.utils import get_test_pipeline_cfg
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dcnzoo.export.picture import Preprocessing
from dcnzoo.utils.errors import UserError, one_line


def random_batch(height: int, width: int) -> dict:
    """Return a batch of one image of noise, [3, height, width], in the format of a data loader."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)
    meta = dict.fromkeys(("img_shape", "ori_shape", "pad_shape", "batch_input_shape"), (height, width))
    return {"inputs": [image], "data_samples": [DetDataSample(metainfo={**meta, "scale_factor": (1.0, 1.0)})]}


def test_batches(cfg: Config, number: int) -> Iterator[dict]:
    """Yield the first ``number`` images of the config's test set, one at a time."""
    loader = dict(cfg.test_dataloader, batch_size=1)
    for index, batch in enumerate(Runner.build_dataloader(loader)):
        if index == number:
            return
        yield batch


def input_size(cfg: Config, model: nn.Module) -> tuple[int, int]:
    """Return the height and width of an image after the test pipeline.

    Raises:
        UserError: the pipeline does not resize images, or has a step that is not supported.
    """
    try:
        steps = Preprocessing.of(get_test_pipeline_cfg(cfg), model.data_preprocessor, ())
    except (AttributeError, KeyError, ValueError) as error:
        raise UserError(f"--shape: expected height and width with this config: {one_line(error)}") from error
    if steps.scale is None:
        raise UserError("--shape: expected height and width: the test pipeline does not resize images")
    return steps.padded(steps.scale[::-1])


MASKS = 100  # per image; MMDetection's convention for the operations of a mask head


def count_operations(model: nn.Module, batch: dict) -> tuple[dict[str, int], tuple[int, ...]]:
    """Count a forward pass's multiply-adds by operator; also return the shape of the backbone's input.

    Mask heads are counted for the first 100 proposals, also those of Cascade Mask R-CNN, where MMDetection's
    ``forward`` would run them on all.
    """
    data = model.data_preprocessor(batch)
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter, _first_masks(getattr(model, "roi_head", None)):
        model(data["inputs"], data["data_samples"], mode="tensor")
    counts = counter.get_flop_counts()["Global"]
    return {str(operator): flops // 2 for operator, flops in counts.items()}, tuple(data["inputs"].shape)


@contextlib.contextmanager
def _first_masks(roi_head: nn.Module | None) -> Iterator[None]:
    """Restrict the mask heads of Cascade Mask R-CNN to the first proposals; the other masks are zero."""
    if type(roi_head) is not CascadeRoIHead or not roi_head.with_mask:
        yield
        return
    forward = roi_head._mask_forward

    def of_first(stage: int, x: tuple[Tensor, ...], rois: Tensor) -> dict[str, Tensor]:
        masks = forward(stage, x, rois[:MASKS])["mask_preds"]
        return {"mask_preds": masks.new_zeros(len(rois), *masks.shape[1:])}

    roi_head._mask_forward = of_first  # hides the method of the class
    try:
        yield
    finally:
        del roi_head._mask_forward
