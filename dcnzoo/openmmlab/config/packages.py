"""Find base configs in packages (``_base_ = 'mmdet::…'``) without ``pkg_resources``.

mmengine has a fixed list of packages with configs and locates them by ``pkg_resources``, which setuptools
81 removed and which gives a wrong path after ``pip install -e``. It also reads all metafiles of the package
for every base config, which takes longer than reading the config.
"""

from pathlib import Path

from dcnzoo.utils.errors import UserError
from dcnzoo.utils.folders import mim_folder


def base_path(path: str, filename: str) -> tuple[str, str | None]:
    """Return the path of the base config ``path`` of the config ``filename``, and its registry scope.

    Raises:
        UserError: the package is not installed or has no such config.
    """
    package, colons, name = path.partition("::")
    if not colons:
        return str(Path(filename).parent / path), None
    folder = mim_folder(package)
    file = folder / "configs" / name if folder else None
    if file is None or not file.is_file():
        reason = f"found no file {file}" if file else f"{package} is not installed or has no configs"
        raise UserError(f"config: expected a config of an installed package, got {path}: {reason}")
    # dcnzoo registers its classes in MMDetection's registries
    return str(file), "mmdet" if package == "dcnzoo" else package
