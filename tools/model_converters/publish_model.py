"""MMDetection's ``tools/model_converters/publish_model.py``, which reads checkpoints as dcnzoo does."""

import runpy

import mmdet

import dcnzoo.models  # noqa: F401  loads checkpoints on today's PyTorch

if __name__ == "__main__":
    file = f"{mmdet.__path__[0]}/.mim/tools/model_converters/publish_model.py"
    runpy.run_path(file, run_name="__main__")
