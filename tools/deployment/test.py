"""Evaluate an exported detector: ``python tools/deployment/test.py CONFIG MODEL.onnx [options]``."""

import argparse
from pathlib import Path

from dcnzoo.cli._arguments import make_parser
from dcnzoo.openmmlab.runner import build_runner, load_config
from dcnzoo.utils.errors import UserError, command, user_errors
from dcnzoo.utils.files import require_file

# after dcnzoo.openmmlab.hooks, which silences a warning of mmengine's import
# isort: split
from mmengine.config import Config, DictAction


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser._actions[1].help = "config file of the model that was exported"
    parser.add_argument("model", help="ONNX file")
    parser.add_argument("--out", metavar="FILE", help="write the results: .pkl, or .json for COCO's format")
    parser.add_argument("--backend", choices=["onnxruntime", "openvino", "tensorrt"], default="onnxruntime")
    parser.add_argument("--device", help="cpu or cuda (default: cpu; for tensorrt cuda)")
    parser.add_argument(
        "--format-only", action="store_true", help="write --out in COCO's format, without evaluation"
    )
    parser.add_argument(
        "--eval", nargs="+", metavar="METRIC", help="bbox, segm, proposal (default: the config's)"
    )
    parser.add_argument("--show-dir", help="write images with the detections drawn to this folder")
    parser.add_argument("--show-score-thr", type=float, default=0.3, help="what is drawn (default: 0.3)")
    parser.add_argument(
        "--eval-options", nargs="+", action=DictAction, default={}, metavar="KEY=VALUE",
        help="settings of the evaluator, e.g. classwise=True",
    )  # fmt: skip
    args = parser.parse_args()
    if args.out is not None and not args.out.endswith((".pkl", ".pickle", ".json")):
        parser.error(f"--out: expected a name that ends in .pkl, .pickle or .json, got {args.out}")
    if args.format_only and (args.eval or args.out is None or not args.out.endswith(".json")):
        parser.error("--format-only: expected --out FILE.json, and no --eval")
    return args


def use_exported(cfg: Config, args: argparse.Namespace) -> None:
    """Puts the ONNX file in the model's place, and sets the evaluator up."""
    import dcnzoo.openmmlab.export.deployed  # noqa: F401  registers DeployedDetector

    cfg.load_from, cfg.resume = None, False
    cfg.model = dict(
        type="DeployedDetector",
        path=str(Path(args.model).resolve()),
        backend=args.backend,
        device=args.device or ("cuda" if args.backend == "tensorrt" else "cpu"),
        data_preprocessor=cfg.model.data_preprocessor,
    )
    evaluators = cfg.test_evaluator if isinstance(cfg.test_evaluator, list) else [cfg.test_evaluator]
    for evaluator in evaluators:
        if args.eval:
            evaluator.metric = args.eval
        evaluator.update(args.eval_options)
        if args.out is not None and args.out.endswith(".json"):
            evaluator.update(format_only=args.format_only, outfile_prefix=args.out[: -len(".json")])
    if args.show_dir is not None:
        # absolute: mmdet prepends the work directory to a relative one, once per iteration
        cfg.default_hooks.visualization.update(
            draw=True, test_out_dir=str(Path(args.show_dir).resolve()), score_thr=args.show_score_thr
        )


@command
def main() -> None:
    args = parse_args()
    require_file(args.config, "config")
    require_file(args.model, "model")
    with user_errors():
        cfg = load_config(args)
        if "test_evaluator" not in cfg:
            raise UserError(f"config: expected a test_evaluator in {args.config}")
        use_exported(cfg, args)
        runner = build_runner(cfg)
        metrics = runner.test_evaluator.metrics  # built now, where a mistake in it is the user's
        if args.out is not None and not args.out.endswith(".json"):
            from mmdet.evaluation import DumpDetResults

            metrics.append(DumpDetResults(out_file_path=args.out))
    runner.test()


if __name__ == "__main__":
    main()
