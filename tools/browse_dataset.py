"""MMDetection's ``tools/analysis_tools/browse_dataset.py``, with the classes of dcnzoo."""

import runpy

import mmdet

import dcnzoo.models  # noqa: F401  registers them

if __name__ == "__main__":
    file = f"{mmdet.__path__[0]}/.mim/tools/analysis_tools/browse_dataset.py"
    runpy.run_path(file, run_name="__main__")
