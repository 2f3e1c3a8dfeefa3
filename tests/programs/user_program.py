"""Call dcnzoo like a user's program; `nox -s types` checks this file with mypy --strict."""

from pathlib import Path

import torch
from torch import Tensor, nn

import dcnzoo
from dcnzoo.detect.detections import Detections
from dcnzoo.detect.detector import BaseDetector, Results
from dcnzoo.layers import DeformConv2d, PackedDeformConv2d, offset_parameter_groups
from dcnzoo.ops import deform_conv2d, nms


def train(data: Path) -> Path:
    return dcnzoo.train(data=data, work_dir="work_dirs/fruits", epochs=20, seed=0, device="cpu")


def names(detector: BaseDetector, picture: Path) -> list[str]:
    result = detector(picture, score_threshold=0.5)
    result.save("out.jpg")
    print(result.boxes.shape, result.scores.max(), result.labels)
    return result.names


def count(detector: BaseDetector, pictures: list[Path]) -> int:
    results: Results = detector(pictures, batch_size=2, classes=["fig"])
    number = sum(len(result) for result in results)
    print(results.skipped)
    return number


def convert(network: nn.Module, picture: Tensor) -> Tensor:
    report = dcnzoo.to_deformable(network, where="layer4.*.conv2", example=picture)
    report.check(network)
    torch.optim.SGD(offset_parameter_groups(network, lr=0.01, offset_lr_mult=0.1))
    offset, mask = PackedDeformConv2d(3, 8, 3, padding=1, modulated=True).predict(picture)
    assert offset is not None
    x: Tensor = DeformConv2d(3, 8, 3, padding=1)(picture, offset, mask)
    return deform_conv2d(x, torch.ones(4, 8, 3, 3), offset, mask, padding=1)


def main() -> None:
    detector = dcnzoo.load(train(Path("fruits")), precision="bf16")
    one: Detections = detector("street.jpg")
    print(one.names, detector.classes, detector.device, names(detector, Path("street.jpg")))
    print(count(detector, [Path("a.jpg"), Path("b.jpg")]))
    average: dict[str, float] = detector.evaluate("val.json", images="val")
    print(dcnzoo.test("work_dirs/fruits", tta=True)["box AP"])
    print(average["box AP"], detector.features("street.jpg").strides)
    file = detector.export("model.onnx", shape=(800, 1216), verify=True)
    print(file, dcnzoo.load("model.onnx")("street.jpg").names)
    print(detector.push_to_hub("owner/name", metrics=average), nms(torch.rand(3, 4), torch.rand(3), 0.5))
    convert(nn.Sequential(nn.Conv2d(3, 3, 3)), torch.rand(1, 3, 32, 32))


main()
