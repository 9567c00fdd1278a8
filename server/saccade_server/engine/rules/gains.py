"""Gains that are measured while a prompt runs: who is measured in a step, and what was found.

A plan with MeasuredGains brings a branch without the images. The step in which the last prompt
rows of both run measures them, layer by layer on the device (models/reinforce.py), and writes the
gains into the control rows of the phases they act on. These rows are the sequence's own (rows.py)
and stay with it, so from the next step on it is a sequence like any other: decodes, captured or
not, and prompts recomputed after preemption follow the rows and measure nothing. The branch has
left by then.

Chunked prefill and prefix caching stay exact:

- Rows that a gain acts on come either behind the measurement or in its own step. If gains act on
  rows before the last of the prompt, the whole prompt and the branch's are one step
  (Plan.whole_prompt); otherwise no row before the last depends on them, and both prompts are
  chunked, and find cached prefixes, as they would without gains.
- Keys of pages from the first such row on name the sequence (prefix.py): only it can find them.

Preemption is exact but for rounding. In the measuring step attention has rounded a head's output to
the model's dtype before the gain multiplies it, because what is compared must not have the gain;
a row that is recomputed gets it from the tables, before the output is rounded. In 16 bits the two
may be one rounding apart, and are equal where the gain is a power of two, such as the paper's.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence as Batch
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from msgspec.structs import replace
from numpy.typing import NDArray

from saccade_interventions.plan import Plan
from saccade_interventions.rules import MeasuredGains, MeasuredHeads
from saccade_kernels.divergence import Reactivity
from saccade_server.engine.batch import Ints, Step
from saccade_server.engine.chunk import Chunk
from saccade_server.engine.combined import Combined
from saccade_server.engine.rules.base import Asked, EngineParts, News, RuleHandler
from saccade_server.engine.sequence import Sequence
from saccade_server.engine.transfer import Download
from saccade_server.models.reinforce import Findings, HeadReinforcement


@dataclass(frozen=True)
class Pair:
    """The chunks that hold the last prompt rows of a sequence and of its branch."""

    rule: MeasuredGains
    chunk: Chunk
    start: int  # first row of the chunk in the step
    branch: Chunk
    branch_start: int

    @property
    def plan(self) -> Plan:
        """The plan of the sequence."""
        assert self.chunk.sequence.plan is not None
        return self.chunk.sequence.plan

    @property
    def last_rows(self) -> tuple[int, int]:
        """Rows in the step of the last prompt tokens."""
        own, other = self.chunk, self.branch
        return (
            self.start + own.sequence.prompt_length - 1 - own.start,
            self.branch_start + other.sequence.prompt_length - 1 - other.start,
        )

    def rows(self) -> Ints:
        """Rows in the step that get the gains, the branch's too if they act there.

        Behind the images both prompts are the same, so a branch's row is in the phase of the row
        as far from the end.
        """
        shift = self.chunk.sequence.prompt_length - self.branch.sequence.prompt_length
        rows = [self._amplified(self.chunk, self.start, 0)]
        if self.rule.both:
            rows.append(self._amplified(self.branch, self.branch_start, shift))
        return np.concatenate(rows)

    def _amplified(self, chunk: Chunk, start: int, shift: int) -> Ints:
        phases = self.plan.phases_of(chunk.start + shift, chunk.end + shift)
        follows = np.repeat(
            [phase in self.rule.phases for phase, _ in phases], [count for _, count in phases]
        )
        return start + np.flatnonzero(follows)

    def control_rows(self) -> Ints:
        """Rows of the control tables that get the gains."""
        held = self.chunk.sequence.control_rows
        return np.unique([held[phase] for phase in self.rule.phases]).astype(np.int64)


@dataclass(frozen=True)
class GainLook:
    """What a step measures: a measure for each different rule, and the pairs it is for."""

    probes: ClassVar[tuple[()]] = ()
    tape: ClassVar[None] = None
    measures: tuple[HeadReinforcement, ...]
    pairs: tuple[tuple[Pair, ...], ...]


class GainReports(News):
    """What a step measures of some sequences, on its way to the host."""

    def __init__(self, look: GainLook) -> None:
        self._parts = [
            (pairs, Download([m.findings.divergence, m.findings.selected]))
            for m, pairs in zip(look.measures, look.pairs, strict=True)
        ]

    def note(self) -> None:
        """Note it in the sequences; waits for the device."""
        for pairs, download in self._parts:
            divergence, selected = (tensor.numpy() for tensor in download.wait())
            for index, pair in enumerate(pairs):
                found = describe_heads(pair.rule, divergence[index], selected[index])
                pair.chunk.sequence.findings[MeasuredHeads] = found


class GainHandler(RuleHandler[MeasuredGains]):
    """Builds the measures of each step."""

    kind = MeasuredGains

    def __init__(self, parts: EngineParts) -> None:
        super().__init__(parts)
        self._tried: set[Sequence] = set()

    def look(self, step: Step, asked: Batch[Asked[MeasuredGains]]) -> GainLook | None:
        """One measure for each different rule of the step's pairs; if it must be, for each pair."""
        groups: dict[tuple[MeasuredGains, Chunk | None], list[Pair]] = defaultdict(list)
        for pair in _pairs(step, asked):
            self._clear(pair)
            # Who asked and for which rows is in the index tensors.
            rule = replace(pair.rule, phases=(), source=0)
            groups[rule, pair.chunk if self.parts.tables.invariant else None].append(pair)
        if not groups:
            return None
        measures = (self._measure(rule, pairs) for (rule, _), pairs in groups.items())
        return GainLook(tuple(measures), tuple(map(tuple, groups.values())))

    def launched(
        self, rows: Combined, asked: Batch[Asked[MeasuredGains]], look: GainLook | None
    ) -> GainReports | None:
        """What the measures of the step will have found."""
        return None if look is None else GainReports(look)

    def forget(self, sequence: Sequence) -> None:
        """Drop what is kept for a sequence."""
        self._tried.discard(sequence)

    def _clear(self, pair: Pair) -> None:
        """Take back the gains that a step wrote which failed later on."""
        sequence = pair.chunk.sequence
        if sequence in self._tried:
            for phase in pair.rule.phases:
                self.parts.tables.write_heads(sequence.control_rows[phase], pair.plan.packed(phase))
        self._tried.add(sequence)

    def _measure(self, rule: MeasuredGains, pairs: list[Pair]) -> HeadReinforcement:
        shape = self.parts.tables.shape
        rows = [pair.rows() for pair in pairs]
        controls = [pair.control_rows() for pair in pairs]
        last = np.array([pair.last_rows for pair in pairs], dtype=np.int64).reshape(-1, 2)
        index = self.parts.upload(last[:, 0], last[:, 1], *_flat(rows), *_flat(controls))
        size = (len(pairs), shape.layers, shape.heads)
        return HeadReinforcement(
            layers=frozenset(range(shape.layers) if rule.report else rule.layers),
            amplified=frozenset(rule.layers),
            gain=rule.gain,
            reactivity=Reactivity(rule.drop_outliers, rule.population, rule.relative),
            with_image=index[0],
            without=index[1],
            rows=index[2],
            row_pairs=index[3],
            control_rows=index[4],
            control_pairs=index[5],
            controls=self.parts.tables.controls,
            findings=Findings(
                divergence=torch.zeros(size, dtype=torch.float32, device=self.parts.device),
                selected=torch.zeros(size, dtype=torch.uint8, device=self.parts.device),
            ),
        )


