"""Every variant against the reference in float64, on the chip it will run on.

The error of a result is ||out - ref|| / ||ref||. The rule: at most twice that of torch's own
flash attention, on the same kind of numbers. Memory is poisoned, so an element that nobody wrote
is NaN; two runs agree bit for bit; a row that follows no program gets what it gets without
programs. A case runs in a process of its own: a bad kernel takes nothing else down.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from threading import Lock
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from gpu import backend
from gpu.problems import (
    LAYER,
    Problem,
    Tables,
    bias_program,
    dense,
    full_program,
    make_problem,
    var_program,
)
from gpu.processes import own_command
from gpu.session import FAULT, Figures, Session
from gpu.shapes import Heads
from gpu.targets import EXACT, RIGHT
from saccade_kernels import gradients, reference
from saccade_kernels.batch import AttentionBatch, Emission
from saccade_kernels.controls import NEVER_ATTEND, PER_HEAD_CLASSES, Edit
from saccade_kernels.gpu import tiles

RULE = 2.0
MASS_ERROR = 2e-3
SALIENCY_ERROR = 2e-2
"""Relative; dL/dz is a difference of numbers that bf16 has rounded."""

LOSSES = 5
NOT_FINITE = 1e9
"""Error of a result with NaN in it; JSON has no infinity."""

FLASH = SDPBackend.FLASH_ATTENTION
WORKERS = 16
CASE_SECONDS = 150
PROGRAMS = {"var": var_program, "bias": bias_program, "full": full_program}


@dataclass(frozen=True)
class Case:
    """What is checked. ``queries`` 1 first: decodes, then prompts, some of them chunks."""

    dim: int = 128
    heads: int = 8
    kv_heads: int = 8
    program: str = "full"
    classes: int = 4
    dtype: torch.dtype = torch.bfloat16
    softcap: float = 0.0
    window: int = 0
    hide: bool = False
    emit: bool = False
    own: bool = False  # every second sequence has heads with key classes of their own

    @property
    def name(self) -> str:
        parts = [f"d{self.dim} {self.heads}/{self.kv_heads} {self.program} c{self.classes}"]
        parts += [str(self.dtype).removeprefix("torch.")]
        parts += ["softcap"] * (self.softcap > 0) + ["window"] * (self.window > 0)
        parts += ["hide"] * self.hide + ["emit"] * self.emit
        return " ".join(parts + ["per-head classes"] * self.own)


CASES = (
    Case(program="var"),
    Case(heads=28, kv_heads=4, program="var"),
    Case(),
    Case(heads=28, kv_heads=4, emit=True),
    Case(emit=True, hide=True),
    Case(program="bias"),
    Case(heads=28, kv_heads=4, classes=8),
    Case(dim=64),
    Case(dim=64, heads=16, kv_heads=4, dtype=torch.float16),
    Case(softcap=5.0, window=100),
    Case(dim=256, heads=8, kv_heads=4, softcap=5.0, window=100),
    Case(dim=80, heads=4, kv_heads=4),
    Case(dim=96, heads=8, kv_heads=2, hide=True),
    Case(heads=8, kv_heads=1, classes=8, hide=True),
    Case(dtype=torch.float16, classes=2, program="bias"),
    Case(dim=256, heads=8, kv_heads=1, classes=8),
    Case(program="var", own=True),
    Case(heads=28, kv_heads=4, own=True, emit=True),
    Case(dim=64, heads=16, kv_heads=4, dtype=torch.float16, own=True, hide=True),
    Case(dim=256, heads=8, kv_heads=4, softcap=5.0, window=100, own=True),
)
TINY = (
    Case(dim=16, heads=4, kv_heads=2, emit=True),
    Case(dim=16, heads=4, kv_heads=2, hide=True),
    Case(dim=16, heads=4, kv_heads=2, own=True),
)
QUERIES = (1, 1, 1, 1, 130, 300, 64)
CONTEXTS = (1500, 65, 7, 700, 1130, 812, 64)
TINY_QUERIES = (1, 1, 1, 5, 70)
TINY_CONTEXTS = (70, 7, 66, 66, 70)


def run_accuracy(session: Session, found: Figures) -> None:
    """All cases, several processes at once: most of the time is compilation."""
    cases = TINY if session.dry else CASES
    left = [index for index, case in enumerate(cases) if case.name not in found]
    lock = Lock()

    def one(index: int) -> None:
        case = cases[index]
        result = check(case, session.device) if session.dry else _elsewhere(session, index)
        with lock:
            found[case.name] = result
            if not result.get("right"):
                session.say("WRONG", case.name, json.dumps(result)[:200])
            session.save()

    with ThreadPoolExecutor(1 if session.dry else WORKERS) as pool:
        list(pool.map(one, left))
    results = [found[case.name] for case in cases]
    good = sum(bool(result.get("right")) for result in results)
    exact = sum(bool(result.get("plain_rows_equal")) for result in results)
    session.say(f"{good} of {len(cases)} right, {exact} with exactly plain rows")
    session.reach(RIGHT, good / len(cases))
    session.reach(EXACT, exact / len(cases))


def main(index: int) -> None:
    """One case, in this process; the last line is its result."""
    with torch.no_grad():
        print(json.dumps(check(CASES[index], torch.device("cuda"))))


def _elsewhere(session: Session, index: int) -> Figures:
    command = own_command(f"check {index}")
    limit = max(1.0, min(CASE_SECONDS, session.left))
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return {FAULT: f"not done within {limit:.0f} s"}
    if done.returncode:
        return {FAULT: done.stderr.strip()[-1500:]}
    result: Figures = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def check(case: Case, device: torch.device) -> Figures:
    """Decodes and prompts of one case."""
    torch.manual_seed(1)
    shape = Heads("", case.heads, case.kv_heads, case.dim)
    tiny = case in TINY
    queries, contexts = (TINY_QUERIES, TINY_CONTEXTS) if tiny else (QUERIES, CONTEXTS)
    problem = make_problem(shape, queries, contexts, device, case.dtype)
    batch = _edited(case, problem, max(contexts))
    decodes = batch.num_decodes
    found: Figures = {}
    for part, op, oracle in (
        ("decode", backend.decode, reference.decode),
        ("prefill", backend.prefill, reference.prefill),
    ):
        rows = slice(0, decodes) if part == "decode" else slice(decodes, None)
        found[part] = _compare(case, problem, batch, rows, op, oracle)
    found["saliency"] = _saliency(case, problem, batch)
    limit = RULE * _sdpa_error(problem)
    if tiles.interpreted():
        limit *= 2  # which cuts bf16 off where a GPU rounds
    parts = (found["decode"], found["prefill"])
    found["limit"] = limit
    found["plain_rows_equal"] = all(p["plain_rows_equal"] for p in parts)
    found["right"] = all(
        p["error"] <= limit
        and p["plain_error"] <= limit
        and p["repeats"]
        and p.get("mass_error", 0) <= MASS_ERROR
        and p.get("lse_error", 0) <= 10 * MASS_ERROR
        for p in parts
    )
    found["right"] = found["right"] and max(found["saliency"].values()) <= SALIENCY_ERROR
    return found


def _saliency(case: Case, problem: Problem, batch: AttentionBatch) -> Figures:
    """Relative errors of the decodes' saliency and gradients."""
    query, (key, value) = problem.query[: batch.num_decodes], problem.sets[0]
    size = (len(query), LOSSES, *query.shape[1:])
    grads = torch.randn(size, device=query.device).to(query.dtype)

    def run(op: Callable[..., Any], wide: bool) -> Any:
        tensors = [t.double() if wide else t for t in (query, grads, key, value)]
        how = (replace(batch, derived={}), LAYER, case.dim**-0.5, case.softcap, case.window)
        with nullcontext() if wide else poisoned():
            return op(*tensors, *how)

    got, wanted = run(backend.saliency, wide=False), run(gradients.saliency, wide=True)
    names = ("saliency", "grad_query", "grad_key", "grad_value")
    return {name: error(getattr(got, name), getattr(wanted, name)) for name in names}


