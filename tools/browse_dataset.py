"""Write images of a data set, after its pipeline, with their annotations drawn on them."""

import argparse
from pathlib import Path

from rich.progress import track

from dcnzoo.cli._arguments import add_cfg_options, add_config
from dcnzoo.utils.errors import UserError, command, user_errors
from dcnzoo.utils.files import require_file

# after dcnzoo.openmmlab, which silences a warning of mmengine's import
# isort: split
from mmengine.config import Config
from mmengine.registry import init_default_scope


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add_config(parser)
    parser.add_argument("--output-dir", help="default: work_dirs/browse/<name of the config>")
    parser.add_argument("--split", choices=["train", "val", "test"], default="train")
    parser.add_argument("--number", type=int, default=20, help="of images (default: 20)")
    add_cfg_options(parser)
    return parser.parse_args()


@command
def main() -> None:
    args = parse_args()
    require_file(args.config, "config")
    if args.number < 1:
        raise UserError(f"--number: expected ≥ 1, got {args.number}")
    folder = Path(args.output_dir or Path("work_dirs") / "browse" / Path(args.config).stem)
    with user_errors():
        import dcnzoo.models
        import dcnzoo.openmmlab.datasets  # noqa: F401

        # isort: split
        from mmdet.registry import DATASETS, VISUALIZERS

        cfg = Config.fromfile(args.config)
        cfg.merge_from_dict(args.cfg_options)
        init_default_scope(cfg.get("default_scope", "mmdet"))
        dataset = DATASETS.build(cfg[f"{args.split}_dataloader"].dataset)
        visualizer = VISUALIZERS.build({**cfg.visualizer, "vis_backends": None})
    visualizer.dataset_meta = dataset.metainfo
    for index in track(range(min(args.number, len(dataset))), description="drawing"):
        item = dataset[index]
        sample = item["data_samples"]
        truth = sample.gt_instances
        truth.bboxes = getattr(truth.bboxes, "tensor", truth.bboxes)
        if "masks" in truth:
            truth.masks = truth.masks.to_ndarray().astype(bool)
        name = Path(sample.img_path).with_suffix(".png").name
        image = item["inputs"].numpy().transpose(1, 2, 0)[..., ::-1]  # BGR → RGB
        visualizer.add_datasample(
            name, image, sample, draw_pred=False, out_file=str(folder / f"{index:05d}_{name}")
        )
    print(folder)


if __name__ == "__main__":
    main()
