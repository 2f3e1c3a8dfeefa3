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
    reports = [r for outcome in ("passed", "failed") for r in terminalreporter.getreports(outcome)]
    cases = [r.nodeid for r in reports if r.when == "call" and "test_ops" in r.nodeid]
    if cases:
        from .op_cases import operators

        names = [op.name for op in operators()]
        ran = Counter(part for case in cases for part in re.split(r"[\[\]-]", case) if part in names)
        parts = ", ".join(f"{name} {count}" for name, count in sorted(ran.items()))
        terminalreporter.write_line(f"generic suite: {sum(ran.values())} cases ({parts})")
