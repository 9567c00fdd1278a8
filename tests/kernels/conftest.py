"""Random cases with poisoned memory, and the dense oracle every op is compared with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from itertools import groupby, pairwise

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from saccade_kernels import ops, reference
from saccade_kernels.batch import PAGE, AttentionBatch, LayerEdits, Prefill, Run
from saccade_kernels.controls import (
    CLASSES,
    IDENTITY_ROW,
    KEY_WEIGHTS,
    NEVER_ATTEND,
    ControlShape,
    Edit,
    Program,
)
from saccade_kernels.head_sinks import HeadSinkTables
from saccade_kernels.tables import ControlTables, PerHeadTable, TagTable
from saccade_testing.tables import write_row

LAYERS = 2
SPARE = 3  # pages, control rows and tag rows nobody uses
Floats = NDArray[np.float64]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Keep the tests to one core; no gradients, as in serving."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.no_grad():
        yield
    torch.set_num_threads(threads)


def random_program(shape: ControlShape, classes: int, rng: np.random.Generator) -> Program:
    """All three edits at once, over classes 0..classes-1; about half of the gates hold."""
    program = Program.identity(shape)
    site = (shape.layers, shape.heads)
    program.scale[..., :classes] = 0.3 * rng.normal(size=(*site, classes))
    program.absolute[..., :classes] = 0.3 * rng.normal(size=(*site, classes))
    program.bias[..., :classes] = rng.normal(size=(*site, classes))
    slots = rng.integers(0, 2, (*site, KEY_WEIGHTS))  # some heads leave some out
    program.weight[:] = slots * rng.normal(size=slots.shape)
    transform = rng.random((*site, classes, classes)) ** 3
    program.transform[..., :classes, :classes] = transform / transform.sum(-2, keepdims=True)
    program.gate_weight[..., 0, :classes] = rng.integers(0, 2, (*site, classes))
    program.gate_threshold[..., 0] = 0.5 * rng.random(site)
    program.gain[:] = 1 + 0.3 * rng.normal(size=site)
    program.shift[:] = rng.normal(size=program.shift.shape)
    return program


def with_edits(batch: AttentionBatch, edits: LayerEdits) -> AttentionBatch:
    """The batch, all its rows with these edits, and what the host knows of it made to agree."""
    starts, rows = batch.query_starts.tolist(), batch.control_rows.tolist()
    contexts = batch.context_lens.tolist()
    prefills = [
        Prefill(
            queries=last - first,
            context=contexts[seq],
            runs=tuple(Run(len(list(same)), row, edits) for row, same in groupby(rows[first:last])),
        )
        for seq, (first, last) in enumerate(pairwise(starts))
        if seq >= batch.num_decodes
    ]
    longest = max(contexts[: batch.num_decodes], default=0)
    return replace(batch, edits=edits, prefills=tuple(prefills), max_context=longest, derived={})


def without_edits(batch: AttentionBatch) -> AttentionBatch:
    """The same queries and keys, and no tables."""
    return replace(with_edits(batch, ()), controls=None, tags=None)


@dataclass
class Case:
    """One step: dense per-sequence keys and values, and the same in a poisoned paged cache."""

    query: torch.Tensor
    keys: list[torch.Tensor]  # per sequence [context, kv_heads, head_dim], this step's last
    values: list[torch.Tensor]
    key_cache: torch.Tensor  # without this step's keys
    value_cache: torch.Tensor
    batch: AttentionBatch
    programs: dict[int, Program]

    @property
    def tables(self) -> tuple[ControlTables, TagTable]:
        return self.batch.tables()

    def lengths(self) -> list[int]:
        return self.batch.query_starts.diff().tolist()

    def new(self, history: list[torch.Tensor]) -> torch.Tensor:
        """This step's keys or values, packed; a padded slot's are poison."""
        return torch.cat(
            [
                h[len(h) - n :] if len(h) else h.new_full((n, *h.shape[1:]), torch.nan)
                for h, n in zip(history, self.lengths(), strict=True)
            ]
        )

    def run(
        self, layer: int = 1, batch: AttentionBatch | None = None, **options: float
    ) -> torch.Tensor:
        """reference.store, then ops.attention, over fresh copies of the caches."""
        scale = options.pop("scale", self.query.shape[-1] ** -0.5)
        caches = (self.key_cache.clone(), self.value_cache.clone())
        reference.store(self.new(self.keys), self.new(self.values), *caches, self.batch.slots)
        return ops.attention(
            self.query,
            *caches,
            replace(batch or self.batch, derived={}),
            layer,
            scale,
            **options,  # type: ignore[arg-type]
        )

    def plain(self) -> AttentionBatch:
        """The same batch without any controls."""
        return without_edits(self.batch)

    def write(self, row: int, program: Program) -> None:
        write_row(self.tables[0], row, program)
        self.programs[row] = program


MakeCase = Callable[..., Case]


@pytest.fixture(name="with_edits")
def with_edits_fixture() -> Callable[[AttentionBatch, LayerEdits], AttentionBatch]:
    return with_edits


@pytest.fixture
def make_program() -> Callable[..., Program]:
    return random_program


def with_per_head_classes(case: Case, sequences: tuple[int, ...], seed: int = 5) -> Case:
    """The case, about half of the heads of these sequences with random classes of their own.

    Behind the keys that exist, in the rows of other sequences and in heads that are not listed,
    the tables hold poison.
    """
    rng = np.random.default_rng(seed)
    heads, dim = case.query.shape[1:]
    _, tags = case.tables
    tag_rows, _, max_len = tags.tags.shape
    shape, rows = ControlShape(LAYERS, heads, dim), len(sequences) + 2
    per_head = PerHeadTable.allocate(tag_rows, rows, shape, max_len)
    per_head.rows[:] = rows - 1 if not sequences else 0
    per_head.rows[case.batch.tag_rows.long()] = 0
    per_head.heads[1:] = 1
    per_head.classes[:] = NEVER_ATTEND - 1
    for row, seq in enumerate(sequences, start=1):
        per_head.rows[case.batch.tag_rows[seq]] = row
        listed = rng.random((LAYERS, heads)) < 0.5
        listed[:, rng.integers(heads)] = True
        per_head.heads[row] = torch.from_numpy(listed.astype(np.uint8))
        context = len(case.keys[seq])
        drawn = rng.integers(0, min(3, case.batch.classes), (LAYERS, heads, context))
        per_head.classes[row, ..., :context] = torch.from_numpy(drawn)
        per_head.classes[row][~listed] = NEVER_ATTEND - 1
    batch = replace(case.batch, tags=replace(tags, per_head=per_head), per_head_classes=True)
    case.batch = replace(batch, derived={})
    return case


@pytest.fixture
def per_head() -> Callable[..., Case]:
    """``per_head(case, sequences)``: gives heads of some sequences classes of their own."""
    return with_per_head_classes


@pytest.fixture
def head_sink_tables() -> Callable[..., HeadSinkTables]:
    """``head_sink_tables(case, options, threshold, least)``: all heads apart ask, by one rule.

    Sums are poison; counts are those of nobody.
    """

    def make(case: Case, options: int, threshold: float, least: int) -> HeadSinkTables:
        table = case.tables[1].per_head
        assert table is not None
        rows, layers, heads, max_len = table.classes.shape
        shape = ControlShape(layers, heads, case.query.shape[2])
        tables = HeadSinkTables.allocate(rows, shape, rows * layers * heads * max_len)
        tables.sums.fill_(torch.nan)
        tables.counted.fill_(-7)
        tables.thresholds.fill_(threshold)
        tables.options.fill_(options)
        tables.least_rows.fill_(least)
        places = torch.arange(0, tables.sums.numel(), max_len).view(rows, layers, heads)
        places = torch.where(table.heads.bool(), places.flip(2), -1)
        tables.places.copy_(places)
        return tables

    return make


@pytest.fixture
def make_case() -> MakeCase:
    return build_case


def build_case(
    queries: tuple[int, ...] = (1, 1, 5),
    contexts: tuple[int, ...] = (65, 7, 64),
    heads: int = 4,
    kv_heads: int = 2,
    dim: int = 16,
    classes: int = 4,
    programs: int = 3,
    hide: bool = False,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> Case:
    rng = np.random.default_rng(seed)
    shape = ControlShape(LAYERS, heads, dim)
    seqs, widest = len(contexts), max(-(-c // PAGE) for c in contexts)

    def draw(*size: int) -> torch.Tensor:
        return torch.from_numpy(rng.normal(size=size)).to(dtype)

    keys = [draw(c, kv_heads, dim) for c in contexts]
    values = [draw(c, kv_heads, dim) for c in contexts]
    pages = rng.permutation(np.arange(1, seqs * widest + 1 + SPARE))[: seqs * widest]
    page_table = pages.reshape(seqs, widest)
    for seq, context in enumerate(contexts):  # page tables are padded with page 0
        page_table[seq, -(-context // PAGE) :] = 0
    key_cache = torch.full((seqs * widest + 1 + SPARE, PAGE, kv_heads, dim), torch.nan, dtype=dtype)
    value_cache, slots = key_cache.clone(), []
    for seq, (context, count) in enumerate(zip(contexts, queries, strict=True)):
        position = np.arange(context)
        own = torch.from_numpy(page_table[seq, position // PAGE] * PAGE + position % PAGE)
        key_cache.view(-1, kv_heads, dim)[own[: context - count]] = keys[seq][: context - count]
        value_cache.view(-1, kv_heads, dim)[own[: context - count]] = values[seq][: context - count]
        slots.append(own[context - count :] if context else torch.zeros(count, dtype=torch.int64))

    controls = ControlTables.allocate(1 + programs + SPARE, shape)
    tags = TagTable.allocate(1 + seqs + SPARE, shape, max(contexts) + 9)
    for field in fields(controls):
        poison = 255 if field.name == "edits" else torch.nan
        getattr(controls, field.name)[1 + programs :] = poison
    tags.tags[1:] = torch.from_numpy(rng.integers(0, 256, tags.tags[1:].shape, np.uint8))
    tags.weights[1:] = torch.nan
    tags.hides[1:] = hide
    for seq, context in enumerate(contexts):
        drawn = rng.integers(0, classes, (LAYERS, context))
        if hide:
            drawn[rng.random(drawn.shape) < 0.3] = NEVER_ATTEND
        tags.tags[seq + 1, :, :context] = torch.from_numpy(drawn)
        betas = rng.normal(size=(KEY_WEIGHTS, context))
        tags.weights[seq + 1, :, :context] = torch.from_numpy(betas)
    edits = Edit.SCORE | Edit.MASS | Edit.HEAD | (Edit.HIDE if hide else Edit.NONE)
    batch = AttentionBatch(
        slots=torch.cat(slots),
        query_starts=torch.tensor([0, *np.cumsum(queries)], dtype=torch.int32),
        context_lens=torch.tensor(contexts, dtype=torch.int32),
        page_table=torch.from_numpy(page_table.astype(np.int32)),
        num_decodes=next((i for i, n in enumerate(queries) if n > 1), seqs),
        max_context=0,
        control_rows=torch.from_numpy(rng.integers(0, programs + 1, sum(queries), np.int32)),
        tag_rows=torch.arange(1, seqs + 1, dtype=torch.int32),
        controls=controls,
        tags=tags,
    )
    batch = with_edits(batch, (edits,) * LAYERS)
    query = draw(sum(queries), heads, dim)
    case = Case(query, keys, values, key_cache, value_cache, batch, {})
    case.programs[IDENTITY_ROW] = Program.identity(shape)
    for row in range(1, programs + 1):
        case.write(row, random_program(shape, classes, rng))
    return case


@pytest.fixture
def oracle() -> Callable[..., torch.Tensor]:
    """The contract of controls.py written out: one query row of one head at a time, float64."""
    return dense_attention


@pytest.fixture
def oracle_weights() -> Callable[..., torch.Tensor]:
    """The weights of :func:`oracle`, behind all edits of scores and masses."""
    return dense_weights


def dense_attention(
    case: Case, layer: int = 1, scale: float | None = None, softcap: float = 0.0, window: int = 0
) -> torch.Tensor:
    heads = case.query.shape[1]
    weights = dense_weights(case, layer, scale, softcap, window)
    output = torch.zeros(case.query.shape, dtype=torch.float64)
    for seq, (first, last) in enumerate(pairwise(case.batch.query_starts.tolist())):
        values = case.values[seq].double()
        values = values.repeat_interleave(heads // values.shape[1], 1)
        for row in range(first, last):
            program = case.programs[int(case.batch.control_rows[row])]
            own = torch.einsum("hk,khd->hd", weights[row, :, : len(values)], values)
            gain = torch.from_numpy(program.gain[layer]).double()
            output[row] = own * gain[:, None] + torch.from_numpy(program.shift[layer])
    return output


def dense_weights(
    case: Case, layer: int = 1, scale: float | None = None, softcap: float = 0.0, window: int = 0
) -> torch.Tensor:
    heads, dim = case.query.shape[1:]
    scale = dim**-0.5 if scale is None else scale
    longest = max(case.batch.context_lens.tolist(), default=0)
    found = np.zeros((len(case.query), heads, longest))
    starts = case.batch.query_starts.tolist()
    _, tables = case.tables
    for seq, (first, last) in enumerate(pairwise(starts)):
        keys = case.keys[seq].double().numpy()
        context, group = len(keys), heads // keys.shape[1]
        tag_row = int(case.batch.tag_rows[seq])
        tags = tables.tags[tag_row, layer].numpy()
        betas = tables.weights[tag_row].double().numpy()
        for row in range(first, last):
            program = case.programs[int(case.batch.control_rows[row])]
            position = context - last + row
            seen = np.arange(max(position - window + 1, 0) if window else 0, position + 1)
            seen = seen[tags[seen] != NEVER_ATTEND]
            for h in range(heads):
                z = keys[seen, h // group] @ case.query[row, h].double().numpy() * scale
                if softcap:
                    z = softcap * np.tanh(z / softcap)
                found[row, h, seen] = edited_row(z, tags[seen], betas[:, seen], program, layer, h)
    return torch.from_numpy(found)


def edited_row(
    z: Floats, tags: NDArray[np.uint8], betas: Floats, program: Program, layer: int, h: int
) -> Floats:
    """Edited attention of one row over the keys it sees."""
    if not len(z):
        return z
    edited = np.array(
        [
            (1.0 + float(program.scale[layer, h, c])) * z_j
            + float(program.absolute[layer, h, c]) * abs(z_j)
            + float(program.bias[layer, h, c])
            + float(program.weight[layer, h].astype(np.float64) @ beta_j)
            for z_j, c, beta_j in zip(z, tags, betas.T, strict=True)
        ]
    )
    attention: Floats = np.exp(edited - edited.max())
    attention /= attention.sum()
    mass = [float(attention[tags == c].sum()) for c in range(CLASSES)]
    for weights, threshold in zip(
        program.gate_weight[layer, h], program.gate_threshold[layer, h], strict=True
    ):
        if sum(float(w) * m for w, m in zip(weights, mass, strict=True)) < threshold:
            return attention
    target = [
        sum(float(program.transform[layer, h, c, d]) * mass[d] for d in range(CLASSES))
        for c in range(CLASSES)
    ]
    present = [c for c in range(CLASSES) if mass[c] > 0]
    kept = sum(target[c] for c in present)
    if kept == 0 and sum(target) > 0:
        return attention
    for c in present:
        share = target[c] / kept if kept else 0.0
        attention[tags == c] *= share * sum(target) / mass[c]
    return attention
