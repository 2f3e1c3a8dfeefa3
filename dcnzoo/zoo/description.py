"""Derive a model's deformable operators from its config."""

import functools
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from mmengine.config import Config

from dcnzoo.compat.patches import Changes
from dcnzoo.openmmlab.config import deformable
from dcnzoo.openmmlab.config.packages import base_path
from dcnzoo.openmmlab.patches.configs import inherit_from_packages
from dcnzoo.utils.errors import UserError
from dcnzoo.zoo.index import Model

# Class → its deformable operator, the argument that enables it (None: always) and that argument's default.
_OPERATORS: dict[str, tuple[str, str | None, bool]] = {
    "DCN": ("DCN", None, True),
    "DCNv2": ("DCNv2", None, True),
    "DCNv3": ("DCNv3", None, True),
    "DCNv4": ("DCNv4", None, True),
    "SAC": ("SAC", "use_deform", False),
    "DeformRoIPoolPack": ("DeformRoIPool", None, True),
    "ModulatedDeformRoIPoolPack": ("ModulatedDeformRoIPool", None, True),
    "InternImage": ("DCNv3", None, True),
    "FlashInternImage": ("DCNv4", None, True),
    "ViTAdapter": ("multi-scale attention", None, True),
    "ATSSVLFusionHead": ("DCNv2", "use_dcn", True),
    "CentripetalHead": ("DCN", None, True),
    "CTResNetNeck": ("DCNv2", "use_dcn", True),
    "DDODHead": ("DCN", "use_dcn", True),
    "DyHead": ("DCNv2", None, True),
    "FoveaHead": ("DCN", "with_deform", False),
    "GARetinaHead": ("DCN", None, True),
    "GARPNHead": ("DCN", None, True),
    "NASFCOSHead": ("DCNv2", None, True),
    "RepPointsHead": ("DCN", None, True),
    "StageCascadeRPNHead": ("DCN", None, True),
    "TOODHead": ("DCN", None, True),
    "VFNetHead": ("DCN", None, True),
}
# Evaluating a config takes 10 to 20 ms; a config without a match in its text or its bases is skipped.
_WORDS = re.compile(rf"\b({'|'.join([*deformable.SETTINGS, 'dcn_on_last_conv', *_OPERATORS])})\b")
_CONFIG = re.compile(r"""['"]([^'"\n]+\.py)['"]""")


def operators_of(model: Model) -> dict[str, str]:
    """Return the deformable operators of each part of a model: ``backbone``, ``neck``, ``head``.

    Reads the config with all its bases, but only if they name an operator: evaluating all configs takes many
    seconds, and some cannot be evaluated. Builds no model and imports no model code.
    """
    if not may_be_deformable(model.config):
        return {}
    operators: dict[str, dict[str, None]] = {"backbone": {}, "neck": {}, "head": {}}
    for part, operator in _operators(_read(model.config).model, "head"):
        operators[part][operator] = None
    return {part: " + ".join(names) for part, names in operators.items() if names}


@functools.cache
def may_be_deformable(config: Path) -> bool:
    """Whether the text of the config, or of a config that it names, mentions a deformable operator."""
    text = config.read_text(encoding="utf-8")
    return bool(_WORDS.search(text)) or any(map(may_be_deformable, _named(config, text)))


def _named(config: Path, text: str) -> Iterator[Path]:
    for name in _CONFIG.findall(text):
        with suppress(UserError):
            path = Path(base_path(name, str(config))[0])
            if path.is_file():
                yield path


# Configs share their bases. With the cache, a value can only lack the key _scope_, which is not read here.
_file2dict = functools.cache(Config._file2dict)


@functools.cache
def _read(path: Path) -> Config:
    with Changes() as changes:
        inherit_from_packages(changes)
        changes.set(Config, "_file2dict", staticmethod(_file2dict))
        return Config.fromfile(path, import_custom_modules=False)


def _operators(node: object, part: str) -> Iterator[tuple[str, str]]:
    if isinstance(node, dict):
        operator, argument, default = _OPERATORS.get(str(node.get("type")), ("", None, False))
        if operator and (argument is None or node.get(argument, default)):
            yield part, operator
        for operator in _added(node):
            yield part, operator
        if node.get("dcn_on_last_conv"):  # FCOS's head and derived ones
            yield part, "DCNv2"
        for key, value in node.items():
            yield from _operators(value, key if key in ("backbone", "neck") else part)
    elif isinstance(node, list | tuple):
        for value in node:
            yield from _operators(value, part)


def _added(cfg: Mapping) -> Iterator[str]:
    """Yield the operators that the settings in a module's config add, such as DCNv2."""
    dcn, to_deformable = cfg.get("dcn"), cfg.get("to_deformable")
    kinds = ["v2" if dcn is True else dcn]
    if to_deformable:
        kinds.append(to_deformable.get("kind", "v2") if isinstance(to_deformable, Mapping) else "v2")
    for kind in kinds:
        if isinstance(kind, str) and kind in deformable.LAYERS:
            yield deformable.LAYERS[kind]["type"].removesuffix("Conv")
