"""What the loops of served kernels may take, in instructions of a warp for a tile.

The table is committed and follows what is compiled downwards by itself; a number that rises is a
decision (`python benchmarks/compiled.py --accept`), seen in a commit with its reason.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

Loops = Sequence[Sequence[int]]
"""Of each loop the cheapest and the dearest round, and its instructions of tensor cores."""

Table = Mapping[str, Loops]
"""By name of the form."""


def growth(allowed: Table, found: Table) -> Iterator[str]:
    """A sentence for each form whose loops take more than the table allows, or that it lacks."""
    for name, loops in found.items():
        if name not in allowed:
            yield f"{name} is not in the table"
        elif _more(allowed[name], loops):
            yield f"{name} took {_words(allowed[name])} and takes {_words(loops)}"


def followed(allowed: Table, found: Table, accept: bool) -> dict[str, Loops]:
    """The table after a compilation: new forms, what has fallen, and if accepted what has risen."""
    return {
        name: allowed[name]
        if not accept and name in allowed and _more(allowed[name], loops)
        else loops
        for name, loops in found.items()
    }


def read(path: Path, compiler: str) -> Table:
    """The part of one compiler; empty if there is none."""
    found: Table = _all(path).get(compiler, {})
    return found


def write(path: Path, compiler: str, table: Table) -> None:
    """Put the part of one compiler into the file, one line for each form."""
    parts = {**_all(path), compiler: table}
    texts = [
        f" {json.dumps(version)}: {{\n"
        + ",\n".join(f"  {json.dumps(n)}: {json.dumps(loops)}" for n, loops in part.items())
        + "\n }"
        for version, part in sorted(parts.items())
    ]
    head = '{"name": "instructions", "columns": ["cheapest", "dearest", "products"], "loops": {\n'
    path.write_text(head + ",\n".join(texts) + "\n}}\n")


def _all(path: Path) -> dict[str, Table]:
    found: dict[str, Table] = json.loads(path.read_text())["loops"] if path.exists() else {}
    return found


def _more(allowed: Loops, found: Loops) -> bool:
    """Any loop where there are as many as before, else all of them together."""
    ways = (0, 1)
    if len(allowed) == len(found):
        pairs = zip(allowed, found, strict=True)
        return any(new[way] > old[way] for old, new in pairs for way in ways)
    return any(sum(n[way] for n in found) > sum(o[way] for o in allowed) for way in ways)


def _words(loops: Loops) -> str:
    ways = (f"{cheap}" if cheap == dear else f"{cheap} to {dear}" for cheap, dear, _ in loops)
    return " + ".join(ways) or "none"
