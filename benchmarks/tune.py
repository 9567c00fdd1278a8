"""Choose how each kernel is launched, by measuring on a GPU, and write it into tuning.json.

    python benchmarks/tune.py [--budget 560] [--parts "decode 128 plain" ...]
    python benchmarks/tune.py --dry-run

Entries whose shapes were not tried keep what they have, and stay marked as not measured.
"""

from __future__ import annotations

import argparse
import atexit
import json
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from gpu.compilers import Compilers, jobs_from
from gpu.search import (
    DECODE_MOVES,
    PREFILL_MOVES,
    Move,
    Shape,
    base_config,
    compile_one,
    key_of,
    search,
)
from gpu.session import Figures, Part, Session, open_session, parser, supervise
from gpu.shapes import GQA, MHA, TINY_GQA, TINY_MHA, Heads
from gpu.small_search import run_small
from report import folder, hardware, versions

from saccade_kernels.gpu import tuning

WORKERS = 10
SMALL = Heads("32/8", 32, 8, 64)
LLAMA3 = Heads("32/8", 32, 8)
GEMMA = Heads("8/4", 8, 4, 256)

DECODE = {
    "decode 128 plain": [
        Shape(heads, *size)
        for heads in (MHA, GQA)
        for size in ((32, 4096), (8, 4096), (32, 1024), (1, 4096))
    ],
    "decode 128 mha edited": [
        Shape(MHA, *size, classes) for size in ((32, 4096), (8, 1024)) for classes in (4, 8)
    ],
    "decode 128 gqa 4 classes": [
        Shape(GQA, *size, 4) for size in ((32, 4096), (8, 4096), (1, 4096))
    ],
    "decode 128 gqa 8 classes": [
        Shape(GQA, *size, 8) for size in ((32, 4096), (8, 4096), (1, 4096))
    ],
    "decode 128 group 4, 8 classes": [Shape(LLAMA3, 32, 4096, 8), Shape(LLAMA3, 8, 4096, 8)],
    "decode 64 plain": [Shape(SMALL, 32, 4096), Shape(SMALL, 8, 4096)],
    "decode 256 plain": [Shape(GEMMA, 32, 4096), Shape(GEMMA, 8, 4096)],
}
PREFILL = {
    "prefill 128 plain": [
        Shape(MHA, 1, 4096, decode=False),
        Shape(GQA, 1, 8192, decode=False),
        Shape(MHA, 1, 1024, decode=False),
    ],
    "prefill 128 edited": [
        Shape(MHA, 1, 4096, 4, decode=False),
        Shape(GQA, 1, 4096, 4, decode=False),
    ],
    "prefill 64 plain": [Shape(SMALL, 1, 4096, decode=False)],
    "prefill 256 plain": [Shape(GEMMA, 1, 4096, decode=False)],
}
ORDER = (
    "decode 128 plain",
    "prefill 128 plain",
    "decode 128 mha edited",
    "prefill 128 edited",
    "decode 128 gqa 4 classes",
    "decode 128 gqa 8 classes",
    "decode 128 group 4, 8 classes",
    "decode 64 plain",
    "prefill 64 plain",
    "decode 256 plain",
    "prefill 256 plain",
)
TINY = {
    "decode 128 plain": [Shape(TINY_MHA, 3, 100), Shape(TINY_GQA, 2, 70)],
    "decode 128 mha edited": [Shape(TINY_MHA, 3, 100, 4)],
    "prefill 128 plain": [Shape(TINY_MHA, 1, 70, decode=False)],
    "prefill 128 edited": [Shape(TINY_GQA, 1, 70, 4, decode=False)],
}


