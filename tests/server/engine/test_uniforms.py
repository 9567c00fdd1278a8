"""The numbers that draws are decided by: reproducible, uniform, and none of them twice."""

from itertools import islice

import numpy as np
import pytest

from saccade_server.engine.sampler import uniforms

DRAWS = 16
"""As many as a rule of rejections may ask for at one position."""


def table(seed: int, positions: int) -> np.ndarray:
    """[positions, draws]."""
    return np.array([list(islice(uniforms(seed, t), DRAWS)) for t in range(positions)])


@pytest.mark.parametrize("seed", [0, 7, -1, 2**63 - 1])
def test_no_number_decides_two_draws(seed: int) -> None:
    found = table(seed, 200)
    assert len(np.unique(found)) == found.size


def test_the_first_draw_is_philox_s_number_at_the_position() -> None:
    """What a request without rejections is decided by; its answers may never change."""
    for position in (0, 1, 4, 1000):
        wanted = np.random.Generator(np.random.Philox(key=5, counter=position)).random()
        assert next(uniforms(5, position)) == wanted


def test_draws_are_uniform_and_independent() -> None:
    found = table(3, 2000)
    counts = np.array([np.histogram(column, bins=10, range=(0, 1))[0] for column in found.T])
    chi = ((counts - 200) ** 2 / 200).sum(1)
    assert chi.max() < 33, "9 degrees of freedom: beyond 33 once in ten thousand"
    # Neighbours in either direction, and along the diagonal on which blocks used to overlap.
    correlated = np.corrcoef(found.T) - np.eye(DRAWS)
    assert abs(correlated).max() < 0.12
    for step in range(1, DRAWS):
        assert abs(np.corrcoef(found[1:, 0], found[:-1, step])[0, 1]) < 0.1
