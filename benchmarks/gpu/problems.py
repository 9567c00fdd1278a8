"""Random attention problems in paged caches, with the edits that published methods make."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from itertools import accumulate

import numpy as np
import torch

from gpu import backend
from gpu.shapes import Heads
from saccade_kernels.batch import PAGE, AttentionBatch, Emission, LayerEdits, Prefill, Run
from saccade_kernels.controls import CLASSES, SINK_CLASS, ControlShape, Edit, Program
from saccade_kernels.residual import ResidualProgram
from saccade_kernels.residual_tables import ResidualTables
from saccade_kernels.tables import ControlTables, PerHeadTable, TagTable

LAYERS = 2
LAYER = 1
"""Of the tables; the one whose edits are timed is not the first, so its offset is no zero."""

TEXT, VISUAL, VISUAL_SINK, TEXT_SINK = range(4)
VAR_CLASSES = 4
IMAGE_START = 35
"""Tokens before the image in LLaVA-1.5's prompt."""


def var_program(shape: ControlShape, fraction: float) -> Program:
    """VAR: sinks give ``fraction`` of their mass to the image's other tokens, behind two gates."""
    program = Program.identity(shape)
    for source in (VISUAL_SINK, TEXT_SINK):
        program.transform[..., source, source] = 1 - fraction
        program.transform[..., VISUAL, source] = fraction
    program.gate_weight[..., 0, [VISUAL, VISUAL_SINK]] = 1.0
    program.gate_threshold[..., 0] = 0.05
    program.gate_weight[..., 1, [VISUAL, VISUAL_SINK]] = [0.5, -0.5]
    program.gate_threshold[..., 1] = 0.0
    return program


def bias_program(shape: ControlShape, strength: float) -> Program:
    """A score edit: image keys count more."""
    program = Program.identity(shape)
    program.bias[..., [VISUAL, VISUAL_SINK]] = strength
    return program


def full_program(shape: ControlShape, strength: float) -> Program:
    """Score, mass and head edits at once."""
    program = var_program(shape, strength)
    program.bias[..., [VISUAL, VISUAL_SINK]] = strength
    program.absolute[..., VISUAL] = 0.1 * strength
    program.gain[:] = 1 + strength
    return program


def per_head_program(shape: ControlShape, fraction: float) -> Program:
    """ACT: a head's own sinks give ``fraction`` of their mass to its other keys."""
    program = Program.identity(shape)
    program.transform[..., SINK_CLASS, SINK_CLASS] = 1 - fraction
    program.transform[..., 0, SINK_CLASS] = fraction
    return program


def even_program(shape: ControlShape, fraction: float) -> Program:
    """The first class gives ``fraction`` of its mass to the second."""
    program = Program.identity(shape)
    program.transform[..., 0, 0] = 1 - fraction
    program.transform[..., 1, 0] = fraction
    return program


def write_row(
    tables: ControlTables | ResidualTables, row: int, program: Program | ResidualProgram
) -> None:
    """Put a program into a row of its tables."""
    for field in fields(program):
        value = torch.from_numpy(getattr(program, field.name))
        getattr(tables, field.name)[row].copy_(value)
    if isinstance(program, Program) and isinstance(tables, ControlTables):
        tables.edits[row].copy_(torch.from_numpy(program.head_edits()))


MakeProgram = Callable[[ControlShape, float], Program]
EDITS: dict[MakeProgram, Edit] = {
    var_program: Edit.MASS,
    bias_program: Edit.SCORE,
    full_program: Edit.SCORE | Edit.MASS | Edit.HEAD,
    per_head_program: Edit.MASS,
    even_program: Edit.MASS,
}


