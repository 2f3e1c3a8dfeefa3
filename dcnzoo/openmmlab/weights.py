"""Read checkpoints without running code in them, convert old parameter names, and load them."""

import os
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, cast

from mmengine.model import is_model_wrapper
from torch import Size, Tensor, nn

from dcnzoo.openmmlab.checkpoints import CheckpointError, class_names, load_file, weights_of
from dcnzoo.utils.errors import one_line
from dcnzoo.utils.text import counted, few


def without_wrapper(model: nn.Module) -> nn.Module:
    """Return the model inside a wrapper of MMEngine (as in distributed training), or the model itself."""
    return cast(nn.Module, model.module) if is_model_wrapper(model) else model


def find_weights(checkpoint: Mapping, source: str | os.PathLike) -> Mapping[str, Tensor]:
    """Return the state dict of a checkpoint that was read from ``source``.

    Raises:
        CheckpointError: it contains no weights.
    """
    state_dict = weights_of(checkpoint)
    of_names = isinstance(state_dict, Mapping) and all(isinstance(key, str) for key in state_dict)
    if not (state_dict and of_names and all(isinstance(value, Tensor) for value in state_dict.values())):
        raise CheckpointError(f"{source}: expected weights in 'state_dict', found none")
    return state_dict


def convert(
    state_dict: Mapping[str, Tensor], expected: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], str]:
    """Convert the parameter names of older checkpoints to those of a model.

    Removes prefixes that all names have (:data:`_PREFIXES`). Renames ``conv2_offset.…`` (MMDetection 1.x,
    early 2.x) and ``conv2.conv_offset_mask.…`` (other implementations of DCNv2) to ``conv2.conv_offset.…``.

    Args:
        expected: the model's own state dict.

    Returns:
        The converted state dict, and a summary in one line (empty if nothing has changed).
    """
    converted: Any = OrderedDict()
    renamed = {}
    prefix = _prefix(state_dict, expected)
    versions = getattr(state_dict, "_metadata", None)  # of modules; some check them on loading
    if isinstance(versions, Mapping):
        converted._metadata = {str(name).removeprefix(prefix): each for name, each in versions.items()}
    for key, value in state_dict.items():
        plain = key.removeprefix(prefix).removeprefix("module.")
        packed = re.sub(r"_offset\.(weight|bias)$", r".conv_offset.\1", plain)
        names = (key, plain, packed, plain.replace(".conv_offset_mask.", ".conv_offset."))
        new = next((name for name in names if name in expected), plain)
        if new != key and (new in state_dict or new in converted):
            new = key  # the file has both names: the new one takes precedence, or the first of two old ones
        converted[new] = value
        if new != key:
            renamed[key] = new
    if not renamed:
        return converted, ""
    old, new = next(iter(renamed.items()))
    return converted, f"{counted(len(renamed), 'parameters')} renamed, such as {old} to {new}"


# prefixes of parallel wrappers, torch.compile, Lightning, detectors with a teacher, averages
_PREFIXES = ("module.", "_orig_mod.", "model.", "teacher.", "ema.")


