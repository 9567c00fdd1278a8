"""Edited prefills over lists of keys by class, run by the interpreter.

Whole pages, stray keys and borders of classes against the reference in float64; and the same bits
however a prompt is cut into chunks.
"""

from dataclasses import replace

import pytest
import torch

from saccade_kernels import reference
from saccade_kernels.batch import PAGE, Emission, Prefill, Run
from saccade_kernels.controls import CLASSES, NEVER_ATTEND, ControlShape, Edit, Program
from saccade_kernels.gpu import prefill as kernel
from saccade_kernels.gpu.blocks import cut
from saccade_kernels.gpu.tuning import PrefillConfig

SMALL = PrefillConfig(block_m=16, num_warps=4, num_stages=2)
PAIRS = PrefillConfig(block_m=64, num_warps=4, num_stages=2, block_keys=2 * PAGE)
WIDE = PrefillConfig(block_m=128, num_warps=4, num_stages=2, block_keys=2 * PAGE)
CONFIGS = pytest.mark.parametrize("config", [SMALL, PAIRS, WIDE], ids=["16", "64x128", "128x128"])
ALL = Edit.SCORE | Edit.MASS | Edit.HEAD
LENGTH = 5 * PAGE + 10
STRAYS = (70, 100, 101, 215)


@pytest.fixture
def make(make_case):
    """One prompt whose last rows are computed: text, an image with sinks strewn in it, text.

    Edits are such that whole pages serve, but for those of program 3.
    """

    def made(rows=LENGTH, length=LENGTH, **options):
        options = {"heads": 2, "kv_heads": 1, "classes": 4, "dtype": torch.float32, **options}
        case = make_case(queries=(rows,), contexts=(length,), **options)
        tags = torch.zeros(length, dtype=torch.uint8)
        tags[35:270] = 1
        tags[270:] = 3
        tags[[at for at in STRAYS if at < length]] = 2
        case.tables[1].tags[1, :, :length] = tags
        case.batch.control_rows[:] = 1
        for row in (1, 2):
            given = case.programs[row]
            none = {name: 0 * getattr(given, name) for name in ("absolute", "weight")}
            case.write(row, replace(given, scale=abs(given.scale), **none))
        reference.store(case.new(case.keys), case.new(case.values), *caches(case), case.batch.slots)
        return edited(case, ALL)

    return made


def caches(case):
    return case.key_cache, case.value_cache


def edited(case, edits, rows=None):
    """The case with these edits on all its rows, or on ``rows`` rows of each of some programs."""
    rows = rows or ((len(case.query), 1),)
    runs = tuple(Run(count, row, (edits,) * 2 if row else ()) for count, row in rows)
    context = int(case.batch.context_lens[0])
    known = Prefill(sum(count for count, _ in rows), context, runs)
    case.batch = replace(case.batch, classes=4, prefills=(known,), num_decodes=0, derived={})
    case.batch.control_rows[:] = torch.tensor([row for count, row in rows for _ in range(count)])
    return case


def attend(case, config, batch=None, rows=slice(None), **options):
    batch = replace(batch or case.batch, derived={})
    return kernel.prefill(case.query[rows], *caches(case), batch, 1, 0.25, config=config, **options)


def wanted(case, **options):
    wide = (t.double() for t in (case.query, *caches(case)))
    return reference.prefill(*wide, replace(case.batch, derived={}), 1, 0.25, **options)


TOLERANCES = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


def check(case, config, tolerance=None, **options):
    found = attend(case, config, **options)
    tolerance = tolerance or TOLERANCES[case.query.dtype]
    torch.testing.assert_close(
        found.double(), wanted(case, **options), rtol=tolerance, atol=tolerance
    )


def write(case, **fields):
    """Program 1, the identity but for some fields."""
    case.write(1, replace(Program.identity(ControlShape(2, *case.query.shape[1:])), **fields))


@CONFIGS
@pytest.mark.parametrize("edits", [Edit.SCORE, Edit.MASS, ALL], ids=["score", "mass", "all"])
def test_pages_and_strays(make, config, edits):
    case = make(rows=30 if config == SMALL else LENGTH)
    program = case.programs[1]
    kept = {
        Edit.SCORE: ("scale", "bias"),
        Edit.MASS: ("transform", "gate_weight", "gate_threshold"),
        ALL: ("scale", "bias", "transform", "gate_weight", "gate_threshold", "gain", "shift"),
    }[edits]
    write(case, **{name: getattr(program, name) for name in kept})
    check(edited(case, edits), config)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dim", [64, 80])
def test_halves(make, dtype, dim):
    check(make(rows=70, dtype=dtype, dim=dim), PAIRS)