def describe_heads(
    rule: MeasuredGains, divergence: NDArray[np.float32], selected: NDArray[np.uint8]
) -> MeasuredHeads:
    """What was found of one sequence; both arrays are [layers, heads]."""
    heads = tuple((layer, tuple(np.flatnonzero(selected[layer]).tolist())) for layer in rule.layers)
    if not rule.report:
        return MeasuredHeads(heads, source=rule.source)
    largest = np.sort(divergence, axis=1)[:, -rule.report :]
    table = tuple(tuple(row) for row in divergence.tolist())
    return MeasuredHeads(heads, table, float(largest.sum(dtype=np.float64)), source=rule.source)


def _pairs(step: Step, asked: Batch[Asked[MeasuredGains]]) -> list[Pair]:
    """The sequences that are measured in the step: that of the last prompt row of their branch."""
    places = {chunk.sequence: i for i, chunk in enumerate(step.chunks)}
    pairs = []
    for a in asked:
        branch = next((s for s in a.chunk.sequence.branches if s.measures), None)
        at = None if branch is None else places.get(branch)
        if at is not None and step.chunks[at].end == step.chunks[at].sequence.prompt_length:
            starts = step.starts[a.at], step.starts[at]
            pairs.append(Pair(a.rule, a.chunk, starts[0], step.chunks[at], starts[1]))
    return pairs


def _flat(rows: list[Ints]) -> tuple[Ints, Ints]:
    """All rows, and the pair that each belongs to."""
    pairs = np.repeat(np.arange(len(rows)), [len(some) for some in rows])
    return np.concatenate(rows), pairs
