"""Checkpoints: read without running anything in them, brought up to today's names, and loaded."""

from __future__ import annotations

import dataclasses
import os
import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence, Sized

from torch import Tensor, nn

from dcnzoo.compat.checkpoints import CheckpointError, load_file
from dcnzoo.errors import one_line


def read_checkpoint(path: str | os.PathLike, trust: bool = False) -> dict:
    """The weights of a file, as ``state_dict``, and what is known about them, as ``meta``.

    Raises:
        CheckpointError: as :func:`load_file`, or there are no weights in it.
    """
    checkpoint = load_file(path, trust)
    state_dict = next((checkpoint[k] for k in ("state_dict", "model") if k in checkpoint), checkpoint)
    if not state_dict or not all(isinstance(v, Tensor) for v in state_dict.values()):
        raise CheckpointError(f"{path}: expected weights in 'state_dict', found none")
    return {"meta": checkpoint.get("meta") or {}, "state_dict": state_dict}


@dataclasses.dataclass(frozen=True)
class Conversion:
    """What became of a state dict.

    Attributes:
        state_dict: with today's names.
        renamed: old name → new name.
        reordered: names of those whose classes are in another order now.
    """

    state_dict: dict[str, Tensor]
    renamed: Mapping[str, str]
    reordered: tuple[str, ...]

    def report(self) -> str:
        """What was done, in a line, or nothing."""
        parts = []
        if self.renamed:
            old, new = next(iter(self.renamed.items()))
            parts.append(f"{_parameters(self.renamed)} renamed, such as {old} to {new}")
        if self.reordered:
            parts.append(
                f"{len(self.reordered)} put into the class order of MMDetection 2 and later; version 1 "
                "counted the sizes of boxes by one pixel more, which configs in mmdet::legacy_1.x undo"
            )
        return "; ".join(parts)


def convert(state_dict: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> Conversion:
    """Gives the parameters of older checkpoints the names and the order of a model's.

    Known are ``module.…`` (from a parallel wrapper), ``conv2_offset.…`` (MMDetection 1.x and early
    2.x) and ``conv2.conv_offset_mask.…`` (other implementations of DCNv2) for
    ``conv2.conv_offset.…``, and MMDetection 1.x's two-stage detectors: heads without ``roi_head.``,
    the background as class 0 instead of the last.

    Args:
        expected: the model's own state dict.
    """
    converted, renamed = OrderedDict(), {}
    if hasattr(state_dict, "_metadata"):  # versions of the modules, which some of them ask for
        converted._metadata = state_dict._metadata
    for key, value in state_dict.items():
        new = next((name for name in _names(key) if name in expected), key)
        if new != key and new in state_dict:
            new = key  # an offset convolution of both names: the new one counts
        converted[new] = value
        if new != key:
            renamed[key] = new
    reordered = []
    if any(new == f"roi_head.{old.removeprefix('module.')}" for old, new in renamed.items()):
        for key, value in converted.items():
            background_last = _without_background_first(key, value, expected.get(key))
            if background_last is not value:
                converted[key] = background_last
                reordered.append(key)
    return Conversion(converted, renamed, tuple(reordered))


def _names(key: str) -> Iterator[str]:
    """The names that a parameter may have today, the likeliest first."""
    key = key.removeprefix("module.")
    for name in (key, f"roi_head.{key}"):
        yield name
        yield re.sub(r"_offset\.(weight|bias)$", r".conv_offset.\1", name)
        yield name.replace(".conv_offset_mask.", ".conv_offset.")


def _without_background_first(key: str, value: Tensor, expected: Tensor | None) -> Tensor:
    if not key.startswith("roi_head.") or expected is None:
        return value
    if ".fc_cls." in key:
        return value.roll(-1, 0)
    if ".fc_reg." in key and len(value) == len(expected) + 4:
        return value[4:]
    if ".conv_logits." in key and len(value) == len(expected) + 1:
        return value[1:]
    return value


def load_weights(
    model: nn.Module, path: str | os.PathLike, trust: bool = False, strict: bool = True
) -> tuple[dict, str]:
    """Loads a checkpoint into a model, converted by :func:`convert`.

    Args:
        strict: whether parameters that are missing in the file are an error; else they stay as they
            are. Superfluous ones are only reported.

    Returns:
        The checkpoint's ``meta``, and a report in one line, empty if there is nothing to say.

    Raises:
        CheckpointError: it does not fit the model.
    """
    checkpoint = read_checkpoint(path, trust)
    conversion = convert(checkpoint["state_dict"], model.state_dict())
    try:
        result = model.load_state_dict(conversion.state_dict, strict=False)
    except RuntimeError as error:  # shapes
        raise CheckpointError(f"{path}: {one_line(error)}") from error
    missing = [key for key in result.missing_keys if not key.endswith("num_batches_tracked")]
    if missing and strict:
        raise CheckpointError(f"{path}: expected the weights of this model, found {_few(missing)} missing")
    lines = [conversion.report()]
    if missing:
        lines.append(f"{_few(missing)} missing")
    if result.unexpected_keys:
        lines.append(f"{_few(result.unexpected_keys)} not used")
    return checkpoint["meta"], "; ".join(filter(None, lines))


def _few(names: Sequence[str]) -> str:
    return f"{_parameters(names)} ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})"


def _parameters(names: Sized) -> str:
    return f"{len(names)} parameter{'s' if len(names) != 1 else ''}"
