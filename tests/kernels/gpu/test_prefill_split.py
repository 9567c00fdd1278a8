"""Question rows split over their keys, run by the interpreter, against the reference in float64."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from saccade_kernels import reference
from saccade_kernels.batch import PAGE, Emission, Prefill
from saccade_kernels.controls import CLASSES, NEVER_ATTEND, ControlShape, Edit, Program
from saccade_kernels.gpu import split_rows
from saccade_kernels.gpu.arguments import batch_arguments
from saccade_kernels.gpu.page_lists import list_pages
from saccade_kernels.gpu.prefill import prefill
from saccade_kernels.gpu.prefill_split import attend_split
from saccade_kernels.gpu.split_rows import split_blocks
from saccade_kernels.gpu.tuning import PrefillConfig, SplitConfig

CONFIG = SplitConfig(
    block_m=16, num_warps=4, num_stages=2, split=64, max_splits=4, most_rows=64, least_keys=64
)
NO_WINDOW = 1 << 30

# A prefill is its context and its runs: how many query rows follow which program; a run is whole.
PLAIN, QUESTION = 0, 1
PROMPT = ((330, ((5, PLAIN), (13, QUESTION))),)


def drawn(context, rng):
    return rng.integers(0, 4, context)


def image(context, rng):
    """Whole pages of two classes, a few sinks among them, and the last page mixed."""
    tags = np.zeros(context, np.uint8)
    tags[70:290] = 1
    tags[3::97] = 2
    tags[-20:] = rng.integers(0, 4, 20)
    return tags


def pages(context, rng):
    """Every page of one class; class 3 is nowhere but in the last row's place."""
    tags = np.arange(context) // PAGE % 3
    tags[-1] = 3
    return tags


def hidden(context, rng):
    """A page out of sight, single keys too, and of the first class nothing but hidden keys left."""
    tags = rng.integers(1, 4, context)
    tags[64:128] = NEVER_ATTEND
    tags[rng.random(context) < 0.3] = NEVER_ATTEND
    return tags


TAGS = {each.__name__: each for each in (drawn, image, pages, hidden)}


@pytest.fixture
def make_rows(make_case, with_edits):
    """A case of prefills behind ``decodes`` decodes, its new keys stored.

    Score edits are a factor and a bias of each class, which whole pages serve; or ``exact``, any.
    """

    def make(prefills=PROMPT, tags=image, decodes=1, exact=False, **options):
        queries = [sum(rows for rows, _ in runs) for _, runs in prefills]
        case = make_case(
            queries=(1,) * decodes + tuple(queries),
            contexts=(9,) * decodes + tuple(context for context, _ in prefills),
            **{"heads": 2, "kv_heads": 1, "dtype": torch.float32, **options},
            hide=tags is hidden,
        )
        batch, rng = case.batch, np.random.default_rng(3)
        rows = [row for _, runs in prefills for count, row in runs for _ in range(count)]
        batch.control_rows[decodes:] = torch.tensor(rows, dtype=torch.int32)
        for sequence, (context, _) in enumerate(prefills, decodes + 1):
            for layer in range(2):
                own = np.minimum(tags(context, rng), NEVER_ATTEND)
                case.tables[1].tags[sequence, layer, :context] = torch.from_numpy(own)
        case.batch = with_edits(replace(batch, classes=4, num_decodes=decodes), batch.edits)
        case.batch = spanned(case.batch)
        case.batch.validate()
        for row, program in list(case.programs.items())[1:] if not exact else ():
            program.absolute[:], program.weight[:] = 0, 0
            case.write(row, program)
        slots, caches = case.batch.slots, (case.key_cache, case.value_cache)
        reference.store(case.new(case.keys), case.new(case.values), *caches, slots)
        return case

    return make


def spanned(batch):
    """Rows of control row 0 edit nothing; of the others each run is whole."""
    prefills = tuple(
        replace(
            prefill,
            runs=tuple(
                replace(run, span=run.rows, edits=run.edits if run.control_row else ())
                for run in prefill.runs
            ),
        )
        for prefill in batch.prefills
    )
    return replace(batch, prefills=prefills, derived={})


