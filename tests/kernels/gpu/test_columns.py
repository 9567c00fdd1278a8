"""Attention rows and column sums: the reference against the contract, the kernels against it."""

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from saccade_kernels import columns_reference, ops, reference
from saccade_kernels.batch import AttentionBatch, Emission
from saccade_kernels.controls import CLASSES, NEVER_ATTEND, Edit
from saccade_kernels.gpu import columns as kernel
from saccade_kernels.gpu import device

QUERIES, CONTEXTS = (1, 1, 1, 70, 9), (130, 7, 0, 150, 65)  # 0: padding
FIRST = (0, 7, 0, 90, 3)  # of the second sequence, no row counts
ROWS = (80, 0, 3, 2, 40, 73)  # in no order; one is padding


@pytest.fixture(autouse=True)
def poison(monkeypatch: pytest.MonkeyPatch):
    """Fresh memory is NaN, so that what a kernel fails to write shows."""
    fresh = torch.Tensor.new_empty

    def poisoned(self, *size, **options):
        made = fresh(self, *size, **options)
        return made.fill_(torch.nan) if made.is_floating_point() else made

    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned)


@dataclass
class Step:
    """A step after its attention, in float64: keys stored, and what it emitted."""

    case: Any
    batch: AttentionBatch
    emission: Emission
    options: tuple[float, float, int]  # scale, softcap, window

    def run(self, op, chosen, dtype=torch.float64, layer=1):
        """column_sums or attention_rows, of the first positions or the rows ``chosen``."""
        query, cache = self.case.query.to(dtype), self.case.key_cache.to(dtype)
        lse = self.emission.lse.to(torch.promote_types(dtype, torch.float32))
        chosen = torch.tensor(chosen, dtype=torch.int32)
        batch = replace(self.batch, derived={})
        return op(query, cache, batch, layer, *self.options, lse, chosen)


@pytest.fixture
def make_step(make_case):
    def make(
        queries=QUERIES,
        contexts=CONTEXTS,
        classes=4,
        dtype=torch.float64,
        plain=False,
        softcap=0.0,
        window=0,
        layer=1,
        edits=None,
        **sizes,
    ):
        case = make_case(queries, contexts, classes=classes, **sizes)
        rounded = ((t.to(dtype).double() for t in each) for each in (case.keys, case.values))
        case.keys, case.values = (list(each) for each in rounded)
        case.query, case.key_cache = (
            case.query.to(dtype).double(),
            case.key_cache.to(dtype).double(),
        )
        batch = replace(case.plain() if plain else case.batch, classes=classes)
        if edits is not None:
            batch = edits(batch)
        tokens, heads, dim = case.query.shape
        masses = torch.zeros(tokens, heads, CLASSES, dtype=torch.float64)
        emission = Emission(masses, torch.zeros(tokens, heads, dtype=torch.float64))
        tables = replace(batch, controls=case.batch.controls, tags=case.batch.tags, derived={})
        options = (dim**-0.5, softcap, window)
        new, caches = (
            (case.new(case.keys), case.new(case.values)),
            (case.key_cache, case.value_cache),
        )
        reference.store(*new, *caches, tables.slots)
        ops.attention(case.query, *caches, tables, layer, *options, emission)
        return Step(case, batch, emission, options)

    return make


