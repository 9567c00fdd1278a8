"""Directions where the right one is known."""

from __future__ import annotations

import pytest
import torch

from saccade_server.calibration.directions import find_direction, projection_std

AXIS = torch.tensor([3.0, 0.0, 4.0, 0.0]) / 5


def classes_along(
    axis: torch.Tensor, distance: float, noise: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """40 examples, far from the origin, in ordered pairs."""
    positive = torch.arange(40) % 2 == 0
    side = positive.float() - 0.5
    values = torch.tensor([50.0, -20.0, 7.0, 1.0]) + distance * side[:, None] * axis
    return values + noise * torch.randn(40, len(axis)), positive


def test_mean_difference_is_the_difference_of_means() -> None:
    values, positive = classes_along(AXIS, 2.0, 0.3)
    found = find_direction(values, positive, "mean")
    expected = values[::2].mean(0) - values[1::2].mean(0)
    torch.testing.assert_close(found.vector, expected)
    assert found.accuracy > 0.95


def test_pca_finds_the_axis_that_centring_would_remove() -> None:
    """The trap: ordered differences are all alike, and centred ones have nothing left of it."""
    values, positive = classes_along(AXIS, 4.0, 0.2)
    found = find_direction(values, positive, "pca")
    unit = found.vector / found.vector.norm()
    assert float(unit @ AXIS) > 0.99  # and its sign is towards the positive class
    assert float(found.vector.norm()) == pytest.approx(4.0, rel=0.05)
    differences = values[::2] - values[1::2]
    wrong = torch.linalg.svd(differences - differences.mean(0)).Vh[0]
    assert abs(float(wrong @ AXIS)) < 0.9


def test_accuracy_is_held_out() -> None:
    """In more dimensions than examples everything separates what it was fitted to."""
    values = torch.randn(40, 200)
    positive = torch.arange(40) < 20
    found = find_direction(values, positive, "mean")
    fitted = (values @ found.vector) > (values @ found.vector).median()
    assert (fitted == positive).float().mean() > 0.9
    assert found.accuracy < 0.75


def test_one_example_of_a_class_cannot_be_held_out() -> None:
    positive = torch.tensor([True, False, False])
    found = find_direction(torch.eye(3), positive, "mean")
    assert found.accuracy != found.accuracy


def test_sigma_is_the_spread_along_the_direction() -> None:
    values = torch.tensor([[3.0, 4.0], [0.0, 0.0], [6.0, 8.0], [3.0, 4.0]])
    assert projection_std(values, torch.tensor([30.0, 40.0])) == pytest.approx(12.5**0.5)
