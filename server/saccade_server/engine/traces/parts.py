"""Rows of a step by themselves: each is a decode of a batch that nothing is stored by."""

from __future__ import annotations

from collections.abc import Sequence as Batch
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from saccade_kernels.batch import PAGE, AttentionBatch
from saccade_kernels.tables import TagTable
from saccade_server.engine.batch import edits_of
from saccade_server.engine.rules.base import EngineParts
from saccade_server.engine.traces.base import Traced
from saccade_server.models.attention import ForwardStep


def as_decodes(parts: EngineParts, traced: Batch[Traced[Any]]) -> tuple[ForwardStep, torch.Tensor]:
    """A step of these rows, in order, and their rotary positions, int64 [axes, rows].

    Keys behind a row are in the cache already where its chunk has more rows; its context ends with
    its own. Nobody needs to know its token.
    """
    tables, sequences = parts.tables, [one.sequence for one in traced]
    at = np.concatenate([np.arange(one.start, one.end) for one in traced])
    counts = [one.end - one.start for one in traced]
    runs = [one.sequence.control_runs(one.start, one.end) for one in traced]
    controls = [[row for row, _ in some] for some in runs]
    pages = np.zeros((len(at), int(at.max()) // PAGE + 1), np.int32)
    for one, end in zip(traced, np.cumsum(counts).tolist(), strict=True):
        held = one.sequence.pages[: (one.end - 1) // PAGE + 1]
        pages[end - (one.end - one.start) : end, : len(held)] = held
    tags = [sequence.tag_row for sequence in sequences]
    edits = edits_of(tables, [one.chunk for one in traced], controls)
    positions = [parts.positions(one.sequence).slice(one.start, one.end) for one in traced]
    sent = parts.upload(
        pages[np.arange(len(at)), at // PAGE].astype(np.int64) * PAGE + at % PAGE,
        np.arange(len(at) + 1, dtype=np.int32),
        (at + 1).astype(np.int32),
        pages,
        np.concatenate([np.repeat(*np.array(some, np.int32).T) for some in runs]),
        np.repeat(np.array(tags, np.int32), counts),
        np.concatenate(positions, axis=1),
    )
    batch = AttentionBatch(
        slots=sent[0],
        query_starts=sent[1],
        context_lens=sent[2],
        page_table=sent[3],
        num_decodes=len(at),
        max_context=int(at.max()) + 1,
        control_rows=sent[4],
        tag_rows=sent[5],
        edits=edits,
        classes=tables.classes(tags) if edits else 1,
        per_head_classes=bool(edits) and any(_has_per_head_classes(one) for one in traced),
        controls=tables.controls if edits else None,
        tags=_uncounted(tables.tags) if edits else None,
    )
    edited = tables.residual_step({row for some in controls for row in some})
    return ForwardStep(batch, parts.keys, parts.values, residuals=edited), sent[6]


def _uncounted(tags: TagTable) -> TagTable:
    """The same table; rows whose masses move have been counted in their step."""
    return replace(tags, moved=torch.empty_like(tags.moved))


def _has_per_head_classes(one: Traced[Any]) -> bool:
    plan = one.sequence.plan
    if plan is None or not plan.needs.per_head_classes:
        return False
    phases = plan.phases_of(one.start, one.end)
    return any(phase in plan.needs.per_head_classes for phase, _ in phases)
