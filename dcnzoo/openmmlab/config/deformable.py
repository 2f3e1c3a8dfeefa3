"""The settings ``dcn``, ``stage_with_dcn`` and ``to_deformable``, which replace convolutions of a module.

``dcn`` names a layer, which replaces the convolutions that :data:`CONVOLUTIONS` lists for the module's class.
``to_deformable`` replaces any convolutions of any module. ``patches/deformable_configs.py`` and descriptions
of models use this module, which imports neither torch nor OpenMMLab.
"""

import inspect
from typing import Any

from dcnzoo.utils.signatures import arguments, takes_any

SETTINGS = {"dcn", "stage_with_dcn", "to_deformable"}

# Class or base class, in mmdet, mmpose, mmpretrain or mmseg -> patterns for names of convolutions. {stage}
# stands for the names of the stages, from c2 on. The first matching class in the table counts.
CONVOLUTIONS = {
    "ResNeSt": ("{stage}.*.conv2.conv",),
    "Res2Net": ("{stage}.*.convs.*",),
    "ResNet": ("{stage}.*.conv2",),
    "HRNet": ("{stage}.*.conv2",),
    "PAFPN": ("fpn_convs.*.conv", "pafpn_convs.*.conv"),
    "FPN": ("fpn_convs.*.conv",),
}
PACKAGES = ("mmdet", "mmpose", "mmpretrain", "mmseg")
# Short value of dcn -> config of the layer; True is 'v2'.
LAYERS: dict[str, dict[str, Any]] = {
    "v1": dict(type="DCN", deform_groups=1),
    "v2": dict(type="DCNv2", deform_groups=1),
    "v3": dict(type="DCNv3Conv"),
    "v4": dict(type="DCNv4Conv"),
}


def patterns_of(kind: object) -> tuple[str, ...]:
    """Return the patterns of :data:`CONVOLUTIONS` for a class; empty if there are none."""
    bases = {
        base.__name__ for base in getattr(kind, "__mro__", ()) if base.__module__.split(".")[0] in PACKAGES
    }
    return next((patterns for name, patterns in CONVOLUTIONS.items() if name in bases), ())


def split_settings(cfg: dict, kind: Any) -> tuple[dict, dict]:
    """Split a module's config into the arguments of its class and the settings that replace convolutions.

    Args:
        kind: the class that the config names, or None.

    Raises:
        ValueError: the config has ``dcn`` or ``stage_with_dcn``, but the class neither is in
            :data:`CONVOLUTIONS` nor has such an argument.
    """
    plain = cfg.copy()
    settings = {key: plain.pop(key) for key in SETTINGS if key in plain}
    if patterns_of(kind):
        return plain, settings
    for key in [key for key in ("dcn", "stage_with_dcn") if key in settings]:
        # a class with **kwargs may use the setting, or refuses it itself
        is_open = not inspect.isclass(kind) or takes_any(inspect.signature(kind).parameters)
        if not is_open and key not in arguments(kind):
            raise ValueError(
                f"{kind.__name__}: {key}: expected a class with this argument, such as "
                f"{', '.join(CONVOLUTIONS)}, got one without; write to_deformable=dict(where='*', kind='v2') "
                f"instead of {key}={settings[key]!r}. where is a pattern for the names of convolutions"
            )
        plain[key] = settings.pop(key)
    return plain, settings
