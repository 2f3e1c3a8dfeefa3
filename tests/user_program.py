"""As a user's program calls dcnzoo: `nox -s types` checks it with mypy --strict."""

from pathlib import Path

import dcnzoo
from dcnzoo.detect.detections import Detections
from dcnzoo.detect.detector import BaseDetector, Results


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
    print(detector.push_to_hub("owner/name", metrics=average))


main()
