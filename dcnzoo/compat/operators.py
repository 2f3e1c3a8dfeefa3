"""Operators in the namespaces of other packages, ``torch.ops.detectron2.nms_rotated``."""

from collections.abc import Callable, Mapping

import torch

_libraries: list[torch.library.Library] = []  # keep the operators registered


def define(namespace: str, functions: Mapping[str, Callable]) -> None:
    """Define operators as functions of other operators: schema → function."""
    library = torch.library.Library(namespace, "FRAGMENT")
    _libraries.append(library)
    for schema, function in functions.items():
        library.define(schema)
        library.impl(schema.partition("(")[0], function, "CompositeImplicitAutograd")
