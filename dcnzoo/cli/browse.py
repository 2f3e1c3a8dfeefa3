"""``dcnzoo browse``, also ``tools/browse_dataset.py``."""

from pathlib import Path

import click

from dcnzoo.cli import _options
from dcnzoo.cli._options import option


@click.command(cls=_options.Command)
@_options.model
@option(
    "--out",
    type=_options.FOLDER,
    help="Output folder (default: a new work_dirs/browse/<name of the config>).",
)
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
    from mmdet.registry import DATASETS
    from mmengine.registry import init_default_scope

    from dcnzoo.detect.drawing import encoded
    from dcnzoo.openmmlab.config.errors import config_errors
    from dcnzoo.report.validation import pipeline_outputs
    from dcnzoo.utils.files import numbered, require_writable, write_bytes
    from dcnzoo.utils.progress import track
    from dcnzoo.zoo.source import resolve

    source = resolve(model)
    folder = out or numbered(Path("work_dirs") / "browse" / source.config.stem)
    require_writable(folder)
    cfg = source.recipe(cfg_options, [f"{split}_dataloader"]).cfg
    with config_errors(cfg):
        init_default_scope(cfg.get("default_scope", "mmdet"))
        dataset = DATASETS.build(cfg[f"{split}_dataloader"].dataset)
        indices = track(range(min(num_images, len(dataset))), "drawing")
        for index, result in enumerate(pipeline_outputs(dataset, indices)):
            name = Path(result.path).with_suffix(".png").name
            path = _options.output_file(folder / f"{index:05d}_{name}", force=force)
            write_bytes(path, encoded(result.draw(), "PNG"))
    print(folder)