def _compare(
    case: Case,
    problem: Problem,
    batch: AttentionBatch,
    rows: slice,
    op: Callable[..., torch.Tensor],
    oracle: Callable[..., torch.Tensor],
) -> Figures:
    query, (key, value) = problem.query[rows], problem.sets[0]
    options = {"softcap": case.softcap, "window": case.window}
    emission = problem.emission().rows(rows) if case.emit else None
    exact = problem.emission().rows(rows) if case.emit else None

    def run(used: AttentionBatch, emit: Emission | None) -> torch.Tensor:
        arguments = (key, value, replace(used, derived={}), LAYER, case.dim**-0.5)
        with poisoned():
            return op(query, *arguments, emit=emit, **options)

    def expect(used: AttentionBatch, emit: Emission | None) -> torch.Tensor:
        wide = (key.double(), value.double(), replace(used, derived={}), LAYER, case.dim**-0.5)
        return oracle(query.double(), *wide, emit=emit, **options)

    plain_batch = replace(problem.batch, derived={})
    plain, plain_wanted = run(plain_batch, None), expect(plain_batch, None)
    if emission is not None:
        emission.masses.fill_(torch.nan)
        emission.lse.fill_(torch.nan)
    _, tables = batch.tables()
    before = tables.moved.clone()
    out = run(batch, emission)
    moved = tables.moved - before
    again = run(batch, emission)
    before.copy_(tables.moved)
    wanted = expect(batch, exact)
    moved_wanted = tables.moved - before
    untouched = batch.control_rows[rows] == 0
    if case.hide:  # hiding is the tag row's doing, so that no row of such a case is plain
        untouched = untouched & (batch.tag_rows[_sequences(batch)[rows]] == 0)
    without = run(batch, None) if case.emit else out
    found = {
        "error": error(out, wanted),
        "plain_error": error(plain, plain_wanted),
        "repeats": bool(torch.equal(out, again)),
        "plain_rows_equal": bool(torch.equal(without[untouched], plain[untouched])),
        "plain_rows": int(untouched.sum()),
        # Gates near their threshold may fall either way in bf16, so this is told, not judged.
        "sites_moved_otherwise": int((moved != moved_wanted).sum()),
    }
    if emission is not None and exact is not None:
        found["mass_error"] = float((emission.masses - exact.masses).abs().max())
        found["lse_error"] = float((emission.lse - exact.lse).abs().max())
    return found


