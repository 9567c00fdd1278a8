"""Candidates and their saliency behind padded steps: stages that go back through the layers.

    candidates   the pools, and the gradients of their losses by the last layer's output
    layers       back through some layers, from what the stage before has left; the highest first
    saliency     what the layers that count have given

A step plays as many stages of layers as the lowest layer of its rules asks for, so the graphs of
one depth serve every rule. Which layers count, and which keys, is written for each row; candidates
are always :data:`CANDIDATES`, of which the host takes as many as the row's rule has. Each stage has
two forms: for rows without edits, and for edits of any kind. What fits neither (a rule with more
candidates, key classes of single heads, more rows than the largest size) is queued as it is behind
other steps.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Batch
from dataclasses import dataclass
from typing import Any, NamedTuple
from weakref import ref

import numpy as np
import torch
from numpy.typing import NDArray

from saccade_interventions.phases import Phase
from saccade_interventions.rules import SaliencyRule
from saccade_kernels import ops
from saccade_kernels.batch import PAGE, AttentionBatch
from saccade_kernels.controls import CLASSES, Edit
from saccade_server.engine.batch import Ints
from saccade_server.engine.outputs import StepOutputs
from saccade_server.engine.rules.base import EngineParts
from saccade_server.engine.rules.candidates import first_key, pool_of, pool_params
from saccade_server.engine.sampler import OFF, Columns
from saccade_server.engine.seats import Roster
from saccade_server.engine.sequence import Sequence
from saccade_server.engine.stages import Parameter, Stage, StepRows, doubling
from saccade_server.engine.transfer import Layout
from saccade_server.models.attention import ForwardStep
from saccade_server.models.gradient import Region, Rows, layer_gradient, share, top_gradient
from saccade_server.models.residual import Reach, ResidualStep

CANDIDATES = 8
"""Candidates of every row: a tile of tensor cores has room for as many whatever fewer there are."""

MOST_ROWS = 8
"""Rows of the largest size, where contexts are not long."""

ROOM = 2**28
"""Bytes of a layer's saliency, float32 for each row, candidate, head and key."""

LAYERS = 2
"""Layers of a stage."""


@dataclass(frozen=True)
class Judging:
    """The rows of a roster whose candidates are judged, and what is the same in all its steps."""

    sequences: tuple[Sequence, ...]
    rows: Ints
    lowest: int  # layer that counts
    first: Ints  # of the keys J
    behind: Ints  # how many rows before the predictor's own J ends: 0 if it counts itself, else 1
    counts: NDArray[np.uint8]  # [rows, layers]: whose saliency counts
    columns: NDArray[np.float64]  # of the sampler, [rows, 5]


class Inputs(NamedTuple):
    """Parameters of a stage's rows."""

    row: Any  # int64: of the step
    start: Any  # int64: first key of J
    end: Any  # int64: behind its last
    counts: Any  # uint8 [layers]
    columns: Any  # float64 [5]
    positions: Any  # int64 [axes]
    context_lens: Any  # int32
    control_rows: Any  # int32
    tag_rows: Any  # int32
    page_table: Any  # int32 [pages]


