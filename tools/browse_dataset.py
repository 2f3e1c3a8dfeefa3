"""MMDetection's ``tools/analysis_tools/browse_dataset.py``, with the classes of dcnzoo."""

import runpy
from pathlib import Path

import mmdet

import dcnzoo.models  # noqa: F401  registers them

if __name__ == "__main__":
    folder = Path(mmdet.__file__).parent / ".mim/tools/analysis_tools"
    runpy.run_path(str(folder / "browse_dataset.py"), run_name="__main__")
