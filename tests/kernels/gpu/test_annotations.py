"""Triton functions name nothing that a compiler of theirs cannot read.

triton 3.6 evaluates every annotation inside a compiled function: a name that Triton does not know,
like typing's Any, is an error there, and with triton 3.7 it is none.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
FOLDERS = ("kernels", "benchmarks", "interventions", "server", "tests")


def jitted(tree: ast.AST) -> Iterator[ast.FunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and any(
            "jit" in ast.unparse(decorator).split("(")[0].split(".")
            for decorator in node.decorator_list
        ):
            yield node


def annotations(function: ast.FunctionDef) -> list[str]:
    """Those that a compiler may not know: all but ``tl.constexpr`` of an argument."""
    found = [function.returns] if function.returns is not None else []
    for node in ast.walk(function):
        if isinstance(node, ast.arg | ast.AnnAssign) and node.annotation is not None:
            found.append(node.annotation)
    return [text for text in map(ast.unparse, found) if text != "tl.constexpr"]


FUNCTIONS = [
    pytest.param(function, id=f"{path.stem}.{function.name}")
    for folder in FOLDERS
    for path in sorted((ROOT / folder).rglob("*.py"))
    for function in jitted(ast.parse(path.read_text()))
]


@pytest.mark.parametrize("function", FUNCTIONS)
def test_annotations_are_tritons(function: ast.FunctionDef) -> None:
    assert annotations(function) == []


def test_all_are_found() -> None:
    names = {str(param.id) for param in FUNCTIONS}
    assert {
        "read_kernel.read_kernel",
        "prefill_plain.prefill_plain_kernel",
        "tiles.class_ratios",
    } <= names
    assert len(names) > 30


def test_the_one_that_did_not_compile_would_be_seen() -> None:
    (found,) = jitted(
        ast.parse(
            "@triton.jit(do_not_specialize=['n'])\n"
            "def f(source: Any, n, BLOCK: tl.constexpr) -> None:\n    x: tl.tensor = source\n"
        )
    )
    assert annotations(found) == ["None", "tl.tensor", "Any"]