@pytest.fixture(autouse=True)
def poison(monkeypatch: pytest.MonkeyPatch):
    """Fresh memory is NaN, so that partial results that nobody wrote show."""
    fresh = torch.Tensor.new_empty

    def poisoned(self, *size, **options):
        made = fresh(self, *size, **options)
        return made.fill_(torch.nan) if made.is_floating_point() else made

    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned)


def run(case, batch=None, layer=1, config=CONFIG, window=0, softcap=0.0, emits=False):
    """The kernels, on an output of NaN."""
    batch = replace(batch or case.batch, derived={})
    query, lists = case.query[batch.num_decodes :], list_pages(batch, layer)
    output = torch.full_like(query, torch.nan)
    arguments = {
        **batch_arguments(batch, layer, True),
        "query": query,
        "key_cache": case.key_cache,
        "value_cache": case.value_cache,
        "output": output,
        "scale": case.query.shape[-1] ** -0.5,
        "cap": softcap,
        "window": window or NO_WINDOW,
        "stride_token": query.stride(0),
        "stride_head": query.stride(1),
        "CAPPED": softcap > 0,
        "UPCAST": True,
        "whole": lists.whole,
        "keys": lists.keys,
        "before": lists.before,
        "classes": lists.whole.shape[1],
        "max_pages": lists.whole.shape[2],
        "first_sequence": batch.num_decodes,
        "EMIT": emits,
        "PER_HEAD": batch.per_head_classes,
    }
    attend_split(batch, layer, window, arguments, config)
    return output


def expected(case, batch=None, layer=1, window=0, softcap=0.0):
    """The reference on the same numbers in float64."""
    batch, scale = replace(batch or case.batch, derived={}), case.query.shape[-1] ** -0.5
    query = case.query[batch.num_decodes :]
    wide = (t.double() for t in (query, case.key_cache, case.value_cache))
    return reference.prefill(*wide, batch, layer, scale, softcap, window)


def split_of(case, config=CONFIG):
    """Which query rows of the prefills are split."""
    batch = replace(case.batch, derived={})
    is_split = torch.zeros(len(case.query) - batch.num_decodes, dtype=torch.bool)
    for one in split_blocks(batch, 0, config):
        is_split[one.block[1] : one.block[1] + one.block[2]] = True
    return is_split


TOLERANCES = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
"""The interpreter cuts bfloat16 off instead of rounding it."""


def assert_right(case, output, config=CONFIG, **options):
    """Rows that are split are right, and no others are written."""
    is_split, tolerance = split_of(case, config), TOLERANCES[case.query.dtype]
    assert is_split.any()
    assert output[~is_split].isnan().all()
    wanted = expected(case, **options)[is_split]
    torch.testing.assert_close(output[is_split].double(), wanted, rtol=tolerance, atol=tolerance)


def neutral(case):
    return Program.identity(ControlShape(2, *case.query.shape[1:]))


@pytest.mark.parametrize("exact", [False, True], ids=["affine", "exact"])
@pytest.mark.parametrize("tags", TAGS.values(), ids=TAGS)
def test_it_is_the_formula(make_rows, oracle, tags, exact):
    prefills = (*PROMPT, (70, ((9, 2),)), (200, ((64, PLAIN), (1, 3), (3, 2))))
    case = make_rows(prefills, tags, exact=exact)
    output = run(case)
    assert_right(case, output)
    own = split_of(case)
    torch.testing.assert_close(output[own].double(), oracle(case)[1:][own], rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(("tags", "dtype"), [(hidden, torch.float16), (drawn, torch.bfloat16)])
def test_two_byte_types(make_rows, tags, dtype):
    case = make_rows(((150, ((9, QUESTION),)),), tags=tags, dtype=dtype)
    assert_right(case, run(case))


@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "classes"),
    [(2, 2, 64, 5), (2, 1, 80, 4), (4, 1, 96, 7), (7, 1, 32, 4), (8, 1, 16, 8), (2, 2, 256, 4)],
)
def test_shapes(make_rows, heads, kv_heads, dim, classes):
    prompt = ((140, ((3, PLAIN), (5, QUESTION))),)
    case = make_rows(prompt, drawn, heads=heads, kv_heads=kv_heads, dim=dim)
    case.batch = replace(case.batch, classes=classes)
    assert_right(case, run(case))


