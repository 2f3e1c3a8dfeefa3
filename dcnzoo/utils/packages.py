"""Versions of installed packages."""

from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version


def installed(*packages: str) -> dict[str, str]:
    """Return the versions of those packages that are installed."""
    versions = {}
    for package in packages:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    return versions


def versions() -> dict[str, str]:
    """Return the versions of the packages that affect results."""
    return installed("dcnzoo", "torch", "mmengine", "mmcv", "mmcv-lite", "mmdet", "numpy")
