"""Random mutants: ``python -m benchmarks.mutants SEED COUNT FOLDER…``, in a clone that nothing else uses.

Each changes one node of one file of these folders of ``dcnzoo``. The tests of the file's name run, then those
of its room, until one fails. Read the survivors: many change nothing that anyone could see.
"""

import ast
import copy
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PAIRS = (
    *((ast.Lt, ast.LtE), (ast.Gt, ast.GtE), (ast.Eq, ast.NotEq), (ast.Is, ast.IsNot), (ast.In, ast.NotIn)),
    *((ast.Add, ast.Sub), (ast.Mult, ast.Div), (ast.FloorDiv, ast.Mod), (ast.And, ast.Or)),
)
SWAPS: dict[type, type] = {one: other for a, b in PAIRS for one, other in ((a, b), (b, a))}


def changes(tree: ast.AST) -> Iterator[tuple[Any, str, Any]]:
    """Yield what can be changed: a node, the name of its field and the new value."""
    annotations: set[int] = set()
    for node in ast.walk(tree):
        for name in ("annotation", "returns"):
            if part := getattr(node, name, None):
                annotations |= set(map(id, ast.walk(part)))
    for node in ast.walk(tree):
        match node:
            case _ if id(node) in annotations:
                pass
            case ast.Compare(ops=[op]):
                yield node, "ops", [SWAPS[type(op)]()]
            case ast.BinOp(op=op) | ast.BoolOp(op=op) if type(op) in SWAPS:
                yield node, "op", SWAPS[type(op)]()
            case ast.Constant(value=bool(value)):
                yield node, "value", not value
            case ast.Constant(value=int(value) | float(value)):
                yield node, "value", value + 1
            case ast.If(test=test) | ast.IfExp(test=test):
                yield node, "test", ast.UnaryOp(ast.Not(), test)
            case ast.Return(value=ast.Constant(value=None)):
                pass  # no change
            case ast.Expr(value=ast.Call()) | ast.Return(value=ast.expr()):
                yield node, "value", ast.Constant(None)


def survives(path: Path) -> bool:
    """Whether all tests pass."""
    rooms = (Path("tests", part) for part in reversed(path.parts[1:-1]))
    room = next(filter(Path.is_dir, rooms), Path("tests", path.parts[1]))
    stems = (path.stem, *reversed(path.parts[2:-1]))
    own = next(filter(None, ([*room.glob(f"test_*{stem.strip('_')}*.py")] for stem in stems)), [])
    for tests in (own, [room] if room.is_dir() else []):
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-m", "not slow", *map(str, tests)]
        try:
            status = subprocess.run(command, capture_output=True, timeout=1800).returncode if tests else 0
        except subprocess.TimeoutExpired:  # an endless loop
            return False
        if status not in (0, 5):  # 5: all tests of the file are slow
            return False
    return True


def main(seed: str, count: str, *folders: str) -> None:
    paths = sorted(path for folder in folders for path in Path(folder).rglob("*.py"))
    every = [(path, i) for path in paths for i, _ in enumerate(changes(ast.parse(path.read_text())))]
    for path, i in random.Random(seed).sample(every, int(count)):
        source = path.read_text()
        tree = ast.parse(source)
        node, name, value = [*changes(tree)][i]
        before = ast.unparse(copy.copy(node)).splitlines()[0]
        setattr(node, name, value)
        after = ast.unparse(node).splitlines()[0]
        try:
            path.write_text(ast.unparse(tree))
            result = "survives" if survives(path) else "noticed"
        finally:
            path.write_text(source)
        print(f"{result}: {path}:{node.lineno}: {before[:70]} → {after[:70]}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
