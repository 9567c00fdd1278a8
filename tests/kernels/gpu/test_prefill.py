"""The Triton prefill, run by the interpreter, against the reference and the dense oracle."""

from dataclasses import replace

import pytest
import torch

from saccade_kernels import reference
from saccade_kernels.batch import Emission, Prefill, Run
from saccade_kernels.controls import CLASSES, NEVER_ATTEND, ControlShape, Edit, Program
from saccade_kernels.gpu import prefill as kernel
from saccade_kernels.gpu.blocks import cut, layer_edits, work_list
from saccade_kernels.gpu.tuning import PrefillConfig

CONFIG = PrefillConfig(block_m=16, num_warps=4, num_stages=2)
DESCRIPTORS = replace(CONFIG, descriptors=True)

# A prefill is its context and its runs: how many query rows follow which program.
SMALL = ((70, ((3, 1), (2, 0))),)
PREFILLS = {
    "first-page": ((7, ((7, 1),)),),
    "one-page": ((64, ((64, 2),)),),
    "one-key-more": ((65, ((33, 1),)),),
    "late-chunk": ((130, ((17, 1), (1, 2), (1, 0), (6, 1))),),
    "one-row-runs": ((6, ((1, 1), (1, 2), (1, 1), (1, 3))),),
    "several": ((65, ((20, 1),)), (7, ((3, 0), (4, 2))), (130, ((1, 3),))),
}


@pytest.fixture
def make_prefills(make_case, with_edits):
    """A case of prefills behind ``decodes`` decodes, its new keys stored."""

    def make(prefills=SMALL, decodes=1, classes=4, **options):
        queries = [sum(rows for rows, _ in runs) for _, runs in prefills]
        case = make_case(
            queries=(1,) * decodes + tuple(queries),
            contexts=(9,) * decodes + tuple(context for context, _ in prefills),
            classes=classes,
            **{"heads": 2, "kv_heads": 1, "dtype": torch.float32, **options},
        )
        rows = [row for _, runs in prefills for count, row in runs for _ in range(count)]
        case.batch.control_rows[decodes:] = torch.tensor(rows, dtype=torch.int32)
        edits = case.batch.edits
        batch = replace(case.batch, classes=classes, num_decodes=decodes)
        case.batch = with_edits(batch, edits)
        case.batch.validate()
        slots, caches = case.batch.slots, (case.key_cache, case.value_cache)
        reference.store(case.new(case.keys), case.new(case.values), *caches, slots)
        return case

    return make


@pytest.fixture(autouse=True)
def poison(monkeypatch: pytest.MonkeyPatch):
    """Fresh memory is NaN, so that a row the kernel does not write shows."""
    fresh = torch.Tensor.new_empty

    def poisoned(self, *size, **options):
        made = fresh(self, *size, **options)
        return made.fill_(torch.nan) if made.is_floating_point() else made

    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned)


def run(case, batch=None, layer=1, config=CONFIG, emit=None, **options):
    """The kernel."""
    batch, scale = replace(batch or case.batch, derived={}), case.query.shape[-1] ** -0.5
    query = case.query[batch.num_decodes :]
    arguments = (query, case.key_cache, case.value_cache, batch, layer, scale)
    return kernel.prefill(*arguments, **options, emit=emit, config=config)


def expected(case, batch=None, layer=1, emit=None, **options):
    """The reference on the same numbers in float64."""
    batch, scale = replace(batch or case.batch, derived={}), case.query.shape[-1] ** -0.5
    query = case.query[batch.num_decodes :]
    wide = (t.double() for t in (query, case.key_cache, case.value_cache))
    return reference.prefill(*wide, batch, layer, scale, **options, emit=emit)


def assert_close(case, output, wanted):
    # The interpreter cuts bfloat16 off instead of rounding it.
    tolerance = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}[case.query.dtype]
    assert output.dtype == case.query.dtype
    torch.testing.assert_close(output.double(), wanted, rtol=tolerance, atol=tolerance)


def neutral(case):
    return Program.identity(ControlShape(2, *case.query.shape[1:]))


@pytest.mark.parametrize("prefills", PREFILLS.values(), ids=PREFILLS)
@pytest.mark.parametrize("hide", [False, True], ids=["seen", "hide"])
def test_it_is_the_formula(make_prefills, oracle, prefills, hide):
    case = make_prefills(prefills, hide=hide)
    output = run(case)
    assert_close(case, output, oracle(case)[1:])
    assert_close(case, output, expected(case))


@pytest.mark.parametrize("prefills", PREFILLS.values(), ids=PREFILLS)
def test_without_edits_it_is_causal_attention(make_prefills, prefills):
    case = make_prefills(prefills)
    assert_close(case, run(case, case.plain()), expected(case, case.plain()))


