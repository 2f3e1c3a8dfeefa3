"""Run the documented uses of an extra: ``python extras.py EXTRA``, in this order, in one folder."""

import socket
import sys
from pathlib import Path


def mmdet() -> None:
    import dcnzoo
    from dcnzoo.cli import main

    draw()
    getaddrinfo, socket.getaddrinfo = socket.getaddrinfo, None  # the start weights are in the wheel
    dcnzoo.train(data="data.yaml", work_dir="run", epochs=1, device="cpu")
    socket.getaddrinfo = getaddrinfo
    main("infer", "--demo")


def data() -> None:
    import dcnzoo.utils.fetch  # noqa: F401  of `data download`
    from dcnzoo.cli import main

    draw()
    main("data", "convert", "data.yaml", "coco")
    main("data", "show", "data.yaml")


def draw() -> None:
    """Write two annotated pictures."""
    from PIL import Image

    for split in ("train", "val"):
        for folder in ("images", "labels"):
            Path(folder, split).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 48), "red" if split == "val" else "blue").save(f"images/{split}/{split}.png")
        Path(f"labels/{split}/{split}.txt").write_text("0 0.5 0.5 0.25 0.5")
    Path("data.yaml").write_text("train: images/train\nval: images/val\nnames: [apple]\n")


def onnx() -> None:
    import onnxruntime
    import torch

    from dcnzoo.export import export_onnx
    from dcnzoo.layers import PackedDeformConv2d

    layer = PackedDeformConv2d(4, 4, 3, padding=1, modulated=True).eval()
    export_onnx(layer, (torch.randn(1, 4, 9, 9),), "layer.onnx", opset_version=19, deform_conv="gathernd")
    onnxruntime.InferenceSession("layer.onnx")


def openvino() -> None:
    from dcnzoo.export import make_core, save_ir

    make_core().compile_model("layer.onnx", "CPU")
    save_ir("layer.onnx", Path("layer.xml"))


def timm() -> None:
    from dcnzoo.backbones import ViTAdapter

    ViTAdapter("vit_tiny_patch16_224", pretrained=False)


EXTRAS = {function.__name__: function for function in (mmdet, data, onnx, openvino, timm)}

if __name__ == "__main__":
    EXTRAS[sys.argv.pop()]()  # main() reads the remaining arguments
