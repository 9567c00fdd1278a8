"""Key classes of single heads (ACT): what these forms cost over edits by tags, and finding sinks.

An edited pass differs from one by tags in where a head's classes are read, a byte a key and head.
Finding the sinks takes one more op a layer: sums over the query rows of a prompt, or the rows of
attention of a decode, both from normalisers that the plain pass emits on the way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch

from gpu import backend
from gpu.problems import LAYER, LAYERS, Problem, Tables, make_problem, per_head_program
from gpu.session import Figures, Session
from gpu.shapes import GQA, MHA, TINY_GQA, TINY_MHA, Heads
from gpu.timing import L2_BYTES
from saccade_kernels.batch import AttentionBatch, Prefill, Run
from saccade_kernels.controls import Edit

DECODES = ((8, 4096), (32, 1024), (1, 4096))
PREFILLS = ((1, 1024), (1, 4096))


def run_per_head(session: Session, found: Figures) -> None:
    """Decodes and prompts, with half of the heads with classes of their own, and with all."""
    sizes = [(size, True) for size in DECODES] + [(size, False) for size in PREFILLS]
    if session.dry:
        sizes = [((3, 80), True), ((1, 70), False)]
    for (sequences, context), decodes in sizes:
        for heads in (TINY_MHA, TINY_GQA) if session.dry else (MHA, GQA):
            kind = "decode" if decodes else "prefill"
            name = f"{kind} {heads.name} {sequences}x{context}"
            queries = 1 if decodes else context
            one = partial(
                _one_shape,
                session,
                heads=heads,
                sequences=sequences,
                queries=queries,
                context=context,
            )
            cell = session.measure(found, name, 5, one)
            if cell is not None:
                session.say(f"per-head classes, {name}:", {k: v.get("us") for k, v in cell.items()})


def _one_shape(
    session: Session, found: Figures, heads: Heads, sequences: int, queries: int, context: int
) -> None:
    device, rows = session.device, [1] * sequences
    least = L2_BYTES if queries == 1 and not session.dry else 0
    problem = make_problem(
        heads, [queries] * sequences, [context] * sequences, device, torch.bfloat16, least
    )
    length = problem.batch.page_table.shape[1] * 64
    tags = Tables.make(heads, per_head_program, 1, sequences, length, device)
    all_heads, half = tags.with_per_head_classes(), tags.with_per_head_classes()
    assert half.tags.per_head is not None
    half.tags.per_head.heads[..., ::2] = 0
    plain = session.time(found, "plain", problem.calls())
    by_tags = session.time(found, "by tags", problem.calls(problem.edited(tags, rows)))
    for label, tables in (("half of the heads", half), ("all heads", all_heads)):
        batch = problem.edited(tables, rows)
        seconds = session.time(found, label, problem.calls(batch))
        if seconds is not None and by_tags is not None:
            found[label]["against_by_tags"] = seconds / by_tags
    watched = replace(problem.edited(tags, rows), edits=(), prefills=_unedited(problem))
    session.time(found, "plain, emitting", problem.calls(watched, emit=True))
    label = "rows of attention" if queries == 1 else "sums over query rows"
    session.time(found, label, _columns(problem, watched))
    for timing in found.values():
        if plain is not None and "us" in timing:
            timing["against_plain"] = timing["us"] / 1e6 / plain


def _unedited(problem: Problem) -> tuple[Prefill, ...]:
    """What a pass that only looks does: nothing, in every layer."""
    nothing = (Edit.NONE,) * LAYERS
    return tuple(replace(p, runs=(Run(p.queries, 1, nothing),)) for p in problem.batch.prefills)


def _columns(problem: Problem, batch: AttentionBatch) -> list[Callable[[], object]]:
    """The op that looks at attention, from normalisers that are right."""
    query, scale = problem.query, problem.heads.dim**-0.5
    device = query.device
    sequences, decodes = len(batch.context_lens), bool(batch.num_decodes)
    rows = torch.arange(sequences, device=device, dtype=torch.int32)
    wanted = rows if decodes else 0 * rows  # which rows, or from which position on
    used = replace(batch, derived={})
    op = backend.attention_rows if decodes else backend.column_sums
    attend = backend.decode if decodes else backend.prefill

    def bind(key: torch.Tensor, value: torch.Tensor) -> Callable[[], object]:
        emission = problem.emission()
        attend(query, key, value, used, LAYER, scale, emit=emission)
        return lambda: op(query, key, used, LAYER, scale, 0.0, 0, emission.lse, wanted)

    return [bind(key, value) for key, value in problem.sets]
