"""What changes nothing changes not one bit: identity rows, neutral values, poisoned memory."""

from dataclasses import replace

import pytest
import torch

from saccade_kernels.controls import ControlShape, Edit, Program

SIZES = {
    "decode": dict(queries=(1,) * 6, contexts=(1, 7, 63, 64, 65, 130)),
    "prefill": dict(queries=(7, 64), contexts=(7, 130)),
    "mixed": dict(queries=(1, 1, 1, 6), contexts=(130, 7, 66, 65)),
}
DTYPES = [torch.float64, torch.float32, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_row_0_between_edited_rows_is_bitwise_plain(make_case, sizes, dtype):
    case = make_case(**sizes, dtype=dtype)
    case.batch.control_rows[1::2] = 1
    case.batch.control_rows[::2] = 0
    plain, edited = case.run(batch=case.plain()), case.run()
    assert torch.equal(edited[::2], plain[::2])
    assert not torch.equal(edited[1::2], plain[1::2])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("options", [{}, dict(softcap=2.0, window=9)], ids=["", "softcap-window"])
def test_the_identity_program_is_bitwise_plain_in_any_row(make_case, dtype, options):
    case = make_case(queries=(1, 1, 6), contexts=(130, 7, 65), dtype=dtype)
    for row in list(case.programs)[1:]:
        case.write(row, Program.identity(ControlShape(2, 4, 16)))
    plain = case.run(batch=case.plain(), **options)
    assert torch.equal(case.run(**options), plain)
    assert not case.tables[1].moved.any()


def test_a_gate_that_does_not_hold_is_bitwise_plain(make_case):
    case = make_case(dtype=torch.float32)
    for row, program in list(case.programs.items())[1:]:
        neutral = Program.identity(ControlShape(2, 4, 16))
        threshold = neutral.gate_threshold.copy()
        threshold[..., 1] = 0.5
        case.write(row, replace(neutral, transform=program.transform, gate_threshold=threshold))
    assert torch.equal(case.run(), case.run(batch=case.plain()))
    assert not case.tables[1].moved.any()


def test_hiding_no_key_is_bitwise_plain(make_case, with_edits):
    case = make_case(dtype=torch.float32)
    case.batch.control_rows[:] = 0
    case.batch = with_edits(case.batch, (Edit.HIDE, Edit.HIDE))
    assert torch.equal(case.run(), case.run(batch=case.plain()))


def test_a_tiny_class_of_an_identity_row_is_bitwise_plain(make_case):
    """Below the threshold of an empty class, next to a row that does give to empty classes."""
    case = make_case(queries=(1, 1), contexts=(65, 66), dtype=torch.float32, classes=2)
    case.query[0] *= 60
    case.batch.control_rows[:] = torch.tensor([0, 1])
    case.tables[1].tags[2] = 0
    plain = case.run(batch=case.plain())
    assert torch.equal(case.run()[0], plain[0])


@pytest.mark.parametrize("hide", [False, True], ids=["seen", "hide"])
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_unused_memory_does_not_matter(make_case, sizes, hide):
    poisoned, clean = make_case(**sizes, hide=hide), make_case(**sizes, hide=hide)
    clean.key_cache.nan_to_num_(0.0)
    clean.value_cache.nan_to_num_(0.0)
    controls, tags = clean.tables
    tags.weights.nan_to_num_(0.0)
    controls.bias.nan_to_num_(0.0)
    for row, context in enumerate(sizes["contexts"], 1):
        tags.tags[row, :, context:] = 0
    tags.tags[len(sizes["contexts"]) + 1 :] = 0
    output = poisoned.run()
    assert output.isfinite().all()
    assert torch.equal(output, clean.run())


def test_neighbours_do_not_matter(make_case):
    """A sequence with NaN keys and values, as after an overflow, leaves the others alone."""
    case = make_case(queries=(1, 1, 1), contexts=(130, 7, 64))
    healthy = case.run()
    case.key_cache.view(-1, 2, 16)[case.batch.page_table[1, 0] * 64] = torch.nan
    case.value_cache.view(-1, 2, 16)[case.batch.page_table[1, 0] * 64] = torch.inf
    sick = case.run()
    assert torch.equal(sick[[0, 2]], healthy[[0, 2]])
    assert sick[1].isnan().any()
