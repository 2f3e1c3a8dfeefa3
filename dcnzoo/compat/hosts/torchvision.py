"""torchvision whose compiled operators do not load or lack CUDA, and names that it has removed.

:func:`dcnzoo.compat.provide` always includes this host.
"""

import contextlib
import importlib
import sys
from collections.abc import Iterator
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from dcnzoo.compat.after_import import call, watch
from dcnzoo.compat.host import Host
from dcnzoo.compat.patches import Changes, Patch

INDEX = "https://download.pytorch.org/whl"


def repair_command(torch: str) -> str:
    """The command that installs the torchvision of a torch, without a change of torch itself.

    Args:
        torch: its version, such as ``"2.13.0+cpu"``.
    """
    release, _, build = torch.partition("+")
    minor = int(release.split(".")[1])
    # 0.25 for torch 2.10
    command = f'pip install --no-deps --force-reinstall "torchvision==0.{minor + 15}.*"'
    return f"{command} --index-url {INDEX}/{build}" if build else command


def problem() -> str | None:
    """Why the operators of the installed torchvision cannot be used with the installed torch, or None."""
    spec = find_spec("torchvision")
    if spec is None or not spec.submodule_search_locations:
        return None
    import torch

    libraries = [path for folder in spec.submodule_search_locations for path in Path(folder).glob("_C*.so")]
    about = f"torchvision {version('torchvision')} with torch {torch.__version__}"
    try:
        for path in libraries:
            torch.ops.load_library(path)
    except OSError as error:
        return f"{about}: its operators do not load: {error}"
    if not libraries:
        return f"{about}: it has no compiled operators"
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    if torch.version.cuda and not has_kernel("torchvision::nms", "CUDA"):
        return f"{about}: it is a CPU build, and torch has CUDA"
    return None


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """Context of the import of torchvision."""
    try:
        yield
    except (RuntimeError, OSError) as error:
        torch = version("torch")
        text = f"torchvision {version('torchvision')} does not fit torch {torch}: {error}"
        raise ImportError(f"{text}\nTo repair it: {repair_command(torch)}") from error


def _has_ops() -> bool:  # a function with a name: torch.jit.script compiles it
    return True


def _add_operators(changes: Changes) -> None:
    def complete(extension: ModuleType) -> None:
        operators = importlib.import_module("dcnzoo.compat.torchvision_ops")
        in_python = Path(extension.__file__ or "").with_name("_autograd_registrations.py").exists()
        operators.define_missing(with_autograd=not in_python, repair=repair_command(version("torch")))
        changes.set(extension, "_has_ops", _has_ops)

    changes.callback(watch("torchvision", around=_explained))
    changes.callback(call("torchvision.extension", complete))


class _Version(str):
    """A version whose first three characters, which old code compares, are those of a new version."""

    def __getitem__(self, key: object) -> str:
        return "0.9" if key == slice(None, 3) else super().__getitem__(key)  # type: ignore[index]


def _output_size(dim: int, input, size=None, scale_factor=None) -> list[int]:
    if size is not None:
        return list(size)
    return [int(input.shape[axis + 2] * scale_factor) for axis in range(dim)]


class _NewEmptyTensorOp:
    @staticmethod
    def apply(input, shape):
        return input.new_empty(shape)


def _add_names(changes: Changes) -> None:
    def add(module: ModuleType) -> None:
        if module.__name__ == "torchvision":
            changes.set(module, "__version__", _Version(module.__version__))
            return
        interpolate = sys.modules["torch"].nn.functional.interpolate
        names = {"_new_empty_tensor": _NewEmptyTensorOp.apply, "interpolate": interpolate}
        names |= {"_output_size": _output_size, "_NewEmptyTensorOp": _NewEmptyTensorOp}
        for name, value in names.items():
            if not hasattr(module, name):
                changes.set(module, name, value)

    for name in ("torchvision", "torchvision.ops", "torchvision.ops.misc"):
        changes.callback(call(name, add))


HOSTS = (
    Host(
        "torchvision",
        ("torchvision",),
        missing="`roi_pool`, `ps_roi_pool`, `ps_roi_align`",
        patches=(
            Patch(
                "torchvision_operators",
                "torchvision::deform_conv2d, nms, roi_align",
                "torchvision was built for another torch, or without CUDA",
                "all",
                _add_operators,
            ),
            Patch(
                "torchvision_names",
                "torchvision.ops.misc._NewEmptyTensorOp, _output_size; torchvision.__version__[:3]",
                "Deformable DETR, MOTR and others import names that were removed, and read 0.28 as 0.2",
                "torchvision 0.10 or later",
                _add_names,
            ),
        ),
    ),
)
