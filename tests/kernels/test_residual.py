"""The reference of residual edits against its formula, one row after the other in plain Python."""

import math

import numpy as np
import pytest
import torch

from saccade_kernels.residual import (
    RESIDUAL_EDITS,
    ResidualFlag,
    ResidualProgram,
    SiteKind,
    site_of,
    sites_of,
)
from saccade_kernels.residual_tables import ResidualTables, edit_residual
from saccade_testing.tables import write_row

SIZE, LAYERS = 37, 3
INF = math.inf
EDITS = {
    "add": (1.0, 2.5, -INF, INF, ResidualFlag.NONE),
    "project out": (0.0, 0.0, -INF, INF, ResidualFlag.NONE),
    "scale": (-0.5, 0.0, -INF, INF, ResidualFlag.NONE),
    "clamp": (1.0, 0.0, -0.25, 0.5, ResidualFlag.NONE),
    "cap": (1.0, 0.0, -INF, 0.125, ResidualFlag.NONE),
    "signed": (1.0, 1.5, -INF, INF, ResidualFlag.SIGNED),
    "relative": (1.0, 0.75, -INF, INF, ResidualFlag.RELATIVE),
    "signed relative": (1.0, -0.75, -INF, 4.0, ResidualFlag.SIGNED | ResidualFlag.RELATIVE),
    "keeps norm": (1.0, 3.0, -INF, INF, ResidualFlag.KEEP_NORM),
    "all": (0.5, 1.25, -2.0, 1.0, ResidualFlag(7)),
}


JOINED, DIAGONAL = ResidualFlag.JOINED, ResidualFlag.DIAGONAL


def literal(h: list[float], edit, v: list[float]) -> list[float]:
    """One edit of rank 1."""
    return chained(h, [edit], [v])


def chained(h: list[float], edits, reads, writes=None, wheres=None) -> list[float]:
    """Edits in order, dimension by dimension."""
    base = h
    for at, (scale, shift, low, high, flags) in enumerate(edits):
        r, w = reads[at], (writes or reads)[at]
        above, below = wheres[at] if wheres else (-INF, INF)
        if not flags & JOINED:
            base = h
        rms = math.sqrt(sum(a * a for a in base) / len(base))
        if flags & DIAGONAL:
            ps, w = list(base), r
        else:
            ps = [sum(a * b for a, b in zip(base, r, strict=True))] * len(base)
        changed = []
        for a, p, b in zip(h, ps, w, strict=True):
            s = (p > 0) - (p < 0) if flags & ResidualFlag.SIGNED else 1.0
            s *= rms if flags & ResidualFlag.RELATIVE else 1.0
            wanted = min(max(scale * p + shift * s, low), high)
            changed.append(a + (wanted - p) * b if above <= p <= below else a)
        if flags & ResidualFlag.KEEP_NORM:
            factor = math.dist(base, [0] * len(h)) / math.dist(changed, [0] * len(h))
            changed = [factor * a for a in changed]
        h = changed
    return h


@pytest.fixture
def make_tables():
    """``make_tables(edits of each row from 1)``, all at site 2, with random directions."""

    def make(rows: list[list], size: int = SIZE, seed: int = 0) -> ResidualTables:
        rng = np.random.default_rng(seed)
        tables = ResidualTables.allocate(len(rows) + 1, LAYERS, size, slots=30)
        bank = rng.normal(size=(29, size))
        bank /= np.linalg.norm(bank, axis=1, keepdims=True)
        tables.bank[1:] = torch.from_numpy(bank)
        slot = 0
        for row, edits in enumerate(rows, start=1):
            program = ResidualProgram.identity(LAYERS)
            for *numbers, flags in edits:
                slot += 1
                program.append(2, slot, tuple(numbers), flags)
            write_row(tables, row, program)
        return tables

    return make


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_every_edit_is_its_formula(make_tables, dtype):
    tables = make_tables([[edit] for edit in EDITS.values()])
    hidden = torch.randn(3 * len(EDITS), SIZE, dtype=torch.float64).to(dtype)
    rows = (torch.arange(len(hidden)) % len(EDITS) + 1).int()
    found = edit_residual(hidden, rows, tables, 2)
    assert found.dtype == dtype
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 0.05}[dtype]
    for h, result, row in zip(hidden.tolist(), found.tolist(), rows.tolist(), strict=True):
        wanted = literal(h, list(EDITS.values())[row - 1], tables.bank[row].double().tolist())
        assert result == pytest.approx(wanted, abs=tolerance), list(EDITS)[row - 1]