TAGS = {
    "all-mixed": torch.arange(LENGTH) % 4,
    "one-class": torch.full((LENGTH,), 2),
    "all-strays": torch.arange(LENGTH) % 29 // 25 * 3,
    "odd-pages": (torch.arange(LENGTH) // PAGE == 2) * 1,
    "hidden": torch.where(torch.arange(LENGTH) % 50 < 3, NEVER_ATTEND, torch.arange(LENGTH) // 100),
}


@pytest.mark.parametrize("tags", TAGS.values(), ids=TAGS)
@pytest.mark.parametrize("config", [SMALL, PAIRS], ids=["16", "64x128"])
def test_however_classes_lie(make, tags, config):
    case = make(rows=20 if config == SMALL else 80)
    case.tables[1].tags[1, :, :LENGTH] = tags.to(torch.uint8)
    check(edited(case, ALL | Edit.HIDE), config)


MIXED = {
    "negative": {"scale": -1.5},
    "zero": {"scale": -1.0},
    "absolute": {"absolute": 0.4},
    "weights": {"weight": 0.7},
    "large": {"bias": 800.0},
    "knocked-out": {"bias": -torch.inf},
}


@pytest.mark.parametrize("edit", MIXED.values(), ids=MIXED)
@pytest.mark.parametrize("edits", [Edit.SCORE, Edit.SCORE | Edit.MASS], ids=["score", "mass"])
def test_classes_that_whole_pages_do_not_serve(make, edit, edits):
    case = make(rows=70)
    program = Program.identity(ControlShape(2, *case.query.shape[1:]))
    for name, value in edit.items():
        getattr(program, name)[..., 1] = value
    if Edit.MASS in edits:
        program.transform[..., 1, 1], program.transform[..., 0, 1] = 0.5, 0.5
    case.write(1, program)
    # Added to 1154, base 2, a score keeps four places of its own.
    check(edited(case, edits), PAIRS, tolerance=1e-3 if edit == MIXED["large"] else None)


def test_a_faint_class_may_take_all_in_float16(make):
    case = make(rows=64, dtype=torch.float16)
    program = Program.identity(ControlShape(2, *case.query.shape[1:]))
    program.bias[..., 2] = -30.0
    program.transform[..., :, :] = 0.0
    program.transform[..., 2, :] = 1.0
    case.write(1, program)
    check(edited(case, Edit.SCORE | Edit.MASS), PAIRS)


@CONFIGS
@pytest.mark.parametrize("window", [1, 60, 100, LENGTH])
def test_windows_and_soft_cap(make, config, window):
    check(make(rows=20 if config == SMALL else 100), config, window=window, softcap=1.5)


CUTS = (1, 45, 63, 64, 130, 131, 200)


@pytest.mark.parametrize(
    ("config", "window", "program", "edits"),
    [
        pytest.param(PAIRS, 0, 1, ALL, id="all"),
        pytest.param(PAIRS, 0, 1, Edit.SCORE, id="score"),
        pytest.param(PAIRS, 0, 3, ALL, id="gathered"),
        pytest.param(PAIRS, 90, 1, ALL, id="window"),
        pytest.param(SMALL, 0, 1, ALL, id="small-tiles"),
        pytest.param(SMALL, 40, 1, Edit.SCORE, id="small-tiles-window"),
        pytest.param(WIDE, 0, 1, ALL, id="wide-tiles"),
    ],
)
def test_cuts_do_not_show(make, config, window, program, edits):
    """With tags of later keys, their keys and their values anything, sinks among them."""
    length = 100 if config == SMALL else LENGTH
    case = make(rows=length, length=length, heads=1)
    if edits == Edit.SCORE:
        write(case, scale=case.programs[1].scale, bias=case.programs[1].bias)
    edited(case, edits, rows=((length, program),))
    tags, final = case.tables[1].tags, case.tables[1].tags.clone()
    whole, kept = attend(case, config, window=window), [tensor.clone() for tensor in caches(case)]
    cuts, found = [cut for cut in CUTS if cut < length], []
    for start, end in zip((0, *cuts), (*cuts, length), strict=True):
        tags[1, :, :end], tags[1, :, end:] = final[1, :, :end], end % 5
        slots = case.batch.page_table[0, torch.arange(end, length) // PAGE].long() * PAGE
        slots += torch.arange(end, length) % PAGE
        for cache, full in zip(caches(case), kept, strict=True):
            cache.copy_(full)
            cache.view(-1, *cache.shape[2:])[slots] = torch.nan
        known = (Prefill(end - start, end, (Run(end - start, program, (edits,) * 2),)),)
        lengths = torch.tensor([end], dtype=torch.int32)
        part = replace(case.batch, prefills=known, context_lens=lengths)
        found.append(attend(case, config, part, slice(start, end), window=window))
    assert torch.equal(torch.cat(found), whole)


@pytest.mark.parametrize("per_head_too", [False, True], ids=["tags", "heads"])
def test_emission_changes_no_bit(make, per_head, per_head_too):
    case = make(rows=100)
    edited(case, ALL, rows=((60, 1), (20, 0), (20, 2)))
    if per_head_too:
        per_head(case, sequences=(0,))
    emitted = []
    for run in (lambda emit: attend(case, PAIRS, emit=emit), lambda emit: wanted(case, emit=emit)):
        sizes = (100, 2)
        emit = Emission(torch.full((*sizes, CLASSES), torch.nan), torch.full(sizes, torch.nan))
        emitted.append((run(emit), emit.masses, emit.lse))
    assert torch.equal(emitted[0][0], attend(case, PAIRS))
    for found, reference_s in zip(*emitted, strict=True):
        torch.testing.assert_close(found, reference_s.float(), rtol=2e-5, atol=2e-5)


def test_rows_beside_edits_are_plain_bit_for_bit(make):
    case = make(rows=100)
    edited(case, ALL, rows=((30, 1), (45, 0), (25, 2)))
    plain = replace(case.batch, prefills=(Prefill(100, LENGTH, (Run(100, 0),)),))
    assert torch.equal(attend(case, PAIRS)[30:75], attend(case, PAIRS, plain)[30:75])


def test_aligned_blocks_end_at_multiples():
    prefills = (
        Prefill(9, 100, (Run(7, 3, (ALL,)), Run(2, 0))),
        Prefill(3, 0, (Run(3, 1, (ALL,)),)),
    )
    assert sorted(cut(prefills, 2, 4, edited=True, aligned=True)) == [
        (2, 0, 1, 91, 3, 0),
        (2, 1, 4, 92, 3, 0),
        (2, 5, 2, 96, 3, 0),
        (3, 9, 3, -3, 1, 0),
    ]
