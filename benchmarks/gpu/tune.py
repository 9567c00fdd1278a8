"""Launch configurations, chosen by measuring: candidates for the table of this chip.

What is found goes into the results; ``benchmarks/tune.py`` adopts it into tuning.json.
"""

from __future__ import annotations

import atexit
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from functools import cache, partial
from typing import Any

import torch

from gpu.compilers import Compilers, jobs_from
from gpu.product_search import run_few, run_invariant
from gpu.search import (
    DECODE_MOVES,
    LISTED_PREFILL_MOVES,
    PLAIN_PREFILL_MOVES,
    Move,
    Shape,
    base_config,
    compile_one,
    key_of,
    search,
)
from gpu.session import Figures, Session
from gpu.shapes import GQA, MHA, TINY_GQA, TINY_MHA, Heads
from gpu.small_search import run_small
from saccade_kernels.gpu import tuning

WORKERS = 10
SMALL = Heads("32/8", 32, 8, 64)
LLAMA3 = Heads("32/8", 32, 8)
GEMMA = Heads("8/4", 8, 4, 256)

SHAPES = {
    "decode 128 plain": [
        Shape(heads, *size)
        for heads in (MHA, GQA)
        for size in ((32, 4096), (8, 4096), (32, 1024), (1, 4096))
    ],
    "prefill 128 plain": [
        Shape(MHA, 1, 4096, decode=False),
        Shape(GQA, 1, 8192, decode=False),
        Shape(MHA, 1, 1024, decode=False),
    ],
    "decode 128 mha edited": [Shape(MHA, *size, 4) for size in ((32, 4096), (8, 1024))],
    **{
        f"prefill 128 {form}": [
            Shape(heads, 1, 4096, 4, decode=False, form=form) for heads in (MHA, GQA)
        ]
        for form in ("masses", "values", "scores")
    },
    "decode 128 gqa edited": [
        Shape(heads, *size, 4) for heads in (GQA, LLAMA3) for size in ((32, 4096), (8, 4096))
    ],
    "decode 64 plain": [Shape(SMALL, 32, 4096), Shape(SMALL, 8, 4096)],
    "prefill 64 plain": [Shape(SMALL, 1, 4096, decode=False)],
    "decode 256 plain": [Shape(GEMMA, 32, 4096), Shape(GEMMA, 8, 4096)],
    "prefill 256 plain": [Shape(GEMMA, 1, 4096, decode=False)],
}
"""By entry, most important first. The plain form decides what both share, so it comes first."""

TINY = {
    "decode 128 plain": [Shape(TINY_MHA, 3, 100), Shape(TINY_GQA, 2, 70)],
    "prefill 128 plain": [Shape(TINY_MHA, 1, 70, decode=False)],
    "decode 128 mha edited": [Shape(TINY_MHA, 3, 100, 4)],
    "prefill 128 values": [Shape(TINY_GQA, 1, 70, 4, decode=False, form="values")],
}
LEAST = 40
"""Seconds with which an entry is begun."""


def run_tune(session: Session, found: Figures) -> None:
    """Every entry; its candidates are in ``entries`` of the figure of its name."""
    for name in _named(session.dry):
        session.measure(found, name, LEAST, partial(_tune, session, found, name))
    session.measure(found, "small kernels", LEAST, partial(_small, session))
    session.measure(found, "products of few rows", LEAST, partial(_products, session, run_few))
    session.measure(found, "invariant products", LEAST, partial(_products, session, run_invariant))


def _small(session: Session, cell: Figures) -> None:
    cell["entries"] = run_small(session, cell)


def _products(
    session: Session, run: Callable[[Session, Figures], list[dict[str, Any]]], cell: Figures
) -> None:
    cell["entries"] = run(session, cell)


def candidates(found: Figures) -> list[dict[str, Any]]:
    """What has been chosen, from a part's figures; of one key the last."""
    chosen: dict[str, dict[str, Any]] = {}
    for name in found:
        for entry in found[name].get("entries", ()):
            chosen[json.dumps([entry["kernel"], entry["key"]])] = entry
    return list(chosen.values())


