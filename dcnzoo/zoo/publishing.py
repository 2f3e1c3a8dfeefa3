"""Conversion of a training's checkpoint for publication."""

import hashlib
import io
import os
from collections.abc import Collection
from pathlib import Path

import torch

from dcnzoo.openmmlab.checkpoints import load_file, to_safetensors
from dcnzoo.openmmlab.weights import find_weights
from dcnzoo.utils.errors import UserError
from dcnzoo.utils.files import require_file, write_bytes


def publish(
    checkpoint: str | os.PathLike,
    out: str | os.PathLike,
    keys: Collection[str] = ("meta", "state_dict"),
    unsafe_load: bool = False,
) -> tuple[Path, list[str]]:
    """Write the weights and their metadata, with the first digits of the SHA-256 in the file's name.

    Args:
        out: ``x.pth``; or ``x.safetensors``, which contains only the names of the classes as metadata.
        keys: keys of the checkpoint to keep.

    Returns:
        The path, and the removed keys.

    Raises:
        UserError: the file is not a checkpoint, or has no state_dict.
    """
    out = Path(out)
    require_file(str(checkpoint), "checkpoint")
    content = load_file(checkpoint, unsafe_load)
    if "state_dict" not in content or "state_dict" not in keys:
        raise UserError(f"{checkpoint}: expected a state_dict, in the file and in save_keys=…")
    published = {key: content[key] for key in keys if key in content}
    ending = ".pth"
    if out.suffix == ".safetensors":
        ending, meta = ".safetensors", published.get("meta") or {}
        published = {"state_dict": find_weights(published, checkpoint)}
        data = to_safetensors(published["state_dict"], meta)
    else:
        buffer = io.BytesIO()  # not a file: torch.save would store its name
        torch.save(published, buffer)
        data = buffer.getvalue()
    digits = hashlib.sha256(data).hexdigest()[:8]
    path = out.with_name(f"{out.name.removesuffix(ending)}-{digits}{ending}")
    write_bytes(path, data)
    return path, sorted(set(map(str, content)) - set(published))
