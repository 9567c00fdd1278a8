"""Paged decode over batches and contexts: plain, edited, many programs; and its peers."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch

from gpu import backend
from gpu.ceilings import known_ceilings
from gpu.peers import BACKENDS, Dense, eager, sdpa, time_varlen
from gpu.problems import (
    Problem,
    Tables,
    bias_program,
    even_program,
    even_tags,
    full_program,
    make_problem,
    var_program,
)
from gpu.session import Figures, Session
from gpu.shapes import GQA, MHA, TINY_GQA, TINY_MHA, Heads
from gpu.targets import BANDWIDTH, BY_NAME, DECODE_EDITED, EIGHT_CLASSES, PROGRAMS
from gpu.timing import L2_BYTES
from saccade_kernels.controls import CLASSES

SWEEP = (
    (32, 4096),
    (8, 4096),
    (32, 1024),
    (128, 1024),
    (1, 32768),
    (1, 4096),
    (1, 1024),
    (8, 1024),
    (1, 16384),
)
DRY_SWEEP = {(4, 80): "32x4096", (2, 130): "8x4096"}
"""Shapes of a dry run, and whose goals they stand for."""
PEERS_AT = ((32, 4096), (8, 4096), (1, 4096), (32, 1024), (1, 1024), (1, 32768))
COUNTS = (1, 2, 4, 8, 16, 32)


def goal(pattern: str, heads: Heads, *at: str) -> str:
    """The goal's name for a shape, if it has any; dry heads stand for the real ones."""
    return pattern.format(*at, MHA.name if heads.heads == heads.kv_heads else GQA.name)


def reach(session: Session, name: str, value: float) -> None:
    """A goal's value, where the shape has one."""
    if name in BY_NAME:
        session.reach(name, value)


def run_decode(session: Session, found: Figures) -> None:
    """Every shape of the sweep, most important first."""
    shapes = tuple(DRY_SWEEP) if session.dry else SWEEP
    for sequences, context in shapes:
        for heads in (TINY_MHA, TINY_GQA) if session.dry else (MHA, GQA):
            name = f"{heads.name} {sequences}x{context}"
            one = partial(_one_shape, session, heads=heads, sequences=sequences, context=context)
            session.measure(found, name, 6, one)


def _one_shape(
    session: Session, found: Figures, heads: Heads, sequences: int, context: int
) -> None:
    device = session.device
    least = 0 if session.dry else L2_BYTES
    problem = make_problem(
        heads, [1] * sequences, [context] * sequences, device, torch.bfloat16, least
    )
    plain = session.time(found, "plain", problem.calls())
    moved = heads.kv_bytes(sequences * context)
    at = DRY_SWEEP.get((sequences, context), f"{sequences}x{context}")
    if plain is not None:
        speed = moved / plain
        share = speed / known_ceilings(session).memory
        found["plain"] |= {"tb_s": speed / 1e12, "of_best": share}
        reach(session, goal(BANDWIDTH, heads, at), share)
        session.say(f"decode {heads.name} {sequences}x{context}: {speed / 1e12:.2f} TB/s")
    _edits(session, found, problem, plain, at)


