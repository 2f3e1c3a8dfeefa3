"""Tests for environments other than .venv: ``make test-onedl``, ``test-others`` and ``test-matrix``."""

import pytest


def pytest_collection_modifyitems(items):
    for item in items:
        if "environments" in item.path.parts:
            item.add_marker(pytest.mark.environments)