def test_edits_chain_in_order(make_tables):
    chain = [*EDITS.values(), *list(EDITS.values())[:6]]
    assert len(chain) == RESIDUAL_EDITS
    tables = make_tables([chain])
    hidden = torch.randn(5, SIZE, dtype=torch.float64)
    found = edit_residual(hidden, torch.ones(5, dtype=torch.int32), tables, 2)
    for h, result in zip(hidden.tolist(), found.tolist(), strict=True):
        for slot, edit in enumerate(chain, start=1):
            h = literal(h, edit, tables.bank[slot].double().tolist())
        assert result == pytest.approx(h, abs=1e-11)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_rows_without_edits_keep_their_bits(make_tables, dtype):
    tables = make_tables([[EDITS["all"]], []])
    hidden = torch.randn(4, SIZE, dtype=torch.float64).to(dtype)
    hidden[1, 3], hidden[3, 0] = -0.0, torch.inf
    rows = torch.tensor([1, 0, 1, 2], dtype=torch.int32)
    found = edit_residual(hidden, rows, tables, 2)
    bits = {8: torch.int64, 4: torch.int32, 2: torch.int16}[dtype.itemsize]
    assert torch.equal(found.view(bits)[1::2], hidden.view(bits)[1::2])
    assert not torch.equal(found[::2], hidden[::2])
    for layer in (0, 1, 3):
        assert torch.equal(edit_residual(hidden, rows, tables, layer).view(bits), hidden.view(bits))


def test_adding_does_not_depend_on_the_coordinate(make_tables):
    """Along v there may be a massive activation; computing p' and then p' - p would lose digits."""
    tables = make_tables([[(1.0, 0.3, -INF, INF, ResidualFlag.NONE)]])
    direction = tables.bank[1]
    hidden = 1e5 * direction[None] + torch.randn(1, SIZE)
    found = edit_residual(hidden, torch.ones(1, dtype=torch.int32), tables, 2)
    assert torch.equal(found, hidden + torch.tensor(0.3) * direction)


def test_a_limit_that_is_not_reached_changes_no_bit(make_tables):
    flags = ResidualFlag.KEEP_NORM
    tables = make_tables([[(1.0, 0.0, -1e3, 1e3, flags)]])
    hidden = torch.randn(9, SIZE).bfloat16()
    assert torch.equal(edit_residual(hidden, torch.ones(9, dtype=torch.int32), tables, 2), hidden)


def test_a_residual_that_vanishes_stays_so(make_tables):
    tables = make_tables([[(0.0, 0.0, -INF, INF, ResidualFlag.KEEP_NORM)]])
    hidden = torch.zeros(1, SIZE)
    assert torch.equal(edit_residual(hidden, torch.ones(1, dtype=torch.int32), tables, 2), hidden)


def one_row(bank: torch.Tensor, site: int, edits) -> ResidualTables:
    """Row 1 has ``edits``: arguments of :meth:`ResidualProgram.append` behind the site."""
    tables = ResidualTables.allocate(2, LAYERS, bank.shape[1], slots=len(bank) + 1)
    tables.bank[1:] = bank
    program = ResidualProgram.identity(LAYERS)
    for edit in edits:
        program.append(site, *edit)
    write_row(tables, 1, program)
    return tables


ONES = torch.ones(5, dtype=torch.int32)
FREE = (-INF, INF)


@pytest.mark.parametrize("rank", [1, 2, 7, 16])
def test_joined_edits_are_an_affine_map_of_low_rank(rank):
    """h' = h + W^T (R h + b), whatever R and W are."""
    read, write = torch.randn(2, rank, SIZE).double().float().double()
    shift = torch.randn(rank).double()
    edits = [
        (1 + i, (2.0, float(shift[i]), *FREE), JOINED if i else ResidualFlag.NONE, 1 + rank + i)
        for i in range(rank)
    ]
    tables = one_row(torch.cat([read, write]), 4, edits)
    hidden = torch.randn(5, SIZE, dtype=torch.float64)
    wanted = hidden + (hidden @ read.T + shift) @ write
    torch.testing.assert_close(edit_residual(hidden, ONES, tables, 4), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_a_subspace_is_projected_out(fraction):
    """h' = h - fraction V^T V h, as Nullu writes it."""
    basis = torch.linalg.qr(torch.randn(SIZE, 4, dtype=torch.float64)).Q.T
    numbers = (1 - fraction, 0.0, *FREE)
    edits = [(1 + i, numbers, JOINED if i else ResidualFlag.NONE) for i in range(4)]
    hidden = torch.randn(5, SIZE, dtype=torch.float64)
    found = edit_residual(hidden, ONES, one_row(basis.float(), 2, edits), 2)
    wanted = hidden - fraction * hidden @ basis.T @ basis
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)


