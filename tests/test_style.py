"""Rules of style that ruff has no check for."""

import ast

from tests.helpers.processes import ROOT

NAMES = {"found", "there", "whole", "given", "wanted", "kept", "place", "each"}
LONGEST = 80  # lines of a function


def violations(node: ast.AST):
    match node:
        case ast.Assign(targets=[ast.Name(id=name)], value=ast.Call()) if name in NAMES:
            yield "names"
        case ast.NamedExpr(target=ast.Name(id=name), value=ast.Call()) if name in NAMES:
            yield "names"
        case ast.Call(func=ast.Attribute(attr="read_text" | "write_text"), keywords=options) if not any(
            option.arg == "encoding" for option in options
        ):
            yield "texts without an encoding, which Windows does not read in UTF-8"
        case ast.FunctionDef() | ast.AsyncFunctionDef() if node.end_lineno - node.lineno >= LONGEST:
            yield "long-functions"


def test_rules():
    for path in sorted((ROOT / "dcnzoo").rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        assert "isort: split" not in text, path
        for node in ast.walk(ast.parse(text)):
            broken = list(violations(node))
            assert not broken, f"{path}:{node.lineno}: {broken[0]}"
