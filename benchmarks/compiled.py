"""Every form of every kernel, compiled for an H100 or H200 by the triton that is installed.

    python benchmarks/compiled.py [--all | --only NAME ... | --list] [--accept] [--workers 2]

Needs no GPU. Brings results/compiled-triton-<version>.json up to date: registers, stack, shared
memory and tensor-core instructions of each form, with a digest of what it is made of. So only what
has changed is compiled, and a test sees without compiling whether the file is true of today's code.
`make compiled` runs it with both compilers. --all compiles everything anew; --only prints the facts
of some forms instead, --list the digests of all.

Of what is served most the loops are counted, in instructions; results/instructions.json keeps what
each may take: numbers that fall are lowered there, those that rise only with --accept.
compiled_chips.py compiles for other GPUs.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import re
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import triton
from gpu import loop_table
from gpu.read_kernel import BLOCK, TILES, WARPS, read_kernel
from report import folder

from saccade_kernels.gpu.digest import code_of, digest
from saccade_kernels.gpu.offline import Variant, compile_variant
from saccade_kernels.gpu.variants import shipped


def forms() -> Iterator[Variant]:
    """Those that serving may ask for, and the kernels that only benchmarks launch."""
    yield from shipped()
    types: dict[str, str | None] = {"source": "*i32", "sums": "*i32"}
    yield Variant("read", read_kernel, types, {"BLOCK": BLOCK, "TILES": TILES}, WARPS, 3)


@cache
def by_name() -> dict[str, Variant]:
    found: dict[str, Variant] = {}
    for variant in forms():
        assert variant.name not in found, f"two forms are called {variant.name}"
        found[variant.name] = variant
    return found


COUNTED = re.compile(
    r"(decode-d128-g[17]|merge-d128-g7|prefill-d128|product-[a-z]+-[a-z]+-gates).*-bf16"
)
"""Forms whose loops are counted: most models have heads of 128 dimensions."""

ELSEWHERE = ("tensor_memory", "block_products")
"""Facts of other GPUs."""


def facts(name: str) -> tuple[str, dict[str, Any]]:
    """Of one form, compiled now."""
    warnings.simplefilter("error")
    variant = by_name()[name]
    types = {variant.types[n] for n in variant.kernel.arg_names if n in variant.types}
    about = {"digest": digest(variant), "halves": bool(types & {"*bf16", "*fp16"})}
    found = asdict(compile_variant(variant, count_loops=counted(name)))
    loops = [list(loop.values()) for loop in found.pop("loops")]
    found |= {"loops": loops} if counted(name) else {}
    return name, about | {k: v for k, v in found.items() if k not in ELSEWHERE}


def counted(name: str) -> bool:
    """Whether the instructions of a form's loops are recorded."""
    return COUNTED.match(name) is not None and "-capped" not in name


def compile_all(names: list[str], workers: int) -> dict[str, dict[str, Any]]:
    """Facts by name, in the order of the names."""
    with multiprocessing.get_context("fork").Pool(workers) as pool:
        found = dict(pool.imap_unordered(facts, names))
    return {name: found[name] for name in names}


def known(path: Path) -> dict[str, dict[str, Any]]:
    """What the file says of forms that are still made of the same; empty if there is none."""
    recorded = json.loads(path.read_text())["forms"] if path.exists() else {}
    return {
        name: found
        for name, found in recorded.items()
        if name in by_name()
        and found["digest"] == digest(by_name()[name])
        and ("loops" in found) == counted(name)
    }


def document(found: dict[str, dict[str, Any]]) -> str:
    """JSON with one line for each form."""
    head = {"name": "compiled", "versions": {"triton": triton.__version__}, "target": "sm_90a"}
    lines = ",\n".join(f"  {json.dumps(n)}: {json.dumps(facts)}" for n, facts in found.items())
    return json.dumps(head)[:-1] + ',\n "forms": {\n' + lines + "\n}}\n"


def update(path: Path, everything: bool, workers: int, accept: bool = False) -> int:
    """Write the file and what its loops may take; returns how many forms were compiled for it."""
    found = {} if everything else known(path)
    missing = [name for name in by_name() if name not in found]
    # The slowest first, so that no process is left with them alone.
    found |= compile_all(sorted(missing, key=lambda name: "prefill" not in name), workers)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(document({name: found[name] for name in by_name()}))
    loops = {name: found[name]["loops"] for name in by_name() if counted(name)}
    table, version = path.with_name("instructions.json"), triton.__version__
    allowed = loop_table.read(table, version)
    for sentence in loop_table.growth(allowed, loops):
        print(sentence)
    loop_table.write(table, version, loop_table.followed(allowed, loops, accept))
    return len(missing)


def main() -> None:
    made = argparse.ArgumentParser(description=__doc__)
    made.add_argument("--only", nargs="+", metavar="NAME", help="print the facts of these forms")
    made.add_argument("--list", action="store_true", help="print digests, and compile nothing")
    made.add_argument("--all", action="store_true", help="also those that have not changed")
    made.add_argument("--accept", action="store_true", help="loops may take what they take now")
    made.add_argument("--workers", type=int, default=2)
    options = made.parse_args()
    if options.list:
        listed = {
            name: {"digest": digest(form), "code": list(code_of(form.kernel))}
            for name, form in by_name().items()
        }
        print(json.dumps(listed))
    elif options.only:
        print(json.dumps(compile_all(options.only, options.workers)))
    else:
        path = folder() / f"compiled-triton-{triton.__version__}.json"
        count = update(path, options.all, options.workers, options.accept)
        print(f"{path.name}: {len(by_name())} forms, {count} of them compiled now")


if __name__ == "__main__":
    main()
