"""What a part's figures were measured of, as one number: the same until that code changes."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

from gpu.plan import Part

BENCHMARKS = Path(__file__).resolve().parent.parent
ROOT = BENCHMARKS.parent
SUFFIXES = (".py", ".json", ".safetensors")
PLUMBING = ("plan", "digests", "targets")
"""Modules that say what runs and what is wanted; no figure changes with them."""


def digest(part: Part) -> str:
    """Of the code that a part measures and of the part itself."""
    files = [path for root in part.roots for path in _files(ROOT / root)]
    files += closure(part.run.partition(":")[0])
    found = sha256()
    for path in sorted(set(files)):
        found.update(f"{path.relative_to(ROOT)}\0".encode())
        found.update(path.read_bytes())
    return found.hexdigest()[:16]


def _files(root: Path) -> Iterator[Path]:
    if root.is_file():
        yield root
    for path in root.rglob("*"):
        if path.suffix in SUFFIXES and "__pycache__" not in path.parts:
            yield path


def closure(module: str) -> list[Path]:
    """A module of this folder, and those that it imports from here, theirs included."""
    found: dict[str, Path] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        path = BENCHMARKS / f"{name.replace('.', '/')}.py"
        if name in found or not path.is_file() or name.rpartition(".")[2] in PLUMBING:
            continue
        found[name] = path
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                waiting += [node.module, *(f"{node.module}.{a.name}" for a in node.names)]
    return list(found.values())
