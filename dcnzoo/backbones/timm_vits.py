"""Vision transformers of timm: how they are created, and the names and forms of weights for them."""

import re
import sys
import warnings
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from dcnzoo.utils import torchvision_schemas
from dcnzoo.utils.text import nearest

# official parameter names -> timm's names, for layer scale and for Uni-Perceiver
_RENAMED = {
    r"\.gamma_?([12])$": r".ls\1.gamma",
    r"^visual_embed\.patch_embed\.proj\.": "patch_embed.proj.",
    r"^visual_embed\.embeddings_norm\.": "norm_pre.",
    r"^layers\.(\d+)\.self_attn\.in_proj\.": r"blocks.\1.attn.qkv.",
    r"^layers\.(\d+)\.self_attn\.out_proj\.": r"blocks.\1.attn.proj.",
    r"^layers\.(\d+)\.linear([12])\.": r"blocks.\1.mlp.fc\2.",
    r"^layers\.": "blocks.",
}


def timms_name(name: str) -> str:
    """Return timm's name for a parameter of the official checkpoints."""
    for pattern, replacement in _RENAMED.items():
        name = re.sub(pattern, replacement, name)
    return name


def join_position_embeddings(values: dict[str, Tensor]) -> None:
    """Replace Uni-Perceiver's spatial and temporal position embeddings by the embedding of one image."""
    names = [f"visual_embed.patch_embed.{kind}_pos_embed.weight" for kind in ("spatial", "temporal")]
    if names[0] in values:
        spatial, temporal = (values.pop(name) for name in names)
        values["pos_embed"] = (spatial + temporal[0])[None]


def _import_timm() -> Any:
    torchvision_schemas.define_missing()  # timm imports torchvision
    try:
        import timm
    except ModuleNotFoundError as error:
        if error.name != "timm":
            raise
        text = "expected a module where timm is not installed, got a name; pip install timm"
        raise ModuleNotFoundError(f"ViTAdapter: vit: {text}", name="timm") from None
    return timm


def create(**options: Any) -> nn.Module:
    timm = _import_timm()
    name = str(options["model_name"])
    if ":" not in name and not timm.is_model(name):
        near = nearest(name, timm.list_models())
        such_as = f", such as {near}" if near else ""
        raise ValueError(f"ViTAdapter: vit: expected a name of timm{such_as}, got {name}")
    return timm.create_model(num_classes=0, **options)


def read_weights(file: str) -> dict[str, Any]:
    """Return the state dict in a file; {} for a file of NumPy arrays, which timm's ViT reads itself."""
    _import_timm()
    from timm.models import load_state_dict

    return {} if file.endswith(".npz") else load_state_dict(file)


def with_weights(
    source: bool | str, state: Mapping[str, Any], **options: Any
) -> tuple[Any, list[str], list[str]]:
    """Return a ViT with weights, the names of its parameters that have none, and unknown names in the file.

    Args:
        source: True: timm's weights. Or the file of ``state``, which :func:`read_weights` has returned.
        options: arguments of ``timm.create_model``.
    """
    if source is True:  # timm refuses weights that lack a parameter, and most of its own lack layer scale
        options.pop("init_values", None)
        return create(pretrained=True, **options), [], []
    vit: Any = create(**options)
    if not state:
        vit.load_pretrained(source)
        return vit, [], []
    sizes = (v.shape[-1] for key, v in state.items() if key.endswith("patch_embed.proj.weight"))
    size, own_size = next(sizes, None), vit.patch_embed.proj.kernel_size[0]
    if size not in (None, own_size):
        text = f"patches of {size} × {size} are resized to {own_size} × {own_size}"
        warnings.warn(f"ViTAdapter: pretrained: {source}: {text}", stacklevel=3)
    converted = sys.modules[type(vit).__module__].checkpoint_filter_fn(state, vit)
    return vit, *vit.load_state_dict(converted, strict=False)


def address_hint(name: str) -> str:
    """Return a hint for errors: the address of timm's weights, and how to use a copy of the file."""
    cfg = _import_timm().get_pretrained_cfg(name)
    address = cfg and (cfg.url if not cfg.hf_hub_id else f"https://huggingface.co/{cfg.hf_hub_id}")
    return f"; the file is at {address}, and pretrained=FILE reads a copy" if address else ""
