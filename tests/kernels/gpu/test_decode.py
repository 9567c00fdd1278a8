"""The Triton decode, run by the interpreter, against the reference and the dense oracle."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from saccade_kernels import reference
from saccade_kernels.batch import Emission
from saccade_kernels.controls import CLASSES, NEVER_ATTEND, ControlShape, Edit, Program
from saccade_kernels.gpu import decode as kernel
from saccade_kernels.gpu.tuning import DecodeConfig

CONFIG = DecodeConfig(num_warps=4, num_stages=3, split=64, max_splits=4)
CONTEXTS = (130, 7, 64, 1, 65)


@pytest.fixture
def make_decodes(make_case, with_edits):
    def make(contexts=CONTEXTS, classes=4, **options):
        options.setdefault("dtype", torch.float32)
        case = make_case(
            queries=(1,) * len(contexts), contexts=contexts, classes=classes, **options
        )
        case.batch = replace(case.batch, classes=classes)
        reference.store(
            case.new(case.keys),
            case.new(case.values),
            case.key_cache,
            case.value_cache,
            case.batch.slots,
        )
        return case

    return make


def run(case, batch=None, layer=1, config=CONFIG, emit=None, **options):
    """The kernel."""
    scale = case.query.shape[-1] ** -0.5
    batch = replace(batch or case.batch, derived={})
    arguments = (case.query, case.key_cache, case.value_cache, batch, layer, scale)
    return kernel.decode(*arguments, **options, emit=emit, config=config)


def expected(case, batch=None, layer=1, emit=None, **options):
    """The reference on the same numbers in float64."""
    scale = case.query.shape[-1] ** -0.5
    batch = replace(batch or case.batch, derived={})
    wide = (t.double() for t in (case.query, case.key_cache, case.value_cache))
    return reference.decode(*wide, batch, layer, scale, **options, emit=emit)


@pytest.fixture(autouse=True)
def poison(monkeypatch: pytest.MonkeyPatch):
    """Fresh memory is NaN, so that what a kernel fails to write shows."""
    fresh = torch.Tensor.new_empty

    def poisoned(self, *size, **options):
        made = fresh(self, *size, **options)
        return made.fill_(torch.nan) if made.is_floating_point() else made

    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned)


def assert_close(case, output, wanted, tolerance=None):
    tolerance = tolerance or {4: 2e-5, 2: 4e-3}[case.query.element_size()]
    if case.query.dtype == torch.bfloat16:
        tolerance = 3e-2
    assert output.dtype == case.query.dtype
    assert output.shape == case.query.shape
    torch.testing.assert_close(output.double(), wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("edited", [False, True], ids=["plain", "edited"])
def test_it_is_the_reference(make_decodes, dtype, edited):
    case = make_decodes(dtype=dtype)
    batch = case.batch if edited else case.plain()
    assert_close(case, run(case, batch), expected(case, batch))


def test_it_is_the_formula(make_decodes, oracle):
    case = make_decodes(hide=True)
    assert_close(case, run(case), oracle(case))


@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "classes"),
    [
        (2, 2, 64, 1),
        (2, 1, 80, 2),
        (4, 1, 96, 4),
        (7, 1, 32, 8),
        (8, 1, 16, 3),
        (3, 1, 128, 5),
        (1, 1, 256, 8),
    ],
)
def test_shapes(make_decodes, heads, kv_heads, dim, classes):
    case = make_decodes((70, 3), heads=heads, kv_heads=kv_heads, dim=dim, classes=classes)
    for batch in (case.batch, case.plain()):
        assert_close(case, run(case, batch), expected(case, batch))


@pytest.mark.parametrize(("window", "softcap"), [(1, 0.0), (40, 1.5), (65, 0.0), (0, 1.5)])
def test_window_and_soft_cap(make_decodes, window, softcap):
    case, options = make_decodes((130, 7)), dict(softcap=softcap, window=window)
    for batch in (case.batch, case.plain()):
        assert_close(case, run(case, batch, **options), expected(case, batch, **options))


@pytest.mark.parametrize(("split", "max_splits"), [(64, 1), (64, 6), (128, 3)])
def test_splits(make_decodes, split, max_splits):
    case = make_decodes((321, 64), heads=2, classes=2)
    config = DecodeConfig(num_warps=4, num_stages=3, split=split, max_splits=max_splits)
    assert_close(case, run(case, config=config), expected(case))


def test_a_neighbour_does_not_change_the_splits(make_decodes):
    case = make_decodes((130, 321), heads=2, classes=2)
    together = run(case)
    alone = make_decodes((130, 321), heads=2, classes=2)
    alone.query = alone.query[:1]
    batch = replace(alone.batch, context_lens=alone.batch.context_lens[:1], num_decodes=1)
    assert torch.equal(run(alone, replace(batch, max_context=130))[0], together[0])


@pytest.mark.parametrize("edit", [Edit.SCORE, Edit.MASS, Edit.HEAD])
def test_each_edit_alone(make_decodes, with_edits, edit):
    case = make_decodes()
    kept = {
        Edit.SCORE: ("scale", "absolute", "bias", "weight"),
        Edit.MASS: ("transform", "gate_weight", "gate_threshold"),
        Edit.HEAD: ("gain", "shift"),
    }[edit]
    for row, program in list(case.programs.items())[1:]:
        neutral = Program.identity(ControlShape(2, 4, 16))
        case.write(row, replace(neutral, **{name: getattr(program, name) for name in kept}))
    case.batch = with_edits(case.batch, (edit, edit))
    assert_close(case, run(case), expected(case))


def test_identity_rows_are_bitwise_plain(make_decodes):
    """Tagged keys, another program beside them, a key head of a program left alone."""
    case = make_decodes(programs=3)
    case.batch.control_rows[:] = torch.tensor([0, 1, 0, 2, 0])
    program = case.programs[1]
    for name in ("scale", "absolute", "bias", "weight", "shift"):
        getattr(program, name)[:, 2:] = 0
    program.transform[:, 2:] = torch.eye(CLASSES).numpy()
    program.gain[:, 2:] = 1
    case.write(1, program)
    edited, plain = run(case), run(case, case.plain())
    assert torch.equal(edited[[0, 2, 4]], plain[[0, 2, 4]])
    assert torch.equal(edited[1, 2:], plain[1, 2:])
    assert not torch.equal(edited[1, 1], plain[1, 1])


def test_hidden_keys(make_decodes):
    case = make_decodes(hide=True)
    case.tables[1].tags[2] = NEVER_ATTEND  # the second sequence sees nothing at all
    output = run(case)
    assert_close(case, output, expected(case))
    case.batch.control_rows[1] = 0
    assert not run(case)[1].any()


def test_padded_slots_are_zero(make_decodes):
    case = make_decodes((65, 0, 3, 0))
    case.batch.control_rows[[1, 3]] = 0
    for batch in (case.batch, case.plain()):
        output = run(case, batch)
        assert not output[[1, 3]].any()
        assert_close(case, output, expected(case, batch))


def test_empty_and_faint_classes(make_decodes):
    """Mass for a class without keys goes back; so does that of one knocked out by its bias."""
    case = make_decodes((65, 66, 67))
    case.tables[1].tags[1][case.tables[1].tags[1] == 2] = 1
    program = case.programs[1]
    program.gate_threshold[:] = -torch.inf
    program.bias[..., 3] = -torch.inf
    program.scale[..., 3], program.absolute[..., 3], program.weight[:] = 0, 0, 0
    case.write(1, program)
    case.batch.control_rows[:] = 1
    assert_close(case, run(case), expected(case))


@pytest.mark.parametrize("mass", [1e-28, 6e-31, 3.5e-31, 1e-32])
def test_a_class_may_be_too_faint_to_grow(make_decodes, mass):
    """One key of class 1 among 64; half of all attention is to go to it."""
    case = make_decodes((64,), classes=2)
    case.query.zero_()
    case.tables[1].tags[1], case.tables[1].tags[1, :, 3] = 0, 1
    program = Program.identity(ControlShape(2, 4, 16))
    program.bias[..., 1] = np.log(63 * mass)
    program.transform[..., 0, 0], program.transform[..., 1, 0] = 0.5, 0.5
    case.write(1, program)
    case.batch.control_rows[:] = 1
    values = case.values[0].double()
    rest = values[[i for i in range(64) if i != 3]].mean(0)
    wanted = (rest + values[3]) / 2 if mass > 5e-31 else rest
    wanted = wanted.repeat_interleave(2, 0)[None]
    torch.testing.assert_close(expected(case), wanted, rtol=1e-5, atol=1e-5)
    assert_close(case, run(case), wanted)


def test_every_key_in_an_emptied_class_keeps_its_mass(make_decodes):
    case = make_decodes((65,), classes=2)
    case.tables[1].tags[1] = 1
    program = Program.identity(ControlShape(2, 4, 16))
    program.transform[..., 1, 1], program.transform[..., 0, 1] = 0, 1
    case.write(1, program)
    case.batch.control_rows[:] = 1
    assert torch.equal(expected(case), expected(case, case.plain()))
    assert_close(case, run(case), expected(case))


def test_moved_rows_are_counted(make_decodes):
    case = make_decodes((130, 66, 64, 65, 70))
    moved = case.tables[1].moved
    expected(case)
    wanted = moved.clone()
    moved.zero_()
    run(case)
    assert torch.equal(moved, wanted)
    assert wanted.any()
    assert not wanted.all()


def test_mass_given_to_empty_classes_moves_nothing(make_decodes):
    """All keys of the first sequence are of class 0; the second has one of class 1."""
    case = make_decodes((65, 65))
    tags = case.tables[1]
    tags.tags[1:3] = 0
    tags.tags[2, :, 7] = 1
    program = Program.identity(ControlShape(2, 4, 16))
    program.transform[..., 0, 0], program.transform[..., 1, 0] = 0.5, 0.5
    case.write(1, program)
    case.batch.control_rows[:] = 1
    assert_close(case, run(case), expected(case))
    assert not tags.moved[1].any()
    assert (tags.moved[2, 1] == 2).all()  # by the kernel and by the reference


@pytest.mark.parametrize("edited", [False, True], ids=["plain", "edited"])
def test_it_emits_masses(make_decodes, with_edits, edited):
    case = make_decodes((130, 7, 0, 65))
    case.batch.control_rows[2] = 0
    batch = case.batch if edited else with_edits(case.batch, ())
    if not edited:
        case.batch.control_rows[:] = 0
    rows = (len(case.query), case.query.shape[1])
    found, wanted = (
        Emission(torch.full((*rows, CLASSES), torch.nan), torch.full(rows, torch.nan))
        for _ in range(2)
    )
    output = run(case, batch, emit=found)
    assert_close(case, output, expected(case, batch, emit=wanted))
    torch.testing.assert_close(found.masses, wanted.masses, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.lse, wanted.lse, rtol=1e-5, atol=1e-5)


def test_queries_may_be_strided(make_decodes):
    case = make_decodes()
    plain = run(case)
    case.query = case.query.transpose(0, 1).contiguous().transpose(0, 1)
    assert torch.equal(run(case), plain)