def _tune(session: Session, found: Figures, name: str, cell: Figures) -> None:
    """One key, or several if the shapes ask for more than one."""
    kernel = name.split()[0]
    shapes = _named(session.dry)[name]
    groups: dict[str, list[int]] = {}
    for index, shape in enumerate(shapes):
        groups.setdefault(json.dumps(key_of(session, shape)), []).append(index)
    cell["entries"] = []
    for text, members in groups.items():
        key, known = json.loads(text), candidates(found)
        base = base_config(kernel, key)
        done = next((e for e in known if e["kernel"] == kernel and e["key"] == key), None)
        if done is not None:  # an earlier entry tuned it by other shapes: go on from there
            base = type(base)(**done["config"])
        moves = PLAIN_PREFILL_MOVES if "plain" in name else LISTED_PREFILL_MOVES
        moves = DECODE_MOVES if kernel == "decode" else moves
        if "plain" not in name:  # what both forms share the plain one has decided
            base = replace(base, **_shared(kernel, key, known))
            moves = tuple(map(tuple, _without(moves, tuning.SHARED.get(kernel, ()))))
        session.say(f"{name}: key {text}, {len(members)} shapes")
        of = {(shapes[i].heads, shapes[i].classes): i for i in members}
        precompile = _precompiler(session.dry, name, list(of.values()))
        moves = moves[:1] if session.dry else moves
        tried = cell.setdefault(text, {})
        best = search(session, tried, [shapes[i] for i in members], base, moves, precompile)
        cell["entries"].append({"kernel": kernel, "key": key, "config": asdict(best)})
        session.save()


def _precompiler(dry: bool, name: str, members: list[int]) -> Callable[[Sequence[Any]], None]:
    def precompile(configs: Sequence[Any]) -> None:
        jobs = [
            {"part": name, "shape": index, "config": asdict(config)}
            for config in configs
            for index in members
        ]
        if not dry:
            _compilers().compile([json.dumps(job) for job in jobs])

    return precompile


def _shared(
    kernel: str, key: dict[str, Any] | None, chosen: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """What the plain form for a key's heads and elements was given, if it was tuned."""
    for entry in chosen:
        if key and entry["kernel"] == kernel and size_of(entry["key"]) == size_of(key):
            return {name: entry["config"][name] for name in tuning.SHARED.get(kernel, ())}
    return {}


def size_of(key: dict[str, Any] | None) -> tuple[Any, ...] | None:
    """What entries that share fields have in common; nothing where the reference stands in for
    kernels and asks for no key.
    """
    if key is None:
        return None
    return tuple(key[name] for name in ("kernel", "head_dim", "grouped", "bytes") if name in key)


def _without(groups: Sequence[Sequence[Move]], names: Sequence[str]) -> list[list[Move]]:
    """The moves that are left when some fields may not change."""
    left = [[{k: v for k, v in move.items() if k not in names} for move in g] for g in groups]
    return [[move for move in group if move] for group in left if any(group)]


@cache
def _compilers() -> Compilers:
    made = Compilers("compile", WORKERS)
    atexit.register(made.close)
    return made


def _named(dry: bool) -> dict[str, list[Shape]]:
    return TINY if dry else SHAPES


def work() -> None:
    """Compile what comes in on stdin, until it closes."""
    session = Session(deadline=float("inf"))
    with torch.no_grad():
        for line in jobs_from(sys.stdin):
            job = json.loads(line)
            kernel = job["part"].split()[0]
            kind = tuning.DecodeConfig if kernel == "decode" else tuning.PrefillConfig
            with suppress(Exception):  # whoever measures it meets the same error, and records it
                shape = SHAPES[job["part"]][job["shape"]]
                compile_one(session, shape, kind(**job["config"]))
