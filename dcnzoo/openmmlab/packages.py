"""``_base_ = 'dcnzoo::…'`` beside ``'mmdet::…'``, and both without ``pkg_resources``.

mmengine keeps a list of the packages that have configs, and asks ``pkg_resources`` where they are:
gone from setuptools 81, and wrong for a package that is installed with ``pip install -e``. For every
base it reads all of the package's metafiles, too, which takes longer than the config.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.registry import DefaultScope

import dcnzoo.utils
from dcnzoo.compat.patches import Changes


def package_folder(package: str) -> Path | None:
    spec = find_spec(package)
    return Path(spec.origin).parent if spec and spec.origin else None


def mim_folder(package: str) -> Path | None:
    """Where OpenMMLab's packages have their configs, tools and metafiles."""
    folder = package_folder(package)
    return folder / ".mim" if folder and (folder / ".mim").is_dir() else None


def base_path(path: str, filename: str) -> tuple[str, str | None]:
    """The config that ``filename`` inherits from, and the registries' scope in which it is meant."""
    package, colons, name = path.partition("::")
    if not colons:
        return str(Path(filename).parent / path), None
    folder = mim_folder(package)
    if folder is None:
        raise ModuleNotFoundError(f"_base_ = {path!r}: {package} is not installed, or brings no configs")
    file = folder / "configs" / name
    if not file.is_file():
        raise FileNotFoundError(2, "no such config", str(file))
    # dcnzoo's classes are in MMDetection's registries
    return str(file), "mmdet" if package == "dcnzoo" else package


def inherit_from_packages(changes: Changes) -> None:
    """``mmengine.config`` finds the configs of dcnzoo, and MMDetection's without reading metafiles."""
    changes.set_item(MODULE2PACKAGE, "dcnzoo", "dcnzoo")
    changes.set(Config, "_get_cfg_path", staticmethod(base_path))


def hub_packages(changes: Changes) -> None:
    """``mmengine.hub.get_config`` and ``get_model`` take ``'dcnzoo::…'``, an editable one included."""
    from mmengine.hub import hub  # imports all of mmengine, which lists of configs need not wait for

    def install_package(install: Callable, package: str) -> None:
        if find_spec(package) is None:
            install(package)

    # get_model calls it in every package
    changes.set(dcnzoo.utils, "register_all_modules", register_all_modules)
    changes.wrap(hub, "install_package", install_package)
    changes.set(hub, "get_installed_path", lambda package: str(package_folder(package)))


def register_all_modules(init_default_scope: bool = True) -> None:
    """Register everything that configs name.

    Args:
        init_default_scope: look names without a scope up in MMDetection's registries, as dcnzoo's are there.
    """
    from mmdet.utils import register_all_modules as register_mmdet  # mmdet is optional

    register_mmdet(init_default_scope=False)
    if init_default_scope:
        DefaultScope.get_instance(f"dcnzoo-{time.time()}", scope_name="mmdet")
