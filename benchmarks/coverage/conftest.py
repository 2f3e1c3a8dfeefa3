"""``record(family, config, result)`` stores a row of the table in the junit file.

``--group 2/24`` runs the second 24th of the families.
"""

from collections.abc import Callable

import pytest

from benchmarks.coverage.trial import is_ok
from benchmarks.measure import listed, revision, versions

PACKAGES = (
    *("mmengine", "mmcv-lite", "mmcv", "mmdet", "onedl-mmengine", "onedl-mmcv", "onedl-mmdetection"),
    *("numpy", "onnx", "onnxscript", "onnxruntime", "openvino", "mmsegmentation", "mmpretrain"),
    *(
        "timm",
        "torchvision",
        "transformers",
        "fairscale",
        "lap",
        "motmetrics",
        "scikit-image",
        "scikit-learn",
    ),
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--group", default="1/1", metavar="NUMBER/COUNT")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    number, count = map(int, config.getoption("group").split("/"))
    items[:] = items[number - 1 :: count]


@pytest.fixture(scope="session", autouse=True)
def installed(record_testsuite_property: Callable) -> None:
    record_testsuite_property("versions", listed(versions("torch", *PACKAGES)))


@pytest.fixture
def record(record_property: Callable) -> Callable[[str, str, str], None]:
    def record(family: str, config: str, result: str) -> None:
        row = {"family": family, "config": config, "result": result, "revision": revision()}
        for name, value in row.items():
            record_property(name, value)
        assert is_ok(result), result

    return record
