"""Saliency |A dL/dA| of one row, for several candidate tokens, against autograd through eager."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch

from gpu import backend
from gpu.problems import LAYER, Problem, Tables, make_problem, var_program
from gpu.session import Figures, Session
from gpu.shapes import GQA, MHA, TINY_GQA, TINY_MHA, Heads
from gpu.targets import SALIENCY

CANDIDATES = 5

PEERS = {
    "autograd, prompt again for each candidate": (False, True),
    "autograd, prompt once": (False, False),
    "autograd, one row over cached keys": (True, False),
}
"""By (only the row, forward again for each). The first is what released code does."""


def run_saliency(session: Session, found: Figures) -> None:
    """One layer, launched as it comes on both sides: autograd cannot be put into a graph here."""
    contexts = (80,) if session.dry else (1024, 4096)
    for context in contexts:
        for heads in (TINY_MHA, TINY_GQA) if session.dry else (MHA, GQA):
            name = f"{heads.name} 1x{context}"
            one = partial(_one_shape, session, heads=heads, context=context)
            session.measure(found, name, 10, one)


def _one_shape(session: Session, cell: Figures, heads: Heads, context: int) -> None:
    problem = make_problem(heads, [1], [context], session.device, torch.bfloat16)
    ours = session.time(cell, "ours", [saliency_call(session, problem, False)], False)
    session.time(cell, "ours, in a graph", [saliency_call(session, problem, False)])
    edited = [saliency_call(session, problem, True)]
    session.time(cell, "ours, under a mass edit", edited, False)
    for label, (row, again) in PEERS.items():
        peer = session.time(cell, label, [_autograd(problem, row, again)], False)
        if peer is None or ours is None:
            continue
        cell[label]["of_ours"] = peer / ours
        if again and context <= 1024:
            session.reach(SALIENCY, peer / ours)
    session.say(f"saliency {heads.name} 1x{context}:", {k: v.get("us") for k, v in cell.items()})


def saliency_call(session: Session, problem: Problem, edited: bool) -> Callable[[], object]:
    """The op for :data:`CANDIDATES` losses."""
    heads, batch = problem.heads, problem.batch
    if edited:
        length = batch.page_table.shape[1] * 64
        tables = Tables.make(heads, var_program, 1, 1, length, session.device)
        batch = problem.edited(tables, [1])
    used = replace(batch, derived={})
    grads = _grad_outputs(problem)
    key, value = problem.sets[0]
    return lambda: backend.saliency(problem.query, grads, key, value, used, LAYER, heads.dim**-0.5)


def _grad_outputs(problem: Problem) -> torch.Tensor:
    """dL/do of each candidate, [1, M, heads, dim]."""
    rows, heads, dim = problem.query.shape
    query = problem.query
    return torch.randn(rows, CANDIDATES, heads, dim, device=query.device, dtype=query.dtype)


def _autograd(problem: Problem, row: bool, again: bool) -> Callable[[], object]:
    """Eager attention with kept weights, differentiated once a candidate.

    ``row``: only the last row is computed, over cached keys; otherwise the whole prompt is.
    ``again``: the forward is repeated for each candidate.
    """
    heads = problem.heads
    context = int(problem.batch.context_lens[0])
    queries = 1 if row else context
    device, dtype = problem.query.device, problem.query.dtype
    draw = {"device": device, "dtype": dtype}
    query = torch.randn(heads.heads, queries, heads.dim, **draw, requires_grad=True)
    key, value = (
        torch.randn(heads.heads, context, heads.dim, **draw, requires_grad=True) for _ in range(2)
    )
    grads = torch.randn(CANDIDATES, heads.heads, heads.dim, **draw)
    hidden = torch.ones(queries, context, device=device, dtype=torch.bool).triu(
        context - queries + 1
    )
    mask = torch.zeros(queries, context, **draw).masked_fill_(hidden, torch.finfo(dtype).min)

    def forward() -> tuple[torch.Tensor, torch.Tensor]:
        scores = query @ key.transpose(1, 2) * heads.dim**-0.5 + mask
        weights = scores.softmax(-1, dtype=torch.float32).to(dtype)
        return weights, (weights @ value)[:, -1]

    def call() -> list[torch.Tensor]:
        found = []
        with torch.enable_grad():
            weights, output = forward()
            for index in range(CANDIDATES):
                if again and index:
                    weights, output = forward()
                loss = (output * grads[index]).sum()
                # The gradient of the query is what leads on to lower layers.
                slope, _ = torch.autograd.grad(loss, (weights, query), retain_graph=True)
                found.append((weights[:, -1] * slope[:, -1]).abs())
        return found

    return call