def _prefix(state_dict: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    """Return the prefix that all names of weights have and none of the model's, such as ``module.model.``."""
    names = [key for key, value in state_dict.items() if value.is_floating_point()]
    prefix = ""
    while names:
        added = [each for each in _PREFIXES if all(key.startswith(f"{prefix}{each}") for key in names)]
        if not added or any(key.startswith(added[0]) for key in expected):
            break
        prefix += added[0]
    return prefix


def load_weights(
    model: nn.Module,
    path: str | os.PathLike,
    unsafe_load: bool = False,
    allow_partial: bool = False,
    settings: Mapping | None = None,
) -> tuple[dict, str]:
    """Load a checkpoint file into a model; see :func:`load_state`.

    Returns:
        The checkpoint's ``meta``, and a summary in one line (empty if nothing was converted or skipped).

    Raises:
        CheckpointError: the file is not a checkpoint or does not fit the model.
    """
    checkpoint = load_file(path, unsafe_load)
    meta = checkpoint.get("meta") or {}
    class_names(meta)  # raises an error if they are not a list
    weights = find_weights(checkpoint, path)
    return meta, load_state(model, weights, path, settings=settings, allow_partial=allow_partial)


_MASK_HEAD = "roi_head.mask_head."
PARTIAL_HINT = "allow_partial=True loads the parameters that fit"


def load_state(
    model: nn.Module,
    state_dict: Mapping[str, Tensor],
    source: str | os.PathLike,
    *,
    settings: Mapping | None = None,
    fine_tune: bool = False,
    allow_partial: bool = False,
    hint: str = PARTIAL_HINT,
) -> str:
    """Load weights into a model. All commands use this function.

    Names of older versions are converted (:func:`convert`). Every weight in the file must
    be used, and every parameter of the model must be set. Exempt are integers (counters and indices that
    the model computes itself) and the moving averages in MMDetection 2's checkpoints (``ema_…``).

    Args:
        source: the file's name, for messages.
        settings: the model's config, from which it is built once more to find out which parameters depend on
            the number of classes.
        fine_tune: if the classes differ, do not load the parameters whose shape depends on them; without a
            mask head in the model, do not load that of the file.
        allow_partial: load the parameters that fit.
        hint: remedy for the error message.

    Returns:
        A summary in one line, empty if nothing was converted or skipped.

    Raises:
        CheckpointError: the weights do not fit. The model's parameters may have changed.
    """
    expected = model.state_dict()
    weights, conversion = convert(state_dict, expected)
    if fine_tune and not any(key.startswith(_MASK_HEAD) for key in expected):
        for key in [key for key in weights if key.startswith(_MASK_HEAD)]:
            del weights[key]  # a detector of boxes starts from one of masks
    for key, value in weights.items():
        if key in expected and expected[key].is_floating_point() and not value.is_floating_point():
            raise CheckpointError(f"{source}: {key}: expected floating-point weights, got {value.dtype}")
    common = [key for key in weights if key in expected and expected[key].dim() > 0]
    reshaped = [key for key in common if weights[key].shape != expected[key].shape]
    by_class = _sized_by_classes(settings, reshaped, weights, expected)
    left_out = set(reshaped) if allow_partial else set(by_class) if fine_tune else set()
    reshaped = [key for key in reshaped if key not in left_out]
    fitting: Any = OrderedDict((key, value) for key, value in weights.items() if key not in left_out)
    fitting._metadata = getattr(weights, "_metadata", OrderedDict())
    misfits = _load(model, fitting, expected, reshaped, source)
    misfits["missing"] = [key for key in misfits["missing"] if key not in left_out]
    if len(misfits["missing"]) + len(left_out) >= sum(each.is_floating_point() for each in expected.values()):
        allow_partial, hint = False, "no parameter fits"
    problems = [f"{_few(names)} {what}" for what, names in misfits.items() if names]
    if problems and not allow_partial:
        hints = [_deformable_hint(weights, expected), hint]
        if name := next((name for name in by_class if name in misfits["with another shape"]), None):
            shapes = f"{name} is {list(weights[name].shape)}, in the model {list(expected[name].shape)}"
            hints.insert(0, f"num_classes differs ({shapes})")
        raise CheckpointError(
            f"{source}: expected the weights of this model, found {', '.join(problems)}: "
            + "; ".join(filter(None, hints))
        )
    lines = [conversion]
    if left_out:
        reason = "the classes differ" if left_out == set(by_class) else "another shape"
        lines.append(f"{reason}: {_few(sorted(left_out))} not loaded")
    return "; ".join(filter(None, [*lines, *problems]))


def _load(
    model: nn.Module,
    weights: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    reshaped: list[str],
    source: str | os.PathLike,
) -> dict[str, list[str]]:
    """Load weights; return the names of those that do not fit, grouped by problem.

    Args:
        reshaped: names of weights with another shape, which a module may accept all the same.
    """
    try:
        result = model.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        if not reshaped:
            raise CheckpointError(f"{source}: {one_line(error)}") from error
        return {"with another shape": reshaped, "missing": [], "not used": []}

    def counts(key: str, values: Mapping[str, Tensor]) -> bool:
        return key not in values or values[key].is_floating_point()

    missing = [key for key in result.missing_keys if counts(key, expected)]
    unused = [key for key in result.unexpected_keys if not key.startswith("ema_") and counts(key, weights)]
    return {"with another shape": [], "missing": missing, "not used": unused}


def _sized_by_classes(
    settings: Mapping | None,
    reshaped: Sequence[str],
    weights: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
) -> list[str]:
    """Return the parameters whose shape differs only in axes that depend on the number of classes."""
    from dcnzoo.openmmlab.classes import parameters_by_number  # needs mmdet

    other = parameters_by_number(settings) if isinstance(settings, Mapping) and reshaped else {}

    def differing(name: str, shape: Size) -> set[int]:
        sizes = zip(shape, expected[name].shape, strict=False)
        return {axis for axis, (size, own) in enumerate(sizes) if size != own}

    return [
        name
        for name in reshaped
        if len(weights[name].shape) == len(other.get(name, ())) == expected[name].dim()
        and differing(name, weights[name].shape) <= differing(name, other[name])
    ]


def _deformable_hint(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    """Return a hint if file and model differ in their number of deformable layers, else an empty text."""
    pattern = re.compile(r".*(\.conv_offset(_mask)?|conv\d_offset)\.weight")
    in_file, in_model = (len([*filter(pattern.fullmatch, names)]) for names in (weights, expected))
    if in_file == in_model:
        return ""
    return (
        f"the checkpoint has {in_file} deformable layers, the model {in_model}: compare the setting dcn. "
        "Weights that were trained with another number of them are a poor start"
    )


def _few(names: Sequence[str]) -> str:
    return f"{counted(len(names), 'parameters')} ({few(names, 3)})"
