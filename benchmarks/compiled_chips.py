"""What the GPUs that kernels are not tuned on would run, compiled for each of their capabilities.

    python benchmarks/compiled_chips.py [--all | --only NAME ... --capability 86] [--workers 2]

Needs no GPU. Brings results/compiled-chips-triton-<version>.json up to date as compiled.py does
its file: registers, stack, shared memory and tensor memory of each form, launched as tuning.json
says for the capability, so that a test can tell whether all of them fit. Of forms that differ by no
more than their element, or by how many rows they leave empty, one stands for the others; with
another triton than the pinned one there are few.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import re
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import triton
from report import HERE, folder

from saccade_kernels.gpu.device import ASSUMED, KNOWN
from saccade_kernels.gpu.digest import digest
from saccade_kernels.gpu.offline import Variant, compile_variant
from saccade_kernels.gpu.variants import shipped

FACTS = ("digest", "registers", "stack", "shared_memory", "warps", "tensor_memory")
"""Columns of the record."""

FULLY = (86,)
"""The capability with the least memory and registers; for the others heads of 128 dimensions do."""

OTHERWISE = (86, 100)
"""Capabilities for another triton than the pinned one: the least memory, and other products."""

SIDE = re.compile(r"(class|saliency|offset|gradient|column|row|find)\d*-d")
"""Kernels beside attention: what they do for seven heads a group is the most that they do."""

SMALL = re.compile(
    r"(residual|parts|contrast|divergence|norm|rope|rotation|gate|score|product)(_gradient)?-"
)
"""Kernels of a layer's steps around attention, and of the draw."""

ONE_SIZE = re.compile(r"-d4096-bf16|-d128-bf16|-silu-14336-bf16|-v152064-bf16|-gates-bf16")
"""The sizes that stand for the others of those."""

BRIEF = r"decode|merge|page|prefill|class|saliency|column"
"""Kernels with large tiles."""

Form = tuple[int, str]
"""Capability and name."""


@cache
def forms(capability: int) -> dict[str, Variant]:
    """Those that stand for what a capability serves, by name."""
    brief = capability not in FULLY or not is_pinned()
    return {form.name: form for form in shipped(capability) if stands(form.name, brief)}


def stands(name: str, brief: bool) -> bool:
    """Whether a form is compiled for every capability, or even for those that are done briefly."""
    if any(word in name for word in ("-fp16", "-capped", "-c1-", "-c2-")):
        return False
    if brief and ("-emit" in name or re.match(BRIEF, name) is None):
        return False
    if SMALL.match(name):
        return ONE_SIZE.search(name) is not None
    if "-fp32" in name and "-d256-" not in name:  # the most memory
        return False
    dims = ("128",) if brief else ("64", "128", "256")
    groups = ("7",) if SIDE.match(name) else ("1", "7")
    of_heads, group = re.search(r"-d(\d+)-", name), re.search(r"-g(\d+)-", name)
    return (of_heads is None or of_heads[1] in dims) and (group is None or group[1] in groups)


def facts(form: Form) -> tuple[Form, list[Any]]:
    """Of one form, compiled now."""
    warnings.simplefilter("error")
    capability, name = form
    variant = forms(capability)[name]
    found = vars(compile_variant(variant, capability)) | {"digest": digest(variant)}
    return form, [found[column] for column in FACTS]


def compile_all(wanted: list[Form], workers: int) -> dict[Form, list[Any]]:
    with multiprocessing.get_context("fork").Pool(workers) as pool:
        return dict(pool.imap_unordered(facts, wanted))


def known(path: Path) -> dict[Form, list[Any]]:
    """What the file says of forms that are still made of the same."""
    recorded = json.loads(path.read_text())["forms"] if path.exists() else {}
    return {
        (int(capability), name): found
        for capability, part in recorded.items()
        for name, found in part.items()
        if name in forms(int(capability)) and found[0] == digest(forms(int(capability))[name])
    }


def document(found: dict[Form, list[Any]]) -> str:
    """JSON with one line for each form."""
    head = {"name": "compiled-chips", "versions": {"triton": triton.__version__}, "columns": FACTS}
    parts = []
    for capability in capabilities():
        rows = [
            f"  {json.dumps(name)}: {json.dumps(found[capability, name])}"
            for name in forms(capability)
        ]
        parts.append(f' "{capability}": {{\n' + ",\n".join(rows) + "\n }")
    return json.dumps(head)[:-1] + ', "forms": {\n' + ",\n".join(parts) + "\n}}\n"


def capabilities() -> list[int]:
    """All but the one that compiled.py has; few for another triton than the pinned one."""
    return sorted(set(KNOWN) - {ASSUMED}) if is_pinned() else list(OTHERWISE)


def is_pinned() -> bool:
    """Whether the triton is torch's."""
    pins = (HERE.parent / "constraints.txt").read_text().splitlines()
    return f"triton=={triton.__version__}" in pins


def update(path: Path, everything: bool, workers: int) -> int:
    """Write the file; returns how many forms were compiled for it."""
    found = {} if everything else known(path)
    wanted = [(capability, name) for capability in capabilities() for name in forms(capability)]
    missing = [form for form in wanted if form not in found]
    # The slowest first, so that no process is left with them alone.
    found |= compile_all(sorted(missing, key=lambda form: "prefill" not in form[1]), workers)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(document(found))
    return len(missing)


def main() -> None:
    made = argparse.ArgumentParser(description=__doc__)
    made.add_argument("--only", nargs="+", metavar="NAME", help="print the facts of these forms")
    made.add_argument("--capability", type=int, nargs="+", choices=capabilities())
    made.add_argument("--all", action="store_true", help="also those that have not changed")
    made.add_argument("--list", action="store_true", help="print digests, and compile nothing")
    made.add_argument("--workers", type=int, default=2)
    options = made.parse_args()
    chosen = options.capability or capabilities()
    if options.list:
        print(json.dumps({c: {n: digest(f) for n, f in forms(c).items()} for c in chosen}))
    elif options.only:
        found = compile_all([(c, name) for c in chosen for name in options.only], options.workers)
        print(json.dumps({c: {n: found[c, n] for n in options.only} for c in chosen}))
    else:
        path = folder() / f"compiled-chips-triton-{triton.__version__}.json"
        count = update(path, options.all, options.workers)
        print(f"{path.name}: {sum(len(forms(c)) for c in capabilities())} forms, {count} new")


if __name__ == "__main__":
    main()
