"""Tiny models for every test of the server."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch

from saccade_testing import launch as _launch
from saccade_testing import processors as _processors
from saccade_testing import templates as _templates
from saccade_testing import tiny as _tiny


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tiny models are slower with more."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def launch() -> ModuleType:
    """The module that starts servers in processes: ``Served``, ``COMMAND``, ``wait_for``."""
    return _launch


@pytest.fixture(scope="session")
def tiny() -> ModuleType:
    """The module of tiny models: ``FAMILIES``, ``build``, ``prompt`` and their constants."""
    return _tiny


@pytest.fixture(params=_tiny.BUILDERS)
def family(request: pytest.FixtureRequest) -> str:
    """Every family that is served: a test that takes it runs for each."""
    return request.param


@pytest.fixture(params=[name for name in _tiny.BUILDERS if name not in _tiny.TOWERS])
def decoder_family(request: pytest.FixtureRequest) -> str:
    """Every family whose decoder or way of showing images no other has; towers do not matter."""
    return request.param


@pytest.fixture
def tiny_model() -> Callable[..., Any]:
    """Build ``tiny_model(family)``, a random float64 transformers model with eager attention."""
    return _tiny.build


@pytest.fixture
def tiny_prompt() -> Callable[..., Any]:
    """Make ``tiny_prompt(family)``: tokens, and images with start, length, pixels and grid."""
    return _tiny.prompt


@pytest.fixture(scope="session")
def processors() -> ModuleType:
    """The module of model folders without weights: ``save(family, folder)``, ``picture``."""
    return _processors


@pytest.fixture(scope="session")
def templates() -> ModuleType:
    """The module of chat templates in the styles of published ones."""
    return _templates


@pytest.fixture(scope="session")
def prompt_folder(
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str], tuple[str, Any]]:
    """Make ``prompt_folder(family)``: a folder with all but weights, and what was saved in it."""
    made: dict[str, tuple[str, Any]] = {}

    def get(family: str) -> tuple[str, Any]:
        if family not in made:
            folder = tmp_path_factory.mktemp(family)
            made[family] = str(folder), _processors.save(family, folder)
        return made[family]

    return get
