"""The reference against dense attention with the edits written out. All unused memory is NaN."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from saccade_kernels import edits, reference
from saccade_kernels.batch import Emission
from saccade_kernels.controls import CLASSES, KEY_WEIGHTS, NEVER_ATTEND, ControlShape, Edit, Program

CASES = {
    "decode-short": dict(queries=(1, 1, 1), contexts=(1, 7, 63)),
    "decode-pages": dict(queries=(1, 1, 1), contexts=(64, 65, 130)),
    "prefill-first": dict(queries=(1, 7), contexts=(1, 7)),
    "prefill-whole": dict(queries=(63, 65), contexts=(63, 65)),
    "prefill-chunk": dict(queries=(9, 64), contexts=(130, 65)),
    "mixed": dict(queries=(1, 1, 5, 3), contexts=(130, 7, 64, 65)),
    "mixed-one-query-chunk": dict(queries=(1, 2, 1), contexts=(65, 9, 66)),
    "group1": dict(heads=2, kv_heads=2),
    "group4": dict(heads=4, kv_heads=1),
    "group7": dict(heads=7, kv_heads=1),
    "dim64": dict(dim=64),
    "dim80": dict(dim=80),
    "classes1": dict(classes=1),
    "classes8": dict(classes=8),
    "many-programs": dict(queries=(1, 1, 1, 1, 6), contexts=(9, 9, 30, 66, 20), programs=9),
    "hide": dict(hide=True),
    "hide-everything-short": dict(queries=(1, 1, 4), contexts=(1, 2, 4), hide=True),
}
OPTIONS = {
    "softcap": dict(softcap=1.5),
    "window1": dict(window=1),
    "window5": dict(window=5),
    "window64": dict(window=64),
    "all": dict(softcap=2.0, window=33, scale=0.7),
}


@pytest.mark.parametrize("sizes", CASES.values(), ids=CASES)
def test_attention_is_the_written_out_formula(make_case, oracle, sizes):
    case = make_case(**sizes)
    torch.testing.assert_close(case.run(), oracle(case), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("hide", [False, True], ids=["seen", "hide"])
def test_softcap_and_window_come_before_the_edits(make_case, oracle, options, hide):
    case = make_case(queries=(1, 1, 5), contexts=(130, 7, 66), hide=hide)
    expected = oracle(case, **options)
    torch.testing.assert_close(case.run(**options), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float32, 1e-5), (torch.float16, 6e-3), (torch.bfloat16, 5e-2)],
    ids=["float32", "float16", "bfloat16"],
)
def test_lower_precision_stays_close(make_case, oracle, dtype, tolerance):
    case = make_case(queries=(1, 1, 5), contexts=(130, 7, 66), dtype=dtype)
    output = case.run()
    assert output.dtype == dtype
    torch.testing.assert_close(output.double(), oracle(case), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("edit", [Edit.SCORE, Edit.MASS, Edit.HEAD, Edit.HIDE])
def test_each_edit_alone(make_case, with_edits, oracle, edit):
    case = make_case(hide=edit == Edit.HIDE)
    neutral = Program.identity(ControlShape(2, 4, 16))
    kept = {
        Edit.SCORE: ("scale", "absolute", "bias", "weight"),
        Edit.MASS: ("transform", "gate_weight", "gate_threshold"),
        Edit.HEAD: ("gain", "shift"),
        Edit.HIDE: (),
    }[edit]
    for row, program in list(case.programs.items())[1:]:
        case.write(row, replace(neutral, **{name: getattr(program, name) for name in kept}))
    case.batch = with_edits(case.batch, (edit, edit))
    torch.testing.assert_close(case.run(), oracle(case), rtol=1e-10, atol=1e-10)


def test_a_layer_takes_its_own_programs_and_tags(make_case, oracle):
    case = make_case()
    assert not torch.allclose(oracle(case, layer=0), oracle(case, layer=1))
    torch.testing.assert_close(case.run(layer=0), oracle(case, layer=0), rtol=1e-10, atol=1e-10)


def test_layers_of_one_step_share_what_is_derived(make_case, oracle):
    case = make_case()
    case.run()
    case.key_cache.view(-1, 2, 16)[case.batch.slots] = case.new(case.keys)
    case.value_cache.view(-1, 2, 16)[case.batch.slots] = case.new(case.values)
    for window in (0, 5):
        for layer in (0, 1):
            output = reference.decode(
                case.query[:2], case.key_cache, case.value_cache, case.batch, layer, 0.25, 0, window
            )
            expected = oracle(case, layer=layer, window=window)[:2]
            torch.testing.assert_close(output, expected, rtol=1e-10, atol=1e-10)


def test_padded_slots_give_zeros(make_case, oracle):
    case = make_case(queries=(1, 1, 1), contexts=(7, 65, 0))
    case.batch.control_rows[2] = 0
    case.batch.tag_rows[2] = 0
    output = case.run()
    assert (output[2] == 0).all()
    torch.testing.assert_close(output, oracle(case), rtol=1e-10, atol=1e-10)
    assert (case.run(batch=case.plain())[2] == 0).all()


@pytest.mark.parametrize("queries", [(1,), (5,)], ids=["decode", "prefill"])
def test_rows_that_see_nothing_give_zeros_and_move_nothing(make_case, queries):
    case = make_case(queries=queries, contexts=(6,), hide=True)
    controls, tags = case.tables
    tags.tags[1] = NEVER_ATTEND
    controls.shift.zero_()
    assert (case.run() == 0).all()
    assert not tags.moved.any()


def test_classes_without_keys_cannot_receive(make_case, oracle):
    case = make_case(classes=6)
    tags = case.tables[1].tags
    tags[1, :, :65] = tags[1, :, :65] % 2 * 3
    tags[3, :, :62] = 1
    torch.testing.assert_close(case.run(), oracle(case), rtol=1e-10, atol=1e-10)


def test_mass_that_nobody_can_take_stays(make_case, oracle, make_program):
    case = make_case(programs=1)
    program = Program.identity(ControlShape(2, 4, 16))
    program.transform[..., 1, 1], program.transform[..., 2, 1] = 0, 1
    case.write(1, program)
    case.batch.control_rows.fill_(1)
    tags = case.tables[1]
    tags.tags[:] = 1
    torch.testing.assert_close(case.run(), oracle(case), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(case.run(), case.run(batch=case.plain()))
    assert not tags.moved.any()


def test_a_class_can_be_emptied(make_case, oracle):
    case = make_case(programs=1, classes=2)
    program = Program.identity(ControlShape(2, 4, 16))
    program.transform[..., 1, 1] = 0
    case.write(1, program)
    case.batch.control_rows.fill_(1)
    case.tables[1].tags[1] = 1
    output = case.run()
    assert (output[0] == 0).all()
    torch.testing.assert_close(output, oracle(case), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("gap", [60.0, 75.0, 100.0, 104.0])
def test_next_to_no_mass_does_not_overflow(make_case, gap):
    """exp(-gap) is tiny, then subnormal, then 0 in float32; what it is divided into is not."""
    case = make_case(programs=1, classes=2, dtype=torch.float32)
    program = Program.identity(ControlShape(2, 4, 16))
    program.bias[..., 1] = -gap
    program.transform[..., 0, 0], program.transform[..., 1, 0] = 0.5, 0.5
    case.write(1, program)
    case.batch.control_rows.fill_(1)
    assert case.run().isfinite().all()


def test_infinite_bias_knocks_a_class_out(make_case, oracle):
    case = make_case(programs=1, classes=3)
    case.programs[1].bias[..., 2] = -1e30
    case.tables[1].tags[:, :, 0] = 0
    expected = oracle(case)
    case.tables[0].bias[1, ..., 2] = -torch.inf
    torch.testing.assert_close(case.run(), expected, rtol=1e-10, atol=1e-10)


def test_moved_counts_the_rows_whose_masses_changed(make_case):
    case = make_case(queries=(1, 1, 4), contexts=(9, 9, 9), programs=2)
    _, tables = case.tables
    tables.tags[:] = 0
    tables.tags[1:4, :, 3] = 1  # rows of the prefill before position 3 have nothing to take
    program = Program.identity(ControlShape(2, 4, 16))
    program.transform[1, :2, 0, 1], program.transform[1, :2, 1, 1] = 1, 0
    program.gate_weight[1, 1, 0, 0], program.gate_threshold[1, 1, 0] = 1, 2  # never holds
    case.write(1, program)
    case.write(2, Program.identity(ControlShape(2, 4, 16)))
    case.batch.control_rows[:] = torch.tensor([1, 2, 1, 0, 1, 1])
    case.run()
    expected = torch.zeros_like(tables.moved)
    expected[1, 1, 0], expected[3, 1, 0] = 1, 3
    assert torch.equal(tables.moved, expected)
    tables.tags[3, 1, 3], tables.tags[3, 1, 7] = 0, 1  # seen from position 7 on
    case.run()
    expected[1, 1, 0], expected[3, 1, 0] = 2, 5
    assert torch.equal(tables.moved, expected)


@pytest.mark.parametrize("queries", [(1,), (5,)], ids=["decode", "prefill"])
@pytest.mark.parametrize("own", [False, True], ids=["tags", "own-classes"])
def test_mass_given_to_empty_classes_moves_nothing(make_case, per_head, queries, own):
    """All keys are of class 0, and what it gives away comes back; other classes have no share."""
    case = make_case(queries=queries, contexts=(9,), programs=1)
    case.tables[1].tags[1] = 0
    if own:
        per_head(case, (0,)).batch.per_head_table().classes.zero_()
    program = Program.identity(ControlShape(2, 4, 16))
    program.transform[..., 0, 0], program.transform[..., 1, 0] = 0.5, 0.5
    case.write(1, program)
    case.batch.control_rows.fill_(1)
    torch.testing.assert_close(case.run(), case.run(batch=case.plain()))
    assert not case.tables[1].moved.any()


def test_sequences_may_share_a_tag_row(make_case):
    case = make_case(queries=(1, 1), contexts=(9, 9), programs=1)
    case.batch.tag_rows[:] = 1
    program = Program.identity(ControlShape(2, 4, 16))
    program.transform[..., 0, 0] = 0.5
    case.write(1, program)
    case.batch.control_rows[:] = 1
    case.tables[1].tags[1] = 0
    case.run()
    assert (case.tables[1].moved[1, 1] == 2).all()


def test_store_writes_its_slots_only():
    cache = torch.full((2, 64, 2, 4), torch.nan, dtype=torch.bfloat16)
    values = cache.clone()
    key, value = torch.randn(3, 2, 4), torch.randn(3, 2, 4)
    slots = torch.tensor([70, 0, 127])
    reference.store(key, value, cache, values, slots)
    for tensor, new in ((cache, key), (values, value)):
        flat = tensor.view(-1, 2, 4)
        assert torch.equal(flat[slots], new.bfloat16())
        assert int(flat.isnan().all(-1).all(-1).sum()) == 125


def test_prefill_without_sequences_is_empty(make_case):
    case = make_case(queries=(1,), contexts=(9,))
    output = reference.prefill(
        case.query[1:], case.key_cache, case.value_cache, case.batch, 0, scale=0.25
    )
    assert output.shape == (0, 4, 16)


def test_edit_functions_agree_with_the_formula(make_case, make_program):
    rng = np.random.default_rng(3)
    program = make_program(ControlShape(2, 4, 16), CLASSES, rng)
    case = make_case(programs=1)
    case.write(1, program)
    rows, tags = torch.ones(2, 3, dtype=torch.int32), torch.randint(0, CLASSES, (2, 11))
    scores, betas = torch.randn(2, 4, 3, 11).double(), torch.randn(2, KEY_WEIGHTS, 11)
    output = edits.edit_scores(scores, case.tables[0], rows, tags, betas, 1)

    def by_key(table):
        return torch.from_numpy(table[1])[:, tags].transpose(0, 1)[:, :, None].double()

    weights = torch.from_numpy(program.weight[1]).double()
    weighted = (weights[None] @ betas.double())[:, :, None]
    expected = scores * (1 + by_key(program.scale)) + scores.abs() * by_key(program.absolute)
    torch.testing.assert_close(output, expected + by_key(program.bias) + weighted)


@pytest.mark.parametrize("edit", [Edit.NONE, Edit.SCORE, Edit.MASS], ids=["none", "score", "mass"])
def test_emission_is_what_the_softmax_saw(make_case, with_edits, edit):
    """Masses and normalisers, before a mass edit, of decodes and prefills."""
    case = make_case(queries=(1, 1, 5, 2), contexts=(70, 0, 64, 9))
    for row, program in list(case.programs.items())[1:]:
        neutral = Program.identity(ControlShape(2, 4, 16))
        kept = {Edit.NONE: (), Edit.SCORE: ("bias",), Edit.MASS: ("transform",)}[edit]
        case.write(row, replace(neutral, **{name: getattr(program, name) for name in kept}))
    case.batch = with_edits(case.batch, (edit, edit) if edit else ())
    rows = case.query.shape[:2]
    emit = Emission(torch.full((*rows, CLASSES), torch.nan), torch.full(rows, torch.nan))
    output = case.run(emit=emit)
    assert torch.equal(output, case.run())
    starts, groups = case.batch.query_starts.tolist(), case.query.shape[1] // 2
    for seq, (first, last) in enumerate(pairwise(starts)):
        context = int(case.batch.context_lens[seq])
        for row in range(first, last):
            if not context:
                assert not emit.masses[row].any()
                assert (emit.lse[row] == -torch.inf).all()
                continue
            seen = context - last + row + 1
            tags = case.tables[1].tags[int(case.batch.tag_rows[seq]), 1, :seen].long()
            for head in range(rows[1]):
                key = case.keys[seq][:seen, head // groups]
                scores = key @ case.query[row, head] * case.query.shape[-1] ** -0.5
                program = case.programs[int(case.batch.control_rows[row])]
                scores = scores + torch.from_numpy(program.bias[1, head]).double()[tags]
                torch.testing.assert_close(emit.lse[row, head].double(), scores.logsumexp(0))
                masses = torch.zeros(CLASSES, dtype=torch.float64)
                masses.index_add_(0, tags, scores.softmax(0))
                torch.testing.assert_close(
                    emit.masses[row, head].double(), masses, rtol=1e-5, atol=1e-6
                )
