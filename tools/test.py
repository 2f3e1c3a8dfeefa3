"""Evaluate a checkpoint: ``python tools/test.py CONFIG CHECKPOINT [options]``, also ``dcnzoo test``.

examples:
  dcnzoo test work_dirs/dcn/config.py work_dirs/dcn/epoch_12.pth
  dcnzoo test CONFIG CHECKPOINT --tta --show-dir work_dirs/shown --out predictions.pkl
"""

from copy import deepcopy
from pathlib import Path

from dcnzoo.cli._arguments import add_allow_partial, make_parser
from dcnzoo.openmmlab.runner import build_runner, load_config
from dcnzoo.utils.errors import UserError, command, user_errors
from dcnzoo.utils.files import require_file

# after dcnzoo.openmmlab.hooks, which silences a warning of mmengine's import
# isort: split
from mmengine.config import Config, ConfigDict

TTA_MODEL = {
    "type": "InstanceTTAModel",
    "tta_cfg": {"nms": {"type": "nms", "iou_threshold": 0.5}, "max_per_img": 100},
}
TTA_META_KEYS = (
    *("img_id", "img_path", "ori_shape", "img_shape", "scale_factor"),
    *("flip", "flip_direction"),
)


def parse_args():
    parser = make_parser(__doc__, checkpoint=True)
    parser.add_argument("--out", metavar="FILE.pkl", help="write the predictions to a pickle file")
    parser.add_argument("--show-dir", help="write images with the detections drawn to this folder")
    parser.add_argument(
        "--tta", action="store_true", help="merge the detections on the image and on its mirror image"
    )
    add_allow_partial(parser)
    return parser.parse_args()


def use_test_time_augmentation(cfg: Config) -> None:
    """Wrap the model and the test pipeline; the config's own ``tta_*`` settings go first."""
    import dcnzoo.openmmlab.models.tta  # noqa: F401  registers the model

    dataset = cfg.test_dataloader.dataset
    while "dataset" in dataset:
        dataset = dataset.dataset
    if "tta_pipeline" not in cfg:
        flips = [{"type": "RandomFlip", "prob": 1.0}, {"type": "RandomFlip", "prob": 0.0}]
        pack = {"type": "PackDetInputs", "meta_keys": TTA_META_KEYS}
        cfg.tta_pipeline = deepcopy(dataset.pipeline)
        cfg.tta_pipeline[-1] = {"type": "TestTimeAug", "transforms": [flips, [pack]]}
    dataset.pipeline = cfg.tta_pipeline
    model = cfg.get("tta_model", TTA_MODEL)
    if model["type"] == "DetTTAModel":
        model["type"] = "InstanceTTAModel"  # the same, but it merges masks too
    cfg.model = ConfigDict(**model, module=cfg.model)


@command
def main() -> None:
    args = parse_args()
    require_file(args.config, "config")
    require_file(args.checkpoint, "checkpoint")
    if args.out is not None and not args.out.endswith((".pkl", ".pickle")):
        raise UserError(f"--out: expected a name that ends in .pkl or .pickle, got {args.out}")
    with user_errors():
        cfg = load_config(args)
        cfg.load_from = args.checkpoint
        cfg.resume = False  # a config that was dumped by a resumed run says True
        if args.show_dir is not None:
            # absolute: mmdet prepends the work directory to a relative one, once per iteration
            show_dir = str(Path(args.show_dir).resolve())
            drawing = cfg.default_hooks.get("visualization") or {"type": "DetVisualizationHook"}
            cfg.default_hooks.visualization = {**drawing, "draw": True, "test_out_dir": show_dir}
        if args.tta:
            use_test_time_augmentation(cfg)
        runner = build_runner(cfg, allow_partial=args.allow_partial)
        if args.out is not None:
            from mmdet.evaluation import DumpDetResults

            runner.test_evaluator.metrics.append(DumpDetResults(out_file_path=args.out))
    runner.test()


if __name__ == "__main__":
    main()