@pytest.mark.parametrize("config", [CONFIG, DESCRIPTORS], ids=["pointers", "descriptors"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_two_byte_types(make_prefills, dtype, config):
    case = make_prefills(((67, ((4, 1), (1, 0))),), kv_heads=2, dtype=dtype, hide=True)
    for batch in (case.batch, case.plain()):
        assert_close(case, run(case, batch, config=config), expected(case, batch))


@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "classes"),
    [
        (2, 2, 64, 1),
        (2, 1, 80, 2),
        (4, 1, 96, 4),
        (7, 1, 32, 8),
        (8, 1, 16, 3),
        (6, 2, 128, 5),
        (2, 2, 256, 8),
    ],
)
def test_shapes(make_prefills, heads, kv_heads, dim, classes):
    case = make_prefills(heads=heads, kv_heads=kv_heads, dim=dim, classes=classes)
    for batch in (case.batch, case.plain()):
        assert_close(case, run(case, batch), expected(case, batch))


@pytest.mark.parametrize("window", [0, 1, 5, 64, 70])
@pytest.mark.parametrize("softcap", [0.0, 1.5], ids=["uncapped", "capped"])
def test_window_and_soft_cap_come_before_the_edits(make_prefills, window, softcap):
    case, options = make_prefills(), dict(softcap=softcap, window=window)
    for batch in (case.batch, case.plain()):
        assert_close(case, run(case, batch, **options), expected(case, batch, **options))


@pytest.mark.parametrize("edited", [False, True], ids=["plain", "edited"])
def test_a_window_leaves_out_whole_pages(make_prefills, edited):
    case = make_prefills(((200, ((5, 1), (20, 2))),))
    batch = case.batch if edited else case.plain()
    wanted = expected(case, batch, window=50)
    far = case.batch.page_table[1, 0]
    case.key_cache[far], case.value_cache[far] = torch.nan, torch.nan
    assert_close(case, run(case, batch, window=50), wanted)


@pytest.mark.parametrize("softcap", [0.0, 1.5], ids=["uncapped", "capped"])
@pytest.mark.parametrize("edit", [Edit.SCORE, Edit.MASS, Edit.HEAD, Edit.HIDE])
def test_each_edit_alone(make_prefills, with_edits, edit, softcap):
    case = make_prefills(((66, ((3, 1), (2, 2))),), hide=edit == Edit.HIDE)
    kept = {
        Edit.SCORE: ("scale", "absolute", "bias", "weight"),
        Edit.MASS: ("transform", "gate_weight", "gate_threshold"),
        Edit.HEAD: ("gain", "shift"),
        Edit.HIDE: (),
    }[edit]
    for row, program in list(case.programs.items())[1:]:
        values = {name: getattr(program, name) for name in kept}
        case.write(row, replace(neutral(case), **values))
    case.batch = with_edits(case.batch, (edit, edit))
    assert_close(case, run(case, softcap=softcap), expected(case, softcap=softcap))


def test_heads_of_one_program_take_different_ways(make_prefills):
    case = make_prefills(((80, ((20, 1),)),), heads=4)
    program, full = neutral(case), case.programs[1]
    for name, head in {"bias": 1, "transform": 2, "gain": 3}.items():
        getattr(program, name)[:, head] = getattr(full, name)[:, head]
    case.write(1, program)
    output = run(case)
    assert_close(case, output, expected(case))
    assert torch.equal(output[:, 0], run(case, case.plain())[:, 0])


def test_identity_rows_get_bit_for_bit_what_the_plain_kernel_gives(make_prefills):
    prefills = ((130, ((5, 1), (20, 0), (3, 2), (2, 0))), (33, ((33, 0),)))
    case = make_prefills(prefills, dtype=torch.float16)
    same = case.batch.control_rows[1:] == 0
    edited, plain = run(case), run(case, case.plain())
    assert torch.equal(edited[same], plain[same])
    assert not torch.equal(edited[~same], plain[~same])


def test_a_layer_without_edits_reads_no_table(make_prefills, with_edits):
    case = make_prefills()
    case.batch = with_edits(case.batch, (Edit.NONE, Edit.SCORE | Edit.MASS | Edit.HEAD))
    assert torch.equal(run(case, layer=0), run(case, case.plain(), layer=0))
    assert_close(case, run(case), expected(case))


@pytest.mark.parametrize("layer", [0, 1])
def test_a_layer_takes_its_own_programs_and_tags(make_prefills, layer):
    case = make_prefills(decodes=2)
    assert_close(case, run(case, layer=layer), expected(case, layer=layer))


