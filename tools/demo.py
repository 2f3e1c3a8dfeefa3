"""The command of ``make demo``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # benchmarks are not installed

from benchmarks.demo import main

if __name__ == "__main__":
    main()