def formula(step, row, layer=1):
    """A of one query row by the contract: [heads, longest context], float64."""
    case, (scale, softcap, window) = step.case, step.options
    heads = case.query.shape[1]
    found = torch.zeros(heads, max(case.batch.context_lens.tolist()), dtype=torch.float64)
    seq = int((case.batch.query_starts <= row).sum()) - 1
    context = len(case.keys[seq])
    position = context - int(case.batch.query_starts[seq + 1]) + row
    tag_row = int(case.batch.tag_rows[seq])
    tags, weights = case.tables[1].tags[tag_row, layer], case.tables[1].weights[tag_row]
    program = case.programs[int(case.batch.control_rows[row])]
    for h in range(heads):
        seen, scores = [], []
        for j in range(max(position - window + 1, 0) if window else 0, position + 1):
            tag = int(tags[j])
            if step.batch.controls is not None and tag == NEVER_ATTEND:
                continue
            z = float(case.keys[seq][j, h * case.key_cache.shape[2] // heads] @ case.query[row, h])
            z = torch.tensor(z * scale, dtype=torch.float64)
            z = softcap * torch.tanh(z / softcap) if softcap else z
            if step.batch.controls is not None:
                by = (getattr(program, name)[layer, h, tag] for name in ("scale", "absolute"))
                factor, absolute = (float(each) for each in by)
                edited = (1 + factor) * z + absolute * abs(z) + float(program.bias[layer, h, tag])
                own = torch.from_numpy(program.weight[layer, h]).double()
                z = edited + float(own @ weights[:, j].double())
            seen.append(j)
            scores.append(z)
        if seen:
            found[h, seen] = torch.softmax(torch.stack(scores), 0)
    return found


def summed(step, first):
    """Column sums of :func:`formula`."""
    starts, contexts = step.batch.query_starts.tolist(), step.batch.context_lens.tolist()
    sums = []
    for seq, least in enumerate(first):
        past = contexts[seq] - starts[seq + 1] + starts[seq]
        rows = range(starts[seq] + max(least - past, 0), starts[seq + 1])
        zeros = torch.zeros(step.case.query.shape[1], max(contexts), dtype=torch.float64)
        sums.append(sum((formula(step, row) for row in rows), zeros))
    return torch.stack(sums)


def check(step, dtype=torch.float32, tolerance=None, first=FIRST, rows=ROWS, **options):
    tolerance = tolerance or {4: 1e-5, 2: 2e-3}[dtype.itemsize]
    for op, chosen in (("column_sums", first), ("attention_rows", rows)):
        result = step.run(getattr(kernel, op), chosen, dtype, **options)
        wanted = step.run(getattr(columns_reference, op), chosen, **options)
        assert result.dtype == torch.float32
        torch.testing.assert_close(result.double(), wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("softcap", "window"), [(0.0, 0), (1.5, 20)])
@pytest.mark.parametrize("plain", [True, False], ids=["plain", "edited"])
def test_reference_is_the_contract(make_step, plain, softcap, window):
    sizes = dict(queries=(1, 1, 1, 8, 5), contexts=(40, 7, 0, 30, 5), heads=2)
    step = make_step(**sizes, plain=plain, hide=not plain, softcap=softcap, window=window)
    rows, first = (15, 0, 3, 2, 7), (0, 7, 0, 24, 0)
    wanted = torch.stack([formula(step, row) for row in rows])
    torch.testing.assert_close(step.run(columns_reference.attention_rows, rows), wanted)
    sums = step.run(columns_reference.column_sums, first)
    torch.testing.assert_close(sums, summed(step, first))


def test_rows_have_the_emitted_masses(make_step):
    step = make_step(hide=True)
    rows = step.run(kernel.attention_rows, ROWS, torch.float32).double()
    _, tables = step.case.tables
    for row, found in zip(ROWS, rows, strict=True):
        seq = int((step.batch.query_starts <= row).sum()) - 1
        tags = tables.tags[step.batch.tag_rows[seq], 1, : found.shape[-1]].long()
        members = torch.nn.functional.one_hot(tags.clamp(max=CLASSES - 1), CLASSES).double()
        torch.testing.assert_close(found @ members, step.emission.masses[row], atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("plain", [True, False], ids=["plain", "edited"])
def test_kernel_is_the_reference(make_step, dtype, plain):
    check(make_step(dtype=dtype, plain=plain), dtype)


@pytest.mark.parametrize(("softcap", "window"), [(1.5, 0), (0.0, 1), (0.7, 40), (0.0, 65)])
def test_window_and_soft_cap(make_step, softcap, window):
    check(make_step(hide=True, softcap=softcap, window=window))


def test_plain_window_and_soft_cap(make_step):
    check(make_step(plain=True, softcap=1.5, window=40))


@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "classes"),
    [(2, 2, 64, 1), (2, 1, 80, 2), (4, 1, 96, 8), (7, 1, 32, 3), (2, 1, 256, 5), (20, 1, 16, 4)],
)
def test_shapes(make_step, heads, kv_heads, dim, classes):
    sizes = dict(heads=heads, kv_heads=kv_heads, dim=dim, classes=classes)
    step = make_step(queries=(1, 9), contexts=(3, 70), **sizes)
    check(step, first=(0, 62), rows=(9, 0))


def test_decodes_alone(make_step):
    check(make_step(queries=(1, 1, 1), contexts=(130, 7, 0)), first=(0, 0, 0), rows=(1, 2, 0))


def test_prefills_alone(make_step):
    step = make_step(queries=(5, 70), contexts=(5, 130))
    check(step, first=(2, 100), rows=(4, 5))


@pytest.mark.parametrize(("capability", "rows"), [(90, 64), (86, 32)])
def test_half_precision_uses_larger_tiles(make_step, capability, rows):
    """A second block of query rows, and one that starts inside a page."""
    step = make_step(queries=(140,), contexts=(200,), heads=2, dtype=torch.float16)
    with device.on(capability):
        assert kernel.column_block(True, torch.float16) == rows
        check(step, torch.float16, first=(70,), rows=(139,))


def test_chunks_add_up(make_step):
    whole = make_step(queries=(70,), contexts=(70,), heads=2, kv_heads=1)
    sums = whole.run(kernel.column_sums, (20,), torch.float32)
    rows = whole.batch.control_rows
    parts = torch.zeros_like(sums)
    for first, last in ((0, 30), (30, 70)):
        batch = replace(
            whole.batch,
            slots=whole.batch.slots[first:last],
            query_starts=torch.tensor([0, last - first], dtype=torch.int32),
            context_lens=torch.tensor([last], dtype=torch.int32),
            control_rows=rows[first:last],
            prefills=(replace(whole.batch.prefills[0], queries=last - first, context=last),),
        )
        chunk = replace(
            whole,
            case=replace(whole.case, query=whole.case.query[first:last]),
            batch=batch,
            emission=whole.emission.rows(slice(first, last)),
        )
        parts[..., :last] += chunk.run(kernel.column_sums, (20,), torch.float32)
    torch.testing.assert_close(parts, sums, rtol=1e-5, atol=1e-5)


def only(edit):
    """A step whose rows all do nothing but this."""

    def change(batch):
        if not edit & Edit.SCORE:
            batch.control_rows.zero_()
        runs = [
            replace(p, runs=tuple(replace(r, edits=(edit, edit)) for r in p.runs))
            for p in batch.prefills
        ]
        return replace(batch, edits=(edit, edit), prefills=tuple(runs))

    return change


@pytest.mark.parametrize("edit", [Edit.MASS | Edit.HEAD, Edit.HIDE], ids=str)
def test_weights_sum_to_one_without_score_edits(make_step, edit):
    hide = bool(edit & Edit.HIDE)
    step = make_step(queries=(1, 9), contexts=(9, 70), hide=hide, edits=only(edit))
    check(step, first=(0, 62), rows=(9, 0))
    rows = step.run(kernel.attention_rows, (9, 0), torch.float32)
    torch.testing.assert_close(rows.sum(-1), torch.ones_like(rows[..., 0]), atol=1e-5, rtol=0)


def test_layers_differ(make_step):
    check(make_step(queries=(1, 9), contexts=(3, 70), layer=0), first=(0, 0), rows=(9, 0), layer=0)


def test_knocked_out_class(make_step):
    def knock_out(batch):
        batch.controls.bias[1:4, ..., 1] = -torch.inf
        return batch

    check(make_step(queries=(1, 9), contexts=(3, 70), edits=knock_out), first=(0, 0), rows=(9, 0))


def test_it_repeats_bit_for_bit(make_step):
    step = make_step()
    for op, chosen in ((kernel.column_sums, FIRST), (kernel.attention_rows, ROWS)):
        one, two = (step.run(op, chosen, torch.float32) for _ in range(2))
        assert torch.equal(one, two)


def test_no_rows(make_step):
    step = make_step(queries=(1,), contexts=(3,))
    assert step.run(kernel.attention_rows, (), torch.float32).shape == (0, 4, 3)
    padding = replace(step.batch, context_lens=torch.zeros(1, dtype=torch.int32), max_context=0)
    padded = replace(step, batch=padding)
    assert padded.run(kernel.column_sums, (0,), torch.float32).shape == (1, 4, 0)


def test_variants_name_every_argument():
    names = [name for name, *_ in kernel.variants()]
    assert len(names) == len(set(names))
    for _, jit, types, constants, warps, stages in kernel.variants():
        assert warps in (4, 8)
        assert stages in (2, 3)
        assert set(jit.arg_names) <= set(types) | set(constants)