@pytest.mark.parametrize("edited", [False, True], ids=["plain", "edited"])
def test_chunks_give_what_the_whole_gives(make_prefills, edited):
    case = make_prefills(((70, ((40, 1), (30, 2))),), decodes=0)
    batch = case.batch if edited else case.plain()
    whole, chunks = run(case, batch), []
    for start, end in ((0, 33), (33, 64), (64, 70)):
        rows = [min(end, 40) - min(start, 40), max(end, 40) - max(start, 40)]
        runs = (Run(count, row, batch.edits) for row, count in enumerate(rows, 1) if count)
        known = {"prefills": (Prefill(end - start, end, tuple(runs)),), "derived": {}}
        part = replace(batch, context_lens=torch.tensor([end], dtype=torch.int32), **known)
        arguments = (case.query[start:end], case.key_cache, case.value_cache, part, 1, 0.25)
        chunks.append(kernel.prefill(*arguments, config=CONFIG))
    torch.testing.assert_close(torch.cat(chunks), whole, rtol=1e-6, atol=1e-6)


def test_rows_that_see_nothing_give_zeros_and_move_nothing(make_prefills):
    case = make_prefills(((20, ((3, 1), (17, 2))),), hide=True)
    controls, tags = case.tables
    tags.tags[2] = NEVER_ATTEND
    controls.shift.zero_()
    assert (run(case) == 0).all()
    assert not tags.moved.any()


def test_the_first_keys_may_be_hidden(make_prefills):
    case = make_prefills(((140, ((17, 1), (3, 2))),), hide=True)
    case.tables[1].tags[2, :, :130] = NEVER_ATTEND
    assert_close(case, run(case), expected(case))


def test_padded_sequences_see_nothing(make_prefills):
    case = make_prefills(((0, ((18, 1),)), (6, ((6, 2),))))
    output = run(case)
    assert_close(case, output, expected(case))
    shift = case.tables[0].shift[1, 1]
    assert torch.equal(output[:18], shift.expand(18, *shift.shape))
    assert (run(case, case.plain())[:18] == 0).all()


def test_minus_infinity_knocks_a_class_out(make_prefills):
    case = make_prefills(((19, ((17, 1), (2, 2))),))
    for row in (1, 2):
        program = case.programs[row]
        program.bias[..., 1] = -torch.inf
        case.write(row, program)
    case.tables[1].tags[2, :, :3] = 1  # the first rows see nothing else: they share evenly
    assert_close(case, run(case), expected(case))


def test_classes_without_keys_cannot_receive(make_prefills):
    case = make_prefills(((66, ((17, 1), (2, 2))),), classes=6)
    tags = case.tables[1]
    tags.tags[2, :, :66] = tags.tags[2, :, :66] % 2 * 3
    assert_close(case, run(case), expected(case))


def test_a_class_may_outgrow_float16(make_prefills):
    case = make_prefills(((40, ((5, 1),)),), dtype=torch.float16)
    case.value_cache *= 1e-4
    program = neutral(case)
    program.transform[..., 2, 2] = 1e6
    case.write(1, program)
    assert_close(case, run(case), expected(case))


@pytest.mark.parametrize("config", [CONFIG, DESCRIPTORS], ids=["pointers", "descriptors"])
def test_moved_rows_are_counted(make_prefills, config):
    prefills = ((66, ((17, 1), (3, 0), (2, 2))), (30, ((5, 3),)))
    case, moved = make_prefills(prefills, dtype=torch.float16), []
    counters = case.tables[1].moved
    for attend in (lambda: run(case, config=config), lambda: expected(case)):
        attend()
        moved.append(counters.clone())
        counters.zero_()
    assert torch.equal(*moved)
    assert moved[0].any()


@pytest.mark.parametrize("config", [CONFIG, DESCRIPTORS], ids=["pointers", "descriptors"])
def test_mass_given_to_empty_classes_moves_nothing(make_prefills, config):
    """Rows before the only key of class 1 give what they have to nobody and get it back."""
    case = make_prefills(((66, ((17, 1),)),), dtype=torch.float16)
    counters = case.tables[1].moved
    case.tables[1].tags[2] = 0
    case.tables[1].tags[2, :, 60] = 1
    program = neutral(case)
    program.transform[..., 0, 0], program.transform[..., 1, 0] = 0.5, 0.5
    case.write(1, program)
    assert_close(case, run(case, config=config), expected(case))
    assert (counters[2, 1] == 2 * 6).all()  # by the kernel and by the reference
    assert counters.sum() == counters[2, 1].sum()


