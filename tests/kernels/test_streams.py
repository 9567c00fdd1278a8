"""The reference of stream edits against its formula, one row after the other in plain Python."""

import math

import numpy as np
import pytest
import torch

from saccade_kernels.stream_tables import StreamTables, stream
from saccade_kernels.streams import STREAM_EDITS, StreamFlag, StreamProgram

SIZE, LAYERS = 37, 3
INF = math.inf
EDITS = {
    "add": (1.0, 2.5, -INF, INF, StreamFlag.NONE),
    "project out": (0.0, 0.0, -INF, INF, StreamFlag.NONE),
    "scale": (-0.5, 0.0, -INF, INF, StreamFlag.NONE),
    "clamp": (1.0, 0.0, -0.25, 0.5, StreamFlag.NONE),
    "cap": (1.0, 0.0, -INF, 0.125, StreamFlag.NONE),
    "signed": (1.0, 1.5, -INF, INF, StreamFlag.SIGNED),
    "relative": (1.0, 0.75, -INF, INF, StreamFlag.RELATIVE),
    "signed relative": (1.0, -0.75, -INF, 4.0, StreamFlag.SIGNED | StreamFlag.RELATIVE),
    "keeps norm": (1.0, 3.0, -INF, INF, StreamFlag.KEEP_NORM),
    "all": (0.5, 1.25, -2.0, 1.0, StreamFlag(7)),
}


def literal(h: list[float], edit, v: list[float]) -> list[float]:
    scale, shift, low, high, flags = edit
    p = sum(a * b for a, b in zip(h, v, strict=True))
    s = 1.0
    if flags & StreamFlag.SIGNED:
        s = (p > 0) - (p < 0)
    if flags & StreamFlag.RELATIVE:
        s *= math.sqrt(sum(a * a for a in h) / len(h))
    wanted = min(max(scale * p + shift * s, low), high)
    changed = [a + (wanted - p) * b for a, b in zip(h, v, strict=True)]
    if flags & StreamFlag.KEEP_NORM:
        factor = math.dist(h, [0] * len(h)) / math.dist(changed, [0] * len(h))
        changed = [factor * a for a in changed]
    return changed


@pytest.fixture
def make_tables():
    """``make_tables(edits of each row from 1)``, all at residual 2, with random directions."""

    def make(rows: list[list], size: int = SIZE, seed: int = 0) -> StreamTables:
        rng = np.random.default_rng(seed)
        tables = StreamTables.allocate(len(rows) + 1, LAYERS, size, slots=30)
        bank = rng.normal(size=(29, size))
        bank /= np.linalg.norm(bank, axis=1, keepdims=True)
        tables.bank[1:] = torch.from_numpy(bank)
        slot = 0
        for row, edits in enumerate(rows, start=1):
            program = StreamProgram.identity(LAYERS + 1)
            for *numbers, flags in edits:
                slot += 1
                program.append(2, slot, tuple(numbers), flags)
            tables.write(row, program)
        return tables

    return make


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_every_edit_is_its_formula(make_tables, dtype):
    tables = make_tables([[edit] for edit in EDITS.values()])
    hidden = torch.randn(3 * len(EDITS), SIZE, dtype=torch.float64).to(dtype)
    rows = (torch.arange(len(hidden)) % len(EDITS) + 1).int()
    found = stream(hidden, rows, tables, 2)
    assert found.dtype == dtype
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 0.05}[dtype]
    for h, result, row in zip(hidden.tolist(), found.tolist(), rows.tolist(), strict=True):
        wanted = literal(h, list(EDITS.values())[row - 1], tables.bank[row].double().tolist())
        assert result == pytest.approx(wanted, abs=tolerance), list(EDITS)[row - 1]


def test_edits_chain_in_order(make_tables):
    chain = [EDITS["add"], EDITS["project out"], EDITS["signed relative"], EDITS["all"]]
    assert len(chain) == STREAM_EDITS
    tables = make_tables([chain])
    hidden = torch.randn(5, SIZE, dtype=torch.float64)
    found = stream(hidden, torch.ones(5, dtype=torch.int32), tables, 2)
    for h, result in zip(hidden.tolist(), found.tolist(), strict=True):
        for slot, edit in enumerate(chain, start=1):
            h = literal(h, edit, tables.bank[slot].double().tolist())
        assert result == pytest.approx(h, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_rows_without_edits_keep_their_bits(make_tables, dtype):
    tables = make_tables([[EDITS["all"]], []])
    hidden = torch.randn(4, SIZE, dtype=torch.float64).to(dtype)
    hidden[1, 3], hidden[3, 0] = -0.0, torch.inf
    rows = torch.tensor([1, 0, 1, 2], dtype=torch.int32)
    found = stream(hidden, rows, tables, 2)
    bits = {8: torch.int64, 4: torch.int32, 2: torch.int16}[dtype.itemsize]
    assert torch.equal(found.view(bits)[1::2], hidden.view(bits)[1::2])
    assert not torch.equal(found[::2], hidden[::2])
    for layer in (0, 1, 3):
        assert torch.equal(stream(hidden, rows, tables, layer).view(bits), hidden.view(bits))


def test_adding_does_not_depend_on_the_coordinate(make_tables):
    """Along v there may be a massive activation; computing p' and then p' - p would lose digits."""
    tables = make_tables([[(1.0, 0.3, -INF, INF, StreamFlag.NONE)]])
    direction = tables.bank[1]
    hidden = 1e5 * direction[None] + torch.randn(1, SIZE)
    found = stream(hidden, torch.ones(1, dtype=torch.int32), tables, 2)
    assert torch.equal(found, hidden + torch.tensor(0.3) * direction)


def test_a_limit_that_is_not_reached_changes_no_bit(make_tables):
    flags = StreamFlag.KEEP_NORM
    tables = make_tables([[(1.0, 0.0, -1e3, 1e3, flags)]])
    hidden = torch.randn(9, SIZE).bfloat16()
    assert torch.equal(stream(hidden, torch.ones(9, dtype=torch.int32), tables, 2), hidden)


def test_a_residual_that_vanishes_stays_so(make_tables):
    tables = make_tables([[(0.0, 0.0, -INF, INF, StreamFlag.KEEP_NORM)]])
    hidden = torch.zeros(1, SIZE)
    assert torch.equal(stream(hidden, torch.ones(1, dtype=torch.int32), tables, 2), hidden)


def test_what_programs_refuse():
    program = StreamProgram.identity(LAYERS + 1)
    for _ in range(STREAM_EDITS):
        program.append(LAYERS, 1, (1.0, 1.0, -INF, INF), StreamFlag.NONE)
    assert program.layers == {LAYERS}
    with pytest.raises(ValueError, match="at most 4"):
        program.append(LAYERS, 1, (1.0, 1.0, -INF, INF), StreamFlag.NONE)
    tables = StreamTables.allocate(2, LAYERS, SIZE, slots=2)
    with pytest.raises(ValueError, match="identity"):
        tables.write(0, program)