def _edits(
    session: Session, found: Figures, problem: Problem, plain: float | None, at: str
) -> None:
    heads, sequences = problem.heads, len(problem.batch.context_lens)
    length = problem.batch.page_table.shape[1] * 64
    device = session.device
    tables = Tables.make(heads, var_program, 32, sequences, length, device)
    ones = [1] * sequences
    variants = {
        "mass edit on all": (ones, False),
        "mass edit on a quarter": ([int(i % 4 == 0) for i in range(sequences)], False),
        "mass edit on all, emitting": (ones, True),
    }
    taken: dict[str, float | None] = {}
    for name, (rows, emit) in variants.items():
        calls = problem.calls(problem.edited(tables, rows), emit)
        taken[name] = session.time(found, name, calls)
    for classes in (2, CLASSES):
        other = Tables.make(heads, even_program, 1, sequences, length, device)
        other.tags.tags[1:] = torch.from_numpy(even_tags(length, classes)).to(device)
        name = f"mass edit on all, {classes} classes"
        every = replace(problem.edited(other, ones), classes=classes)
        taken[name] = session.time(found, name, problem.calls(every))
    for label, program in (("score", bias_program), ("score, mass and head", full_program)):
        other = Tables.make(heads, program, 1, sequences, length, device)
        name = f"{label} edit on all"
        taken[name] = session.time(found, name, problem.calls(problem.edited(other, ones)))
    for name, seconds in taken.items():
        if seconds is not None and plain is not None:
            found[name]["against_plain"] = seconds / plain
    for name in ("mass edit on all", "score edit on all"):
        whole = taken[name]
        if whole is not None and plain is not None:
            reach(session, goal(DECODE_EDITED, heads, at), whole / plain)
    few, many = (taken[f"mass edit on all, {classes} classes"] for classes in (2, CLASSES))
    if few is not None and many is not None:
        session.reach(goal(EIGHT_CLASSES, heads), many / few)
    _page_classes(session, found, problem, tables)
    if sequences >= 32 or session.dry:
        _programs(session, found, problem, tables)


def _page_classes(session: Session, found: Figures, problem: Problem, tables: Tables) -> None:
    """Words of pages, which a step makes once for all its layers; these tables have two."""
    batch = problem.edited(tables, [1] * len(problem.batch.context_lens))
    if make := backend.page_classes(batch):
        session.time(found, "key classes of pages", [make])


def _programs(session: Session, found: Figures, problem: Problem, tables: Tables) -> None:
    """The number of different programs in one batch, against time."""
    sequences = len(problem.batch.context_lens)
    found["programs"] = {}
    taken = {}
    for count in COUNTS:
        rows = [1 + i % count for i in range(sequences)]
        calls = problem.calls(problem.edited(tables, rows))
        taken[count] = session.time(found["programs"], str(count), calls)
    one, many = taken[1], taken[COUNTS[-1]]
    if one is not None and many is not None:
        session.reach(goal(PROGRAMS, problem.heads), many / one)


def run_decode_peers(session: Session, found: Figures) -> None:
    """SDPA, varlen and the eager formula on contiguous keys of the same size, in the same run."""
    for sequences, context in ((2, 40),) if session.dry else PEERS_AT:
        for heads in (TINY_MHA, TINY_GQA) if session.dry else (MHA, GQA):
            name = f"{heads.name} {sequences}x{context}"
            one = partial(_peers, session, heads=heads, sequences=sequences, context=context)
            session.measure(found, name, 4, one)


def _peers(session: Session, cell: Figures, heads: Heads, sequences: int, context: int) -> None:
    moved = heads.kv_bytes(sequences * context)
    count = 1 if session.dry else max(1, min(64, -int(-L2_BYTES // moved)))
    inputs = [Dense.make(heads, sequences, 1, context, session.device) for _ in range(count)]
    for label, peer in BACKENDS.items():
        session.time(cell, label, [sdpa(one, peer) for one in inputs])
    time_varlen(session, cell, inputs)
    session.time(cell, "eager", [eager(one, var=False) for one in inputs])
    session.time(cell, "eager with VAR", [eager(one, var=True) for one in inputs])
    against(session, cell, f"{heads.name} {sequences}x{context}")


def against(session: Session, cell: Figures, name: str) -> None:
    """How much longer each peer takes than ours, edited where it edits."""
    ours = session.known.get("decode", {}).get(name, {})
    for label, timing in cell.items():
        kinds = {"VAR": "mass edit on all", "bias": "score edit on all"}
        own = ours.get(next((own for kind, own in kinds.items() if kind in label), "plain"), {})
        if "us" in timing and "us" in own:
            timing["of_ours"] = timing["us"] / own["us"]
