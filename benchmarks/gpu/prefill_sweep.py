"""Causal prefill over prompt lengths: plain, edited; SDPA, varlen and eager beside it."""

from __future__ import annotations

from functools import partial

import torch

from gpu.ceilings import known_ceilings
from gpu.decode_sweep import goal, reach
from gpu.peers import BACKENDS, Dense, eager, sdpa, time_varlen
from gpu.problems import Problem, Tables, bias_program, make_problem, var_program
from gpu.session import Figures, Session
from gpu.shapes import GQA, MHA, TINY_GQA, TINY_MHA, Heads
from gpu.targets import ALL, CUDNN, FEW

SWEEP = ((1, 4096), (1, 8192), (4, 4096), (1, 16384), (1, 1024), (1, 2048))
DRY_SWEEP = {(1, 100): "1x1024", (2, 70): "1x4096"}
"""Shapes of a dry run, and whose goals they stand for."""
LONG = 4096
QUESTION = 64
"""Query rows after the image that a short question and the chat template take."""
EAGER_LIMIT = 4096
"""Beyond it the eager matrix alone takes gigabytes a layer."""


def run_prefill(session: Session, found: Figures) -> None:
    """Every shape of the sweep, most important first, with its peers."""
    for sequences, length in tuple(DRY_SWEEP) if session.dry else SWEEP:
        for heads in (TINY_MHA, TINY_GQA) if session.dry else (MHA, GQA):
            name = f"{heads.name} {sequences}x{length}"
            one = partial(_one_shape, session, heads=heads, sequences=sequences, length=length)
            session.measure(found, name, 8, one)


def _one_shape(session: Session, found: Figures, heads: Heads, sequences: int, length: int) -> None:
    device, dtype = session.device, torch.bfloat16
    problem = make_problem(heads, [length] * sequences, [length] * sequences, device, dtype)
    plain = session.time(found, "plain", problem.calls())
    inputs = Dense.make(heads, sequences, length, length, device)
    peers = {
        label: session.time(found, label, [sdpa(inputs, backend)])
        for label, backend in BACKENDS.items()
    }
    time_varlen(session, found, [inputs])
    edited = _edits(session, found, problem)
    if sequences * length <= EAGER_LIMIT:
        session.time(found, "eager", [eager(inputs, var=False)])
        session.time(found, "eager with VAR on all rows", [eager(inputs, var=True)])
        few = min(QUESTION, length // 4)
        name = "eager with VAR on the question's rows"
        session.time(found, name, [eager(inputs, var=True, question=few)])
    flops = heads.causal_flops(length, sequences)
    ceilings = known_ceilings(session)
    for timing in found.values():
        if "us" in timing:
            rate = flops / (timing["us"] / 1e6)
            timing |= {"tflop_s": rate / 1e12, "of_matmul": rate / ceilings.flops}
            if plain is not None:
                timing["against_plain"] = timing["us"] / 1e6 / plain
    if plain is None:
        return
    session.say(
        f"prefill {heads.name} {sequences}x{length}: {found['plain']['tflop_s']:.0f} TFLOP/s"
    )
    cudnn = peers["sdpa cudnn"]
    if cudnn is not None and (length >= LONG or session.dry):
        session.reach(goal(CUDNN, heads), cudnn / plain)
    at = DRY_SWEEP.get((sequences, length), f"{sequences}x{length}")
    for pattern, seconds in zip((FEW, ALL), edited, strict=True):
        if seconds is not None:
            reach(session, goal(pattern, heads, at), seconds / plain)


def _edits(session: Session, found: Figures, problem: Problem) -> tuple[float | None, float | None]:
    """Seconds with the mass edit on the question's rows, and on all rows."""
    sequences = len(problem.batch.prefills)
    length = problem.batch.prefills[0].queries
    device, heads = session.device, problem.heads
    ones = [1] * sequences
    tables = Tables.make(heads, var_program, 1, sequences, length, device)
    question = min(QUESTION, length // 4)
    few = session.time(
        found,
        "mass edit on the question's rows",
        problem.calls(problem.edited_question(tables, question)),
    )
    session.time(
        found,
        "mass edit on the question's rows, not split",
        problem.calls(problem.edited_question(tables, question, split=False)),
    )
    everywhere = problem.edited(tables, ones)
    whole = session.time(found, "mass edit on all rows", problem.calls(everywhere))
    session.time(found, "mass edit on all rows, emitting", problem.calls(everywhere, emit=True))
    other = Tables.make(heads, bias_program, 1, sequences, length, device)
    session.time(found, "score edit on all rows", problem.calls(problem.edited(other, ones)))
    return few, whole
