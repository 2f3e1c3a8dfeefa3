"""Count the operations and parameters of a detector: ``python tools/analysis/get_flops.py CONFIG``.

A multiplication and the addition that goes with it count as one, as in MMDetection. Counted are
convolutions, deformable ones with their samples, and matrix products; not normalisation, activation,
RoIAlign or NMS, which are below one percent. What a two-stage detector computes depends on its
proposals, and so, with random weights, a little on chance.
"""

import argparse
from statistics import mean

import torch
from torch.utils.flop_counter import FlopCounterMode

from dcnzoo.cli._arguments import add_cfg_options, add_config
from dcnzoo.utils.errors import UserError, command, user_errors
from dcnzoo.utils.files import require_file

# after dcnzoo.openmmlab.hooks, which silences a warning of mmengine's import
# isort: split
from mmengine.config import Config

import dcnzoo.ops.flops  # noqa: F401  deformable convolution is counted
from dcnzoo.export.picture import Preprocessing
from dcnzoo.openmmlab.model_builder import build_model, random_batch, test_batches
from dcnzoo.utils.errors import one_line

# isort: split
from mmdet.utils import get_test_pipeline_cfg  # after dcnzoo.models


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_config(parser)
    parser.add_argument(
        "--shape",
        type=int,
        nargs="+",
        metavar="SIZE",
        help="height and width, or one for both, of an image of noise (default: those of the config's test "
        "pipeline)",
    )
    parser.add_argument(
        "--num-images", type=int, metavar="N", help="the mean over N images of the test set instead"
    )
    parser.add_argument("--by-operator", action="store_true", help="show what each operator has of it")
    add_cfg_options(parser)
    return parser.parse_args()


def size(shape: list[int] | None, cfg: Config, model: torch.nn.Module) -> tuple[int, int]:
    """Height and width: what is asked for, or what the test pipeline makes of an image of its own scale."""
    if shape is None:
        try:
            found = Preprocessing.of(get_test_pipeline_cfg(cfg), model.data_preprocessor, ())
        except (AttributeError, KeyError, ValueError) as error:
            raise UserError(
                f"--shape: expected height and width with this config: {one_line(error)}"
            ) from error
        if found.scale is None:
            raise UserError("--shape: expected height and width: the test pipeline does not resize images")
        return found.padded(found.scale[::-1])
    if len(shape) > 2 or min(shape) < 1:
        raise UserError(f"--shape: expected one or two sizes ≥ 1, got {' '.join(map(str, shape))}")
    return shape[0], shape[-1]


def count(model: torch.nn.Module, batch: dict) -> tuple[dict[str, int], tuple[int, ...]]:
    """Operations of one forward pass by operator, and the shape of what goes into the backbone."""
    data = model.data_preprocessor(batch)
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        model(data["inputs"], data["data_samples"], mode="tensor")
    counts = counter.get_flop_counts()["Global"]
    return {str(operator): flops // 2 for operator, flops in counts.items()}, tuple(data["inputs"].shape)


def billions(number: float) -> str:
    return f"{number / 1e9:.2f} G"


@command
def main() -> None:
    args = parse_args()
    require_file(args.config, "config")
    if args.num_images is not None and args.num_images < 1:
        raise UserError(f"--num-images: expected ≥ 1, got {args.num_images}")
    with user_errors():
        cfg = Config.fromfile(args.config)
        cfg.merge_from_dict(args.cfg_options)
        model = build_model(cfg)
        if args.num_images:
            batches = test_batches(cfg, args.num_images)
        else:
            batches = [random_batch(*size(args.shape, cfg, model))]
        counts = [count(model, batch) for batch in batches]
    line = "=" * 30
    print(line)
    print(f"Input shape: {counts[0][1][2:]}" if len(counts) == 1 else f"Images: {len(counts)}")
    print(f"Flops: {billions(mean(sum(flops.values()) for flops, _ in counts))}")
    print(f"Params: {sum(p.numel() for p in model.parameters()) / 1e6:.2f} M")
    if args.by_operator:
        for operator in sorted({name for flops, _ in counts for name in flops}):
            print(f"  {operator}: {billions(mean(flops.get(operator, 0) for flops, _ in counts))}")
    print(line)


if __name__ == "__main__":
    main()
