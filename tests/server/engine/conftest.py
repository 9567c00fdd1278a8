"""An engine over a tiny model, and transformers' own generation to compare with."""

from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

import pytest

from saccade_server.engine.config import EngineConfig
from saccade_server.engine.core import EngineCore
from saccade_server.engine.request import GenerateRequest
from saccade_server.models.family import serve
from saccade_testing import engine
from saccade_testing import oracle as _oracle
from saccade_testing import steered as _steered
from saccade_testing import vhr as _vhr
from saccade_testing.engine import Result


@pytest.fixture(scope="session")
def oracle() -> ModuleType:
    """The module with transformers' generation under an edit: ``Oracle(model, edit)``."""
    return _oracle


@pytest.fixture(scope="session")
def steered() -> ModuleType:
    """The module with steering written out: ``Oracle(model, rows, residual, heads)``."""
    return _steered


@pytest.fixture(scope="session")
def vhr() -> ModuleType:
    """The module with VHR written out: ``Oracle(model, prompt, entry, edit)``."""
    return _vhr


MODES = {"ordinary": {}, "as-on-a-gpu": {"overlap": True, "padded_decode": True}}


@pytest.fixture
def core_with(tiny_model: Callable[..., Any]) -> Callable[..., EngineCore]:
    """``core_with(family, **config)``: an engine over a fresh tiny model."""

    def make(family: str = "llama", **config: Any) -> EngineCore:
        settings = {"max_num_seqs": 16, "cache_tokens": 8192, **config}
        return EngineCore(serve(tiny_model(family)), EngineConfig(model=family, **settings))

    return make


@pytest.fixture(params=MODES)
def make_core(
    request: pytest.FixtureRequest, core_with: Callable[..., EngineCore]
) -> Callable[..., EngineCore]:
    """:func:`core_with` in either way of working: whatever holds for one must for the other."""
    return partial(core_with, **MODES[request.param])


@pytest.fixture
def make_request() -> Callable[..., GenerateRequest]:
    """``make_request(prompt, name, plan, max_tokens, **sampling)``."""
    return engine.make_request


@pytest.fixture
def ask() -> Callable[..., GenerateRequest]:
    """``ask(prompt, methods, name, max_tokens, **sampling)``."""
    return engine.ask


@pytest.fixture
def run() -> Callable[..., dict[str, Result]]:
    """``run(core, requests)``: results by request id."""
    return engine.run


@pytest.fixture
def generate() -> Callable[..., list[int]]:
    """``generate(model, prompt, max_tokens)``: transformers' own greedy tokens."""
    return engine.generate
