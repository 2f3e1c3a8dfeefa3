"""``dcnzoo flops``, also ``tools/analysis/get_flops.py``."""

from statistics import mean

import click

from dcnzoo.cli import _command, _options
from dcnzoo.cli._options import option


@click.command(cls=_command.Command)
@_options.model
@_options.shape("Size of an image of noise (default: the test pipeline's size).")
@_options.num_images(None, "Take the mean over the first images of the test set instead.")
@option("--by-operator", is_flag=True, help="Show the operations of each operator.")
@_options.device
@_options.cfg_options
def command(
    model: str, shape: tuple[int, int] | None, num_images: int | None, by_operator: bool, device: str,
    cfg_options: dict,
) -> None:  # fmt: skip
    """Count the operations and parameters of a detector.

    MODEL is a name in the zoo (dcnzoo zoo list), a config or a work directory.

    A multiplication with its addition counts as one operation, as in MMDetection. Convolutions (deformable
    ones with their sampling) and matrix products are counted. Normalisation, activation, RoIAlign and NMS,
    less than one percent, are not. The count of a two-stage detector depends on its proposals, so random
    weights change it slightly.

    \b
    examples:
      dcnzoo flops CONFIG --shape 800 1280 --by-operator
    """
    if num_images:
        _options.refuse("--num-images", "shape")
    _options.refuse_exported(model)
    from dcnzoo.openmmlab.flops import count
    from dcnzoo.openmmlab.runs.build import build_model
    from dcnzoo.zoo.source import resolve

    network = build_model(resolve(model).recipe(cfg_options), device=device)
    counts = count(network, shape, num_images)
    line = "=" * 30
    print(line)
    print(f"Input shape: {counts[0][1][2:]}" if len(counts) == 1 else f"Images: {len(counts)}")
    print(f"Flops: {_billions(mean(sum(flops.values()) for flops, _ in counts))}")
    print(f"Params: {sum(p.numel() for p in network.parameters()) / 1e6:.2f} M")
    if by_operator:
        for operator in sorted({name for flops, _ in counts for name in flops}):
            print(f"  {operator}: {_billions(mean(flops.get(operator, 0) for flops, _ in counts))}")
    print(line)


def _billions(number: float) -> str:
    return f"{number / 1e9:.2f} G"
