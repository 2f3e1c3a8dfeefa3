import re
import sys
from collections import Counter

import pytest

import dcnzoo  # noqa: F401  before any test imports mmcv.ops, which needs the compiled module


@pytest.fixture(autouse=True)
def no_default_scope_left_behind():
    """A Runner makes its scope the default of whatever is built after it, here in the next test."""
    yield
    registry = sys.modules.get("mmengine.registry")
    if registry is not None:
        registry.DefaultScope._instance_dict.clear()


def pytest_terminal_summary(terminalreporter):
    """How many cases the generic suite ran each operator through."""
    ran = Counter()
    for outcome in ("passed", "failed"):
        for report in terminalreporter.getreports(outcome):
            operator = re.search(r"test_ops\.py::.*[\[-]([a-z_]+\dd)[\]-]", report.nodeid)
            if operator and report.when == "call":
                ran[operator[1]] += 1
    if ran:
        parts = ", ".join(f"{name} {count}" for name, count in sorted(ran.items()))
        terminalreporter.write_line(f"generic suite: {sum(ran.values())} cases ({parts})")
