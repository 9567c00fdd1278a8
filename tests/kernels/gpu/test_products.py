"""The Triton products against float64: few rows, any number of rows, and which of them serves.

By the interpreter, or on a GPU where there is one.
"""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from saccade_kernels.gpu import backend, products, tuning
from saccade_kernels.gpu.products import first_config, product
from saccade_kernels.gpu.tuning import ProductConfig, invariant_config

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ROUNDED = {torch.float32: 2.0**-22, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
"""Half of the last place of a result, relative to it; of single precision one."""
DTYPES = pytest.mark.parametrize("dtype", ROUNDED, ids=str)
SHAPES = ((97, 33), (16, 64), (40, 130))
FEW = ProductConfig(16, 16, 32, num_warps=4, num_stages=3)
MANY = ProductConfig(64, 32, 64, num_warps=4, num_stages=3)


@pytest.fixture(autouse=True)
def poison(monkeypatch: pytest.MonkeyPatch):
    """Fresh memory is NaN, so that an output that nobody wrote shows."""
    fresh = torch.Tensor.new_empty

    def poisoned(self, *size, **options):
        return fresh(self, *size, **options).fill_(torch.nan)

    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned)


def draw(*size: int, dtype: torch.dtype) -> torch.Tensor:
    """Values of all sizes, in a view that lies within NaN."""
    values = torch.randn(size, dtype=torch.float64) * torch.randn(size, dtype=torch.float64).exp()
    room = torch.full((size[0] + 2, *size[1:]), torch.nan, dtype=dtype)
    room[1:-1] = values.to(dtype)
    return room.to(DEVICE)[1:-1]


def assert_near(found, hidden, weight, bias):
    """Nothing but the rounding of the result, and sums in float32."""
    exact = functional.linear(hidden.double(), weight.double())
    size = functional.linear(hidden.double().abs(), weight.double().abs())
    if bias is not None:
        exact, size = exact + bias.double(), size + bias.double().abs()
    assert found.dtype == hidden.dtype
    places = ROUNDED[found.dtype] * exact.abs() + 2.0**-21 * size
    assert ((found.double() - exact).abs() <= places).all()


@DTYPES
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("config", [FEW, MANY], ids=["few", "many"])
def test_products_of_odd_sizes(config, shape, dtype):
    columns, inner = shape
    weight = draw(columns, inner, dtype=dtype)
    for rows in (1, 5, 17):
        hidden = draw(rows, inner, dtype=dtype)
        bias = draw(columns, dtype=dtype) if rows == 5 else None
        assert_near(product(hidden, weight, bias, None, config), hidden, weight, bias)


@DTYPES
def test_a_rows_sum_does_not_depend_on_how_many_there_are(dtype):
    hidden, weight = draw(17, 130, dtype=dtype), draw(40, 130, dtype=dtype)
    whole = product(hidden, weight, None, None, FEW)
    for rows in (1, 2, 3, 7, 8, 16):
        found = product(hidden[:rows], weight, None, None, FEW)
        assert torch.equal(found, whole[:rows]), rows


@DTYPES
def test_an_invariant_product_keeps_a_rows_bits_in_any_company(dtype, monkeypatch):
    monkeypatch.setattr(products, "invariant_config", lambda columns, dtype: MANY)
    hidden, weight = draw(9, 130, dtype=dtype), draw(40, 130, dtype=dtype)
    bias = draw(40, dtype=dtype)
    wanted = torch.cat([backend.linear(row[None], weight, bias, None, True) for row in hidden])
    for count, first in ((9, 0), (63, 54), (64, 3), (65, 56), (150, 125)):
        company = draw(count, 130, dtype=dtype)
        company[first - 1] = torch.nan
        company[first : first + 9] = hidden
        found = backend.linear(company, weight, bias, None, True)[first : first + 9]
        assert torch.equal(found, wanted), (count, first)


@pytest.mark.parametrize("wide", [False, True])
@DTYPES
def test_what_serves_invariant_products(wide, dtype):
    config = invariant_config(tuning.WIDE if wide else tuning.WIDE - 1, dtype)
    assert config.columns == (64 if wide else 32)
    hidden, weight = draw(3, 100, dtype=dtype), draw(70, 100, dtype=dtype)
    assert_near(product(hidden, weight, None, None, config), hidden, weight, None)


