"""Block sizes of the fused kernels by architecture: no call waits for autotuning. Without Triton."""

import json
from functools import cache
from pathlib import Path

TABLE = Path(__file__).parent / "fused" / "configs.json"


@cache
def table() -> dict:
    return json.loads(TABLE.read_text())
