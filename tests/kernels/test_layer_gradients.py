"""Gradients of a layer's small steps: the reference against autograd, the kernels against both.

Several losses of each row, of rows that lie scattered in what was kept, with NaN around them.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from saccade_kernels import layer_gradients as plain
from saccade_kernels import layers, residual_tables
from saccade_kernels.gpu import backend
from saccade_kernels.layers import Heads, RMSNorm
from saccade_kernels.residual import EVERYWHERE, RESIDUAL_EDITS, ResidualFlag, ResidualProgram
from saccade_kernels.residual_tables import ResidualTables
from saccade_testing.tables import write_row

PLACES = torch.tensor([4, 0, 3])
"""Rows of what was kept, of five."""
LOSSES = 2
TOLERANCE = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}
KINDS = {"reference": plain, **dict.fromkeys((str(dtype) for dtype in TOLERANCE), backend)}
DTYPES = {"reference": torch.float64, **{str(dtype): dtype for dtype in TOLERANCE}}


@pytest.fixture(autouse=True)
def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fresh memory is NaN, so that an output that nobody wrote shows."""
    fresh = torch.Tensor.new_empty

    def poisoned(self: torch.Tensor, *size: Any, **options: Any) -> torch.Tensor:
        made = fresh(self, *size, **options)
        return made.fill_(torch.nan) if made.is_floating_point() else made

    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    torch.manual_seed(0)
    return request.param


def kept(*size: int, dtype: torch.dtype) -> torch.Tensor:
    """Activations of five rows; those that nobody names are NaN."""
    values = torch.full((5, *size), torch.nan, dtype=dtype)
    values[PLACES] = torch.randn(len(PLACES), *size, dtype=torch.float64).to(dtype)
    return values


def given(*size: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(len(PLACES) * LOSSES, *size, dtype=torch.float64).to(dtype)


def by_autograd(
    run: Callable[[torch.Tensor], torch.Tensor], read: torch.Tensor, grad: torch.Tensor
) -> torch.Tensor:
    """The gradient in float64 of the rows, each for its losses."""
    with torch.enable_grad():
        leaf = read[PLACES].double().repeat_interleave(LOSSES, 0).requires_grad_()
        return torch.autograd.grad(run(leaf), leaf, grad.double())[0]


def check(kind: str, found: torch.Tensor, wanted: torch.Tensor) -> None:
    assert found.dtype == DTYPES[kind]
    limit = TOLERANCE.get(found.dtype, 1e-6) * wanted.abs().max()
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=float(limit))


def exact_norm(x: torch.Tensor, norm: RMSNorm) -> torch.Tensor:
    """In float64 throughout, which the plain layers are not."""
    root = (x.square().mean(-1, keepdim=True) + norm.epsilon).rsqrt()
    return x * root * (norm.weight.double() + norm.plus_one)


@pytest.mark.parametrize("plus_one", [False, True], ids=["", "plus one"])
@pytest.mark.parametrize("size", [37, 1152])
def test_norms(kind: str, size: int, plus_one: bool) -> None:
    dtype, op = DTYPES[kind], KINDS[kind]
    norm = RMSNorm(torch.randn(size).to(dtype), 1e-5, plus_one)
    read, grad, onto = kept(size, dtype=dtype), given(size, dtype=dtype), given(size, dtype=dtype)
    wanted = by_autograd(lambda x: exact_norm(x, norm), read, grad)
    check(kind, op.norm_gradient(grad, read, PLACES, norm), wanted)
    check(kind, op.norm_gradient(grad, read, PLACES, norm, onto), wanted + onto.double())


def test_the_reference_of_norms_is_autograd_bit_for_bit() -> None:
    for dtype in (torch.float64, torch.float32):
        norm = RMSNorm(torch.randn(64, dtype=dtype), 1e-5)
        read, grad = torch.randn(3, 64, dtype=dtype), torch.randn(3, 64, dtype=dtype)
        with torch.enable_grad():
            leaf = read.clone().requires_grad_()
            (wanted,) = torch.autograd.grad(layers.rms_norm(leaf, norm), leaf, grad)
        assert torch.equal(plain.norm_gradient(grad, read, torch.arange(3), norm), wanted)


@pytest.mark.parametrize("activation", layers.ACTIVATIONS)
@pytest.mark.parametrize("size", [24, 2100])
def test_gates(kind: str, size: int, activation: str) -> None:
    dtype, op = DTYPES[kind], KINDS[kind]
    read, grad = kept(2 * size, dtype=dtype), given(size, dtype=dtype)
    wanted = by_autograd(lambda x: layers.gate(x, activation), read, grad)
    check(kind, op.gate_gradient(grad, read, PLACES, activation), wanted)


HEADS = ((4, 2, 64), (7, 1, 80), (14, 2, 128), (2, 1, 256), (6, 2, 16))


