"""Families of tiny models, for the tests of the server."""

from functools import cache
from typing import Any

import pytest
import torch

from saccade_testing import processors, tiny
from saccade_testing.processors import PromptFolder


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tiny models are slower with more."""
    torch.set_num_threads(1)


@pytest.fixture(params=tiny.BUILDERS)
def family(request: pytest.FixtureRequest) -> str:
    """Every family that is served: a test that takes it runs for each."""
    return str(request.param)


@pytest.fixture(params=[name for name in tiny.BUILDERS if name not in tiny.TOWERS])
def decoder_family(request: pytest.FixtureRequest) -> str:
    """Every family whose decoder or way of showing images no other has; towers do not matter."""
    return str(request.param)


@pytest.fixture(scope="session")
def prompt_folder(tmp_path_factory: pytest.TempPathFactory) -> PromptFolder:
    """Folders with all but weights, each made once, and what was saved in them."""

    @cache
    def made(family: str) -> tuple[str, Any]:
        folder = tmp_path_factory.mktemp(family)
        return str(folder), processors.save(family, folder)

    return made
