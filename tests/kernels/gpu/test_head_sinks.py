"""Sinks of single heads in the Triton kernels, run by the interpreter, against the reference."""

import itertools
from dataclasses import replace

import pytest
import torch

from saccade_kernels import head_sinks as specification
from saccade_kernels import reference
from saccade_kernels.controls import NEVER_ATTEND
from saccade_kernels.gpu import head_sinks as kernel
from saccade_kernels.head_sinks import HeadSinkOption

SIZES = {"queries": (1, 1, 1, 1, 1), "contexts": (130, 7, 0, 65, 1)}  # 0: padding
ROWS = (3, -1, 0, 4)  # in no order; the second decode does not ask
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
RELATIVE, FIRST, EXEMPT, ALONE = (HeadSinkOption(n) for n in (1, 2, 4, 8))
SHAPES = [(2, 2, 64), (4, 1, 80), (7, 1, 32), (6, 2, 16), (16, 2, 16)]  # heads, kv_heads, dim


@pytest.fixture(autouse=True)
def poison(monkeypatch: pytest.MonkeyPatch):
    """Fresh memory is NaN, so that what a kernel fails to write shows."""
    fresh = torch.Tensor.new_empty

    def poisoned(self, *size, **options):
        made = fresh(self, *size, **options)
        return made.fill_(torch.nan) if made.is_floating_point() else made

    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned)


@pytest.fixture
def make(make_case, per_head, head_sink_tables):
    """A case whose keys are stored, of which all but the second sequence ask; and its tables.

    Heads that have been summed up to here, those that have not, and those whose row is in the sums.
    """

    def made(options=0, threshold=0.05, least=3, sizes=SIZES, **case_options):
        case = make_case(**{"dtype": torch.float32, **sizes, **case_options})
        caches = (case.key_cache, case.value_cache, case.batch.slots)
        reference.store(case.new(case.keys), case.new(case.values), *caches)
        case = per_head(case, sequences=tuple(range(len(sizes["contexts"]))))
        tables = head_sink_tables(case, options, threshold, least)
        for seq, context in enumerate(sizes["contexts"]):
            places = tables.places[seq + 1]
            if seq != 1 and context:
                tables.counted[seq + 1] = context - 1
                tables.counted[seq + 1, 1, 0] = context
                asking = places[1] >= 0
                keys = torch.arange(context - 1)
                at = places[1][asking][:, None] + keys
                tables.sums[at] = torch.rand(at.shape) * (context - keys) * 0.1
                if asking[0]:  # the row is there already
                    tables.sums[places[1, 0] + context - 1] = 0.03
        return case, tables

    return made


def run(find, case, tables, rows=ROWS, layer=1, dtype=None, **options):
    """Classes, sums and counts that are left behind, of tables that were copied."""
    table = replace(case.tables[1].per_head, classes=case.tables[1].per_head.classes.clone())
    tags = replace(case.tables[1], per_head=table)
    batch = replace(case.batch, tags=tags, derived={})
    own = replace(tables, **{n: getattr(tables, n).clone() for n in ("sums", "counted", "arrived")})
    settings = {"softcap": 0.0, "window": 0, **options}
    query, cache = (t.to(dtype or t.dtype) for t in (case.query, case.key_cache))
    scale, asked = query.shape[-1] ** -0.5, torch.tensor(rows, dtype=torch.int32)
    arguments = (settings["softcap"], settings["window"], asked, own)
    find(query, cache, batch, layer, scale, *arguments)
    return table.classes, own


def check(case, tables, **options):
    """The kernel's sums are the reference's in float64, and so its classes, but for near ties."""
    classes, found = run(kernel.find_head_sinks, case, tables, **options)
    wide = {**options, "dtype": torch.float64}
    wanted, known = run(specification.find_head_sinks, case, tables, **wide)
    tolerance = {4: 1e-5, 2: 1e-2}[case.query.dtype.itemsize]
    torch.testing.assert_close(found.sums, known.sums, rtol=0, atol=tolerance, equal_nan=True)
    assert torch.equal(found.counted, known.counted)
    assert not found.arrived.any()
    assert (classes != wanted).sum() <= (2 if tolerance > 1e-4 else 0)
    return wanted


@pytest.mark.parametrize(("heads", "kv_heads", "dim"), SHAPES)
def test_shapes(make, heads, kv_heads, dim):
    case, tables = make(heads=heads, kv_heads=kv_heads, dim=dim, classes=3)
    wanted = check(case, tables)
    before = case.tables[1].per_head.classes
    assert torch.equal(wanted[2], before[2]), "who does not ask keeps its classes"
    assert torch.equal(wanted[:, 0], before[:, 0])
    asking = tables.places[1, 1] >= 0
    assert {0, 1} == {*wanted[1, 1, asking, :130].unique().tolist()}
    assert torch.equal(wanted[1, 1, ~asking], before[1, 1, ~asking])
    assert torch.equal(wanted[..., 130:], before[..., 130:])


