"""Samples of ms_deform_attn: the tensors are (value, sampling_locations, attention_weights)."""

from collections.abc import Iterator
from random import Random

import torch

import dcnzoo.ops
from dcnzoo.ops import reference as oracle
from tests.op_cases import CHANNELS, Sample, absolute_at, emptied, random_name, wrong_calls

NAME = "ms_deform_attn"
can_be_zero = ("level", "heads", "channels")
absolute = absolute_at(0, 2)


def arguments(sample: Sample) -> tuple[torch.Tensor, ...]:
    value, locations, weights = sample.tensors
    levels = (sample.kwargs["spatial_shapes"], sample.kwargs["level_start_index"])
    return value, *levels, locations, weights


def call(sample: Sample) -> torch.Tensor:
    return dcnzoo.ops.ms_deform_attn(*arguments(sample))


def reference(sample: Sample) -> torch.Tensor:
    return oracle.ms_deform_attn(*arguments(sample))


def resized_samples() -> Iterator[Sample]:
    # the first call's sizes all differ: torch.compile would treat equal sizes as one symbol
    for batch, queries in ((9, 7), (8, 11), (5, 14)):
        yield make(f"{batch} {queries}", batch=batch, queries=queries)


def make(
    name: str,
    batch: int = 2,
    queries: int = 7,
    heads: int = 3,
    channels: int = 5,
    points: int = 4,
    sizes: tuple[tuple[int, int], ...] = ((6, 9), (3, 5)),
    spread: float = 0.3,
    gap: int = 0,
) -> Sample:
    """Random tensors of valid shapes; ``gap``: pixels between levels that belong to no level."""
    generator = torch.Generator().manual_seed(sum(map(ord, name)))

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    starts, pixels = [], 0
    for height, width in sizes:
        starts.append(pixels)
        pixels += height * width + gap
    # Keep points away from grid lines, where the interpolation has no derivative. Coordinates are in pixels,
    # then normalised to the level's size.
    extent = torch.tensor(sizes, dtype=torch.float64).flip(-1).view(len(sizes), 1, 2)  # (x, y)
    place = (0.5 + normal(batch, queries, heads, len(sizes), points, 2) * spread) * extent
    place = place.floor() + 0.1 + 0.8 * (place - place.floor())
    tensors = (
        normal(batch, pixels, heads, channels),
        (place + 0.5) / extent,
        normal(batch, queries, heads, len(sizes) * points).softmax(-1).unflatten(3, (len(sizes), points)),
    )
    levels = {"spatial_shapes": torch.tensor(sizes), "level_start_index": torch.tensor(starts)}
    return Sample(name, tensors, levels)


def random_sample(rng: Random, nothing: str) -> Sample:
    levels = [(rng.randint(1, 9), rng.randint(1, 9)) for _ in range(rng.randint(1, 4))]
    if nothing == "level":
        levels[-1] = emptied(rng, levels[-1])
    return make(
        random_name(rng, nothing),
        batch=rng.randint(0, 3),
        queries=rng.randint(0, 20),
        heads=0 if nothing == "heads" else rng.randint(1, 4),
        channels=0 if nothing == "channels" else rng.choice(CHANNELS),
        points=rng.randint(0, 17),
        sizes=tuple(levels),
        spread=rng.choice((0.1, 0.5, 3.0)),
        gap=rng.randint(0, 2),
    )


def samples() -> Iterator[Sample]:
    yield make("two levels")
    yield make("one level, one point", sizes=((4, 7),), points=1)
    yield make("four levels", sizes=((7, 5), (4, 3), (2, 2), (1, 1)))
    yield make("far outside", spread=3.0)
    yield make("gaps between levels", gap=3)
    yield make("empty batch", batch=0)
    yield make("no queries", queries=0)
    yield make("no points", points=0)
    yield make("17 points", points=17, channels=16)
    for channels in (1, 32, 33):
        yield make(f"{channels} channels", channels=channels, heads=2)


def invalid() -> Iterator[tuple[Sample, str]]:
    good = make("good")
    value, locations, weights = good.tensors
    names = ("value", "sampling_locations", "attention_weights")
    starts, shapes = "level_start_index", "spatial_shapes"
    rows = [
        ("value", "got (69, 3, 5)", dict(value=value[0])),
        (names[1], "(2, n, 2, 2, n, 2), got (2, 7, 3, 2, 4, 2)", dict(value=value[:, :, 1:])),
        (names[2], "got (2, 7, 3, 8)", dict(attention_weights=weights.flatten(3))),
        (starts, "got (3,)", {starts: torch.tensor([0, 54, 60])}),
        (shapes, "got (2, 3)", {shapes: torch.ones(2, 3, dtype=torch.int64)}),
        (shapes, "got Short", {shapes: torch.tensor([[6, 9], [3, 5]], dtype=torch.int16)}),
        ("value", "54 + 4·5 pixels for level 1", {shapes: torch.tensor([[6, 9], [4, 5]])}),
        ("value", "-1 + 6·9 pixels for level 0", {starts: torch.tensor([-1, 54])}),
        (shapes, "got (0, 5) for level 1", {shapes: torch.tensor([[6, 9], [0, 5]])}),
        (names[1], "got float32", dict(sampling_locations=locations.float())),
        ("value", "got Int", dict(value=value.int())),
    ]
    return wrong_calls(NAME, good, names, rows)
