"""Write a kernel for the Hugging Face Hub: multi-scale deformable attention for other projects' models.

::

    python tools/hub_kernel.py work_dirs/hub_kernel

The folder has the layout of the package ``kernels``, for every system: a copy of ``dcnzoo/ops``, whose
operators run by Triton or by PyTorch, in a namespace of its own in ``torch.ops``, and the layer
``MultiScaleDeformableAttention``. ``kernels.LocalLayerRepository`` loads it without a network.
"""

import argparse
import json
import shutil
from pathlib import Path

from dcnzoo.cli import one_line_errors
from dcnzoo.utils.files import replacing
from dcnzoo.version import __version__

PACKAGE = Path(__file__).resolve().parents[1] / "dcnzoo"
NAMESPACE = "dcnzoo_hub"
BACKENDS = ("cpu", "cuda", "rocm", "xpu")
LAYER = '''"""Multi-scale deformable attention for models of Transformers that have a layer of this name."""

from types import SimpleNamespace

from torch import Tensor, nn

from .dcnzoo.ops import ms_deform_attn


class MultiScaleDeformableAttention(nn.Module):
    """Replaces the forward of Deformable DETR's and Grounding DINO's layer, with gradients."""

    can_torch_compile = True
    has_backward = True

    def forward(
        self,
        value: Tensor,  # [N, S, heads, D]
        value_spatial_shapes: Tensor,  # [levels, 2], (height, width)
        value_spatial_shapes_list: list,
        level_start_index: Tensor,  # [levels]
        sampling_locations: Tensor,  # [N, Q, heads, levels, points, 2], (x, y), normalised to 0–1
        attention_weights: Tensor,  # [N, Q, heads, levels, points]
        im2col_step: int,
    ) -> Tensor:  # [N, Q, heads · D]
        levels = (value_spatial_shapes, level_start_index)
        return ms_deform_attn(value, *levels, sampling_locations, attention_weights)


layers = SimpleNamespace(MultiScaleDeformableAttention=MultiScaleDeformableAttention)
'''


def write(folder: Path) -> None:
    """Write the kernel to a folder that does not exist.

    Raises:
        FileExistsError: the folder exists.
    """
    if folder.exists():
        raise FileExistsError(f"{folder}: expected no folder or file")
    with replacing(folder) as partial:
        for backend in BACKENDS:
            variant = partial / "build" / f"torch-{backend}"
            copy_operators(variant / "dcnzoo")
            (variant / "__init__.py").write_text(LAYER, encoding="utf-8")
            about = {
                "name": "dcnzoo-attention",
                "id": f"{NAMESPACE}_{backend}_{__version__.replace('.', '_')}",
                "version": 1,
                "license": "Apache-2.0",
                "python-depends": [],
                "backend": {"type": backend},
            }
            (variant / "metadata.json").write_text(json.dumps(about, indent=1), encoding="utf-8")


def copy_operators(target: Path) -> None:
    """Copy the Python files of the operators, with their own namespace in ``torch.ops``."""
    ignored = shutil.ignore_patterns("*.so", "*.pyc", "__pycache__")
    shutil.copytree(PACKAGE / "ops", target / "ops", ignore=ignored)
    shutil.copy(PACKAGE / "version.py", target)
    (target / "__init__.py").touch()
    for file in target.rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        for old, new in (
            ("from dcnzoo.ops.", "from ."),
            ("torch.ops.dcnzoo", f"torch.ops.{NAMESPACE}"),
            ('Library("dcnzoo"', f'Library("{NAMESPACE}"'),
            ('"dcnzoo::', f'"{NAMESPACE}::'),
        ):
            text = text.replace(old, new)
        file.write_text(text, encoding="utf-8")


@one_line_errors()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    write(folder)
    print(f"written: {folder}")


if __name__ == "__main__":
    main()
