"""Name the call that is missing if ``torch.onnx.export`` has no translation of an operator of dcnzoo."""

import re
from collections.abc import Callable
from typing import Any

from dcnzoo.compat import patches
from dcnzoo.compat.after_import import call

_UNKNOWN = re.compile(r"No ONNX function found for <OpOverload\(op='dcnzoo\.|namespace dcnzoo::")
_HINT = (
    "torch.onnx.export has no translation of dcnzoo's operators: first call "
    "dcnzoo.export.register_onnx_ops(), or use dcnzoo.export.export_onnx"
)


def install() -> None:
    """Add the hint to the error of ``torch.onnx.export`` when torch is imported."""
    reason = "its error does not name the call that is missing"
    patches.switch_on(patches.Patch("onnx_hint", "torch.onnx.export", reason, "all", _patch))


def _patch(changes: patches.Changes) -> None:
    changes.callback(call("torch.onnx", lambda module: changes.wrap(module, "export", _export)))


def _export(export: Callable, *args: Any, **kwargs: Any) -> Any:
    try:
        return export(*args, **kwargs)
    except RuntimeError as error:
        if _UNKNOWN.search(str(error)):
            error.args = (f"{_HINT}\n{error}",)
        raise