class Passes:
    """What the stages share: memory of their own, and the rows of the step that is written."""

    def __init__(self, parts: EngineParts, outputs: StepOutputs) -> None:
        model = parts.model
        self.parts, self.outputs = parts, outputs
        self.max_len = parts.tables.tags.tags.shape[2]
        wide = torch.promote_types(model.dtype, torch.float32)
        row = CANDIDATES * model.heads * self.max_len * torch.float32.itemsize
        fits = max(min(ROOM // row, MOST_ROWS, outputs.most), 1)
        self.sizes = tuple(size for size in doubling(fits) if size <= fits)
        self.most = most = self.sizes[-1]
        self.count = min(CANDIDATES, model.vocab_size)
        kind = np.float64 if wide == torch.float64 else np.float32
        shape = (most, self.count)
        self.fields = Layout([(shape, np.int64), *[(shape, kind)] * 3, (shape, np.uint8)])
        device = model.device
        self.found = torch.zeros(self.fields.size, dtype=torch.uint8, device=device)
        self.results = self.fields.tensors(self.found)
        self.back = torch.zeros((most * self.count, model.hidden_size), dtype=model.dtype)
        self.back = self.back.to(device)
        splits = -(-self.max_len // PAGE)
        self.shares = torch.zeros((model.layers, *shape, splits, 2), dtype=wide, device=device)
        self.starts = torch.arange(most + 1, dtype=torch.int32, device=device)
        self.places = torch.arange(most, device=device)
        self.written: Judging | None = None
        self._rows: Callable[[], StepRows | None] = lambda: None
        self._is_edited = False

    def take(self, sequences: Batch[Sequence]) -> Judging | None:
        """What stages go back through behind the step of these sequences; None: nothing.

        A step that failed, of others, may have left what was written for it.
        """
        found, self.written = self.written, None
        return found if found is not None and found.sequences == tuple(sequences) else None

    def forget(self, sequence: Sequence) -> None:
        """Drop what a step that failed has left, if it is of this sequence."""
        if self.written is not None and sequence in self.written.sequences:
            self.written = None

    def asked(self, roster: Roster) -> Judging | None:
        """What of a roster is judged; None if nothing is, or stages cannot."""
        if self not in roster.noted:
            roster.noted[self] = self._judging(roster)
        found: Judging | None = roster.noted[self]
        return found

    def edits(self, judging: Judging, rows: StepRows) -> bool:
        """True if some of these rows of a step are edited."""
        if self._rows() is not rows:  # once for all stages of a step
            tables = self.parts.tables
            controls = set(rows.inputs.control_rows[judging.rows].tolist())
            found = tables.edits(controls, rows.roster.hides)
            self._is_edited = bool(found) or tables.residual_step(controls) is not None
            self._rows = ref(rows)
        return self._is_edited

    def _judging(self, roster: Roster) -> Judging | None:
        if self.parts.tables.invariant:
            return None  # one row at a time, whose products are then of its own shape
        found: list[tuple[int, SaliencyRule]] = []
        for row, sequence in enumerate(roster.sequences):
            plan = sequence.plan
            rule = None if plan is None else plan.rule(SaliencyRule)
            if plan is None or rule is None or sequence.leader is not None:
                continue
            if rule.candidates > self.count or Phase.GENERATED in plan.needs.per_head_classes:
                return None
            found.append((row, rule))
        if not found or len(found) > self.most:
            return None
        counts = np.zeros((len(found), self.parts.model.layers), np.uint8)
        for place, (_, rule) in enumerate(found):
            counts[place, list(rule.layers)] = 1
        params = [pool_params(roster.requests[row].sampling) for row, _ in found]
        plans = [(roster.sequences[row].plan, rule) for row, rule in found]
        return Judging(
            sequences=tuple(roster.sequences[row] for row, _ in found),
            rows=np.array([row for row, _ in found], np.int64),
            lowest=min(min(rule.layers) for _, rule in found),
            first=np.array([first_key(plan, rule) for plan, rule in plans], np.int64),
            behind=np.array([not rule.with_self for _, rule in found], np.int64),
            counts=counts,
            columns=Columns.table(params, [0.0] * len(params)).T.copy(),
        )


class _SaliencyStage(Stage):
    """One form of one of the stages."""

    def __init__(self, passes: Passes, edited: bool, name: str) -> None:
        self.name = f"{name} of edited rows" if edited else name
        self.sizes = passes.sizes
        self.parameters = ()
        self._passes, self._edited = passes, edited
        parts = passes.parts
        sites = Reach.EVERYWHERE.sites(parts.model.layers)
        self._residuals = ResidualStep(parts.tables.residuals, sites) if edited else None

    def asked(self, roster: Roster) -> Judging | None:
        """See :class:`Stage`."""
        return self._passes.asked(roster)

    def write(self, parameters: list[NDArray[Any]], asked: Judging, rows: StepRows) -> int:
        """See :class:`Stage`."""
        return len(asked.rows) if self._passes.edits(asked, rows) == self._edited else 0

    def _rows(self, inputs: Inputs, size: int) -> Rows:
        parts, every = self._passes.parts, Edit.SCORE | Edit.MASS | Edit.HEAD | Edit.HIDE
        batch = AttentionBatch(
            slots=inputs.row,
            query_starts=self._passes.starts[: size + 1],
            context_lens=inputs.context_lens,
            page_table=inputs.page_table,
            num_decodes=size,
            max_context=self._passes.max_len,
            control_rows=inputs.control_rows,
            tag_rows=inputs.tag_rows,
            edits=(every,) * parts.model.layers if self._edited else (),
            classes=CLASSES if self._edited else 1,
            controls=parts.tables.controls if self._edited else None,
            tags=parts.tables.tags if self._edited else None,
        )
        step = ForwardStep(batch, parts.keys, parts.values, residuals=self._residuals)
        tape, positions = self._passes.outputs.tape, inputs.positions.T.contiguous()
        return Rows(step, positions, tape, inputs.row)


class CandidatesStage(_SaliencyStage):
    """Pools, and where going back begins. Padding is the buffers' last row, and sees no key."""

    def __init__(self, passes: Passes, edited: bool) -> None:
        super().__init__(passes, edited, "candidates")
        model, pages = passes.parts.model, -(-passes.max_len // PAGE)
        idle = (0.0, 1.0, 0.0, OFF, 1.0)
        self.parameters = (
            Parameter(np.int64, passes.outputs.most),
            Parameter(np.int64),
            Parameter(np.int64),
            Parameter(np.uint8, 0, (model.layers,)),
            Parameter(np.float64, idle, (len(idle),)),
            Parameter(np.int64, 0, (model.axes,)),
            *[Parameter(np.int32)] * 3,
            Parameter(np.int32, 0, (pages,)),
        )

    def write(self, parameters: list[NDArray[Any]], asked: Judging, rows: StepRows) -> int:
        """See :class:`Stage`."""
        count = super().write(parameters, asked, rows)
        if not count:
            return 0
        self._passes.written = asked
        inputs, at, step = Inputs(*parameters), asked.rows, rows.inputs
        values = Inputs(
            row=at,
            start=asked.first,
            end=rows.starts[at] + 1 - asked.behind,
            counts=asked.counts,
            columns=asked.columns,
            positions=step.positions[:, at].T,
            context_lens=step.context_lens[at],
            control_rows=step.control_rows[at],
            tag_rows=step.tag_rows[at],
            page_table=step.page_table[at],
        )
        for array, value in zip(inputs, values, strict=True):
            array[:count] = value
        return count

    def compute(self, parameters: list[torch.Tensor], size: int) -> None:
        """See :class:`Stage`."""
        passes, inputs = self._passes, Inputs(*parameters)
        logits = passes.outputs.logits.index_select(0, inputs.row)
        columns = Columns(*inputs.columns.T[:, :, None])
        left = logits.clone()
        ops.mask_rows(left, passes.places[:size], passes.outputs.allowed, inputs.row)
        found = pool_of(left, logits, columns, passes.count)
        for result, value in zip(passes.results, found, strict=False):
            result[:size].copy_(value)
        back = top_gradient(passes.parts.model, self._rows(inputs, size), found[0])
        passes.back[: len(back)].copy_(back)


class LayersStage(_SaliencyStage):
    """Back through some layers."""

    def __init__(self, passes: Passes, first: CandidatesStage, layers: range) -> None:
        edited = first._edited
        super().__init__(passes, edited, f"back through layers {layers.start} to {layers[-1]}")
        self.reads = first.name
        self._layers = layers

    def asked(self, roster: Roster) -> Judging | None:
        """See :class:`Stage`."""
        found = super().asked(roster)
        return found if found is not None and found.lowest < self._layers.stop else None

    def compute(self, parameters: list[torch.Tensor], size: int) -> None:
        """See :class:`Stage`."""
        passes, decoder = self._passes, self._passes.parts.model.decoder
        inputs = Inputs(*parameters)
        rows, region = self._rows(inputs, size), _region(inputs)
        place = passes.back[: size * passes.count]
        back, rotations = place, decoder.rotations(rows.positions, place.dtype)
        for index in reversed(self._layers):
            layer = decoder.layers[index]
            turn = rotations[layer.rotary]
            back, saliency = layer_gradient(layer, back, rows, turn, on=index > 0)
            shares = region.parts(saliency, layer, rows)
            passes.shares[index, :size, :, : shares.shape[2]].copy_(shares)
        place.copy_(back)


class ShareStage(_SaliencyStage):
    """Saliency of candidates."""

    def __init__(self, passes: Passes, first: CandidatesStage) -> None:
        super().__init__(passes, first._edited, "saliency")
        self.reads = first.name

    def compute(self, parameters: list[torch.Tensor], size: int) -> None:
        """See :class:`Stage`."""
        inputs, passes = Inputs(*parameters), self._passes
        region = _region(inputs)
        judged = share(passes.shares[:, :size], region.start, region.end, region.counts)
        passes.results[3][:size].copy_(judged.saliency)
        passes.results[4][:size].copy_(judged.evidence)


def _region(inputs: Inputs) -> Region:
    return Region(inputs.start, inputs.end, inputs.counts > 0)


def saliency_stages(passes: Passes) -> Batch[Stage]:
    """Those of both forms, in the order in which they run."""
    found: list[Stage] = []
    depth = passes.parts.model.layers
    for edited in (False, True):
        first = CandidatesStage(passes, edited)
        starts = range(0, depth, LAYERS)
        layers = [range(start, min(start + LAYERS, depth)) for start in starts]
        found += [first, *(LayersStage(passes, first, some) for some in reversed(layers))]
        found.append(ShareStage(passes, first))
    return found
