"""Products of the reference: those that are invariant keep a row's bits in any company."""

import pytest
import torch
from torch.nn import functional

from saccade_kernels import ops, products

SHAPES = ((64, 64), (97, 33), (1000, 257), (3, 7), (1, 40), (5, 1))
COUNTS = (1, 2, 3, 4, 6, 9, 17, 64, 127, 129, 300)
PLACES = {torch.float32: 2.0**-18, torch.bfloat16: 2.0**-7, torch.float64: 2.0**-44}
DTYPES = pytest.mark.parametrize("dtype", PLACES, ids=str)


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def draw(*size: int, dtype: torch.dtype) -> torch.Tensor:
    """Values of many sizes: where they cancel, sums show their order."""
    return (torch.randn(size) * torch.randn(size).exp()).to(dtype)


def assert_rows_keep_their_bits(columns: int, inner: int, dtype: torch.dtype) -> None:
    hidden, weight = draw(40, inner, dtype=dtype), draw(columns, inner, dtype=dtype)
    bias = draw(columns, dtype=dtype) if columns % 2 else None
    rows = [hidden[at : at + 1] for at in range(40)]
    wanted = torch.cat([ops.linear(row, weight, bias, invariant=True) for row in rows])
    for count in COUNTS:
        first = int(torch.randint(0, count, ()))
        company = draw(count, inner, dtype=dtype)
        kept = min(40, count - first)
        company[first : first + kept] = hidden[:kept]
        found = ops.linear(company, weight, bias, invariant=True)
        assert found.shape == (count, columns)
        assert torch.equal(found[first : first + kept], wanted[:kept]), count
    exact = functional.linear(
        hidden.double(), weight.double(), None if bias is None else bias.double()
    )
    size = functional.linear(hidden.double().abs(), weight.double().abs()) + 1
    assert ((wanted.double() - exact).abs() <= PLACES[dtype] * size).all()


@DTYPES
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.usefixtures("threads")
def test_a_row_keeps_its_bits_in_any_company(shape, dtype):
    assert_rows_keep_their_bits(*shape, dtype)


@DTYPES
def test_rows_multiplied_one_by_one_keep_their_bits(dtype, monkeypatch):
    monkeypatch.setattr(products, "keeps_bits", lambda weight, bias: False)
    assert_rows_keep_their_bits(97, 33, dtype)


def test_others_that_are_not_finite_leave_a_row_alone():
    hidden, weight = draw(6, 33, dtype=torch.float32), draw(20, 33, dtype=torch.float32)
    wanted = ops.linear(hidden[2:3], weight, invariant=True)
    hidden[[0, 1, 3, 4, 5]] = torch.nan
    assert torch.equal(ops.linear(hidden, weight, invariant=True)[2:3], wanted)


@pytest.mark.parametrize("invariant", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_results_go_where_there_is_room_for_them(biased, invariant):
    hidden, weight = draw(7, 66, dtype=torch.float32)[:, ::2], draw(20, 33, dtype=torch.float32)
    bias = draw(20, dtype=torch.float32) if biased else None
    room = torch.full((9, 20), torch.nan)
    found = ops.linear(hidden, weight, bias, room[1:8], invariant)
    assert found.data_ptr() == room[1:8].data_ptr()
    torch.testing.assert_close(found, functional.linear(hidden, weight, bias))
    assert torch.equal(found, ops.linear(hidden, weight, bias, None, invariant))
    assert room[[0, 8]].isnan().all()
    assert ops.linear(hidden[:0], weight, bias, None, invariant).shape == (0, 20)


def test_a_library_that_heeds_the_number_of_rows_is_found_out(monkeypatch: pytest.MonkeyPatch):
    """As MKL does on eight threads with some shapes; each shape is tried once."""
    monkeypatch.setattr(products, "_known", {})
    product, calls = products.multiply, []

    def heeding(hidden, *arguments):
        calls.append(len(hidden))
        found = product(hidden, *arguments)
        return found if len(hidden) % 8 else found.mul_(1 + 2.0**-20)

    weight, hidden = draw(20, 33, dtype=torch.float32), draw(24, 33, dtype=torch.float32)
    assert products.keeps_bits(weight)
    monkeypatch.setattr(products, "multiply", heeding)
    assert products.keeps_bits(weight)
    assert calls == []
    products._known.clear()
    found = ops.linear(hidden, weight, invariant=True)
    assert calls[-24:] == [1] * 24
    assert not products.keeps_bits(weight)
    assert torch.equal(found[7:8], ops.linear(hidden[7:8], weight, invariant=True))


def test_what_depends_on_a_rows_place_is_found_out(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(products, "_known", {})
    product = products.multiply

    def heeding(*arguments):
        found = product(*arguments)
        found[3::4] *= 1 + 2.0**-20
        return found

    monkeypatch.setattr(products, "multiply", heeding)
    assert not products.keeps_bits(draw(20, 33, dtype=torch.float32))
