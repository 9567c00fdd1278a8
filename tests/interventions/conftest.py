"""The methods of this environment, and rows to edit."""

import pytest
import torch

from saccade_interventions.registry import Registry


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tiny matrices are slower with more."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def registry() -> Registry:
    return Registry.discover()


@pytest.fixture
def hidden() -> torch.Tensor:
    return torch.randn(7, 64, dtype=torch.float64)