@pytest.mark.parametrize("options", [a | b | c | d for a, b, c, d in itertools.product(
    (0, RELATIVE), (0, FIRST), (0, EXEMPT), (0, ALONE))])  # fmt: skip
def test_options(make, options):
    threshold = 0.02 if not options & RELATIVE else 2.0
    check(*make(options, threshold, heads=3, kv_heads=1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_halves(make, dtype):
    check(*make(dtype=dtype))


@pytest.mark.parametrize("hide", [False, True])
@pytest.mark.parametrize(("softcap", "window"), [(1.5, 0), (0.0, 40), (0.9, 100)])
def test_hidden_keys_window_and_soft_cap(make, hide, softcap, window):
    check(*make(hide=hide), softcap=softcap, window=window)


def test_all_keys_hidden(make):
    case, tables = make(hide=True)
    case.tables[1].tags[1:3] = NEVER_ATTEND
    check(case, tables)


@pytest.mark.parametrize("scored", [False, True])
def test_scores_are_edited_by_tags(make, scored):
    """Sites that edit no scores take a loop without them."""
    case, tables = make(heads=4, kv_heads=4)
    flags = case.tables[0].edits
    flags[1:4] &= 0xFE if not scored else 0xFF
    for name in ("scale", "absolute", "bias", "weight"):
        if not scored:
            getattr(case.tables[0], name)[1:4] = 0
    check(case, tables)


def test_many_splits_and_tiles(make):
    """More keys than the programs have room for in their first share, and than are judged at once.

    The sequence is alone; its neighbours in the step are padding.
    """
    context = kernel.SPLIT * kernel.MAX_SPLITS + 77
    sizes = {"queries": (1, 1), "contexts": (context, 0)}
    for options in (0, FIRST):
        case, tables = make(options, 0.04, sizes=sizes, heads=1, kv_heads=1)
        wanted = check(case, tables, rows=(0, -1))
        assert (wanted[1, 1, :, :context] == 1).sum() > 10


def test_neighbours_leave_no_trace(make):
    """A row gets the same bits alone, beside others, and in another place of the list."""
    case, tables = make()
    _, beside = run(kernel.find_head_sinks, case, tables)
    _, alone = run(kernel.find_head_sinks, case, tables, rows=(-1, 0))
    places = tables.places[1, 1]
    for place in places[places >= 0].tolist():
        own = slice(place, place + 130)
        assert torch.equal(beside.sums[own], alone.sums[own])


@pytest.mark.parametrize("context", [1, 7, kernel.KEY_BLOCK + 9])
@pytest.mark.parametrize("options", [0, RELATIVE, FIRST | EXEMPT])
def test_prompts(make_case, per_head, head_sink_tables, context, options):
    sizes = {"queries": (1, min(context, 2)), "contexts": (7, context)}
    case = per_head(make_case(**sizes, heads=3, kv_heads=1), sequences=(0, 1))
    tables = head_sink_tables(case, options, 0.3 * (context if options & RELATIVE else 1), 9)
    received = torch.full((2, 3, max(7, context)), torch.nan)
    for seq, keys in enumerate(sizes["contexts"]):
        received[seq, :, :keys] = torch.rand(3, keys) * torch.arange(keys, 0, -1) * 0.5
    found = []
    for settle in (specification.settle_prompt_sinks, kernel.settle_prompt_sinks):
        table = case.tables[1].per_head
        table = replace(table, classes=table.classes.clone())
        tags = replace(case.tables[1], per_head=table)
        own = replace(tables, sums=tables.sums.clone(), counted=tables.counted.clone())
        settle(received, replace(case.batch, tags=tags, derived={}), 1, own)
        found.append((table.classes, own.sums.nan_to_num(-1), own.counted))
    for wanted, kernels in zip(*found, strict=True):
        assert torch.equal(kernels, wanted)
    assert (found[0][2][1:3, 1].max(1).values == torch.tensor([7, context])).all()


def test_variants_name_every_argument():
    names = [name for name, *_ in kernel.variants()]
    assert len(names) == len(set(names))
    for _, jit, types, constants, *_ in kernel.variants():
        assert set(jit.arg_names) <= set(types) | set(constants)


@pytest.mark.gpu
def test_a_chip_finds_the_same(make):
    case, tables = make(heads=7, kv_heads=1, dim=128, dtype=torch.bfloat16)
    check(case, tables)
