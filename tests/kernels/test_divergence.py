"""VHD, its outliers and the choice of heads: the worked example, the golden array, the edges."""

import statistics
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saccade_kernels.divergence import Reactivity

GOLDEN = Path(__file__).parents[1] / "interventions" / "golden"
EXAMPLE = torch.tensor([[1.0, 0], [0, 2], [3, 4], [1, 1]], dtype=torch.float64)[None]
WITHOUT = torch.tensor([[1.0, 0.5], [0, 0], [3, 1], [9, 9]], dtype=torch.float64)[None]


def judge(z: torch.Tensor, z0: torch.Tensor, **options: bool) -> tuple[torch.Tensor, torch.Tensor]:
    rule = Reactivity(**options)
    divergence = rule.divergence(z, z0)
    return divergence, rule.reactive(divergence, z0)


def test_the_worked_example() -> None:
    vhd, reactive = judge(EXAMPLE, WITHOUT)
    wanted = torch.tensor([[0.5, 2, 3, 11.313708498984761]], dtype=torch.float64)
    torch.testing.assert_close(vhd, wanted, rtol=0, atol=1e-14)
    assert reactive.tolist() == [[False, True, True, False]]
    size = WITHOUT.square().sum(-1)
    assert size.tolist() == [[1.25, 0, 10, 162]]
    for values, limit in ((vhd, 9.053678033), (size, 122.562467140)):
        assert float(Reactivity().limit(values)) == pytest.approx(limit, abs=5e-10)
    amplified = torch.where(reactive[..., None], 2.0, 1.0) * EXAMPLE
    assert amplified.flatten().tolist() == [1, 0, 0, 4, 6, 8, 1, 1]


def test_without_the_filter_the_largest_wins() -> None:
    _, reactive = judge(EXAMPLE, WITHOUT, drop_outliers=False)
    assert reactive.tolist() == [[False, False, True, True]]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_golden_array(dtype: torch.dtype) -> None:
    arrays = np.load(GOLDEN / "vhr_ref_arrays.npz")
    z, z0 = (
        torch.from_numpy(arrays[f"head_out_{name}"]).to(dtype)[None]
        for name in ("image", "noimage")
    )
    vhd, reactive = judge(z, z0)
    tolerance = 1e-14 if dtype is torch.float64 else 1e-5
    np.testing.assert_allclose(vhd[0], arrays["vhd"], atol=tolerance)
    assert reactive[0].tolist() == arrays["selected"].tolist()
    assert arrays["outlier"].any(), "the case must exercise the filter"


def test_equal_values_select_nothing() -> None:
    z = torch.eye(6)[None]
    _, reactive = judge(z, torch.zeros_like(z))
    assert not reactive.any()
    _, reactive = judge(z, z)
    assert not reactive.any()


def test_one_head_is_its_own_median() -> None:
    """And its deviation from itself is no reason for a warning."""
    for population in (False, True):
        _, reactive = judge(torch.ones(2, 1, 4), torch.zeros(2, 1, 4), population=population)
        assert not reactive.any()


def test_relative_to_nothing_is_no_nan() -> None:
    z = torch.tensor([[[0.0, 0.0], [1.0, 0.0], [1.0, 0.0]]])
    z0 = torch.tensor([[[0.0, 0.0], [0.0, 0.0], [10.0, 0.0]]])
    vhd, reactive = judge(z, z0, relative=True, drop_outliers=False)
    assert vhd.isfinite().all()
    assert reactive.tolist() == [[False, True, False]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_float32(dtype: torch.dtype) -> None:
    """The square of 300 does not fit into float16."""
    z, z0 = torch.full((1, 2, 64), 300.0, dtype=dtype), torch.zeros(1, 2, 64, dtype=dtype)
    vhd, _ = judge(z, z0)
    assert vhd.dtype is torch.float32
    assert vhd.tolist() == [[2400.0, 2400.0]]


@settings(deadline=None, max_examples=60)
@given(
    heads=st.integers(
        3, 9
    ),  # of two the larger is the mean and a deviation of both, but for rounding
    seed=st.integers(0, 10_000),
    scale=st.sampled_from([0.0, 0.3, 5.0]),
    population=st.booleans(),
)
def test_equations_in_plain_python(heads: int, seed: int, scale: float, population: bool) -> None:
    """Each of three rows on its own; odd and even numbers of heads, some of them huge."""
    generator = torch.Generator().manual_seed(seed)
    z, z0 = torch.randn(2, 3, heads, 5, generator=generator, dtype=torch.float64)
    z0[:, 0] *= scale * 10
    vhd, reactive = judge(z, z0, population=population)
    deviation = statistics.pstdev if population else statistics.stdev
    for row in range(3):
        found = [float((a - b).square().sum().sqrt()) for a, b in zip(z[row], z0[row], strict=True)]
        sizes = [float(b.square().sum()) for b in z0[row]]
        high = statistics.mean(found) + deviation(found)
        large = statistics.mean(sizes) + deviation(sizes)
        kept = [0.0 if v > high and t > large else v for v, t in zip(found, sizes, strict=True)]
        median = statistics.median_low(kept)
        np.testing.assert_allclose(vhd[row], found, atol=1e-12)
        assert reactive[row].tolist() == [value > median for value in kept]