def run(session: Session, found: Figures, name: str) -> None:
    """Tune one key, or several if the shapes of a part ask for more than one."""
    kernel = name.split()[0]
    shapes = _shapes(session, name)
    groups: dict[str, list[int]] = {}
    for index, shape in enumerate(shapes):
        groups.setdefault(json.dumps(key_of(session, shape)), []).append(index)
    chosen = session.figures.setdefault("entries", [])
    for text, members in groups.items():
        key = json.loads(text)
        done = next((e for e in chosen if e["kernel"] == kernel and e["key"] == key), None)
        base = base_config(kernel, key)
        if done is not None:  # an earlier part tuned it by other shapes: go on from there
            base = type(base)(**done["config"])
            chosen.remove(done)
        if "plain" not in name:
            base = replace(base, **_shared(kernel, key, chosen))
        session.say(f"{name}: key {text}, {len(members)} shapes")
        kinds = {(shapes[i].heads, shapes[i].classes): i for i in members}

        def precompile(configs: Sequence[Any], kinds: Any = kinds) -> None:
            jobs = [
                {"part": name, "shape": index, "config": asdict(config)}
                for config in configs
                for index in kinds.values()
            ]
            _compilers(session.dry).compile([json.dumps(job) for job in jobs])

        moves = DECODE_MOVES if kernel == "decode" else PREFILL_MOVES
        if "plain" not in name:  # what both forms share the plain one has decided
            moves = _without(moves, tuning.SHARED[kernel])
        cell = found.setdefault(text, {})
        arguments = (base, moves[:1] if session.dry else moves, precompile)
        best = search(session, cell, [shapes[i] for i in members], *arguments)
        chosen.append({"kernel": kernel, "key": key, "config": asdict(best)})
        _write(session)


def run_rows(session: Session, found: Figures) -> None:
    """Tune the small kernels of a layer."""
    session.figures.setdefault("entries", []).extend(run_small(session, found))
    _write(session)


def _shared(
    kernel: str, key: dict[str, Any] | None, chosen: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """What the plain form of a key's head_dim and element size was given, if it was tuned."""
    for entry in chosen:
        if key and entry["kernel"] == kernel and _size(entry["key"]) == _size(key):
            return {name: entry["config"][name] for name in tuning.SHARED[kernel]}
    return {}


def _size(key: dict[str, Any] | None) -> tuple[int, int] | None:
    """Nothing where the reference stands in for kernels and asks for no key."""
    return (key["head_dim"], key["bytes"]) if key else None


def _without(groups: Sequence[Sequence[Move]], names: Sequence[str]) -> list[list[Move]]:
    """The moves that are left when some fields may not change."""
    left = [[{k: v for k, v in move.items() if k not in names} for move in g] for g in groups]
    return [[move for move in group if move] for group in left if any(group)]


@cache
def _compilers(dry: bool) -> Compilers:
    made = Compilers(["--worker"] + ["--dry-run"] * dry, 1 if dry else WORKERS)
    atexit.register(made.close)
    return made


def _shapes(session: Session, name: str) -> list[Shape]:
    return TINY[name] if session.dry else (DECODE | PREFILL)[name]


def work(session: Session) -> None:
    """Compile what comes in on stdin, until it closes."""
    for line in jobs_from(sys.stdin):
        job = json.loads(line)
        kernel = job["part"].split()[0]
        kind = tuning.DecodeConfig if kernel == "decode" else tuning.PrefillConfig
        with suppress(Exception):  # whoever measures it meets the same error, and records it
            shape = _shapes(session, job["part"])[job["shape"]]
            compile_one(session, shape, kind(**job["config"]))


def _write(session: Session) -> None:
    """The whole table with the new entries, into the package and among the results."""
    path = Path(tuning.__file__).with_name("tuning.json")
    current: dict[str, Any] = {"decode": [], "prefill": []}
    if path.exists():
        current = json.loads(path.read_text())
    for entry in session.figures["entries"]:
        kernel, new = entry["kernel"], {"key": entry["key"], "config": entry["config"]}
        kept = [old for old in current.setdefault(kernel, []) if old["key"] != entry["key"]]
        kept.append({**new, "measured": not session.dry})
        for old in kept:  # plain or edited, they agree on what decides the order of sums
            if kernel in tuning.SHARED and new["key"] and _size(old["key"]) == _size(new["key"]):
                shared = {name: new["config"][name] for name in tuning.SHARED[kernel]}
                old["config"] = {**old["config"], **shared}
        current[kernel] = sorted(kept, key=lambda old: json.dumps(old["key"], sort_keys=True))
    current["hardware"] = hardware()
    current["versions"] = versions()
    text = json.dumps(current, indent=1) + "\n"
    folder().mkdir(parents=True, exist_ok=True)
    (folder() / "tuning.json").write_text(text)
    if not session.dry:
        path.write_text(text)


def main() -> None:
    made = parser(__doc__, budget=560)
    made.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = made.parse_args()
    if not options.worker:
        supervise(options)
    names = list(TINY) if options.dry_run else ORDER
    parts = [Part(name, 40, partial(run, name=name)) for name in names]
    parts.append(Part("small kernels", 60, run_rows))
    with torch.no_grad():
        session = open_session("tune", options, {})
        if options.worker:
            work(session)
        else:
            session.run(parts)


if __name__ == "__main__":
    main()
