"""Write calls of the operators with their results here, for calls.cpp on another system: calls.py FILE."""

import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from tests.op_cases import operators

DTYPES = {torch.float32: 6, torch.float64: 7, torch.int64: 4}  # aoti_torch_dtype_*


def packed(form: str, values: Any) -> bytes:
    return struct.pack(f"<q{len(values)}{form}", len(values), *values)


def packed_tensor(tensor: torch.Tensor) -> bytes:
    data = tensor.detach().contiguous().numpy().tobytes()
    return struct.pack("<i", DTYPES[tensor.dtype]) + packed("q", tensor.shape) + packed("B", data)


def packed_argument(kind: str, value: Any) -> bytes:
    """Pack an argument after a letter for its type in the schema, ``kind``."""
    if kind.startswith("Optional"):
        return b"n" if value is None else b"t" + packed_tensor(value)
    return {
        "Tensor": lambda: b"T" + packed_tensor(value),
        "List[int]": lambda: b"I" + packed("q", value),
        "List[bool]": lambda: b"B" + packed("?", value),
        "int": lambda: b"i" + struct.pack("<q", value),
        "float": lambda: b"f" + struct.pack("<d", value),
        "bool": lambda: b"b" + struct.pack("<?", value),
    }[kind]()


def calls() -> Iterator[tuple[torch._ops.OpOverload, tuple]]:
    nms = torch.ops.dcnzoo.nms.default
    for dtype in (torch.float64, torch.float32):
        corner = torch.rand(300, 2, generator=torch.Generator().manual_seed(0), dtype=dtype) * 40
        boxes = torch.cat([corner, corner + 10], 1)
        yield nms, (boxes, corner[:, 0], 0.5, 0)
        yield nms, (boxes, corner[:, 0], 5.0, 0)  # an error: IoU is at most 1
        for operator in operators():
            for sample in operator.forms():
                for overload, arguments in operator.overload_calls(sample.to(dtype)):
                    yield overload, arguments
                    yield overload, (arguments[0].flatten(), *arguments[1:])  # an error: the rank


def packed_call(overload: torch._ops.OpOverload, arguments: tuple) -> bytes:
    """Call an operator, and pack its name, arguments and results; -1 results for an error."""
    kinds = [str(argument.type) for argument in overload._schema.arguments]
    head = packed("B", overload._schema.name.encode()) + struct.pack("<q", len(arguments))
    head += b"".join(map(packed_argument, kinds, arguments))
    try:
        results = overload(*arguments)
    except RuntimeError:
        return head + struct.pack("<q", -1)
    results = [results] if isinstance(results, torch.Tensor) else results
    return head + struct.pack("<q", len(results)) + b"".join(map(packed_tensor, results))


if __name__ == "__main__":
    Path(sys.argv[1]).write_bytes(b"".join(packed_call(*call) for call in calls()) + packed("B", b""))