def _sequences(batch: AttentionBatch) -> torch.Tensor:
    """Sequence of each query row."""
    lengths = batch.query_starts.diff()
    index = torch.arange(len(lengths), device=lengths.device)
    return index.repeat_interleave(lengths)


def _edited(case: Case, problem: Problem, longest: int) -> AttentionBatch:
    """Sequences alternate between programs 1, 2 and none; prompts are edited from their middle."""
    device, sequences = problem.query.device, len(problem.batch.context_lens)
    tables = Tables.make(problem.heads, PROGRAMS[case.program], 2, sequences, longest + 64, device)
    tags = tables.tags.tags
    drawn = torch.randint(0, case.classes, tags.shape, device=device)
    tags[1:] = drawn[1:].to(tags.dtype)
    if case.hide:
        tags[1:][torch.rand(tags[1:].shape, device=device) < 0.2] = NEVER_ATTEND
        tags[1:, :, 0] = 0  # somebody is always left
        tables.tags.hides[1:] = 1
        tables = replace(tables, edits=tuple(edit | Edit.HIDE for edit in tables.edits))
    tables.tags.weights[1:] = torch.randn(tables.tags.weights[1:].shape, device=device)
    if case.own:
        tables = tables.with_per_head_classes()
        own = tables.tags.per_head
        assert own is not None
        own.rows[::2] = 0
        own.heads[:] = torch.rand(own.heads.shape, device=device) < 0.5
        own.heads[0] = 0
        own.classes.copy_(torch.randint(0, PER_HEAD_CLASSES, own.classes.shape, device=device))
    batch = problem.edited(tables, [(i + 1) % 3 for i in range(sequences)], late=True)
    return replace(batch, classes=case.classes)


def _sdpa_error(problem: Problem) -> float:
    """The worst relative error of torch's attention on these numbers, decode and causal."""
    worst, query = 0.0, problem.query
    for sequence in range(len(problem.batch.context_lens)):
        key, value = dense(problem, sequence)
        group = query.shape[1] // key.shape[1]
        length = key.shape[2]
        key, value = (t.repeat_interleave(group, 1) for t in (key, value))
        rows = torch.randn(1, query.shape[1], length, query.shape[2], device=query.device)
        rows = rows.to(query.dtype)
        causal: dict[str, Any] = {"is_causal": True}
        for q, how in ((query[:1].transpose(0, 1)[None], {}), (rows, causal)):
            with sdpa_kernel(FLASH) if q.is_cuda else nullcontext():
                got = F.scaled_dot_product_attention(q, key, value, **how)
            wide = (t.double() for t in (q, key, value))
            worst = max(worst, error(got, F.scaled_dot_product_attention(*wide, **how)))
    return worst


def error(got: torch.Tensor, wanted: torch.Tensor) -> float:
    """||got - wanted|| / ||wanted||, or :data:`NOT_FINITE`."""
    if not bool(torch.isfinite(got).all()):
        return NOT_FINITE
    return float((got.double() - wanted.double()).norm() / wanted.double().norm())


@contextmanager
def poisoned() -> Iterator[None]:
    """Fresh memory is NaN, also what the op allocates itself."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)