def image_span(length: int) -> tuple[int, int]:
    """The image of a prompt, half of it."""
    start = min(IMAGE_START, length // 4)
    return start, start + length // 2


def image_tags(length: int) -> np.ndarray:
    """Every 97th token of the image and the first of all are sinks."""
    tags = np.zeros(length, np.uint8)
    start, end = image_span(length)
    tags[start:end] = VISUAL
    tags[start:end:97] = VISUAL_SINK
    tags[0] = TEXT_SINK
    return tags


def even_tags(length: int, classes: int) -> np.ndarray:
    """As many spans of equal length as there are classes."""
    return (np.arange(length) * classes // length).astype(np.uint8)


@dataclass(frozen=True)
class Tables:
    """Control rows 1.. of different strengths, and a tag row for each sequence."""

    controls: ControlTables
    tags: TagTable
    edits: LayerEdits

    @classmethod
    def make(
        cls,
        heads: Heads,
        program: MakeProgram,
        programs: int,
        sequences: int,
        length: int,
        device: torch.device,
    ) -> Tables:
        shape = ControlShape(LAYERS, heads.heads, heads.dim)
        controls = ControlTables.allocate(programs + 1, shape, device)
        for row in range(programs):
            write_row(controls, row + 1, program(shape, 0.3 + 0.3 * row / programs))
        tags = TagTable.allocate(sequences + 1, shape, length, device)
        tags.tags[1:] = torch.from_numpy(image_tags(length)).to(device)
        return cls(controls, tags, (EDITS[program],) * LAYERS)

    def with_per_head_classes(self, density: float = 0.02) -> Tables:
        """Every head of every sequence with classes of its own, ``density`` of the keys sinks."""
        tags = self.tags.tags
        rows, _, length = tags.shape
        shape = ControlShape(LAYERS, *self.controls.shift.shape[2:])
        own = PerHeadTable.allocate(rows, rows, shape, length, tags.device)
        own.rows.copy_(torch.arange(rows))
        own.heads[1:] = 1
        own.classes[1:] = torch.rand(own.classes[1:].shape, device=tags.device) < density
        return replace(self, tags=replace(self.tags, per_head=own))


@dataclass(frozen=True)
class Problem:
    """Inputs of one call; ``sets`` hold different keys and values of the same batch."""

    heads: Heads
    query: torch.Tensor
    sets: tuple[tuple[torch.Tensor, torch.Tensor], ...]
    batch: AttentionBatch

    def calls(
        self, batch: AttentionBatch | None = None, emit: bool = False, config: object = None
    ) -> list[Callable[[], torch.Tensor]]:
        """The op on each set; ``batch`` in place of the problem's own."""
        used = replace(batch or self.batch, derived={})
        op = backend.decode if used.num_decodes else backend.prefill
        emission = self.emission() if emit else None
        scale = self.heads.dim**-0.5

        def bind(key: torch.Tensor, value: torch.Tensor) -> Callable[[], torch.Tensor]:
            return lambda: op(
                self.query, key, value, used, LAYER, scale, emit=emission, config=config
            )

        return [bind(key, value) for key, value in self.sets]

    def emission(self) -> Emission:
        """Buffers for what attention saw."""
        rows, heads = self.query.shape[:2]
        device = self.query.device
        return Emission(
            torch.empty(rows, heads, CLASSES, device=device),
            torch.empty(rows, heads, device=device),
        )

    def edited(self, tables: Tables, rows: Sequence[int], late: bool = False) -> AttentionBatch:
        """Sequence i follows control row ``rows[i]`` in all its query rows; 0: none.

        ``late``: prompts only in the second half of their query rows.
        """
        behind = zip(self.batch.prefills, rows[self.batch.num_decodes :], strict=True)
        return self._with_runs(
            tables, rows, [_runs(p.queries, row, tables, late) for p, row in behind]
        )

    def edited_question(self, tables: Tables, question: int, split: bool = True) -> AttentionBatch:
        """Only the last ``question`` query rows of each prefill follow control row 1.

        ``split``: they may be split over their keys.
        """
        span = question if split else 0
        runs = [
            (Run(p.queries - question, 0), Run(question, 1, tables.edits, span))
            for p in self.batch.prefills
        ]
        return self._with_runs(tables, [1] * len(runs), runs)

    def _with_runs(
        self, tables: Tables, rows: Sequence[int], runs: Sequence[tuple[Run, ...]]
    ) -> AttentionBatch:
        device, batch = self.query.device, self.batch
        decodes = list(rows[: batch.num_decodes])
        behind = [run.control_row for some in runs for run in some for _ in range(run.rows)]
        return replace(
            batch,
            control_rows=_int32([*decodes, *behind], device),
            tag_rows=_int32([i + 1 if row else 0 for i, row in enumerate(rows)], device),
            edits=tables.edits if any(decodes) else (),
            prefills=tuple(
                replace(p, runs=some) for p, some in zip(batch.prefills, runs, strict=True)
            ),
            classes=VAR_CLASSES,
            per_head_classes=tables.tags.per_head is not None,
            controls=tables.controls,
            tags=tables.tags,
            derived={},
        )


def _runs(queries: int, row: int, tables: Tables, late: bool) -> tuple[Run, ...]:
    if not row:
        return (Run(queries, 0),)
    if not late:
        return (Run(queries, row, tables.edits),)
    hides = tuple(edit & Edit.HIDE for edit in tables.edits)  # of all rows, or of none
    first = Run(queries // 2, 0, hides if any(hides) else ())
    rows = queries - queries // 2
    return (first, Run(rows, row, tables.edits, span=rows))


def make_problem(
    heads: Heads,
    queries: Sequence[int],
    contexts: Sequence[int],
    device: torch.device,
    dtype: torch.dtype,
    least_bytes: float = 0.0,
) -> Problem:
    """Sequences with one query row first. Keys and values of ``least_bytes`` at least, in sets."""
    pages = [-(-context // PAGE) for context in contexts]
    total = sum(pages)
    order = (torch.randperm(total) + 1).to(torch.int32)  # page 0 is padding
    table = torch.zeros(len(contexts), max(pages), dtype=torch.int32)
    for sequence, (end, count) in enumerate(zip(accumulate(pages), pages, strict=True)):
        table[sequence, :count] = order[end - count : end]
    size = (total + 1, PAGE, heads.kv_heads, heads.dim)
    one = 2 * total * PAGE * heads.kv_heads * heads.dim * dtype.itemsize
    count = max(1, min(64, -int(-least_bytes // one)))
    sets = tuple((_normal(size, device, dtype), _normal(size, device, dtype)) for _ in range(count))
    decodes = next((i for i, n in enumerate(queries) if n > 1), len(queries))
    slots = torch.cat(
        [
            table[s, at // PAGE].long() * PAGE + at % PAGE
            for s, (context, n) in enumerate(zip(contexts, queries, strict=True))
            for at in [torch.arange(context - n, context)]
        ]
    )
    batch = AttentionBatch(
        slots=slots.to(device),
        query_starts=_int32([0, *accumulate(queries)], device),
        context_lens=_int32(contexts, device),
        page_table=table.to(device),
        num_decodes=decodes,
        max_context=max(contexts[:decodes], default=0),
        control_rows=_int32([0] * sum(queries), device),
        tag_rows=_int32([0] * len(contexts), device),
        prefills=tuple(
            Prefill(n, context, (Run(n, 0),))
            for n, context in zip(queries[decodes:], contexts[decodes:], strict=True)
        ),
    )
    query = _normal((sum(queries), heads.heads, heads.dim), device, dtype)
    return Problem(heads, query, sets, batch)


def dense(problem: Problem, sequence: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A sequence's keys and values as SDPA takes them, [1, kv_heads, context, dim]."""
    context = int(problem.batch.context_lens[sequence])
    pages = problem.batch.page_table[sequence, : -(-context // PAGE)].long()
    key, value = (
        cache[pages].flatten(0, 1)[:context].transpose(0, 1)[None] for cache in problem.sets[0]
    )
    return key, value


def _normal(size: Sequence[int], device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(tuple(size), device=device, dtype=dtype)


def _int32(values: Sequence[int], device: torch.device) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32, device=device)