@pytest.mark.parametrize("edited", [False, True], ids=["plain", "edited"])
def test_emission(make_prefills, with_edits, edited):
    prefills = ((66, ((17, edited * 1), (2, 0))), (0, ((2, 0),)))
    case, emitted = make_prefills(prefills, hide=edited, classes=3), []
    batch = case.batch if edited else with_edits(case.batch, ())
    batch = replace(batch, tag_rows=case.batch.tag_rows * edited)
    for attend in (run, expected):
        emit = Emission(torch.full((21, 2, CLASSES), torch.nan), torch.full((21, 2), torch.nan))
        options = dict(softcap=2.0, window=40)
        emitted.append((attend(case, batch, emit=emit, **options), emit.masses, emit.lse))
    for found, wanted in zip(*emitted, strict=True):
        torch.testing.assert_close(found, wanted.float(), rtol=2e-5, atol=2e-5)


def test_a_query_may_be_a_slice(make_prefills):
    case = make_prefills(decodes=0)
    wide = torch.full((case.query.shape[0], 4, 16), torch.nan)
    wide[:, 1:3] = case.query
    packed, case.query = run(case), wide[:, 1:3]
    assert torch.equal(run(case), packed)


def test_nothing_to_prefill(make_prefills):
    case = make_prefills(())
    assert run(case).shape == (0, 2, 16)


def test_blocks_keep_to_their_runs():
    hide = (Edit.NONE, Edit.HIDE)
    prefills = (
        Prefill(9, 100, (Run(7, 3, (Edit.SCORE, Edit.NONE)), Run(2, 0))),
        Prefill(5, 5, (Run(5, 4, hide),)),
        Prefill(3, 0, (Run(3, 0),)),
    )
    blocks = cut(prefills, 2, block_m=4)
    assert sorted(blocks) == [
        (2, 0, 4, 91, 3, 0),
        (2, 4, 3, 95, 3, 0),
        (2, 7, 2, 98, 0, 0),
        (3, 9, 4, 0, 4, 1),
        (3, 13, 1, 4, 4, 1),
        (4, 14, 3, -3, 0, 0),
    ]
    assert [block[3] + block[2] for block in blocks] == [100, 98, 95, 5, 4, 0]  # slowest first
    assert cut(prefills, 2, 4, edited=True) == [b for b in blocks if b[4] in (3, 4)]


@pytest.mark.parametrize(
    ("edits", "emits", "forms"),
    [
        ((Edit.SCORE, Edit.NONE), False, {"plain": 3}),
        ((Edit.NONE, Edit.HEAD), False, {"plain beside": 3}),
        ((Edit.NONE, Edit.SCORE), False, {"plain beside": 3, "scores": 2}),
        ((Edit.NONE, Edit.MASS), False, {"plain beside": 3, "masses": 2, "values": 2}),
        ((Edit.HIDE, Edit.NONE), False, {"plain beside": 3, "scores": 2}),
        ((Edit.NONE, Edit.SCORE), True, {"plain beside": 3, "masses": 4, "scores": 2}),
        ((Edit.NONE, Edit.NONE), True, {"plain": 3, "masses": 4}),
    ],
)
def test_pairs_get_the_launches_they_need(make_prefills, monkeypatch, edits, emits, forms):
    """Edited launches have the blocks of edited runs alone, cut at multiples of 16 positions."""
    case, found = make_prefills(((70, ((5, 1), (20, 0))),)), {}
    plain, edited = (
        replace(run, edits=some)
        for run, some in zip(case.batch.prefills[0].runs[::-1], ((), edits), strict=True)
    )
    batch = replace(case.batch, prefills=(replace(case.batch.prefills[0], runs=(edited, plain)),))

    def record(launched, grid, arguments, config):
        form = launched.__name__.removeprefix("prefill_").removesuffix("_kernel")
        form += " beside" * arguments["BESIDE"] * (form == "plain")
        form = "scores" if arguments.get("SCORE") else form
        found[form] = grid[1]

    monkeypatch.setattr(kernel, "launch", record)
    emission = Emission(torch.empty(25, 2, CLASSES), torch.empty(25, 2)) if emits else None
    run(case, batch, emit=emission)
    assert found == forms


def test_layers_share_a_work_list(make_prefills, with_edits):
    batch = make_prefills().batch
    first = work_list(batch, 16, torch.device("cpu"))
    assert work_list(batch, 16, torch.device("cpu")) is first
    assert work_list(batch, 1, torch.device("cpu")).shape == (5, first.shape[1])
    batch = with_edits(batch, (Edit.NONE, Edit.SCORE | Edit.HEAD))
    assert [layer_edits(batch, layer) for layer in (0, 1)] == [0, Edit.SCORE | Edit.HEAD]
