"""The Triton kernels of a layer's small steps against the plain layers, and those in float64.

By the interpreter, or on a GPU where there is one. What no sum is in equals the plain layers bit
for bit; norms may differ in the last place, and not from float64 by more than the plain layers do.
"""

import pytest
import torch

from saccade_kernels import layers
from saccade_kernels.gpu import backend
from saccade_kernels.layers import Heads, RMSNorm, Rotation

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PLACES = {torch.float32: 2.0**-21, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}
"""One in the last place of halves, four in that of single precision, relative to a number."""

LEAST = {torch.float32: 2.0**-22, torch.bfloat16: 2.0**-10, torch.float16: 2.0**-13}
"""Relative error that is not held against a kernel: a fast root's or exponential's, or an eighth of
a last place."""

DTYPES = pytest.mark.parametrize("dtype", PLACES, ids=str)


@pytest.fixture(autouse=True)
def poison(monkeypatch: pytest.MonkeyPatch):
    """Fresh memory is NaN, so that an output that nobody wrote shows."""
    fresh = torch.Tensor.new_empty

    def poisoned(self, *size, **options):
        made = fresh(self, *size, **options)
        return made.fill_(torch.nan) if made.is_floating_point() else made

    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned)


def draw(*size: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Values of all sizes, in a view that lies within NaN."""
    values = torch.randn(size, dtype=torch.float64) * torch.randn(size, dtype=torch.float64).exp()
    room = torch.full((size[0] + 2, *size[1:]), torch.nan, dtype=dtype)
    room[1:-1] = values.to(dtype)
    return room.to(DEVICE)[1:-1]


def norm(size: int, dtype: torch.dtype, plus_one: bool = False, epsilon: float = 1e-5) -> RMSNorm:
    return RMSNorm(draw(3, size, dtype=dtype)[1], epsilon, plus_one)


def exactly(hidden: torch.Tensor, found: RMSNorm) -> torch.Tensor:
    """The norm in float64, without the roundings between."""
    x, weight = hidden.double(), found.weight.double()
    root = (x.square().mean(-1, keepdim=True) + found.epsilon).sqrt()
    return x / root * (weight + found.plus_one)


def assert_near(
    got: torch.Tensor, want: torch.Tensor, exact: torch.Tensor, scale: torch.Tensor
) -> None:
    """``got`` is ``want`` but for the last places of some, and no worse beside float64.

    ``scale``: the size of the numbers whose last places count.
    """
    places = PLACES[got.dtype] * scale.double().abs()
    assert ((got.double() - want.double()).abs() <= places).all()
    if got.dtype != torch.float32:
        assert (got != want).double().mean() < 0.02
    least = LEAST[got.dtype] * exact.norm()
    assert (got - exact).norm() <= 1.2 * (want - exact).norm() + least


@DTYPES
@pytest.mark.parametrize("plus_one", [False, True], ids=["", "plus one"])
@pytest.mark.parametrize("size", [37, 64, 1152])
def test_norms(size, plus_one, dtype):
    residual, update = draw(7, size, dtype=dtype), draw(7, size, dtype=dtype)
    own, before = norm(size, dtype, plus_one), norm(size, dtype, plus_one, 1e-3)
    found, wanted = backend.rms_norm(residual, own), layers.rms_norm(residual, own)
    assert_near(found, wanted, exactly(residual, own), wanted)
    total, found = backend.add_norm(residual, update, own)
    assert torch.equal(total, residual + update)
    assert torch.equal(found, backend.rms_norm(total, own))
    first, found = backend.add_norm(residual, None, own, before)
    assert first is residual
    assert torch.equal(found, backend.rms_norm(residual, own))
    total, found = backend.add_norm(residual, update, own, before)
    assert torch.equal(total, residual + backend.rms_norm(update, before))
    assert torch.equal(found, backend.rms_norm(total, own))
    for module in (backend, layers):
        place = torch.full((3, *residual.shape), -1.0, dtype=dtype, device=DEVICE)
        given, again = module.add_norm(residual, update, own, before, out=place[1])
        assert given.data_ptr() == place[1].data_ptr()
        wanted = (
            (total, found) if module is backend else layers.add_norm(residual, update, own, before)
        )
        assert torch.equal(place[1], wanted[0])
        assert torch.equal(again, wanted[1])
        assert (place[::2] == -1).all()


@DTYPES
@pytest.mark.parametrize("axes", [1, 3])
@pytest.mark.parametrize("dim", [16, 80, 96])
def test_rotations(dim, axes, dtype):
    """Positions up to what the longest contexts have; scaled rotary embeddings multiply."""
    frequencies = (1e4 ** -(torch.arange(0, dim, 2) / dim)).to(DEVICE)
    axis = (torch.arange(dim // 2) % 3).to(DEVICE) if axes == 3 else None
    positions = torch.randint(0, 131072, (axes, 9), device=DEVICE)[:, 1:8]
    want = layers.rotation(positions, frequencies, axis, 1.25, dtype)
    got = backend.rotation(positions, frequencies, axis, 1.25, dtype)
    for one, other in ((got.cos, want.cos), (got.sin, want.sin)):
        assert one.shape == other.shape == (7, 1, dim)
        assert one.dtype == dtype
        assert (one.double() - other.double()).abs().max() <= PLACES[dtype]
        assert (one != other).double().mean() < 0.02 or dtype == torch.float32


def turned(dim: int, dtype: torch.dtype, tokens: int = 5) -> Rotation:
    frequencies = (1e4 ** -(torch.arange(0, dim, 2) / dim)).to(DEVICE)
    positions = torch.randint(0, 4096, (1, tokens), device=DEVICE)
    return layers.rotation(positions, frequencies, None, 1.0, dtype)


HEADS = ((4, 2, 64), (7, 1, 80), (3, 3, 96), (14, 2, 128), (2, 1, 256), (6, 2, 16))
FORMS = ("", "normed", "plus one")


@DTYPES
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", HEADS, ids=str)
def test_heads_are_normed_rotated_and_stored(shape, form, dtype):
    """From rows that are parts of wider ones; nothing else of the cache is written."""
    heads, kv_heads, dim = shape
    width = (heads + 2 * kv_heads) * dim
    merged = draw(5, width + 16, dtype=dtype)[:, :width]
    head_norm = None
    if form:
        weight = draw(heads + kv_heads, dim, dtype=dtype).contiguous()
        head_norm = RMSNorm(weight, 1e-6, form == "plus one")
    own, rotation = Heads(heads, kv_heads, dim, head_norm), turned(dim, dtype)
    slots = torch.tensor([130, 5, 64, 7, 0], device=DEVICE)
    got, want = (torch.full((2, 3, 64, kv_heads, dim), torch.nan, device=DEVICE) for _ in range(2))
    got, want = got.to(dtype), want.to(dtype)
    found = backend.norm_rope_store(merged, own, rotation, *got, slots)
    wanted = layers.norm_rope_store(merged, own, rotation, *want, slots)
    exact = merged.double().view(5, -1, dim)[:, : heads + kv_heads]
    exact = exact if head_norm is None else exactly(exact, head_norm)
    swapped = torch.cat(exact.chunk(2, -1)[::-1], -1)
    exact = exact * rotation.cos.double() + swapped * rotation.sin.double()
    stored, keys = (c[0].view(-1, kv_heads, dim)[slots] for c in (got, want))
    if form or dtype == torch.float32:
        # A sum of two products: what differs is small beside them, not beside what they leave.
        for one, other, true in (
            (found, wanted, exact[:, :heads]),
            (stored, keys, exact[:, heads:]),
        ):
            assert_near(one, other, true, other.double().norm(dim=-1, keepdim=True))
    else:
        assert torch.equal(found, wanted)
        assert torch.equal(stored, keys)
    assert torch.equal(got[1].isnan(), want[1].isnan())
    assert torch.equal(got[1].nan_to_num(), want[1].nan_to_num())
    assert torch.equal(got[0].isnan(), want[0].isnan())


@DTYPES
@pytest.mark.parametrize("name", layers.ACTIVATIONS)
@pytest.mark.parametrize("size", [96, 1064])
def test_gates(size, name, dtype):
    merged = draw(3, 2 * size + 8, dtype=dtype)[:, : 2 * size]
    got, want = backend.gate(merged, name), layers.gate(merged, name)
    exact = layers.gate(merged.double(), name)
    one = PLACES[dtype]
    # Exponentials and error functions differ in their last places, and cancel far below zero.
    near = (got.double() - want.double()).abs() <= 2 * one * want.abs() + 1e-6 * merged[
        :, size:
    ].abs()
    assert near.all()
    assert (got - exact).norm() <= 1.2 * (want - exact).norm() + LEAST[dtype] * exact.norm()


@pytest.mark.parametrize("dtype", [*PLACES, torch.float64], ids=str)
def test_no_rows(dtype):
    own, heads = norm(8, dtype), Heads(2, 1, 16)
    empty = torch.zeros(0, 8, dtype=dtype, device=DEVICE)
    assert backend.rms_norm(empty, own).shape == (0, 8)
    assert [part.shape for part in backend.add_norm(empty, empty, own)] == [(0, 8)] * 2
    assert backend.gate(empty, "silu").shape == (0, 4)
    rotation = turned(16, dtype, tokens=0)
    caches = torch.zeros(2, 1, 64, 1, 16, dtype=dtype, device=DEVICE)
    slots = torch.zeros(0, dtype=torch.int64, device=DEVICE)
    merged = torch.zeros(0, 64, dtype=dtype, device=DEVICE)
    assert backend.norm_rope_store(merged, heads, rotation, *caches, slots).shape == (0, 2, 16)


def test_double_precision_is_the_plain_layers_own():
    residual, update = (draw(5, 48, dtype=torch.float64) for _ in range(2))
    own = norm(48, torch.float64)
    for one, other in zip(
        backend.add_norm(residual, update, own, own),
        layers.add_norm(residual, update, own, own),
        strict=True,
    ):
        assert torch.equal(one, other)
    assert torch.equal(backend.gate(residual, "gelu"), layers.gate(residual, "gelu"))


def test_rows_may_lie_anywhere():
    residual = draw(5, 96)[:, ::2]
    own = norm(48, torch.float32)
    wanted = layers.add_norm(residual, residual.flip(0), own)
    for one, other in zip(backend.add_norm(residual, residual.flip(0), own), wanted, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.gpu
@pytest.mark.timeout(300)
@DTYPES
def test_a_chip_computes_the_same_at_the_sizes_of_models(dtype):
    test_norms(4096, False, dtype)
    test_norms(1152, True, dtype)
    test_rotations(128, 3, dtype)
    test_heads_are_normed_rotated_and_stored((28, 4, 128), "", dtype)
    test_heads_are_normed_rotated_and_stored((32, 8, 128), "normed", dtype)
    test_heads_are_normed_rotated_and_stored((4, 1, 256), "plus one", dtype)
    test_gates(18944, "silu", dtype)
    test_gates(6912, "gelu_pytorch_tanh", dtype)
