"""The Triton residual edits, run by the interpreter, against the reference in float64."""

import numpy as np
import pytest
import torch

from saccade_kernels import ops, residual_tables
from saccade_kernels.gpu import backend
from saccade_kernels.gpu import residual as kernel
from saccade_kernels.residual import EVERYWHERE, RESIDUAL_EDITS, ResidualFlag, ResidualProgram
from saccade_kernels.residual_tables import ResidualTables
from saccade_testing.tables import write_row

LAYERS, ROWS = 3, 13
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}


@pytest.fixture(autouse=True)
def poison(monkeypatch: pytest.MonkeyPatch):
    """Fresh memory is NaN, so that an output that nobody wrote shows."""
    fresh = torch.Tensor.new_empty

    def poisoned(self, *size, **options):
        made = fresh(self, *size, **options)
        return made.fill_(torch.nan) if made.is_floating_point() else made

    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned)


def random_tables(size: int) -> ResidualTables:
    """Rows 1 to 11 have up to 16 random edits of every kind at site 2; 0 and 12 none."""
    rng = np.random.default_rng(size)
    tables = ResidualTables.allocate(ROWS, LAYERS, size, slots=20)
    bank = rng.normal(size=(19, size))
    tables.bank[1:] = torch.from_numpy(bank / np.linalg.norm(bank, axis=1, keepdims=True))
    for row in range(1, ROWS - 1):
        program = ResidualProgram.identity(LAYERS)
        for at in range((0, 1, 2, 3, 4, 1, 2, 3, 4, 8, 11, RESIDUAL_EDITS)[row]):
            low, high = sorted(rng.normal(size=2))
            limits = (low, high) if rng.random() < 0.5 else EVERYWHERE
            numbers = (rng.normal(), 2 * rng.normal(), *limits)
            read, write = rng.integers(1, 20, size=2).tolist()
            flags, where = ResidualFlag(row % 8), EVERYWHERE
            if row >= 6:  # others are chains of rank 1
                flags |= (0, ResidualFlag.JOINED, ResidualFlag.DIAGONAL)[
                    rng.integers(3) if at else 0
                ]
                where = (-np.inf, high) if at and rng.random() < 0.5 else EVERYWHERE
            else:
                write = read
            program.append(2, read, numbers, flags, write, where)
        write_row(tables, row, program)
    return tables


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("size", [37, 64, 1031])
def test_triton_equals_the_reference(dtype, size):
    tables = random_tables(size)
    hidden = torch.randn(2 * ROWS, size, dtype=torch.float64).to(dtype)
    hidden[1, 3] = -0.0
    rows = (torch.arange(2 * ROWS) % ROWS).int()
    found = kernel.edit_residual(hidden, rows, tables, 2)
    wanted = residual_tables.edit_residual(hidden.double(), rows, tables, 2)
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(found.double(), wanted, rtol=tolerance, atol=tolerance)
    plain = rows % (ROWS - 1) == 0
    assert torch.equal(found[plain], hidden[plain])
    assert not torch.isclose(found[~plain], hidden[~plain]).all(-1).any()
    assert torch.equal(kernel.edit_residual(hidden, rows, tables, 1), hidden)


def test_no_rows():
    tables = random_tables(8)
    hidden, rows = torch.zeros(0, 8), torch.zeros(0, dtype=torch.int32)
    assert kernel.edit_residual(hidden, rows, tables, 2).shape == (0, 8)


def test_rows_that_are_not_contiguous():
    tables, rows = random_tables(8), torch.arange(ROWS).int()
    hidden = torch.randn(ROWS, 16)[:, ::2]
    wanted = residual_tables.edit_residual(hidden, rows, tables, 2)
    torch.testing.assert_close(kernel.edit_residual(hidden, rows, tables, 2), wanted)
    for module in (kernel, residual_tables):  # in place, too
        place = torch.cat((hidden, hidden)).view(2, *hidden.shape)
        found = module.edit_residual(place[1], rows, tables, 2, place[1])
        assert found.data_ptr() == place[1].data_ptr()
        torch.testing.assert_close(place[1], wanted)
        assert torch.equal(place[0], hidden)


def test_ops_take_the_backend(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ops, "_backend", lambda hidden: backend)
    tables, rows = random_tables(8), torch.arange(ROWS).int()
    hidden = torch.randn(ROWS, 8)
    wanted = residual_tables.edit_residual(hidden, rows, tables, 2)
    torch.testing.assert_close(ops.edit_residual(hidden, rows, tables, 2), wanted)
