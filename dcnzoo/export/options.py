"""The options of an export, checked before a model is loaded.

``detector.export`` and the command make an :class:`ExportOptions`, whose construction checks the values; its
:meth:`~ExportOptions.check` looks for packages and files. :mod:`dcnzoo.openmmlab.export.export` uses them.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from numbers import Integral
from pathlib import Path
from typing import Any, Literal

from dcnzoo.export.opsets import DEFAULT, check_form
from dcnzoo.utils.errors import UserError
from dcnzoo.utils.files import expanded, require_file, require_new
from dcnzoo.utils.formats import EXPORTED, PICTURES, picture_files, walk


@dataclass(frozen=True)
class Int8:
    """Quantise the network to int8 for ``count`` images of a folder, evenly spaced."""

    images: str | os.PathLike
    count: int = 100

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"count: expected at least 1, got {self.count}")

    @cached_property
    def files(self) -> list[Path]:
        """The images, also of subfolders.

        Raises:
            UserError: there are none.
        """
        walked = [folder / name for folder, _, names in walk(expanded(self.images)) for name in names]
        files = sorted(file for file in walked if file.suffix.lower() in PICTURES)
        if not files:
            raise UserError(f"int8: expected a folder of images, got none in {self.images}")
        count = min(self.count, len(files))
        return [files[i * len(files) // count] for i in range(count)]


@dataclass(frozen=True)
class ExportOptions:
    """The arguments of ``detector.export``.

    Attributes:
        path: its ending determines the format: ``.onnx``; ``.xml``, for OpenVINO, with a ``.bin`` file.
        shape: fixed height and width of the input. Default: number, height and width of images are dynamic;
            fixed for detectors that support only one size.
        precision: of the network; ``Int8("photos/")`` quantises it for these images.
        opset_version: of ONNX, 18 to 23.
        deform_conv: form of deformable convolution in ONNX: ``"auto"``, ``"native"``, or ``"gathernd"`` and
            ``"gatherelements"`` for runtimes without ``DeformConv``, such as TensorRT before 10.1.
        raw_outputs: export the outputs of a single-stage head.
        verify: a picture or a folder, on which the file must detect what PyTorch does; True: a generated
            picture. A file in float16 or int8 is run, but not compared: measure its AP.
        metadata: entries for the metadata of the file. Keys that begin with ``dcnzoo.`` are dcnzoo's.
        img_shape: the input of this name in an ONNX file: ``"optional"``, with a default; ``"required"``, as
            onnxruntime-web needs it; or None: no such input, for pictures that are never padded.
        force: replace files that exist.

    Raises:
        ValueError: an option is out of range, or does not go with another.
    """

    path: str | os.PathLike
    shape: tuple[int, int] | None = None
    precision: Literal["float32", "float16"] | Int8 = "float32"
    opset_version: int = DEFAULT
    deform_conv: str = "auto"
    raw_outputs: bool = False
    verify: str | os.PathLike | bool = True
    metadata: Mapping[str, str] = field(default_factory=dict)
    img_shape: Literal["optional", "required"] | None = "optional"
    force: bool = False

    def __post_init__(self) -> None:
        if self.files[0].suffix not in EXPORTED:
            raise ValueError(f"path: expected a name that ends in {', '.join(EXPORTED)}, got {self.path}")
        shape: Any = (1, 1) if self.shape is None else self.shape
        if not (
            isinstance(shape, tuple | list)
            and len(shape) == 2
            and all(type(n) is not bool and isinstance(n, Integral) and int(n) > 0 for n in shape)
        ):
            raise ValueError(f"shape: expected height and width, got {shape!r}")
        if not (isinstance(self.precision, Int8) or self.precision in ("float32", "float16")):
            raise ValueError(f"precision: expected float32, float16 or Int8(…), got {self.precision!r}")
        check_form(self.deform_conv, self.opset_version)
        if not {*map(type, self.metadata), *map(type, self.metadata.values())} <= {str}:
            raise ValueError(f"metadata: expected texts, got {dict(self.metadata)}")
        if reserved := [key for key in self.metadata if key.partition(".")[0] == "dcnzoo"]:
            raise ValueError(f"metadata: expected other keys than dcnzoo and dcnzoo.…, got {reserved[0]!r}")
        if self.img_shape not in ("optional", "required", None):
            raise ValueError(f"img_shape: expected 'optional', 'required' or None, got {self.img_shape!r}")
        if self.img_shape == "required" and self.raw_outputs:
            raise ValueError("img_shape: expected no 'required' with raw_outputs, which have no such input")
        if not isinstance(self.verify, bool) and (self.precision != "float32" or self.raw_outputs):
            raise ValueError("verify: expected no picture with raw_outputs, float16 or int8: compare the AP")

    def check(self) -> None:
        """Look for the packages and files that the export needs.

        Raises:
            ModuleNotFoundError: a package that writes, quantises or runs the file is not installed.
            UserError: a file or folder does not exist, or the file exists without ``force``.
        """
        folder, is_onnx = self.files[0].absolute().parent, self.files[0].suffix == ".onnx"
        if not (folder.exists() or folder.parent.is_dir()):
            raise UserError(f"path: expected a file in a folder that exists, got {self.path}")
        is_int8 = isinstance(self.precision, Int8)
        packages = {"onnx": True, "onnxscript": True, "openvino": not is_onnx}
        packages["onnxruntime"] = is_int8 or (bool(self.verify) and is_onnx)
        for package in filter(packages.get, packages):
            import_module(package)
        if not isinstance(self.verify, bool) and picture_files(self.verify) is None:
            require_file(str(self.verify), "verify")
        if isinstance(self.precision, Int8):
            self.precision.files  # noqa: B018  raises without images
        require_new("export", *self.files, force=self.force)

    @property
    def compares(self) -> bool:
        """Whether the file is compared with PyTorch. One in float16 or int8 is run, but not compared."""
        return bool(self.verify) and self.precision == "float32"

    @property
    def compares_detections(self) -> bool:
        """Whether detections of the file are compared, on pictures. Raw outputs are compared for noise."""
        return self.compares and not self.raw_outputs

    @property
    def files(self) -> tuple[Path, ...]:
        path = expanded(self.path)
        return (path, path.with_suffix(".bin")) if path.suffix == ".xml" else (path,)