@pytest.mark.parametrize("form", ["", "normed", "plus one"])
@pytest.mark.parametrize("shape", HEADS, ids=str)
def test_heads(kind: str, shape: tuple[int, int, int], form: str) -> None:
    heads, kv_heads, dim = shape
    dtype, op = DTYPES[kind], KINDS[kind]
    weight = torch.randn(heads + kv_heads, dim).to(dtype)
    norm = RMSNorm(weight, 1e-6, form == "plus one") if form else None
    own = Heads(heads, kv_heads, dim, norm)
    frequencies = 1e4 ** -(torch.arange(0, dim, 2) / dim)
    positions = torch.randint(0, 4096, (1, len(PLACES)))
    rotation = layers.rotation(positions, frequencies, None, 1.0, dtype)
    turns = layers.Rotation(
        *(part.double().repeat_interleave(LOSSES, 0) for part in (rotation.cos, rotation.sin))
    )
    read = kept((heads + 2 * kv_heads) * dim, dtype=dtype)
    parts = [
        torch.randn(len(PLACES), LOSSES, count, dim, dtype=torch.float64).to(dtype)
        for count in (heads, kv_heads, kv_heads)
    ]

    def run(merged: torch.Tensor) -> torch.Tensor:
        split = merged.view(len(merged), -1, dim)
        turning = split[:, : heads + kv_heads]
        turning = turning if norm is None else exact_norm(turning, norm)
        joined = torch.cat((turning, split[:, heads + kv_heads :]), 1).flatten(1)
        return torch.cat(layers.norm_rope(joined, Heads(heads, kv_heads, dim), turns), 1)

    grad = torch.cat(parts, 2).flatten(0, 1)
    wanted = by_autograd(run, read, grad)
    given_parts = (parts[0], parts[1], parts[2])
    merged = read if form else None
    check(kind, op.rope_gradient(given_parts, merged, PLACES, own, rotation), wanted)


def tables_of(size: int, rows: int) -> ResidualTables:
    """Rows but the first have up to 16 random edits of every kind at site 2."""
    rng = np.random.default_rng(size)
    tables = ResidualTables.allocate(rows, 3, size, slots=20)
    bank = rng.normal(size=(19, size))
    tables.bank[1:] = torch.from_numpy(bank / np.linalg.norm(bank, axis=1, keepdims=True))
    for row in range(1, rows):
        program = ResidualProgram.identity(3)
        for at in range((1, 2, 4, 6)[row % 4] if row < rows - 1 else RESIDUAL_EDITS):
            low, high = sorted(rng.normal(size=2))
            limits = (low, high) if rng.random() < 0.3 else EVERYWHERE
            numbers = (rng.normal(), 2 * rng.normal(), *limits)
            read, write = rng.integers(1, 20, size=2).tolist()
            flags = ResidualFlag(row % 8)
            flags |= (0, ResidualFlag.JOINED, ResidualFlag.DIAGONAL)[rng.integers(3) if at else 0]
            where = (-np.inf, high) if at and rng.random() < 0.3 else EVERYWHERE
            program.append(2, read, numbers, flags, write, where)
        write_row(tables, row, program)
    return tables


@pytest.mark.parametrize("size", [37, 1031])
def test_residual_edits(kind: str, size: int) -> None:
    dtype, op = DTYPES[kind], KINDS[kind]
    tables = tables_of(size, 17)
    for first in range(0, 17, 3) if size < 64 else (14,):
        read, grad = kept(size, dtype=dtype), given(size, dtype=dtype)
        programs = torch.arange(first, first + 3).clamp(max=16).int()
        each = programs.repeat_interleave(LOSSES)
        wanted = by_autograd(
            lambda x, e=each: residual_tables.edit_residual(x, e, tables, 2), read, grad
        )
        check(kind, op.residual_gradient(grad, read, PLACES, programs, tables, 2), wanted)
        again = op.residual_gradient(grad, read, PLACES, programs, tables, 1)
        assert torch.equal(again, grad), "another site has no edits"


@pytest.mark.parametrize("window", [0, 40])
def test_shares_of_keys(kind: str, window: int) -> None:
    """Of keys that a row does not see, and behind its last, memory may hold anything."""
    dtype, op = torch.promote_types(DTYPES[kind], torch.float32), KINDS[kind]
    width, contexts = 600, torch.tensor([600, 3, 0, 290], dtype=torch.int32)
    saliency = torch.full((4, LOSSES, 3, 640), torch.nan, dtype=dtype)[..., :width]
    start, end = torch.tensor([580, 0, 0, 255]), torch.tensor([600, 3, 0, 290])
    wanted = torch.zeros(4, LOSSES, 2, dtype=torch.float64)
    for row, context in enumerate(contexts.tolist()):
        low = max(context - window, 0) if window else 0
        drawn = torch.rand(LOSSES, 3, context - low, dtype=torch.float64)
        saliency[row, :, :, low:context] = drawn.to(dtype)
        mean = drawn.mean(1)
        wanted[row, :, 0] = mean.square().sum(-1)
        wanted[row, :, 1] = mean[:, max(int(start[row]) - low, 0) :].sum(-1)
    found = op.key_shares(saliency, contexts, window, start, end)
    torch.testing.assert_close(found.sum(2).double(), wanted, rtol=1e-5, atol=1e-6)


def test_no_rows() -> None:
    for op in (plain, backend):
        none, at = torch.zeros(0, 8), torch.zeros(0, dtype=torch.int64)
        norm = RMSNorm(torch.ones(8), 1e-5)
        if op is backend:
            assert op.norm_gradient(none, none, at, norm).shape == (0, 8)
            assert op.gate_gradient(none, torch.zeros(0, 16), at, "silu").shape == (0, 16)
