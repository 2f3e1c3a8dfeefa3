"""Rules of style that ruff has no check for."""

import ast

from .processes import ROOT

NAMES = {"found", "there", "whole", "given", "wanted", "kept", "place", "each"}
LONGEST = 80  # lines of a function


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


def test_rules():
    for path in sorted((ROOT / "dcnzoo").rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        assert "isort: split" not in text, path
        for node in ast.walk(ast.parse(text)):
            broken = list(violations(node))
            assert not broken, f"{path}:{node.lineno}: {broken[0]}"