@pytest.mark.parametrize(("window", "softcap"), [(0, 1.5), (1, 0), (40, 1.5), (64, 0), (200, 0)])
def test_window_and_soft_cap_come_before_the_edits(make_rows, window, softcap):
    case, options = make_rows(), dict(softcap=softcap, window=window)
    assert_right(case, run(case, **options), **options)


def test_a_window_leaves_out_whole_pages(make_rows):
    case = make_rows()
    wanted = expected(case, window=50)
    far = case.batch.page_table[1, :2].long()
    case.key_cache[far], case.value_cache[far] = torch.nan, torch.nan
    own = split_of(case)
    output = run(case, window=50)[own].double()
    torch.testing.assert_close(output, wanted[own], rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("edit", [Edit.SCORE, Edit.MASS, Edit.HIDE])
def test_each_edit_alone(make_rows, with_edits, edit):
    case = make_rows(tags=hidden if edit == Edit.HIDE else image)
    kept = {
        Edit.SCORE: ("scale", "absolute", "bias", "weight"),
        Edit.MASS: ("transform", "gate_weight", "gate_threshold"),
        Edit.HIDE: (),
    }[edit]
    values = {name: getattr(case.programs[1], name) for name in kept}
    case.write(1, replace(neutral(case), **values))
    case.batch = spanned(with_edits(case.batch, (edit, edit)))
    assert_right(case, run(case))


@pytest.mark.parametrize("field", ["scale", "absolute", "bias", "weight", "negative", "nothing"])
def test_scores_that_are_affine_and_others(make_rows, field):
    """Whole pages take a factor and a bias; what is more takes the keys one by one."""
    case = make_rows(PROMPT, image)
    program, full = neutral(case), case.programs[1]
    if field == "negative":
        program.scale[..., 1] = -1.5
    elif field == "nothing":
        program.scale[..., :2] = -1.0
        program.bias[:] = full.bias
    else:
        getattr(program, field)[:] = getattr(full, field)
    program.transform[:] = full.transform
    case.write(1, program)
    assert_right(case, run(case))


def test_minus_infinity_knocks_a_class_out(make_rows):
    """Rows that see nothing else share evenly."""
    case = make_rows(tags=lambda context, rng: np.ones(context, np.uint8))
    case.tables[1].tags[2, :, 300:] = 2
    for knocked in (1, 2):
        program = neutral(case)
        program.bias[..., 1], program.bias[..., knocked] = -torch.inf, -torch.inf
        program.transform[:] = case.programs[2].transform
        case.write(1, program)
        assert_right(case, run(case))


def test_heads_that_are_left_alone_are_somebody_else_s(make_rows):
    case = make_rows(heads=4)
    program, full = neutral(case), case.programs[1]
    for name, head in {"bias": 1, "transform": 2, "gain": 3}.items():
        getattr(program, name)[:, head] = getattr(full, name)[:, head]
    case.write(1, program)
    output, own = run(case), split_of(case)
    wanted = expected(case)[own]
    assert output[:, [0, 3]].isnan().all()
    found = output[own][:, [1, 2]].double()
    torch.testing.assert_close(found, wanted[:, [1, 2]], rtol=2e-5, atol=2e-5)


def test_rows_that_see_nothing_give_zeros_and_move_nothing(make_rows):
    case = make_rows(tags=hidden)
    controls, tags = case.tables
    tags.tags[2] = NEVER_ATTEND
    controls.shift.zero_()
    output = run(case)
    assert (output[split_of(case)] == 0).all()
    assert not tags.moved.any()


def test_a_class_may_outgrow_float16(make_rows):
    """One key of 330 has next to no mass and gets nearly all."""
    case = make_rows(tags=lambda context, rng: np.zeros(context, np.uint8), dtype=torch.float16)
    case.tables[1].tags[2, :, 100] = 2
    case.value_cache *= 1e-3
    program = neutral(case)
    program.bias[..., 2] = -12.0
    program.transform[..., 2, 2] = 1e7
    case.write(1, program)
    assert_right(case, run(case))
    own, wanted = split_of(case), expected(case)
    relative = (run(case)[own].double() - wanted[own]).abs().max() / wanted[own].abs().max()
    assert relative < 4e-3


def pieces(case, cuts, start, neighbours):
    """The case's one prefill in chunks, each behind other sequences; its rows again, in order."""
    (whole,) = case.batch.prefills
    found = []
    for first, last in pairwise(cuts):
        spans = np.cumsum([0, *(run.rows for run in whole.runs)])
        runs = tuple(
            replace(run, rows=int(min(last, end) - max(first, begin)))
            for run, begin, end in zip(whole.runs, spans[:-1], spans[1:], strict=True)
            if min(last, end) > max(first, begin)
        )
        part = Prefill(last - first, start + last, runs)
        ahead = (Prefill(0, 0, ()),) * neighbours
        batch = replace(
            case.batch,
            prefills=(*ahead, part),
            num_decodes=0,
            context_lens=torch.tensor([0] * neighbours + [start + last], dtype=torch.int32),
            page_table=case.batch.page_table[[0] * neighbours + [1]],
            tag_rows=torch.tensor([0] * neighbours + [2], dtype=torch.int32),
            derived={},
        )
        piece = replace(case, query=case.query[1 + first : 1 + last])
        found.append(run(piece, batch))
    return torch.cat(found)


@pytest.mark.parametrize(
    ("tags", "dtype"),
    [(image, torch.float16), (pages, torch.float32), (hidden, torch.float32)],
)
def test_however_a_prompt_is_cut_a_row_gets_the_same_bits(make_rows, tags, dtype, monkeypatch):
    """Beside others too, and however much memory partial results may take."""
    case = make_rows(tags=tags, dtype=dtype)
    whole, own = run(case), split_of(case)
    for cuts, neighbours in (((0, 6, 7, 13, 18), 0), ((0, 16, 18), 2)):
        output = pieces(case, cuts, 312, neighbours)
        assert torch.equal(output[own], whole[own])
    monkeypatch.setattr(split_rows, "WAVE_BYTES", 1)
    assert torch.equal(run(case)[own], whole[own])


def test_tags_of_later_keys_do_not_matter(make_rows):
    case = make_rows(tags=pages)
    before, own = run(case), split_of(case)
    case.tables[1].tags[2, :, 324:] = 3  # of rows 12 and later, the first at 312
    after = run(case)
    assert torch.equal(before[:12][own[:12]], after[:12][own[:12]])
    assert not torch.equal(before[12:][own[12:]], after[12:][own[12:]])


TILES = PrefillConfig(block_m=16, num_warps=4, num_stages=2)


@pytest.mark.parametrize("emits", [False, True], ids=["silent", "emitting"])
@pytest.mark.parametrize("own", [False, True], ids=["tags", "heads-apart"])
def test_a_whole_step(make_rows, per_head, own, emits):
    """Plain rows, edited ones in few and in many, each by its own kernels, and no row twice."""
    prompts = ((150, ((3, PLAIN), (9, QUESTION))), (100, ((20, 2), (7, 3))))
    case = make_rows(prompts, drawn, heads=2, kv_heads=2)
    first, second = case.batch.prefills
    long, short = second.runs
    runs = (replace(long, span=300), short)
    case.batch = replace(case.batch, prefills=(first, replace(second, runs=runs)), derived={})
    if own:  # and one head's scores alone change, which go by the tag
        case = per_head(case, (1,))
        program = case.programs[1]
        program.transform[:, 0] = np.eye(CLASSES)
        case.write(1, program)
    batch, scale = case.batch, case.query.shape[-1] ** -0.5
    query, found = case.query[1:], []
    for attend, wide in ((prefill, False), (reference.prefill, True)):
        rows = len(query), case.query.shape[1]
        emit = Emission(torch.full((*rows, CLASSES), torch.nan), torch.full(rows, torch.nan))
        tensors = (query, case.key_cache, case.value_cache)
        tensors = tuple(t.double() for t in tensors) if wide else tensors
        options = {} if wide else {"config": TILES, "split": CONFIG}
        fresh = replace(batch, derived={})
        output = attend(*tensors, fresh, 1, scale, emit=emit if emits else None, **options)
        moved = case.tables[1].moved.clone()
        case.tables[1].moved.zero_()
        found.append((output.float(), moved, *((emit.masses, emit.lse) if emits else ())))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-5, atol=2e-5)
    assert split_of(case).sum() == 16