def test_dimensions_are_scaled_and_shifted():
    """h' = a h + b elementwise: a diagonal edit, and a vector that joins it."""
    a, b = torch.randn(2, SIZE)
    edits = [
        (1, (2.0, 0.0, *FREE), DIAGONAL),
        (2, (1.0, 1.0, *FREE), JOINED),
    ]
    hidden = torch.randn(5, SIZE, dtype=torch.float64)
    found = edit_residual(hidden, ONES, one_row(torch.stack([a - 1, b]), 2, edits), 2)
    wanted = hidden * a.double() + b.double()
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)


def test_an_edit_of_one_side():
    """VISTA's: lambda (1 + max(0, -cos(m, v))) along v, then the norm of m."""
    v = torch.nn.functional.normalize(torch.randn(SIZE), dim=0)
    strength, size = 0.17, math.sqrt(SIZE)
    edits = [
        (1, (1.0, strength * size, *FREE), ResidualFlag.RELATIVE),
        (1, (1 - strength, 0.0, *FREE), JOINED | ResidualFlag.KEEP_NORM, None, (-INF, 0.0)),
    ]
    m = torch.cat([torch.randn(3, SIZE).double(), 2 * v.double()[None], -2 * v.double()[None]])
    norm = m.norm(dim=-1, keepdim=True)
    cos = m @ v.double() / norm[:, 0]
    assert (cos < 0).any()
    assert (cos > 0).any()
    turned = m / norm + (strength * (1 + (-cos).clamp(min=0)))[:, None] * v.double()
    wanted = norm * turned / turned.norm(dim=-1, keepdim=True)
    found = edit_residual(m, ONES, one_row(v[None], 2, edits), 2)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)


def test_rows_beyond_the_bounds_keep_their_bits():
    v = torch.nn.functional.normalize(torch.randn(2, SIZE), dim=-1)
    edits = [(1, (1.0, 3.0, *FREE), ResidualFlag.KEEP_NORM, None, (-0.25, 0.5))]
    hidden = torch.randn(5, SIZE)
    hidden += (torch.tensor([-0.5, -0.1, 0.0, 0.4, 0.6]) - hidden @ v[0])[:, None] * v[0]
    found = edit_residual(hidden, ONES, one_row(v, 2, edits), 2)
    same = (found == hidden).all(-1)
    assert same.tolist() == [True, False, False, False, True]


@pytest.mark.parametrize("seed", range(4))
def test_any_program_is_its_formula(seed):
    rng = np.random.default_rng(seed)
    bank = torch.from_numpy(rng.normal(size=(9, SIZE)) / math.sqrt(SIZE)).float()
    edits, kinds = [], (ResidualFlag.NONE, JOINED, DIAGONAL, JOINED | DIAGONAL)
    for at in range(RESIDUAL_EDITS):
        low, high = sorted(rng.normal(size=2))
        limits = (low, high) if rng.random() < 0.3 else FREE
        where = (low, INF) if rng.random() < 0.3 else FREE
        flags = ResidualFlag(int(rng.integers(8))) | (kinds[rng.integers(4)] if at else 0)
        numbers = np.float32([rng.normal(), rng.normal(), *limits]).tolist()
        read, write = rng.integers(1, 10, size=2).tolist()
        edits.append((read, numbers, flags, write, np.float32(where).tolist()))
    tables = one_row(bank, 7, edits)
    hidden = torch.randn(5, SIZE, dtype=torch.float64)
    vectors = tables.bank.double().tolist()
    for h, found in zip(
        hidden.tolist(), edit_residual(hidden, ONES, tables, 7).tolist(), strict=True
    ):
        wanted = chained(
            h,
            [(*edit[1], edit[2]) for edit in edits],
            [vectors[edit[0]] for edit in edits],
            [vectors[edit[3]] for edit in edits],
            [edit[4] for edit in edits],
        )
        assert found == pytest.approx(wanted, rel=1e-9, abs=1e-9)


def test_sites_are_numbered_in_the_order_of_a_pass():
    order = [(kind, layer) for layer in range(LAYERS) for kind in SiteKind]
    order.append((SiteKind.RESIDUAL, LAYERS))
    assert [site_of(*where) for where in order] == list(range(sites_of(LAYERS)))
    assert ResidualProgram.identity(LAYERS).count.shape == (sites_of(LAYERS),)


def test_what_programs_refuse():
    program, last = ResidualProgram.identity(LAYERS), sites_of(LAYERS) - 1
    with pytest.raises(ValueError, match="no edit to join"):
        program.append(last, 1, (1.0, 1.0, -INF, INF), JOINED)
    for _ in range(RESIDUAL_EDITS):
        program.append(last, 1, (1.0, 1.0, -INF, INF), ResidualFlag.NONE)
    assert program.sites == {last}
    with pytest.raises(ValueError, match="at most 16"):
        program.append(last, 1, (1.0, 1.0, -INF, INF), ResidualFlag.NONE)
