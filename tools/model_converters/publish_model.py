"""MMDetection's ``tools/model_converters/publish_model.py``, which reads checkpoints as dcnzoo does."""

import runpy
from pathlib import Path

import mmdet

import dcnzoo.models  # noqa: F401  loads checkpoints on today's PyTorch

if __name__ == "__main__":
    folder = Path(mmdet.__file__).parent / ".mim/tools/model_converters"
    runpy.run_path(str(folder / "publish_model.py"), run_name="__main__")
