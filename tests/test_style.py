"""Rules of style that ruff has no check for. ``[tool.dcnzoo.style]`` counts what is left; only lower it."""

import ast
import re
from collections import Counter

from .processes import ROOT

NAMES = {"found", "there", "whole", "given", "wanted", "kept", "place", "each"}
LONGEST = 80  # lines of a function
# Python 3.10 has no parser of TOML
TABLE = (ROOT / "pyproject.toml").read_text().partition("[tool.dcnzoo.style]\n")[2].partition("\n\n")[0]
LISTED = {
    line.partition(" = ")[0]: {room: int(number) for room, number in re.findall(r"(\w+) = (\d+)", line)}
    for line in TABLE.splitlines()
}


def is_splat(node: ast.AST) -> bool:
    """``*([x] if condition else [])`` or ``[x] * condition``, in place of an ``if``."""
    if isinstance(node, ast.Starred):
        return isinstance(node.value, ast.IfExp)
    product = isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult)
    return product and isinstance(node.left, ast.List) and isinstance(node.right, ast.Compare | ast.BoolOp)


def violations(node: ast.AST):
    match node:
        case ast.Assign(targets=[ast.Name(id=name)], value=ast.Call()) if name in NAMES:
            yield "names"
        case ast.NamedExpr(target=ast.Name(id=name), value=ast.Call()) if name in NAMES:
            yield "names"
        case ast.FunctionDef() | ast.AsyncFunctionDef() if node.end_lineno - node.lineno >= LONGEST:
            yield "long-functions"
    if is_splat(node):
        yield "splats"


def test_no_room_gets_worse():
    counts: dict[str, Counter] = {rule: Counter() for rule in LISTED}
    for path in sorted((ROOT / "dcnzoo").rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        room = path.relative_to(ROOT / "dcnzoo").parts[0].removesuffix(".py")
        counts["isort-split"][room] += text.count("isort: split")
        for node in ast.walk(ast.parse(text)):
            for rule in violations(node):
                counts[rule][room] += 1
    for rule, rooms in counts.items():
        worse = {room: number for room, number in rooms.items() if number > LISTED[rule].get(room, 0)}
        assert not worse, f"{rule}: {worse}, more than [tool.dcnzoo.style] of pyproject.toml lists"


def test_the_rules():
    for code in ("a = [*([1] if b else [])]", "a = [1] * (b > 2)", "found = f()", "x = (kept := f())"):
        assert any(list(violations(node)) for node in ast.walk(ast.parse(code))), code
    for code in ("a = [0] * n", "a = [*b]", "found = 3", "boxes = f()"):
        assert not any(list(violations(node)) for node in ast.walk(ast.parse(code))), code