def test_results_go_where_there_is_room_for_them():
    hidden = draw(5, 80, dtype=torch.float32)[:, ::2]
    weight = draw(20, 40, dtype=torch.float32)
    room = torch.full((7, 20), -1.0, device=DEVICE)
    found = backend.linear(hidden, weight, None, room[1:6], True)
    assert found.data_ptr() == room[1:6].data_ptr()
    assert torch.equal(found, backend.linear(hidden, weight, None, None, True))
    assert (room[::6] == -1).all()
    assert backend.linear(hidden[:0], weight, None, None, True).shape == (0, 20)


def test_double_precision_is_multiplied_by_the_library():
    hidden, weight = draw(5, 40, dtype=torch.float64), draw(20, 40, dtype=torch.float64)
    for invariant in (False, True):
        found = backend.linear(hidden, weight, None, None, invariant)
        torch.testing.assert_close(found, functional.linear(hidden, weight))


@pytest.fixture
def entries(monkeypatch: pytest.MonkeyPatch):
    """A table with entries for weights of 40 x 130."""
    config = {n: getattr(FEW, n) for n in FEW.__slots__}
    key = {"out": 40, "in": 130, "bytes": 4}
    own = [
        {"key": {**key, "rows": 16}, "config": config | {"num_warps": 2}},
        {"key": {**key, "rows": 8}, "config": config},
        {"key": {**key, "rows": 2}, "config": None},
    ]
    changed = {**tuning.table(), "default": {**tuning.table()["default"], "product": own}}
    monkeypatch.setattr(tuning, "table", lambda: changed)
    tuning._product.cache_clear()
    yield
    tuning._product.cache_clear()


def test_without_an_entry_the_library_multiplies(monkeypatch):
    monkeypatch.setattr(products, "product", pytest.fail)
    hidden, weight = draw(3, 130, dtype=torch.float32), draw(40, 130, dtype=torch.float32)
    assert torch.equal(backend.linear(hidden, weight), functional.linear(hidden, weight))


@pytest.mark.usefixtures("entries")
def test_an_entry_says_for_how_many_rows(monkeypatch):
    launched = []
    monkeypatch.setattr(products, "product", lambda *given: launched.append(given[-1]))
    weight = draw(40, 130, dtype=torch.float32)
    for rows in (1, 2, 3, 8, 9, 16, 17):
        backend.linear(draw(rows, 130, dtype=torch.float32), weight)
    assert launched == [FEW, FEW, *[replace(FEW, num_warps=2)] * 2]
    backend.linear(draw(3, 130, dtype=torch.float32), draw(41, 130, dtype=torch.float32))
    assert len(launched) == 4


@pytest.mark.gpu
@pytest.mark.timeout(300)
@DTYPES
def test_a_chip_keeps_a_rows_bits_at_the_sizes_of_models(dtype):
    for columns, inner in ((4096, 4096), (4608, 3584), (22016, 4096), (3584, 18944)):
        weight = draw(columns, inner, dtype=dtype) / inner**0.5
        hidden, bias = draw(300, inner, dtype=dtype), draw(columns, dtype=dtype)
        whole = backend.linear(hidden, weight, bias, None, True)
        few = product(hidden[:16], weight, bias, None, first_config(columns, dtype))
        for rows in (1, 2, 7, 16, 33, 64, 65, 128, 200):
            found = backend.linear(hidden[-rows:].clone(), weight, bias, None, True)
            assert torch.equal(found, whole[-rows:]), rows
            if rows <= 16:
                own = product(hidden[:rows], weight, bias, None, first_config(columns, dtype))
                assert torch.equal(own, few[:rows]), rows
        exact = functional.linear(hidden.double(), weight.double(), bias.double())
        for found in (whole, few):
            wanted = exact[: len(found)]
            assert (found - wanted).norm() <= 2 * ROUNDED[dtype] * wanted.norm()
