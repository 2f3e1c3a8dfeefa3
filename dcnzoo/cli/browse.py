"""``dcnzoo browse``, also ``tools/browse_dataset.py``."""

from pathlib import Path

import click

from dcnzoo.cli import _options
from dcnzoo.cli._options import option


@click.command(cls=_options.Command)
@_options.model
@option("--out", type=_options.FOLDER, help="Output folder (default: work_dirs/browse/<name of the config>).")
@option("--split", type=click.Choice(["train", "val", "test"]), default="train")
@_options.num_images(20, "Number of images.")
@_options.cfg_options
@_options.force
def command(
    model: str, out: Path | None, split: str, num_images: int, cfg_options: dict, force: bool
) -> None:
    """Draw a data set's annotations on its images.

    MODEL is a config, a name in the zoo (dcnzoo zoo list) or a work directory. Writes the images after
    the pipeline of the data set.

    \b
    examples:
      dcnzoo browse CONFIG --num-images 50 --out work_dirs/seen
    """
    from mmdet.registry import DATASETS, VISUALIZERS
    from mmengine.registry import init_default_scope

    from dcnzoo.openmmlab.config_errors import config_errors
    from dcnzoo.openmmlab.recipe import Recipe
    from dcnzoo.utils.files import require_writable
    from dcnzoo.utils.progress import track
    from dcnzoo.zoo.source import resolve

    config = resolve(model).config
    folder = out or Path("work_dirs") / "browse" / config.stem
    require_writable(folder)
    claim = _options.output_files(force)
    cfg = Recipe.read(config, cfg_options, [f"{split}_dataloader", "visualizer"]).cfg
    with config_errors(cfg):
        init_default_scope(cfg.get("default_scope", "mmdet"))
        dataset = DATASETS.build(cfg[f"{split}_dataloader"].dataset)
        visualizer = VISUALIZERS.build({**cfg.visualizer, "vis_backends": None})
        visualizer.dataset_meta = dataset.metainfo
        for index in track(range(min(num_images, len(dataset))), "drawing"):
            item = dataset[index]
            sample = item["data_samples"]
            truth = sample.gt_instances
            truth.bboxes = getattr(truth.bboxes, "tensor", truth.bboxes)
            if "masks" in truth:
                truth.masks = truth.masks.to_ndarray().astype(bool)
            name = Path(sample.img_path).with_suffix(".png").name
            image = item["inputs"].numpy().transpose(1, 2, 0)[..., ::-1]  # BGR → RGB
            target = str(claim(folder / f"{index:05d}_{name}"))
            visualizer.add_datasample(name, image, sample, draw_pred=False, out_file=target)
    print(folder)
